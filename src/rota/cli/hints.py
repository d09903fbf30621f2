"""What may have been meant: by a command that could not be started, by a file that many tasks write to."""

import os
import shlex
from pathlib import Path

from rota.cli.formats import safe
from rota.client.follow import task_indices
from rota.client.messages import Job, JobSpec

# What a shell does itself, and no file is there for in most places.
SHELL_OWN = frozenset(
    {
        ".",
        "[[",
        "{",
        "alias",
        "bg",
        "bind",
        "case",
        "cd",
        "declare",
        "dirs",
        "disown",
        "do",
        "eval",
        "exec",
        "exit",
        "export",
        "fg",
        "for",
        "function",
        "hash",
        "if",
        "jobs",
        "let",
        "local",
        "popd",
        "pushd",
        "read",
        "readonly",
        "return",
        "set",
        "shift",
        "shopt",
        "source",
        "time",
        "times",
        "trap",
        "type",
        "typeset",
        "ulimit",
        "umask",
        "unalias",
        "unset",
        "until",
        "wait",
        "while",
    }
)


def start_hint(spec: JobSpec) -> str:
    """A line for people, or nothing; by what is seen from here, which need not be the node."""
    if not spec.command or spec.script:
        return ""
    name = spec.command[0]
    words = [*spec.command, *([spec.path] if spec.path else [])]
    if "=" in name and "/" not in name.partition("=")[0]:
        return f"a variable is given by an option: --env {shlex.quote(name)}"
    if name in SHELL_OWN:
        other = "--cwd DIR, or " if name in ("cd", "pushd") else ""
        return f"'{name}' is the shell's own; try {other}sh -c {shlex.quote(shlex.join(words))}"
    if not name.strip():
        return "the name of the program is blank: is a variable not set?"
    if any(sign.isspace() for sign in name):
        alone = f"{name}, or " if len(words) == 1 and not set(name) & set("|&;<>()$`\\\"'*?[#~") else ""
        return (
            f"the command is one word with spaces in it; try -- {alone}sh -c {shlex.quote(' '.join(words))}"
        )
    file = Path(spec.cwd, name)
    # What is not executable the node has said so.
    if "/" not in name and file.is_file() and os.access(file, os.X_OK):
        return f"for the file in this directory try ./{name}"
    return ""


def shared_files(spec: JobSpec) -> list[str]:
    """A line for people for each file that all tasks of a job would write to, in no order."""
    said = []
    for stream, path in (("stdout", spec.stdout), ("stderr", spec.stderr)):
        own = "{index}" in path or ("{line}" in path and spec.lines)
        if path in ("", "none") or path.startswith("/dev/") or own or len(task_indices(Job(spec=spec))) < 2:
            continue
        name = f"job {safe(spec.name)}: " if spec.name else ""
        said.append(
            f"{name}every task writes its {stream} to {safe(path)}; with {{index}} in it each has its own"
        )
    return said

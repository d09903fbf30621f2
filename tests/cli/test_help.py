"""Help: of every command, with examples, and without importing what it does not need."""

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from rota.main.cli import root
from tests.cli.conftest import Rota

HEAVY = ("grpc", "google.protobuf", "yaml", "rich", "asyncio", "rota.wire", "rota.controller", "apsw")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands(root)), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], rota: Rota) -> None:
    answer = rota(*path, "--help")
    assert answer.code == 0
    assert answer.err == ""
    assert answer.out.startswith(f"Usage: rota {' '.join(path)} ")
    command: click.Command | None = root
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    if not isinstance(command, click.Group):
        assert f"rota {' '.join(path)}" in answer.out.split("\n", 1)[1], "no example"
    assert not re.search(r"\b(INTEGER|FLOAT|TEXT|RANGE)\b", answer.out), "a type in place of a meaning"


def examples() -> Iterator[str]:
    """What stands behind `rota` in the examples of all commands, each without its comment."""
    for path in commands(root):
        command: click.Command | None = root
        for name in path:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), name)
        assert command is not None
        for text in (command.epilog or "", command.help or ""):
            for line in text.splitlines():
                # Not 'rota down', which is quoted in a sentence.
                yield from re.findall(r"(?:^|[^'\w])rota (\S(?:\S| (?! ))*)", line)


@pytest.mark.parametrize("example", sorted(set(examples())))
def test_an_example_is_one_that_the_command_line_takes(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROTA_HOME", "as it was")
    monkeypatch.setenv("ROTA_TOKEN", "")
    lexer = shlex.shlex(example.replace('"', ""), posix=True, punctuation_chars="&|><)")
    lexer.whitespace_split = True
    words = list(itertools.takewhile(lambda word: word[0] not in "&|><)", lexer))
    group: click.Group = root
    context = click.Context(root, info_name="rota")
    while True:
        name, command, words = group.resolve_command(context, words)
        assert command is not None
        # Raises UsageError.
        context = command.make_context(name, words, parent=context)
        if not isinstance(command, click.Group):
            break
        group, words = command, [*context._protected_args, *context.args]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--hlep"], ["lss"]])
def test_what_needs_no_cluster_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from rota.cli.app import run\n"
        "from rota.main.cli import root\n"
        f"run(root, {arguments!r})\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], sep='\\n', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = set(done.stderr.split()) & set(HEAVY)
    # A mistyped option is answered by the command itself, which knows the client.
    assert arguments[0] == "run" or not heavy


def test_without_arguments_help_is_shown_and_it_is_a_usage_error(rota: Rota) -> None:
    answer = rota()
    assert answer.code == 2
    assert "Usage: rota" in answer.err
    assert "run a command" in answer.err


@pytest.mark.parametrize("path", [[], ["ls"], ["node", "cordon"]])
def test_help_is_a_command_too(path: list[str], rota: Rota) -> None:
    assert rota("help", *path) == rota(*path, "--help")


def test_version(rota: Rota) -> None:
    assert rota("--version").out.startswith("rota ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str, rota: Rota) -> None:
    answer = rota("completion", shell)
    assert answer.code == 0
    assert "_ROTA_COMPLETE" in answer.out


@pytest.mark.parametrize(
    ("shell", "words", "wanted"),
    [
        ("bash", "rota can", "plain,cancel"),
        ("bash", "rota submit --mem", "plain,--memory"),
        ("bash", "rota ls --state s", "plain,succeeded"),
        ("bash", "rota submit jo", "file,jo"),
        ("bash", "rota submit --on-node-loss rerun_", "plain,rerun_fenced"),
        ("bash", "rota queue u", "plain,update"),
        ("zsh", "rota can", "cancel"),
        ("fish", "rota can", "plain,cancel"),
    ],
)
def test_completion_completes_commands_options_and_files(shell: str, words: str, wanted: str) -> None:
    *ahead, last = words.split(" ")
    environment = {
        "_ROTA_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words if shell != "fish" else " ".join([*ahead, ""]),
        "COMP_CWORD": str(len(ahead)) if shell != "fish" else last,
    }
    done = subprocess.run(
        [sys.executable, "-m", "rota.main"], env=environment, capture_output=True, text=True, check=False
    )
    assert wanted in (line.split("\t")[0] for line in done.stdout.splitlines()), done
    assert done.returncode == 0


def test_completion_without_a_cluster_is_quick_and_says_nothing(tmp_path: Path) -> None:
    environment = {
        "_ROTA_COMPLETE": "bash_complete",
        "COMP_WORDS": "rota show ",
        "COMP_CWORD": "2",
        "ROTA_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "rota.main"], env=environment, capture_output=True, timeout=30, check=False
    )
    assert (done.stdout.strip(), done.stderr) == (b"", b"")

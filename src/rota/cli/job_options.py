"""The options that describe a job, for `rota run`, `rota submit` and the `#ROTA` lines of scripts."""

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from rota.cli import slurm
from rota.cli.app import shown, usage_text
from rota.cli.origins import Origins
from rota.cli.session import Dependency, NodeName, QueueName
from rota.cli.states import choices, value
from rota.client.errors import InvalidRequest
from rota.client.messages import DependencyWhen, JobSpec, OnNodeLoss
from rota.client.texts import RESOURCES, FieldPath, pair, problems_of, set_named, set_text
from rota.client.units import UnitError

if TYPE_CHECKING:
    # For a shell that completes alone.
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])
Options = dict[str, Any]

SCRIPT_MARK = "#ROTA"
SCRIPT_BYTES_MAX = 1_048_576
LINES_BYTES_MAX = 1_048_576
# So much of a file tells whether it is a text.
PROGRAM_BYTES_READ = 4_096

_MARKED = re.compile(rf"^({SCRIPT_MARK}|{slurm.SCRIPT_MARK})(?!\w)", re.MULTILINE)
_COMMENT = re.compile(r"\s#")
# `# ROTA`, `#rota`, `#ROTA:`
_NEARLY_MARKED = re.compile(rf"#\s*{SCRIPT_MARK[1:]}(\s*:|\s+-)", re.IGNORECASE)

# What an option's text becomes: option, field of the contract, placeholder, help.
_FIELDS = [
    ("--name", "name", "NAME", "A name for people; also for --after in job files."),
    ("--cpu", "resources.cpu", "N", "Cores of a task, as 2 or 0.5 (default: 1)."),
    ("--memory", "resources.memory", "SIZE", "Memory of a task, as 500MB or 2GiB."),
    ("--gpu", "resources.gpu", "N", "GPUs of a task."),
    ("--disk", "resources.disk", "SIZE", "Disk space of a task."),
    (
        "--array",
        "array",
        "INDICES",
        "One task an index: 0-99,200 or 0-98:2 (ten tasks: 0-9); {index} in any argument is replaced by it.",
    ),
    ("--max-running", "max_running", "N", "At most so many tasks at once (default: 0, no limit)."),
    (
        "--max-failures",
        "max_failures",
        "N",
        "Stop the job once more tasks than this have failed (default: never).",
    ),
    ("--cwd", "cwd", "DIR", "The tasks' directory (default: this one)."),
    (
        "--path",
        "path",
        "FILE",
        "One more argument (empty: none): a script that agents with --scripts-dir check.",
    ),
    (
        "--time-limit",
        "time_limit",
        "DURATION",
        "Stop a task after so long, as 90s or 1h30m (default: 0, never).",
    ),
    ("--signal", "signal", "SIGNAL@TIME", "Send a signal so long before the time limit: USR1@60s."),
    ("--grace", "grace", "DURATION", "Time between TERM and KILL (default: 10s)."),
    ("--retries", "retries", "N", "Try a failed task again so often (default: 0)."),
    ("--backoff", "backoff", "DURATION", "Wait so long before a retry, doubled each time (default: 0)."),
    (
        "--on-node-loss",
        "on_node_loss",
        "WHAT",
        "When a node is lost: rerun (the default), rerun_fenced, hold or cancel.",
    ),
    (
        "--rerun-after",
        "rerun_after",
        "DURATION",
        "For rerun: wait so long for a silent node (default: --lost-after of the controller).",
    ),
    ("--queue", "queue", "NAME", "The queue (default: default)."),
    ("--priority", "priority", "N", "Higher runs first, -1000 to 1000 (default: 0)."),
    ("--node", "node", "NAME", "Run on this node alone."),
    (
        "--stdout",
        "stdout",
        "PATH|none",
        "Write standard output to a file on the node, or keep none; {index} and {line} are replaced.",
    ),
    ("--stderr", "stderr", "PATH|none", "The same for standard error."),
    (
        "--retention",
        "retention",
        "DURATION",
        "Keep the ended job and its output so long, 1m or more (default: 7d).",
    ),
]


class _LossPolicy(click.ParamType[str]):
    """A word that is checked with the rest of the job; a shell completes it."""

    name = "WHAT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in choices(OnNodeLoss) if word.startswith(incomplete)]


# Beside texts: what a shell completes.
_TYPES: dict[str, click.ParamType[str]] = {
    "--queue": QueueName(),
    "--node": NodeName(),
    "--on-node-loss": _LossPolicy(),
    "--after": Dependency(),
}

# Those that may stand several times.
_REPEATED = [
    ("--resource", "resources.named", "NAME=N", "Another resource of a task, as power=10."),
    ("--env", "env", "K=V|K", "A variable for the tasks; K alone takes its value from here."),
    ("--after", "after", "ID[:WHEN]", "Start when a job has succeeded, or :finished, or :failed."),
    ("--label", "labels", "K=V", "A label, for 'rota ls --label'."),
]

OPTIONS = {
    **{path: option for option, path, _, _ in (*_FIELDS, *_REPEATED)},
    "lines": "--each-line",
    "command": "COMMAND",
    "script": "the script",
    "resources": "",
    "": "the job",
}
"""What people know each field of a job by. Of some nothing can be wrong that an option alone has said."""


def job_options(function: F) -> F:
    """All of them; the function gets them as keywords, which `spec_of` understands."""
    for option, _, metavar, says in reversed(_REPEATED):
        kind = _TYPES.get(option)
        function = click.option(option, type=kind, multiple=True, metavar=metavar, help=says)(function)
    lines = click.option(
        "--each-line",
        type=click.Path(),
        metavar="FILE",
        help="One task a line of a file; {line} in any argument is replaced by it.",
    )
    function = lines(function)
    for option, _, metavar, says in reversed(_FIELDS):
        function = click.option(option, type=_TYPES.get(option), metavar=metavar, help=says)(function)
    return function


@dataclass(frozen=True, slots=True)
class MadeJob:
    """The job that options describe."""

    spec: JobSpec
    origins: Origins

    def tell(self, number: int, path: str, says: str) -> str:
        """What is wrong with it, by the option; `number` is 0."""
        return self.origins.tell(path, says)


def job_of(
    options: Mapping[str, Any],
    *,
    command: Sequence[str] = (),
    script: str = "",
    stdin: bool = False,
    lines: "ScriptOptions | None" = None,
) -> MadeJob:
    """The job that options describe; `lines` are a script's. Raises InvalidRequest with all that is wrong."""
    made = _Made(lines or ScriptOptions())
    made.try_to(("command",), "command", lambda: made.spec.command.extend(command))
    made.spec.script = script
    for option, path, _, _ in _FIELDS:
        if (text := options.get(_parameter(option))) is not None:
            made.give(option, path, text)
    for option, path, _, _ in _REPEATED:
        for number, text in enumerate(options.get(_parameter(option)) or ()):
            made.give(option, path, text, number)
    if (name := options.get("each_line")) is not None:
        made.give("--each-line", "lines", name)
    made.spec.cwd = absolute(made.spec.cwd)
    made.spec.stdin = stdin and not {"array", "each_line"} & set(options)
    if made.spec.stdin and made.spec.retries:
        says = "another attempt could not read standard input, which is gone then; '-n' leaves it out"
        made.refuse(("retries",), "retries", says)
    made.check()
    if made.problems:
        raise InvalidRequest(made.problems)
    return MadeJob(made.spec, made.origins)


def _parameter(option: str) -> str:
    return option[2:].replace("-", "_")


def absolute(cwd: str) -> str:
    """A task's directory, seen from here: the client's own where none is given. Raises InvalidRequest."""
    try:
        return os.path.normpath(cwd if Path(cwd).is_absolute() else Path.cwd() / cwd)
    except FileNotFoundError as error:
        raise InvalidRequest(
            "the current directory has been removed: change to another one, or give --cwd DIR"
        ) from error


class _Made:
    """A job in the making."""

    def __init__(self, lines: "ScriptOptions") -> None:
        self.spec = JobSpec()
        self.origins = Origins(OPTIONS)
        self.problems = list(lines.problems)
        self._places = lines.places
        self._unread: set[FieldPath] = set()

    def give(self, option: str, path: str, text: str, number: int = 0) -> None:
        """Sets what an option says; `number`: of those that are there several times, counted from 0."""
        place = dict(enumerate(self._places.get(_parameter(option), ()))).get(number, "")
        name, equals, _ = text.partition("=")
        fields: FieldPath = tuple(path.split("."))
        at = path
        if path == "after":
            fields, at = (*fields, number), f"{path}[{number}]"
            self.origins.note(at, place)
        elif path in ("env", "labels", "resources.named"):
            fields, at = (*fields, name), f"{path}.{name}"
            self.origins.note(at, place, name=name if equals else "")
        else:
            self.origins.note(at, place)
        act = {
            "--resource": self._resource,
            "--env": self._env,
            "--after": self._after,
            "--label": self._label,
            "--each-line": self._lines,
        }.get(option, partial(self._field, path))
        self.try_to(fields, at, partial(act, text))

    def try_to(self, fields: FieldPath, at: str, act: Callable[[], None]) -> None:
        """Does it; what is wrong with the text becomes a problem. `at` is the path as the origins know it."""
        try:
            act()
        except UnitError as error:
            self.refuse(fields, at, str(error))
        except UnicodeEncodeError as error:
            self.refuse(fields, at, f"'{shown(error.object)}' is not UTF-8 text; Rota takes no other")

    def refuse(self, fields: FieldPath, at: str, says: str) -> None:
        """What is wrong with a field; nothing more is said of it."""
        self._unread.add(fields)
        self.problems.append(self.origins.tell(at, says))

    def check(self) -> None:
        """Adds what is wrong with the job, but for what follows from what could not be read."""
        found = problems_of(self.spec, self._unread)
        self.problems += [self.origins.tell(path, says) for path, says in found]

    def _field(self, path: str, text: str) -> None:
        if path != "path" or text:  # without a path, the command runs alone
            refuse_empty(text)
        if path == "array" and (hint := slurm.array_hint(text)):
            raise UnitError(f"'{text}' is how Slurm says it; here it is {hint}")
        if path in ("stdout", "stderr") and (hint := slurm.path_hint(text)):
            raise UnitError(f"'{text}' is how Slurm says it; here it is {hint}")
        set_text(self.spec, path, text)

    def _resource(self, text: str) -> None:
        name, number = pair(text, "power=10")
        if name in RESOURCES:
            raise UnitError(f"'{text}' has an option of its own: --{name} {number}")
        set_named(self.spec.resources, name, number)

    def _env(self, text: str) -> None:
        key, equals, text = text.partition("=")
        if not equals:
            if key not in os.environ:
                raise UnitError(f"'{key}' is not set here; give a value, as in --env {key}=1")
            text = os.environ[key]
        self.spec.env[key] = text

    def _after(self, text: str) -> None:
        # Also of one that is refused, so that those behind it keep their place.
        dependency = self.spec.after.add()
        refuse_empty(text)
        job, colon, when = text.partition(":")
        if hint := slurm.after_hint(text):
            raise UnitError(f"'{text}' is no dependency; here it is {hint}")
        if colon and when not in choices(DependencyWhen):
            raise UnitError(f"'{text}' is no dependency; try {job or 41}:finished")
        dependency.job = job
        if colon:
            dependency.when = value(DependencyWhen, when)

    def _label(self, text: str) -> None:
        key, text = pair(text, "team=video")
        self.spec.labels[key] = text

    def _lines(self, name: str) -> None:
        refuse_empty(name)
        text = _read_text(name, LINES_BYTES_MAX)
        self.spec.lines.extend(
            line.removesuffix("\r") for line in text.removesuffix("\n").split("\n") if text
        )
        if not self.spec.lines:
            raise UnitError(f"{name} has no lines, so there is nothing to run")


def refuse_empty(text: str) -> None:
    """An empty text is a shell's variable that is not set, and never meant. Raises UnitError."""
    if not text.strip():
        raise UnitError("is empty; give a value, or leave the option out")


def _read_text(name: str, bytes_max: int) -> str:
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise UnitError(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > bytes_max:
        raise UnitError(f"{name} is larger than {bytes_max // 2**20} MiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnitError(f"{name} is not UTF-8 text (line {line})") from error


# ---------------------------------------------------------------- scripts


def read_script(path: str) -> str:
    """The text of a script. Raises InvalidRequest."""
    try:
        if _is_program(path):
            name = path if "/" in path else f"./{path}"
            raise InvalidRequest(f"{path} is a program, and no script; try: rota submit -- {name}")
        text = _read_text(path, SCRIPT_BYTES_MAX)
        name = "standard input" if path == "-" else path
        if not text.strip():
            raise InvalidRequest(f"{name} is empty, so there is nothing to run")
        if path.endswith(".sh") or text.startswith("#!") or _MARKED.search(text):
            return text
        marks = f"a text that begins with '#!' or has a line '{SCRIPT_MARK}'"
        if path == "-":
            raise InvalidRequest(f"{name} is no script ({marks}); a job file is submitted by its name")
        raise InvalidRequest(
            f"{name} is no job file (*.yaml, *.yml, *.json), and no script (*.sh, or {marks})"
        )
    except UnitError as error:
        hint = "" if Path(path).exists() else f"; to submit a command, try: rota submit -- {path}"
        raise InvalidRequest(f"{error}{hint}") from error


def _is_program(path: str) -> bool:
    """Whether a file is no text at all. One that cannot be read is not."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            return b"\0" in file.read(PROGRAM_BYTES_READ)
    except OSError:
        return False


def doubtful_lines(path: str, text: str) -> list[str]:
    """A line for people where lines look as if they were options, and are not read; the first is named."""
    misspelt, late = [], []
    ahead = True
    for number, line in enumerate(text.split("\n"), 1):
        ahead = ahead and (not line.strip() or line.startswith("#"))
        if line.split(" ", 1)[0].strip() == SCRIPT_MARK:
            if not ahead:
                late.append(number)
        elif ahead and _NEARLY_MARKED.match(line):
            misspelt.append(number)
    said = []
    if misspelt:
        said.append(
            f"{path}:{misspelt[0]}: is not read: options stand in lines that begin with '{SCRIPT_MARK} '"
        )
    if late:
        said.append(f"{path}:{late[0]}: is not read: '{SCRIPT_MARK}' lines stand ahead of the first command")
    return said


@dataclass(slots=True)
class ScriptOptions:
    """What the `#ROTA` lines of a script say, where each option stands, and what is wrong with the lines.

    `places`: by parameter, one (`job.sh:3`) for each time that the option is there and counts.
    """

    options: Options = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def script_options(path: str, text: str) -> ScriptOptions:
    """The options in the lines ahead of a script's first command."""
    found = ScriptOptions()
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            break
        if line.split(" ", 1)[0].strip() != SCRIPT_MARK:
            continue
        place = f"{path}:{number}"
        rest = line.removeprefix(SCRIPT_MARK)
        try:
            given = _parse(shlex.split(rest))
        except (ValueError, click.UsageError) as error:
            says = usage_text(error) if isinstance(error, click.UsageError) else str(error).lower()
            if _COMMENT.search(rest):
                says += "; a comment stands on a line of its own"
            found.problems.append(f"{says} ({place})")
        else:
            merge(found.options, given)
            for name, texts in given.items():
                kept = found.places.get(name, []) if isinstance(texts, tuple) else []
                found.places[name] = [*kept, *([place] * len(texts) if isinstance(texts, tuple) else [place])]
    return found


def merge(options: Options, later: Mapping[str, Any]) -> None:
    """Adds options that come later: they win, or are added where an option may stand several times."""
    for name, given in later.items():
        options[name] = (*options[name], *given) if isinstance(given, tuple) and name in options else given


def given_options(ctx: click.Context) -> Options:
    """The options of a job that stand on the command line."""
    names = {parameter.name for parameter in _LINE.params}
    return {
        name: given
        for name, given in ctx.params.items()
        if name in names and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


@click.command(add_help_option=False)
@job_options
def _LINE(**_: object) -> None:  # noqa: N802 (a constant)
    """One `#ROTA` line."""


def _parse(words: Sequence[str]) -> Options:
    return given_options(_LINE.make_context(SCRIPT_MARK, list(words)))

"""Makes the parts of the documentation that follow from the code: `make docs`.

On a page, such a part stands between `<!-- made by make docs: NAME -->` and `<!-- end of NAME -->`; PARTS
names them all. tests/docs/test_generated.py fails when one is out of date.
"""

import dataclasses
import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import click
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet

import rota.main.cli  # noqa: F401 (which adds its commands to the root)
from rota.cli.app import root
from rota.core.model import states
from rota.core.model.resources import Resources
from rota.core.model.spec import CPU_DEFAULT, JobSpec
from rota.wire.gen.v1 import rules_pb2
from rota.wire.units import bytes_text, milliseconds_text, thousandths_text
from rota.wire.validate import enum_choices
from tools.generate import googleapis_folder

ROOT = Path(__file__).resolve().parent.parent
JOB_PROTO = "rota/v1/job.proto"

_PART = re.compile(r"(<!-- made by make docs: (\S+) -->\n).*?(<!-- end of \2 -->\n)", re.DOTALL)


class DocsError(Exception):
    """A page or a table here does not fit the code; the text says which, and what to do."""


# ---------------------------------------------------------------- causes and events, in words

CAUSES = {
    "EXIT": "The program ended by itself; the code is its exit code, and 0 is a success.",
    "SIGNAL": "A signal that Rota did not send ended the program; the code is the signal's number.",
    "OOM": "The kernel killed the task because it used more memory than its limit. Only where the agent has "
    "the memory controller; elsewhere it is `SIGNAL 9`.",
    "TIME_LIMIT": "The task ran for longer than its `time_limit`, and was stopped.",
    "DEADLINE": "Reserved: what ran was stopped at a deadline, and is not tried again.",
    "PREEMPTED": "The task was stopped because its node was drained or its agent shut down, "
    "also where it then exited with 0.",
    "NODE_LOST": "The node was silent for too long, or was removed; `on_node_loss` says what follows.",
    "NODE_REBOOT": "The node has booted anew, so what ran there is gone.",
    "AGENT_ERROR": "The agent (its supervisor) ended, and the task with it.",
    "START_FAILED": "There was no process: no such program or directory, no account; the message says which.",
    "DEPENDENCY": "A job that this one was to run `after` did not end as asked.",
    "STOPPED": "Somebody cancelled the job or the task.",
    "POISON": "The task was running three times when its agent or node died; it is not tried a fourth time.",
}

EVENTS = {
    "JOB_SUBMITTED": "A job was accepted.",
    "JOB_STARTED": "The first task of a job runs (after a retry: again).",
    "JOB_ENDED": "All tasks of a job have ended; with how many in which way.",
    "JOB_HELD": "Somebody held a job.",
    "JOB_RELEASED": "Somebody released a job.",
    "JOB_CANCEL_REQUESTED": "Somebody cancelled a job.",
    "JOB_RETRIED": "Failed and cancelled tasks were put back.",
    "JOB_REMOVED": "The retention of an ended job is over; the job and its output are gone.",
    "JOB_STALLED": "A node failed a job so quickly, so often, that the job gets no more of that node.",
    "ATTEMPT_ENDED": "An attempt ended other than well; the first hundred of a job.",
    "TASK_HELD": "A task waits for its lost node, or for somebody to release its job.",
    "TASK_CANCELLED": "Somebody cancelled some tasks of a job.",
    "NODE_REGISTERED": "A machine joined with a token.",
    "NODE_READY": "A node is connected, and what it holds is known.",
    "NODE_SUSPECT": "A node's stream closed, or it is silent; nothing new is placed there.",
    "NODE_DISCONNECTED": "It has been silent for longer.",
    "NODE_LOST": "It has been silent for `--lost-after`; the jobs' `on_node_loss` is applied.",
    "NODE_GONE": "A node was removed.",
    "NODE_CHANGED": "Somebody cordoned, drained, resumed or labelled a node.",
    "NODE_REFUSED": "An agent was refused; the message says why.",
    "LEASE_OPENED": "Slots of one size were set aside on a node for a queue.",
    "LEASE_CLOSED": "They were given back.",
    "QUEUE_CHANGED": "A queue was made, changed or removed.",
    "TOKEN_CHANGED": "A join token was made or revoked.",
    "LEADER_CHANGED": "A controller begins to lead: after each of its starts, or in place of another.",
    "ALARM": "Somebody should look: more than half of the nodes fell silent at once.",
}


def _causes() -> str:
    _complete("CAUSES", CAUSES, states.Cause)
    rows = []
    for cause in states.Cause:
        free = cause in {*states.NOT_THE_TASKS_FAULT, states.Cause.STOPPED, states.Cause.DEPENDENCY}
        rows.append((f"`{cause.name}`", CAUSES[cause.name], "no" if free else "yes"))
    return _table(("cause", "what happened", "counts as a failure of the task"), rows)


def _events() -> str:
    _complete("EVENTS", EVENTS, states.EventKind)
    rows = [(f"`{kind.name}`", EVENTS[kind.name]) for kind in states.EventKind]
    return _table(("event", "what happened"), rows)


def _complete(name: str, texts: Mapping[str, str], kind: type[IntEnum]) -> None:
    wrong = set(texts) ^ {each.name for each in kind}
    if wrong:
        raise DocsError(
            f"{name} in tools/docs.py and {kind.__name__} differ in {', '.join(sorted(wrong))}: "
            "say in a sentence what each means"
        )


# ---------------------------------------------------------------- states


def _moves(moves: Mapping[Any, frozenset[Any]], first: IntEnum, ends: Collection[IntEnum]) -> str:
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.name}"]
    for state, targets in moves.items():
        why = ": retry" if state in ends else ""
        lines += [f"    {state.name} --> {target.name}{why}" for target in sorted(targets)]
    lines += [f"    {state.name} --> [*]" for state in sorted(ends)]
    return "\n".join([*lines, "```"])


# ---------------------------------------------------------------- the keys of a job file


def _job_file() -> str:
    return _message_table("JobSpec", _defaults(JobSpec()))


def _resources() -> str:
    return _message_table("Resources", {"cpu": thousandths_text(CPU_DEFAULT)})


def _dependency() -> str:
    return _message_table("Dependency", {"when": "succeeded"})


def _message_table(name: str, defaults: Mapping[str, str]) -> str:
    rows = []
    for field, rules, says in _fields(name):
        rows.append(
            (f"`{field.name}`", _kind(field, rules), _limits(rules), defaults.get(field.name, ""), says)
        )
    return _table(("key", "value", "limits", "default", "what it says"), rows)


def _fields(name: str) -> Iterator[tuple[FieldDescriptorProto, rules_pb2.Rules, str]]:
    """The fields of a message of job.proto: each with its rules, and the comment above it."""
    (file,) = (each for each in _contract().file if each.name == JOB_PROTO)
    comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
    (number,) = (at for at, each in enumerate(file.message_type) if each.name == name)
    message: DescriptorProto = file.message_type[number]
    for at, field in enumerate(message.field):
        # 4 is message_type in a file, 2 is field in a message (descriptor.proto).
        says = " ".join(comments.get((4, number, 2, at), "").split())
        yield field, field.options.Extensions[rules_pb2.rules], says


def _contract() -> FileDescriptorSet:
    """job.proto with its comments, which the generated code does not have."""
    import grpc_tools

    include = [ROOT / "proto", Path(grpc_tools.__file__).parent / "_proto", googleapis_folder()]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "set.binpb")
        command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{path}" for path in include)]
        command += ["--include_source_info", "--include_imports", f"--descriptor_set_out={made}", JOB_PROTO]
        subprocess.run(command, check=True)
        return FileDescriptorSet.FromString(made.read_bytes())


_UNIT_NAMES = {
    rules_pb2.UNIT_THOUSANDTHS: "number, as `2` or `0.5`",
    rules_pb2.UNIT_BYTES: "size, as `500MB` or `2GiB`",
    rules_pb2.UNIT_MILLISECONDS: "duration, as `90s` or `1h30m`",
    rules_pb2.UNIT_INDICES: "indices, as `0-99,200` or `0-98:2`",
    rules_pb2.UNIT_SIGNAL: "signal, as `USR1@60s`",
}
_UNIT_TEXTS: dict[int, Callable[[int], str]] = {
    rules_pb2.UNIT_THOUSANDTHS: thousandths_text,
    rules_pb2.UNIT_BYTES: bytes_text,
    rules_pb2.UNIT_MILLISECONDS: milliseconds_text,
}
_TYPE_NAMES = {
    FieldDescriptorProto.TYPE_STRING: "text",
    FieldDescriptorProto.TYPE_BOOL: "`true` or `false`",
}


def _kind(field: FieldDescriptorProto, rules: rules_pb2.Rules) -> str:
    many = field.label == FieldDescriptorProto.LABEL_REPEATED
    of = field.type_name.rpartition(".")[2]
    if field.type == FieldDescriptorProto.TYPE_ENUM:
        return " or ".join(f"`{choice}`" for choice in enum_choices(_enum(of)))
    if of.endswith("Entry"):
        return f"mapping of names to {_UNIT_NAMES.get(rules.unit, 'texts').replace('number', 'numbers')}"
    if field.type == FieldDescriptorProto.TYPE_MESSAGE:
        return f"list of [{of}](#{of.lower()})" if many else f"[{of}](#{of.lower()})"
    one = _UNIT_NAMES.get(rules.unit) or _TYPE_NAMES.get(field.type, "whole number")
    return f"list of {one}s" if many else one


def _enum(name: str) -> Any:
    from rota.wire.gen.v1 import job_pb2

    return job_pb2.DESCRIPTOR.enum_types_by_name[name]


def _limits(rules: rules_pb2.Rules) -> str:
    text = _UNIT_TEXTS.get(rules.unit, "{:,}".format)
    found = ["required"] if rules.required else []
    if rules.HasField("min") and rules.HasField("max"):
        found.append(f"{text(rules.min)} to {text(rules.max)}")
    elif rules.HasField("max"):
        found.append(f"at most {text(rules.max)}")
    if rules.HasField("items_max"):
        found.append(f"at most {rules.items_max:,} items")
    if rules.HasField("length_max"):
        found.append(f"at most {rules.length_max:,} characters")
    if rules.HasField("bytes_max"):
        found.append(f"at most {rules.bytes_max:,} bytes each")
    if rules.HasField("total_bytes_max"):
        found.append(f"{bytes_text(rules.total_bytes_max)} in all")
    if rules.HasField("pattern"):
        found.append(rules.pattern_says)
    if rules.HasField("key_pattern"):
        found.append(f"names of {rules.key_pattern_says}")
    return "; ".join(found)


def _defaults(spec: JobSpec) -> dict[str, str]:
    """What a key says that is left out, as it would be written; nothing where that is nothing."""
    durations = {"grace", "retention"}
    found = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, Resources):
            found[field.name] = f"`{{cpu: {thousandths_text(value.cpu)}}}`"
        elif isinstance(value, IntEnum):
            found[field.name] = f"`{value.name.lower()}`"
        elif value and field.name in durations:
            found[field.name] = f"`{milliseconds_text(value)}`"
        elif value:
            found[field.name] = f"`{value}`"
    return found


# ---------------------------------------------------------------- the command line


def _commands() -> str:
    return "\n\n".join(_command(root, ("rota",)))


def every_command(group: click.Command = root, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names of all commands, groups left out: `("node", "ls")`."""
    if not isinstance(group, click.Group):
        yield path
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield from every_command(command, (*path, name))


def _command(command: click.Command, path: tuple[str, ...]) -> Iterator[str]:
    context = click.Context(command, info_name=" ".join(path))
    if len(path) > 1:
        yield f"## {' '.join(path)}"
    yield _plain(command.help or "")
    usage = " ".join(filter(None, command.collect_usage_pieces(context)))
    yield f"```text\n{' '.join(path)} {usage}\n```"
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    records = [each.get_help_record(context) for each in options if "--help" not in each.opts]
    rows = [(f"`{record[0]}`", _escaped(record[1])) for record in records if record is not None]
    if rows:
        yield _table(("option", ""), rows)
    if command.epilog and len(path) > 1:
        yield _examples(command.epilog)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, name
            yield from _command(inner, (*path, name))


def _plain(text: str) -> str:
    """A help text: paragraphs that click would fill in lines, the others as they are."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    plain = []
    for paragraph in paragraphs:
        if paragraph.startswith("\b"):
            plain.append(f"```text\n{inspect.cleandoc(paragraph.removeprefix(chr(8)))}\n```")
        else:
            plain.append(_escaped(" ".join(paragraph.split())))
    return "\n\n".join(plain)


def _examples(epilog: str) -> str:
    parts = [part.strip("\n") for part in inspect.cleandoc(epilog).split("\b\n")]
    return "```text\n" + "\n\n".join(filter(None, parts)) + "\n```"


# ---------------------------------------------------------------- pages


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("<", r"\<").replace("*", r"\*")


PARTS: dict[str, Callable[[], str]] = {
    "commands": _commands,
    "job-keys": _job_file,
    "resource-keys": _resources,
    "dependency-keys": _dependency,
    "causes": _causes,
    "events": _events,
    "job-states": lambda: _moves(states.JOB_MOVES, states.JobState.PENDING, states.JOB_ENDS),
    "task-states": lambda: _moves(states.TASK_MOVES, states.TaskState.PENDING, states.TASK_ENDS),
    "node-states": lambda: _moves(states.NODE_MOVES, states.NodeState.READY, {states.NodeState.GONE}),
}


def made(text: str, used: set[str] | None = None) -> str:
    """A page with its parts made anew; their names are added to `used`. Raises DocsError."""

    def part(match: re.Match[str]) -> str:
        name = match[2]
        if name not in PARTS:
            raise DocsError(f"there is no part '{name}'; known are {', '.join(PARTS)}")
        if used is not None:
            used.add(name)
        return f"{match[1]}\n{PARTS[name]()}\n\n{match[3]}"

    return _PART.sub(part, text)


def main() -> int:
    """Entry point of `python -m tools.docs`."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        try:
            old = path.read_text()
            new = made(old)
        except DocsError as error:
            print(f"{path.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 1
        if new != old:
            path.write_text(new)
            print(f"docs: {path.relative_to(ROOT)} is new")
    return 0


if __name__ == "__main__":
    sys.exit(main())

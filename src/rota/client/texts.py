"""What people write, as messages: by the fields' types and the units that the contract gives them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from rota.client.errors import InvalidRequest
from rota.client.messages import JobSpec, Resources, SubmitJobsRequest
from rota.wire import problems, units
from rota.wire.problems import BadInput, follows, path_of, path_text
from rota.wire.validate import rules_of, validate
from rota.wire.values import value_of

RESOURCES = tuple(field.name for field in Resources.DESCRIPTOR.fields if field.name != "named")
"""The resources that are fields of their own; all others are named."""

FieldPath = problems.Path
"""`("after", 0, "job")`: field names, places in lists, keys of maps."""


def set_text(message: Message, path: str, text: str) -> None:
    """Sets a field (`time_limit`, `resources.memory`) to what a text says. Raises UnitError."""
    *outer, name = path.split(".")
    for each in outer:
        message = getattr(message, each)
    field = message.DESCRIPTOR.fields_by_name[name]
    setattr(message, name, value_of(text, field, rules_of(field).unit))


def set_named(resources: Resources, name: str, text: str) -> None:
    """Sets a resource that the cluster's owners named. Raises UnitError."""
    field: Any = Resources.DESCRIPTOR.fields_by_name["named"]
    amount = field.message_type.fields_by_name["value"]
    resources.named[name] = value_of(text, amount, rules_of(field).unit)


def pair(text: str, example: str) -> tuple[str, str]:
    """Name and value of `NAME=VALUE`. Raises UnitError."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise units.UnitError(f"'{text}' has no name and value; try {example}")
    return name, value


def resources_from_texts(texts: Mapping[str, str], label: str) -> Resources:
    """`{"cpu": "64", "memory": "1TiB", "power": "10"}`. Raises InvalidRequest, each problem with `label`."""
    made = Resources()
    wrong = []
    for name, text in texts.items():
        try:
            if name in RESOURCES:
                set_text(made, name, text)
            else:
                set_named(made, name, text)
        except units.UnitError as error:
            wrong.append(f"{label} {name}: {error}")
    if wrong:
        raise InvalidRequest(wrong)
    return made


# ---------------------------------------------------------------- whole jobs


def problems_of(spec: JobSpec, unread: Collection[FieldPath] = ()) -> list[tuple[str, str]]:
    """What is wrong with a job by itself: (the field's path, `resources.memory`, what is wrong with it).

    `unread`: of which it has been said already that they could not be read, and so all that follows from it.
    """
    found = validate(SubmitJobsRequest(jobs=[spec]))
    # Every path begins with jobs[0].
    known = {("jobs", 0, *path) for path in unread}
    return [(path_text(problem.path[2:]), problem.says) for problem in found if not follows(problem, known)]


@dataclass(frozen=True, slots=True)
class JobFile:
    """The jobs of a file. `tell`: (number of a job, path of a field in it, what is wrong) with its place."""

    jobs: Sequence[JobSpec]
    tell: Callable[[int, str, str], str]


def read_job_file(path: str) -> JobFile:
    """The jobs of a YAML file. Raises InvalidRequest with all that is wrong, and where."""
    # Here, because nothing else pays for YAML.
    from rota.wire.tree import FILE_BYTES_MAX
    from rota.wire.yaml import read_jobs

    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = read_jobs(data, path)
        return JobFile(found.jobs, lambda job, field, says: str(found.problem(job, path_of(field), says)))
    except BadInput as bad:
        raise InvalidRequest(map(str, bad.problems)) from bad

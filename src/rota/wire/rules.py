"""The rules that no single field can keep, one function for each; `validate` applies them all."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from rota.core.model import indexset
from rota.wire.gen.v1 import cluster_pb2, job_pb2, job_service_pb2
from rota.wire.problems import LINES_MAX, PROBLEMS_MAX, Path, Problem
from rota.wire.units import UnitError, bytes_text, milliseconds_text, parse_signal, quoted

SPEC_BYTES_MAX = 1280 * 1024
"""A job, serialised: so that its template fits into what nodes accept, whatever else is in it."""

VARIABLES_OF_ROTA = frozenset(
    f"ROTA_{name}"
    for name in (
        "JOB_ID",
        "TASK_INDEX",
        "TASK_COUNT",
        "ATTEMPT",
        "NODE_NAME",
        "NODE_ID",
        "LINE",
        "GPUS",
    )
)
"""What agents say to tasks, whatever a job's `env` says of it."""

JOB_NUMBER_MAX = 2**63 - 1
CYCLE_SHOWN_MAX = 8

HINTS_MAX = LINES_MAX
HINT_NAMES_MAX = 300
HINT_LENGTH_MAX = 64
"""What was meant is looked for letter by letter: only for what people see, and among few and short names."""


def submission(request: job_service_pb2.SubmitJobsRequest) -> list[Problem]:
    """What is wrong with jobs as a whole, and among them."""
    problems = []
    depends = False
    for number, job in enumerate(request.jobs):
        given = {field.name for field, _ in job.ListFields()}
        depends = depends or "after" in given
        for check, of, reads in _CHECKS:
            if of and given.isdisjoint(of):
                continue
            for path, says in check(job):
                beside = tuple(("jobs", number, name) for name in reads)
                problems.append(Problem(("jobs", number, *path), says, beside=beside))
    return problems + (_dependencies(request.jobs) if depends else [])


_Found = list[tuple[Path, str]]
"""Problems of one job, with the path within it."""


def _command(job: job_pb2.JobSpec) -> _Found:
    if not (job.command or job.script or job.path):
        return [(("command",), "is missing: a job needs a command, a script or a path")]
    if job.command and not job.command[0] and not job.script:
        return [(("command", 0), "is empty; a command begins with the name of a program")]
    return []


def _task_count(job: job_pb2.JobSpec) -> int | None:
    """How many tasks the array and the lines make; None where they are no array."""
    if not job.array:
        return len(job.lines) or 1
    try:
        return len(indexset.parse(job.array, indexset.TASK_COUNT_MAX))
    except indexset.NotIndices:
        return None  # which has been said of the field


def _lines(job: job_pb2.JobSpec) -> _Found:
    count = _task_count(job)
    if count is None or not job.lines or count == len(job.lines):
        return []
    lines = "1 line" if len(job.lines) == 1 else f"{len(job.lines):,} lines"
    has = f"has {lines} for the {count:,} task{'s' if count != 1 else ''} of array"
    return [(("lines",), f"{has}; give one line a task, or leave array out")]


def _stdin(job: job_pb2.JobSpec) -> _Found:
    count = _task_count(job)
    if not job.stdin or count == 1 or count is None:
        return []
    return [(("stdin",), f"only a job of one task can read standard input, and this one has {count:,}")]


def _stdin_again(job: job_pb2.JobSpec) -> _Found:
    if not (job.stdin and job.retries):
        return []
    says = "a job that reads standard input is not run again: what an attempt has read is gone"
    return [(("retries",), says)]


def _kind(job: job_pb2.JobSpec) -> _Found:
    if job.kind != job_pb2.JOB_KIND_SERVICE:
        instead = f"say `array: 0-{job.replicas - 1}` for {job.replicas:,} tasks"
        says = f"is for services, which are not run yet; {instead if job.replicas > 1 else 'leave it out'}"
        return [(("replicas",), says)] if job.replicas else []
    found: _Found = []
    if not job.replicas:
        found.append((("replicas",), "is missing: a service needs at least 1"))
    for name, given in (("array", bool(job.array)), ("lines", bool(job.lines)), ("stdin", job.stdin)):
        if given:
            found.append(((name,), "is not for a service, whose instances are all alike; say `replicas`"))
    return found


def _environment(job: job_pb2.JobSpec) -> _Found:
    says = "is set by Rota itself for each task; give yours another name"
    return [(("env",), f"{quoted(name)} {says}") for name in sorted(VARIABLES_OF_ROTA & set(job.env))]


def _output(job: job_pb2.JobSpec) -> _Found:
    says = "'-' would be a file of this name; leave it out, and the output is kept for 'rota logs'"
    return [((name,), says) for name in ("stdout", "stderr") if getattr(job, name) == "-"]


def _signal(job: job_pb2.JobSpec) -> _Found:
    try:
        ahead_ms = parse_signal(job.signal).ahead_ms if job.signal else 0
    except UnitError:
        return []  # which has been said of the field
    if not ahead_ms:
        return []
    if not job.time_limit:
        return [(("signal",), f"{quoted(job.signal)} counts from the end of a time_limit, and there is none")]
    if ahead_ms >= job.time_limit:
        limit = milliseconds_text(job.time_limit)
        return [(("signal",), f"{quoted(job.signal)} would come before the start: the time_limit is {limit}")]
    return []


def _size(job: job_pb2.JobSpec) -> _Found:
    size = job.ByteSize()
    if size <= SPEC_BYTES_MAX:
        return []
    most = bytes_text(SPEC_BYTES_MAX)
    return [((), f"is {size:,} bytes in all; at most {most} are allowed: put what is large into a file")]


_Fields = frozenset[str]

_CHECKS: Sequence[tuple[Callable[[job_pb2.JobSpec], _Found], _Fields, Sequence[str]]] = (
    (_command, frozenset(), ("command", "script", "path")),
    (_lines, frozenset({"lines"}), ("array", "lines")),
    (_stdin, frozenset({"stdin"}), ("array", "lines")),
    (_stdin_again, frozenset({"stdin"}), ("stdin",)),
    (_kind, frozenset({"kind", "replicas"}), ("kind",)),
    (_environment, frozenset({"env"}), ()),
    (_output, frozenset({"stdout", "stderr"}), ()),
    (_signal, frozenset({"signal"}), ("time_limit",)),
    (_size, frozenset(), ()),
)
"""With the fields of which one must be set for it to find anything wrong, where there are some, and those
that it looks at beside the one that it finds wrong.
"""


# ---------------------------------------------------------------- dependencies


def _dependencies(jobs: Sequence[job_pb2.JobSpec]) -> list[Problem]:
    places: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        if job.name:
            places.setdefault(job.name, []).append(number)
    problems: list[Problem] = []
    waits: dict[int, list[int]] = {}
    ambiguous: set[str] = set()
    for number, job in enumerate(jobs):
        for place, dependency in enumerate(job.after):
            name = dependency.job
            if name.isascii() and name.isdigit():
                says = None if 0 < int(name) <= JOB_NUMBER_MAX else f"{quoted(name)} is no job's number"
            elif name in places:
                waits.setdefault(number, []).append(places[name][0])
                ambiguous.update({name} if len(places[name]) > 1 else ())
                says = None
            else:
                says = _unknown(name, places if len(problems) < HINTS_MAX else ()) if name else None
            if says is not None and len(problems) < PROBLEMS_MAX:
                problems.append(Problem(("jobs", number, "after", place, "job"), says))
    for name in sorted(ambiguous):
        first, *others = places[name]
        says = f"{quoted(name)} is jobs[{first}] too; what another job comes after needs a name of its own"
        problems += [Problem(("jobs", number, "name"), says) for number in others]
    return problems + _circle(jobs, waits)


def _unknown(name: str, known: Collection[str]) -> str:
    import difflib

    short = len(known) <= HINT_NAMES_MAX and len(name) <= HINT_LENGTH_MAX
    near = difflib.get_close_matches(name, known, 1) if short else []
    hint = f"did you mean {near[0]}?" if near else "a job submitted before is named by its number"
    return f"no job of this submission is named {quoted(name)}; {hint}"


def _circle(jobs: Sequence[job_pb2.JobSpec], waits: dict[int, list[int]]) -> list[Problem]:
    if not waits:
        return []
    from graphlib import CycleError, TopologicalSorter

    try:
        TopologicalSorter(waits).prepare()
    except CycleError as error:
        circle: list[int] = error.args[1]
        names = [quoted(jobs[number].name)[1:-1] for number in circle]
        if len(names) > CYCLE_SHOWN_MAX:
            names = [*names[: CYCLE_SHOWN_MAX - 2], "...", names[-1]]
        says = f"the jobs wait for one another in a circle: {' -> '.join(names)}"
        return [Problem(("jobs", circle[0], "after"), says)]
    return []


# ---------------------------------------------------------------- queues


def queue(request: cluster_pb2.CreateQueueRequest) -> list[Problem]:
    """What is wrong with a queue as a whole."""
    asked = request.queue
    problems: list[Problem] = []
    # A limit of 0 is none in the records, and would let through all that it was to keep out.
    zeros = ["cpu"] if asked.quota.HasField("cpu") and not asked.quota.cpu else []
    zeros += sorted(name for name, amount in asked.quota.named.items() if not amount)
    for name in zeros:
        path = ("queue", "quota", name) if name == "cpu" else ("queue", "quota", "named", name)
        problems.append(Problem(path, "0 would be no limit; leave it out for none, or give at least 0.001"))
    if (
        asked.HasField("priority_min")
        and asked.HasField("priority_max")
        and asked.priority_min > asked.priority_max
    ):
        says = f"{asked.priority_min} is above priority_max, which is {asked.priority_max}"
        problems.append(Problem(("queue", "priority_min"), says))
    return problems


WHOLE: dict[str, Sequence[Callable[[Any], list[Problem]]]] = {
    "rota.v1.SubmitJobsRequest": [submission],
    "rota.v1.CreateQueueRequest": [queue],
}
"""The rules of whole messages, by the message's name."""

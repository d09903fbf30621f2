"""Values as people read them in tables and sentences."""

import time
from collections.abc import Sequence
from datetime import datetime

from rota.client import units
from rota.client.messages import Cause, FailureGroup, Job, Resources, Task, TaskCounts

NOTHING = "-"
GROUPS_SHOWN_MAX = 5

_AFTER_A_RUN = (Cause.CAUSE_EXIT, Cause.CAUSE_SIGNAL, Cause.CAUSE_OOM, Cause.CAUSE_TIME_LIMIT)


def safe(text: str) -> str:
    """A text from elsewhere, on one line, with nothing in it that a terminal would obey."""
    return "".join(sign if sign.isprintable() else _escape(sign) for sign in text)


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape").decode()


def clock(at_ms: int) -> str:
    """A point in time on this machine's clock: `2026-11-21 10:05:00`."""
    if not at_ms:
        return NOTHING
    return datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age(at_ms: int) -> str:
    """How long ago: `3m`."""
    if not at_ms:
        return NOTHING
    passed_s = max(0, int(time.time() - at_ms / 1000))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if passed_s >= size:
            return f"{passed_s // size}{unit}"
    return f"{passed_s}s"


def duration(amount_ms: int) -> str:
    """`1h30m`; nothing for 0."""
    return units.milliseconds_about(amount_ms) if amount_ms else NOTHING


def size(amount_bytes: int) -> str:
    """`1.4GiB`; nothing for 0."""
    return units.bytes_about(amount_bytes) if amount_bytes else NOTHING


def resources(amount: Resources) -> str:
    """`cpu=2 memory=4GiB power=10`."""
    parts = []
    if amount.cpu:
        parts.append(f"cpu={units.thousandths_text(amount.cpu)}")
    if amount.memory:
        parts.append(f"memory={units.bytes_about(amount.memory)}")
    if amount.gpu:
        parts.append(f"gpu={units.thousandths_text(amount.gpu)}")
    if amount.disk:
        parts.append(f"disk={units.bytes_about(amount.disk)}")
    parts += [f"{name}={units.thousandths_text(each)}" for name, each in sorted(amount.named.items())]
    return " ".join(parts) or NOTHING


def counts(tasks: TaskCounts) -> str:
    """`100 tasks: 40 succeeded, 2 running, 58 pending`, what there is none of left out."""
    parts = [
        f"{count:,} {what}"
        for count, what in (
            (tasks.succeeded, "succeeded"),
            (tasks.failed, "failed"),
            (tasks.cancelled, "cancelled"),
            (tasks.running, "running"),
            (tasks.allocated, "allocated"),
            (tasks.pending, "pending"),
        )
        if count
    ]
    notes = [
        f"{count:,} {what}" for count, what in ((tasks.backoff, "backing off"), (tasks.held, "held")) if count
    ]
    of = "1 task" if tasks.total == 1 else f"{tasks.total:,} tasks"
    return f"{of}: " + ", ".join(parts) + (f" ({', '.join(notes)})" if notes else "")


def ended(tasks: TaskCounts) -> int:
    """How many tasks have ended, however."""
    return tasks.succeeded + tasks.failed + tasks.cancelled


def reason(of: Job | Task) -> str:
    """Why a job or a task is where it is, on one line."""
    again = f", in {duration(of.retry_in_ms)}" if of.retry_in_ms else ""
    return safe(of.reason) + again


def outcome(cause: Cause.ValueType, code: int) -> str:
    """How an attempt ended: `EXIT 3`, `SIGNAL 9`, `OOM`."""
    name = Cause.Name(cause).removeprefix("CAUSE_")
    return f"{name} {code}" if cause in (Cause.CAUSE_EXIT, Cause.CAUSE_SIGNAL) else name


def failures(groups: Sequence[FailureGroup]) -> str:
    """How failed tasks ended, the largest group first: `2 by EXIT 1, 1 by OOM`."""
    shown = [f"{each.count:,} by {outcome(each.cause, each.code)}" for each in groups[:GROUPS_SHOWN_MAX]]
    rest = sum(each.count for each in groups[GROUPS_SHOWN_MAX:])
    return ", ".join([*shown, *([f"{rest:,} otherwise"] if rest else [])])


def logs_hint(number: int, groups: Sequence[FailureGroup]) -> str:
    """The command that prints what a failed task said; nothing where none has run."""
    ran = next((each for each in groups if each.cause in _AFTER_A_RUN), None)
    if ran is None:
        return ""
    index = ran.indices.split(",")[0].split("-")[0]
    return f"'rota logs {number}/{index} --stderr'"


def command(job: Job) -> str:
    """What a job runs, on one line."""
    import shlex

    words = [*job.spec.command, *([job.spec.path] if job.spec.path else [])]
    if job.spec.script:
        words.insert(0, "(script)")
    return shlex.join(words).replace("'(script)'", "(script)")

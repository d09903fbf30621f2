"""What becomes of a task whose attempt has ended other than by success: decided here alone."""

from dataclasses import dataclass
from enum import Enum

from pyroaring import BitMap

from rota.core.cluster.records import empty
from rota.core.cluster.state import Allocation, Job
from rota.core.model import indexset, planes
from rota.core.model.protocol import Ended
from rota.core.model.spec import BACKOFF_DOUBLINGS_FACTOR_MAX
from rota.core.model.states import NOT_THE_TASKS_FAULT, Cause, OnNodeLoss, StopReason

CRASHES_MAX = 3
# An attempt that an agent could not even begin is tried again after so long.
UNSTARTED_BACKOFF_MS = 500


class Verdict(Enum):
    """What becomes of a task whose attempt has ended other than by success."""

    FAIL = "fail"
    CANCEL = "cancel"
    AGAIN = "again"
    POISON = "poison"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, and what is remembered for the next: a failure that counts, a crash, how long it waits."""

    verdict: Verdict
    failure: bool = False
    crash: bool = False
    wait_ms: int = 0


def judge(job: Job, allocation: Allocation, ended: Ended) -> Judged:
    """What becomes of a task after an end that is no success, and what is to be remembered of it."""
    cancelled = job.ending or any(
        stop.reason is StopReason.CANCEL and ended.index in stop.indices for stop in allocation.desired.stops
    )
    if ended.cause is Cause.STOPPED or ended.cause in NOT_THE_TASKS_FAULT:
        if cancelled:
            return Judged(Verdict.CANCEL)
        crash = ended.cause in (Cause.AGENT_ERROR, Cause.NODE_REBOOT) and ended.started
        if crash and job.crashes(ended.index) + 1 >= CRASHES_MAX:
            return Judged(Verdict.POISON, crash=True)
        lost = ended.cause in (Cause.NODE_LOST, Cause.AGENT_ERROR, Cause.NODE_REBOOT)
        if lost and job.spec.on_node_loss is OnNodeLoss.CANCEL:
            return Judged(Verdict.CANCEL, crash=crash)
        if job.spec.stdin and ended.started:
            # What it has read of its input is gone.
            return Judged(Verdict.FAIL, crash=crash)
        if lost and job.spec.on_node_loss is OnNodeLoss.HOLD:
            return Judged(Verdict.HOLD, crash=crash)
        if ended.cause is Cause.AGENT_ERROR and not ended.started:
            # Its agent may be unable to start anything: that must not go round as fast as it can.
            return Judged(Verdict.AGAIN, wait_ms=UNSTARTED_BACKOFF_MS)
        return Judged(Verdict.AGAIN, crash=crash)
    if ended.cause is Cause.DEADLINE or cancelled:
        return Judged(Verdict.FAIL)
    return _judge_failure(job, job.failures(ended.index) + 1)


def judge_exits(job: Job, allocation: Allocation, indices: BitMap) -> dict[Judged, BitMap]:
    """The same of many at once, all of which have exited with a code other than 0."""
    cancelled = indices if job.ending else indices & allocation.desired.cancelled
    verdicts = {Judged(Verdict.FAIL): cancelled} if cancelled else {}
    for number, part in indexset.segments_of(indices - cancelled):
        for failures, alike in planes.alike(job.exceptions_of(number).failures, part):
            judged = _judge_failure(job, failures + 1)
            verdicts[judged] = verdicts.get(judged, empty()) | alike
    return verdicts


def _judge_failure(job: Job, failures: int) -> Judged:
    """After so many failures that count."""
    if failures > job.spec.retries:
        return Judged(Verdict.FAIL)
    factor = min(2 ** min(failures - 1, 30), BACKOFF_DOUBLINGS_FACTOR_MAX)
    return Judged(Verdict.AGAIN, failure=True, wait_ms=job.spec.backoff * factor)


def judge_lost(allocation: Allocation) -> dict[Verdict, BitMap]:
    """The verdicts over what is left of an allocation whose node has been silent for too long."""
    verdicts: dict[Verdict, BitMap] = {}
    cancelled = allocation.remaining & allocation.desired.cancelled
    for alike in (cancelled, allocation.remaining - cancelled):
        if alike:
            end = unheard(allocation, alike.min(), Cause.NODE_LOST)
            verdict = judge(allocation.job, allocation, end).verdict
            verdicts[verdict] = verdicts.get(verdict, BitMap()) | alike
    return verdicts


def unheard(allocation: Allocation, index: int, cause: Cause, message: str = "") -> Ended:
    """The end of an attempt of which its node says nothing more."""
    # Whether it has begun to read its input is not known.
    started = index in allocation.status.started or allocation.job.spec.stdin
    return Ended(index, cause, message=message, started=started)

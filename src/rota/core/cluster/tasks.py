"""What is recorded of tasks: ends in segments, attempts, failures; and how allocations let go of them.

Everything that changes which index is where goes through here.
"""

from collections.abc import Mapping
from dataclasses import replace

from pyroaring import BitMap

from rota.core.cluster.check import require
from rota.core.cluster.leases import close_lease_if_empty
from rota.core.cluster.records import (
    CPU_MS_MAX,
    NO_EXCEPTIONS,
    AllocationDesired,
    AllocationStatus,
    BackoffSet,
    Exceptions,
    FailureSet,
    NodeTally,
    Segment,
    StopDesired,
    allocation_key,
    allocation_status_key,
    empty,
    exceptions_key,
    job_status_key,
    segment_key,
    tally_key,
)
from rota.core.cluster.rows import block_of
from rota.core.cluster.state import Allocation, Job
from rota.core.cluster.work import EVENTS_OF_ENDS_MAX, Work
from rota.core.model import indexset, planes
from rota.core.model.columns import pack, pack_indices
from rota.core.model.protocol import Columns, Stop
from rota.core.model.states import JOB_MOVES, Cause, EventKind, StopReason, TaskState

# Of the tasks of a segment that ended in so many ways, a message is kept; of more, only how they ended.
MESSAGES_MAX = 32


class TaskWriter:
    """Collects changes to a job's segments and exceptions; `flush` puts each changed record once."""

    def __init__(self, work: Work, job: Job) -> None:
        self._work = work
        self._job = job
        self._segments: dict[int, Segment] = {}
        self._exceptions: dict[int, Exceptions] = {}

    def finish(self, indices: BitMap, state: TaskState) -> None:
        """These tasks have ended."""
        for number, part in indexset.segments_of(indices):
            old = self._segment(number)
            match state:
                case TaskState.SUCCEEDED:
                    new = replace(old, succeeded=old.succeeded | part)
                case TaskState.FAILED:
                    new = replace(old, failed=old.failed | part)
                case _:
                    new = replace(old, cancelled=old.cancelled | part)
            self._segments[number] = new

    def reopen(self, indices: BitMap) -> None:
        """Failed and cancelled tasks are put back, their failures forgiven.

        Holds and fences stay: an attempt may still run on a node that is not here.
        """
        for number, part in indexset.segments_of(indices):
            old = self._segment(number)
            self._segments[number] = replace(old, failed=old.failed - part, cancelled=old.cancelled - part)
            said = self._said(number)
            self._exceptions[number] = replace(
                said,
                failures=planes.cleared(said.failures, part),
                crashes=planes.cleared(said.crashes, part),
            )
        self.wait(indices, 0)

    def count_attempts(self, indices: BitMap) -> None:
        """One more ended attempt each."""
        for number, part in indexset.segments_of(indices):
            old = self._segment(number)
            self._segments[number] = replace(old, attempts=planes.increased(old.attempts, part))

    def uncount_attempts(self, indices: BitMap) -> None:
        """One ended attempt less each: it has not ended after all."""
        for number, part in indexset.segments_of(indices):
            old = self._segment(number)
            self._segments[number] = replace(old, attempts=planes.decreased(old.attempts, part))

    def failed_by(self, indices: BitMap, cause: Cause, code: int, message: str = "") -> None:
        """The last attempt at these that did not succeed ended so."""
        self.failed_by_each({(cause, code): (indices, message)})

    def failed_by_each(self, ends: Mapping[tuple[Cause, int], tuple[BitMap, str]]) -> None:
        """The same of many causes and codes, which share no index: in one pass, however many they are."""
        parts: dict[int, list[FailureSet]] = {}
        for (cause, code), (indices, message) in ends.items():
            for number, part in indexset.segments_of(indices):
                parts.setdefault(number, []).append(FailureSet(cause, code, part, message))
        for number, new in parts.items():
            said = self._said(number)
            moved = BitMap.union(*(group.indices for group in new))
            groups = {
                (group.cause, group.code): replace(group, indices=group.indices - moved)
                for group in said.groups
            }
            for group in new:
                key = (group.cause, group.code)
                known = groups.get(key, FailureSet(*key, empty()))
                groups[key] = replace(
                    known, indices=known.indices | group.indices, message=known.message or group.message
                )
            rest = [groups[key] for key in sorted(groups) if groups[key].indices]
            told = [place for place, group in enumerate(rest) if group.message]
            for place in told[MESSAGES_MAX:]:
                rest[place] = replace(rest[place], message="")
            self._exceptions[number] = replace(said, groups=tuple(rest))

    def count_failures(self, indices: BitMap) -> None:
        """One more failure each that counts towards the retries."""
        for number, part in indexset.segments_of(indices):
            said = self._said(number)
            self._exceptions[number] = replace(said, failures=planes.increased(said.failures, part))

    def count_crashes(self, indices: BitMap) -> None:
        """A node or agent has died under these once more."""
        for number, part in indexset.segments_of(indices):
            said = self._said(number)
            self._exceptions[number] = replace(said, crashes=planes.increased(said.crashes, part))

    def hold(self, indices: BitMap) -> None:
        """These wait for an operator."""
        for number, part in indexset.segments_of(indices):
            said = self._said(number)
            self._exceptions[number] = replace(said, held=said.held | part)

    def release(self, indices: BitMap) -> None:
        """An operator says that no earlier attempt at these runs."""
        for number, part in indexset.segments_of(indices):
            said = self._said(number)
            self._exceptions[number] = replace(
                said, held=said.held - part, fences=_until(said.fences, part, 0)
            )

    def wait(self, indices: BitMap, until_ms: int) -> None:
        """These are tried again at that cluster time; with 0 they wait for no time any more."""
        for number, part in indexset.segments_of(indices):
            said = self._said(number)
            if until_ms or said.backoffs:
                self._exceptions[number] = replace(said, backoffs=_until(said.backoffs, part, until_ms))

    def fence(self, indices: BitMap, until_ms: int) -> None:
        """Until that cluster time an earlier attempt at these may run."""
        for number, part in indexset.segments_of(indices):
            said = self._said(number)
            for one in said.fences:
                if one.until_ms > until_ms:
                    part = part - one.indices
            self._exceptions[number] = replace(said, fences=_until(said.fences, part, until_ms))

    def expire(self, now_ms: int) -> None:
        """Back-offs and fences up to now are over."""
        for number, said in self._job.exceptions.items():
            backoffs = tuple(one for one in said.backoffs if one.until_ms > now_ms)
            fences = tuple(one for one in said.fences if one.until_ms > now_ms)
            if (backoffs, fences) != (said.backoffs, said.fences):
                self._exceptions[number] = replace(said, backoffs=backoffs, fences=fences)

    def flush(self) -> None:
        """Puts what has changed."""
        job, work = self._job, self._work
        for number, segment in sorted(self._segments.items()):
            work.put(segment_key(job.id, number), segment)
        for number, said in sorted(self._exceptions.items()):
            key = exceptions_key(job.id, number)
            if said != NO_EXCEPTIONS:
                work.put(key, said)
            elif number in job.exceptions:
                work.drop(key)
        self._segments, self._exceptions = {}, {}
        work.touch(job)

    def _segment(self, number: int) -> Segment:
        return self._segments.get(number) or self._job.segment(number)

    def _said(self, number: int) -> Exceptions:
        return self._exceptions.get(number) or self._job.exceptions_of(number)


def _until(sets: tuple[BackoffSet, ...], indices: BitMap, until_ms: int) -> tuple[BackoffSet, ...]:
    """The sets with these indices in that of `until_ms` alone; with 0, in none."""
    by_time = {one.until_ms: one.indices - indices for one in sets}
    if until_ms:
        by_time[until_ms] = by_time.get(until_ms, empty()) | indices
    return tuple(BackoffSet(time_ms, by_time[time_ms]) for time_ms in sorted(by_time) if by_time[time_ms])


# ---------------------------------------------------------------- allocations


def put_desired(work: Work, allocation: Allocation, desired: AllocationDesired) -> None:
    """Changes what an allocation should be; one with nothing left in it is closed."""
    work.put(allocation_key(allocation.node.id, allocation.id), desired)
    work.touch(allocation.job)
    close_if_done(work, allocation)


def close_if_done(work: Work, allocation: Allocation) -> None:
    """Folds an allocation into the job's segments once all it owns has ended and nothing is disputed."""
    if allocation.remaining or allocation.unclaimed or allocation.id not in allocation.node.allocations:
        return
    close(work, allocation, allocation.status, empty(), TaskWriter(work, allocation.job))


def close(
    work: Work, allocation: Allocation, status: AllocationStatus, left: BitMap, writer: TaskWriter
) -> None:
    """Folds an allocation into the job's segments and drops it, together with what the writer has collected.

    `status` is what is known of it in the end, which need not have been put; `left` is its no longer.
    """
    _count_ends(work, allocation, status, allocation.owned - left, writer)
    writer.flush()
    work.drop(allocation_status_key(allocation.node.id, allocation.id))
    work.drop(allocation_key(allocation.node.id, allocation.id))
    session = work.soft.sessions.get(allocation.node.id)
    if session is not None:
        session.late.pop(allocation.id, None)
    lease = allocation.node.leases.get(allocation.desired.lease)
    if lease is not None:
        close_lease_if_empty(work, lease)


def fold(work: Work, allocation: Allocation) -> None:
    """Moves what has ended from the allocation into the segments of its job."""
    status, desired = allocation.status, allocation.desired
    writer = TaskWriter(work, allocation.job)
    ended = _count_ends(work, allocation, status, allocation.owned, writer)
    if not ended:
        return
    work.put(
        allocation_status_key(allocation.node.id, allocation.id),
        replace(
            status,
            started=status.started - ended,
            succeeded=status.succeeded - ended,
            failed=status.failed - ended,
            cancelled=status.cancelled - ended,
            cpu_ms=0,
            memory_peak_bytes=0,
        ),
    )
    work.put(
        allocation_key(allocation.node.id, allocation.id),
        replace(
            desired,
            indices=desired.indices - ended,
            kept=desired.kept - ended,
            stops=_stops_without(desired, ended),
        ),
    )
    writer.flush()


def _count_ends(
    work: Work, allocation: Allocation, status: AllocationStatus, owned: BitMap, writer: TaskWriter
) -> BitMap:
    """Counts what has ended of `owned` for the job's segments, and for the node. Returns it."""
    job = allocation.job
    succeeded, failed, cancelled = owned & status.succeeded, owned & status.failed, owned & status.cancelled
    ended = succeeded | failed | cancelled
    if not ended:
        return ended
    writer.finish(succeeded, TaskState.SUCCEEDED)
    if failed or cancelled:
        writer.finish(failed, TaskState.FAILED)
        writer.finish(cancelled, TaskState.CANCELLED)
        writer.count_attempts(failed | cancelled)
    tally = job.tallies.get(allocation.node.id, NodeTally())
    work.put(
        tally_key(job.id, allocation.node.id),
        NodeTally(
            tally.succeeded + len(succeeded),
            tally.failed + len(failed),
            tally.cancelled + len(cancelled),
            min(tally.cpu_ms + status.cpu_ms, CPU_MS_MAX),
            max(tally.memory_peak_bytes, status.memory_peak_bytes),
            tally.unsuccessful | failed | cancelled,
        ),
    )
    return ended


def untally(work: Work, job: Job, back: BitMap) -> None:
    """These tasks are put back: they have their end on no node any more. Before they are reopened."""
    for node, tally in list(job.tallies.items()):
        here = tally.unsuccessful & back
        if here:
            failed = sum(here.intersection_cardinality(segment.failed) for segment in job.segments.values())
            tally = replace(
                tally,
                failed=tally.failed - failed,
                cancelled=tally.cancelled - (len(here) - failed),
                unsuccessful=tally.unsuccessful - here,
            )
            work.put(tally_key(job.id, node), tally)


def let_go(work: Work, allocation: Allocation, indices: BitMap) -> None:
    """These are the allocation's no longer, whatever was known of them there. It is not closed here."""
    desired, status = allocation.desired, allocation.status
    known = status.started | status.succeeded | status.failed | status.cancelled
    if not known.isdisjoint(indices):
        work.put(
            allocation_status_key(allocation.node.id, allocation.id),
            replace(
                status,
                started=status.started - indices,
                succeeded=status.succeeded - indices,
                failed=status.failed - indices,
                cancelled=status.cancelled - indices,
            ),
        )
    work.put(
        allocation_key(allocation.node.id, allocation.id),
        replace(
            desired,
            indices=desired.indices - indices,
            kept=desired.kept - indices,
            stops=_stops_without(desired, indices),
        ),
    )
    work.touch(allocation.job)


def _stops_without(desired: AllocationDesired, indices: BitMap) -> tuple[StopDesired, ...]:
    rest = (replace(stop, indices=stop.indices - indices) for stop in desired.stops)
    return tuple(stop for stop in rest if stop.indices)


def ask_stop(
    work: Work, allocation: Allocation, indices: BitMap, reason: StopReason, grace_ms: int | None = None
) -> None:
    """Wants the end of these, in place of what was asked of them before; a cancel alone is not taken back."""
    desired = allocation.desired
    indices = indices & allocation.remaining
    if reason is not StopReason.CANCEL:
        indices = indices - desired.cancelled
    if not indices:
        return
    stops = list(_stops_without(desired, indices))
    alike = next(
        (place for place, one in enumerate(stops) if (one.reason, one.grace_ms) == (reason, grace_ms)), None
    )
    if alike is None:
        stops.append(StopDesired(indices, reason, grace_ms))
    else:
        stops[alike] = replace(stops[alike], indices=stops[alike].indices | indices)
    put_desired(work, allocation, replace(desired, stops=tuple(stops)))
    stop(work, allocation, indices, reason, grace_ms)


def stop(
    work: Work, allocation: Allocation, indices: BitMap, reason: StopReason, grace_ms: int | None = None
) -> None:
    """Tells the node to drop or end these; what it then reports decides."""
    session = work.soft.sessions.get(allocation.node.id)
    if session is not None and session.compared and indices:
        ranges = indexset.to_ranges(indices)
        work.send(allocation.node.id, Stop(allocation.id, session.ask(), ranges, reason, grace_ms))


def supersede(work: Work, allocation: Allocation, indices: BitMap) -> None:
    """Another attempt at these has started: the lost one ends here as NODE_LOST and never counts."""
    job = allocation.job
    record_ends(
        work, allocation, indices, Cause.NODE_LOST, "the node was lost, and another attempt has started"
    )
    writer = TaskWriter(work, job)
    writer.failed_by(indices, Cause.NODE_LOST, 0)
    writer.flush()
    stop(work, allocation, indices, StopReason.SUPERSEDED)
    let_go(work, allocation, indices)
    close_if_done(work, allocation)


def supersede_others(work: Work, allocation: Allocation, started: BitMap) -> None:
    """What has started here is no longer a lost node's to take back."""
    for other in list(allocation.job.lost.values()):
        late = other.unclaimed & started
        if other is not allocation and late:
            supersede(work, other, late)


def record_ends(work: Work, allocation: Allocation, indices: BitMap, cause: Cause, message: str = "") -> None:
    """Archives the one outcome of attempts that no node has reported, and says so in events."""
    if not indices:
        return
    desired = allocation.desired
    heard_ms = dict(allocation.status.started_at_ms)
    ends = Columns(pack_indices(indices))
    if heard_ms:
        ends.started_after_ms = pack([heard_ms.get(index, 0) for index in indices])
    block = block_of(allocation, ends, cause)
    if message:
        block.messages[indices.min()] = message
    work.outcome.blocks.append(block)
    if allocation.node.id not in allocation.job.tallies:
        # The job speaks of the node from here on, so that it is kept in mind if it is removed.
        work.put(tally_key(desired.job, allocation.node.id), NodeTally())
    for index in indices[: EVENTS_OF_ENDS_MAX + 1]:
        if not say_ended(
            work, allocation.job, index, desired.first_attempt, allocation.node.config.name, cause
        ):
            break


def say_ended(
    work: Work, job: Job, index: int, attempt: int, node: str, cause: Cause, code: int = 0, message: str = ""
) -> bool:
    """The event of an attempt that did not succeed, for the first EVENTS_OF_ENDS_MAX of a job."""
    written = job.status.events_written
    if written >= EVENTS_OF_ENDS_MAX:
        return False
    work.event(
        EventKind.ATTEMPT_ENDED,
        job=job.id,
        index=index,
        attempt=attempt,
        node=node,
        cause=cause,
        code=code,
        message=message,
    )
    put_job_status(work, job, events_written=written + 1)
    return True


def put_job_status(work: Work, job: Job, **changes: object) -> None:
    """Changes fields of a job's status. Raises InvariantBroken where its state may not go there."""
    status = replace(job.status, **changes)  # type: ignore[arg-type]
    old, new = job.status.state, status.state
    require(new is old or new in JOB_MOVES[old], "moves", f"job {job.id}: {old.name} -> {new.name}")
    work.put(job_status_key(job.id), status)

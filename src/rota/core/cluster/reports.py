"""What nodes report: each attempt's one outcome, and work that comes back."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pyroaring import BitMap

from rota.core.cluster import feeding, lost
from rota.core.cluster.leases import close_lease_if_empty
from rota.core.cluster.records import (
    CPU_MS_MAX,
    AllocationStatus,
    NodeTally,
    allocation_status_key,
    empty,
    lease_key,
    tally_key,
)
from rota.core.cluster.rows import (
    block_of,
    block_of_ends,
    both,
    failed_by_code,
    first_start_ms,
    highest,
    of,
    succeeded_ms,
    tasks,
    total,
)
from rota.core.cluster.state import Allocation, Job, Node
from rota.core.cluster.tasks import (
    TaskWriter,
    close,
    close_if_done,
    let_go,
    put_job_status,
    say_ended,
    supersede_others,
)
from rota.core.cluster.verdicts import CRASHES_MAX, Judged, Verdict, judge, judge_exits, unheard
from rota.core.cluster.work import EVENTS_OF_ENDS_MAX, Work
from rota.core.model import indexset
from rota.core.model.columns import columns_of
from rota.core.model.columns import exited as exited_of
from rota.core.model.protocol import AllocationReport, Columns, Ended, Resized
from rota.core.model.states import Cause, EventKind, JobState, OnNodeLoss, TaskState

MESSAGE_CHARS_MAX = 500


@dataclass(slots=True)
class _Ends:
    """What one report does to one allocation."""

    started: BitMap = field(default_factory=BitMap)
    succeeded: BitMap = field(default_factory=BitMap)
    failed: BitMap = field(default_factory=BitMap)
    cancelled: BitMap = field(default_factory=BitMap)
    # Leave the allocation after an attempt; leave it without one.
    left: BitMap = field(default_factory=BitMap)
    dropped: BitMap = field(default_factory=BitMap)
    # Counted attempts among `left`.
    attempted: BitMap = field(default_factory=BitMap)
    # What is to be remembered of them: by cause and code, with a message of one;
    causes: dict[tuple[Cause, int], tuple[BitMap, str]] = field(default_factory=dict)
    failures: BitMap = field(default_factory=BitMap)
    crashes: BitMap = field(default_factory=BitMap)
    held: BitMap = field(default_factory=BitMap)
    # by the time until which they wait.
    waits: dict[int, BitMap] = field(default_factory=dict)
    cpu_ms: int = 0
    memory_peak_bytes: int = 0

    def fail(self, indices: BitMap, cause: Cause, code: int, message: str = "") -> None:
        """Attempts at these ended so."""
        known, said = self.causes.get((cause, code), (empty(), message))
        self.causes[cause, code] = (known | indices, said or message)

    def used(self, cpu_ms: int, memory_peak_bytes: int) -> None:
        """So much was used; of the memory, by one."""
        self.cpu_ms += cpu_ms
        self.memory_peak_bytes = max(self.memory_peak_bytes, memory_peak_bytes)


def take_allocation(work: Work, node: Node, report: AllocationReport) -> None:
    """Takes what a node says of one allocation. What it says of one that is closed counts for nothing."""
    session = work.soft.sessions.get(node.id)
    if report.answers and session is not None:
        for lease, (number, recall) in list(session.recalls.items()):
            if number == report.allocation and recall == report.answers:
                del session.recalls[lease]
    allocation = node.allocations.get(report.allocation)
    if allocation is None:
        return
    job = allocation.job
    # A node may say again what is known: only what is new counts.
    open_ = allocation.desired.indices - allocation.ended
    exited = tasks(report.exits) & open_
    exits = of(report.exits, exited)
    if job.status.state is JobState.PENDING:
        _begin_job(work, allocation, report, exits, open_)
    if not exits.code and exited == allocation.owned and not (allocation.desired.lost or job.lost):
        # Most of all that is ever reported; nothing else that the report says of it is news.
        _succeed_whole(work, allocation, exits)
        if report.stalled:
            _stalled(work, node, job)
        return
    ends = _Ends()
    if exited:
        _take_exits(work, allocation, exits, exited, ends)
        open_ -= exited
    if report.started:
        ends.started |= indexset.within(report.started, open_)
    if report.ended:
        _take_ends(work, allocation, report.ended, open_, ends)
    ends.dropped = indexset.within(report.dropped, open_)
    _apply(work, allocation, ends)
    if report.stalled:
        _stalled(work, node, job)


def end_unheard(work: Work, allocation: Allocation, gone: BitMap, cause: Cause, message: str) -> None:
    """These attempts are over, and their node does not say so: they end as if it did."""
    lost.end_unclaimed(work, allocation, gone, message)
    heard_ms = dict(allocation.status.started_at_ms)
    ended = tuple(
        replace(unheard(allocation, index, cause, message), started_at_ms=heard_ms.get(index, 0))
        for index in gone & allocation.remaining
    )
    if ended:
        take_allocation(work, allocation.node, AllocationReport(allocation.id, ended=ended))
    else:
        close_if_done(work, allocation)


def _succeed_whole(work: Work, allocation: Allocation, exits: Columns) -> None:
    """All that an allocation owns has succeeded: `_take_exits` and `_apply` without what they do not find."""
    owned, before = allocation.owned, allocation.status
    cpu_ms, memory_peak_bytes = _used(exits, len(owned))
    _learn(work, allocation, exits, len(owned))
    work.outcome.blocks.append(block_of(allocation, exits))
    status = AllocationStatus(
        succeeded=owned,
        cpu_ms=min(before.cpu_ms + cpu_ms, CPU_MS_MAX),
        memory_peak_bytes=max(before.memory_peak_bytes, memory_peak_bytes),
    )
    close(work, allocation, status, empty(), TaskWriter(work, allocation.job))


def _used(exits: Columns, count: int) -> tuple[int, int]:
    """The CPU time of all of them in milliseconds, and the memory of the largest in bytes."""
    cpu_ms = total(exits.cpu_user_ms, count) + total(exits.cpu_system_ms, count)
    return cpu_ms, highest(exits.memory_peak_kib, count) * 1024


def _learn(work: Work, allocation: Allocation, exits: Columns, succeeded: int) -> None:
    """How long those took that succeeded."""
    if succeeded and exits.started_at_ms and not allocation.job.ended:
        spec = allocation.job.spec
        work.soft.learn(allocation.job.id, (spec.resources, spec.queue), succeeded, succeeded_ms(exits))


def _take_exits(work: Work, allocation: Allocation, exits: Columns, exited: BitMap, ends: _Ends) -> None:
    """Attempts at the tasks `exited`, of which nothing was known: what they used, and how they ended."""
    count = len(exited)
    failed = BitMap()
    for code, alike in failed_by_code(exits):
        failed |= alike
        ends.fail(alike, Cause.EXIT, code)
    succeeded = exited - failed
    ends.started |= exited
    ends.succeeded |= succeeded
    ends.used(*_used(exits, count))
    _learn(work, allocation, exits, len(succeeded))
    if failed:
        _take_failures(work, allocation, exits, failed, ends)
    late = succeeded - allocation.owned
    if late:
        _keep_late(work, allocation, of(exits, late))
        exits = of(exits, exited - late)
    if len(late) < count:
        work.outcome.blocks.append(block_of(allocation, exits))


def _take_failures(work: Work, allocation: Allocation, exits: Columns, failed: BitMap, ends: _Ends) -> None:
    """What becomes of those that exited with a code other than 0, many at a time."""
    job = allocation.job
    # A lost node's attempts that are not wanted any more: they ended, and that is all. Their number
    # was counted when the node was called lost.
    ends.left |= failed - allocation.owned
    failed = failed & allocation.owned
    for judged, indices in judge_exits(job, allocation, failed).items():
        if judged.verdict is Verdict.FAIL:
            ends.failed |= indices
        else:
            assert judged.verdict is Verdict.AGAIN, judged
            ends.left |= indices
            ends.attempted |= indices
            ends.failures |= indices
        if judged.wait_ms:
            _wait(work, judged, indices, ends)
    said = indexset.take_first(failed, EVENTS_OF_ENDS_MAX - job.status.events_written)
    attempt, name = allocation.desired.first_attempt, allocation.node.config.name
    for one in exited_of(of(exits, said)) if said else ():
        say_ended(work, job, one.index, attempt, name, Cause.EXIT, one.code)


def _keep_late(work: Work, allocation: Allocation, exits: Columns) -> None:
    """What a lost node finished is recorded when it is taken back, if it is (`lost.reclaim`)."""
    session = work.soft.sessions.get(allocation.node.id)
    if session is not None:
        known = session.late.get(allocation.id)
        session.late[allocation.id] = exits if known is None else both(known, exits)


def _take_ends(
    work: Work, allocation: Allocation, ended: Sequence[Ended], open_: BitMap, ends: _Ends
) -> None:
    """The ends that are told one by one."""
    told: list[Ended] = []
    late: list[Ended] = []
    for one in ended:
        if one.index not in open_:
            continue
        open_.discard(one.index)
        ends.used(one.cpu_user_ms + one.cpu_system_ms, one.memory_peak_kib * 1024)
        if one.started:
            ends.started.add(one.index)
        if one.cause is Cause.EXIT and one.code == 0:
            ends.succeeded.add(one.index)
            (told if one.index in allocation.owned else late).append(one)
        else:
            _take_end(work, allocation, one, ends)
            told.append(one)
    if told:
        work.outcome.blocks.append(block_of_ends(allocation, told, MESSAGE_CHARS_MAX))
    if late:
        late.sort(key=lambda one: one.index)
        _keep_late(work, allocation, columns_of(late))


def _take_end(work: Work, allocation: Allocation, ended: Ended, ends: _Ends) -> None:
    """One attempt that did not succeed."""
    job, index = allocation.job, ended.index
    one = BitMap([index])
    message = ended.message[:MESSAGE_CHARS_MAX]
    if index not in allocation.owned:
        # A lost node's attempt that is not wanted any more: it ended, and that is all. Its number
        # was counted when the node was called lost.
        ends.left.add(index)
        ends.fail(one, ended.cause, ended.code, message)
        return
    said = say_ended(
        work,
        job,
        index,
        allocation.desired.first_attempt + ended.run - 1,
        allocation.node.config.name,
        ended.cause,
        ended.code,
        message,
    )
    judged = judge(job, allocation, ended)
    if judged.failure:
        ends.failures.add(index)
    if judged.crash:
        ends.crashes.add(index)
    if judged.wait_ms:
        _wait(work, judged, one, ends)
    if judged.verdict is Verdict.POISON:
        ends.fail(one, Cause.POISON, 0, f"its node or agent died under it {CRASHES_MAX} times")
    else:
        ends.fail(one, ended.cause, ended.code, message)
    match judged.verdict:
        case Verdict.FAIL | Verdict.POISON:
            ends.failed.add(index)
        case Verdict.CANCEL:
            ends.cancelled.add(index)
        case Verdict.AGAIN | Verdict.HOLD:
            ends.left.add(index)
            ends.attempted.add(index)
            if judged.verdict is Verdict.HOLD:
                ends.held.add(index)
                if said:
                    name = allocation.node.config.name
                    work.event(EventKind.TASK_HELD, job=job.id, index=index, node=name)


def _wait(work: Work, judged: Judged, indices: BitMap, ends: _Ends) -> None:
    until_ms = _later_ms(work.now_ms, judged.wait_ms)
    ends.waits[until_ms] = ends.waits.get(until_ms, empty()) | indices


def _later_ms(now_ms: int, wait_ms: int) -> int:
    """When a wait from now is over, rounded up by a sixteenth of it at most.

    So the times that tasks of a job wait for are few, however many fail one after the other.
    """
    step = max(wait_ms // 16, 1)
    return -(-(now_ms + wait_ms) // step) * step


def _apply(work: Work, allocation: Allocation, ends: _Ends) -> None:
    """Makes the changes that a report's ends add up to."""
    job = allocation.job
    if job.lost:
        # An attempt that has started, or whose end is the task's, has taken the lost one's place.
        news = (ends.started - allocation.status.started) | ends.failed | ends.cancelled | ends.failures
        if job.spec.on_node_loss is not OnNodeLoss.RERUN:
            # Nor may it go on beside one that may yet start unheard.
            news |= ends.attempted
        supersede_others(work, allocation, news & allocation.owned)
    writer = TaskWriter(work, job)
    writer.failed_by_each(ends.causes)
    cancelled_waiting = ends.dropped & allocation.owned
    if not job.ending:
        cancelled_waiting &= allocation.desired.cancelled
    writer.finish(cancelled_waiting, TaskState.CANCELLED)
    writer.count_attempts(ends.attempted)
    writer.count_failures(ends.failures)
    writer.count_crashes(ends.crashes)
    writer.hold(ends.held)
    writer.wait(ends.left & job.delayed, 0)
    for until_ms, indices in ends.waits.items():
        writer.wait(indices, until_ms)
        work.soft.timers.arm_earlier("retry", str(job.id), until_ms)
    if ends.left and allocation.node.id not in job.tallies:
        # There is output to forget one day, also where nothing ends for good.
        work.put(tally_key(job.id, allocation.node.id), NodeTally())
    left = ends.left | ends.dropped
    status = _status(work, allocation, ends, left)
    if not allocation.desired.lost and allocation.owned <= status.ended | left:
        close(work, allocation, status, left, writer)
    else:
        if left:
            let_go(work, allocation, left)
        if status != allocation.status:
            work.put(allocation_status_key(allocation.node.id, allocation.id), status)
        writer.flush()
        close_if_done(work, allocation)
    if job.lost:
        lost.reclaim(work, job)


def _status(work: Work, allocation: Allocation, ends: _Ends, left: BitMap) -> AllocationStatus:
    """What is known of an allocation after a report's ends; without what leaves it."""
    status = allocation.status
    changed = ends.started | ends.succeeded | ends.failed | ends.cancelled
    if not changed and not left and not ends.cpu_ms:
        return status
    known = replace(
        status,
        started=(status.started | changed) - left,
        succeeded=(status.succeeded | ends.succeeded) - left,
        failed=(status.failed | ends.failed) - left,
        cancelled=(status.cancelled | ends.cancelled) - left,
        cpu_ms=min(status.cpu_ms + ends.cpu_ms, CPU_MS_MAX),
        memory_peak_bytes=max(status.memory_peak_bytes, ends.memory_peak_bytes),
    )
    return replace(known, started_at_ms=_started_at_ms(status, known.started - known.ended, work.wall_ms))


def _started_at_ms(status: AllocationStatus, running: BitMap, wall_ms: int) -> tuple[tuple[int, int], ...]:
    """When those that run were heard to have started: now, for those of which it was not known."""
    known = dict(status.started_at_ms)
    return tuple((index, known.get(index, wall_ms)) for index in running)


def _begin_job(
    work: Work, allocation: Allocation, report: AllocationReport, exits: Columns, open_: BitMap
) -> None:
    """With its first attempt the job runs: since then by the node's clock, if that can be."""
    job = allocation.job
    ended = [one for one in report.ended if one.started and one.index in open_]
    if not (ended or exits.index or indexset.within(report.started, open_)):
        return
    times = [one.started_at_ms for one in ended]
    if exits.index:
        times.append(first_start_ms(exits))
    began_ms = min(filter(None, times), default=work.wall_ms)
    began_ms = min(max(began_ms, job.config.submitted_at_ms), work.wall_ms)
    # A job that was retried has begun long ago.
    began_ms = job.status.started_at_ms or began_ms
    put_job_status(work, job, state=JobState.RUNNING, reason="", started_at_ms=began_ms)
    if job.spec.stdin:
        feeding.expect(work, job)
    work.event(EventKind.JOB_STARTED, job=job.id, node=allocation.node.config.name)


def _stalled(work: Work, node: Node, job: Job) -> None:
    """The node gave the job back after failures in a row: the job is kept off it."""
    if node.id in job.status.avoid:
        return
    put_job_status(work, job, avoid=(*job.status.avoid, node.id))
    work.event(
        EventKind.JOB_STALLED,
        job=job.id,
        node=node.config.name,
        message=f"kept off node {node.config.name} after failures in a row",
    )
    work.touch(job)


def take_resized(work: Work, node: Node, report: Resized) -> None:
    """Slots that the node has freed for good are no longer charged."""
    lease = node.leases.get(report.lease)
    if lease is None:
        return
    freed = set(report.freed)
    slots = tuple(slot for slot in lease.desired.slots if slot.slot not in freed)
    work.place_wanted = True
    target = min(lease.desired.target, len(slots))
    work.put(lease_key(node.id, lease.id), replace(lease.desired, slots=slots, target=target))
    close_lease_if_empty(work, lease)

"""What nodes report: each attempt's one outcome, and work that comes back."""

from dataclasses import dataclass, field, replace
from itertools import accumulate

from pyroaring import BitMap

from rota.core.cluster import feeding, lost
from rota.core.cluster.leases import close_lease_if_empty
from rota.core.cluster.records import (
    CPU_MS_MAX,
    AllocationStatus,
    NodeTally,
    ResultBlock,
    allocation_status_key,
    lease_key,
    tally_key,
)
from rota.core.cluster.soft import Average
from rota.core.cluster.state import Allocation, Job, Node
from rota.core.cluster.tasks import (
    TaskWriter,
    add_result,
    close_if_done,
    let_go,
    put_job_status,
    say_ended,
    supersede_others,
)
from rota.core.cluster.verdicts import CRASHES_MAX, Verdict, judge, unheard
from rota.core.cluster.work import Work
from rota.core.model import indexset
from rota.core.model.protocol import AllocationReport, Columns, Ended, Resized
from rota.core.model.states import Cause, EventKind, JobState, OnNodeLoss, TaskState

MESSAGE_CHARS_MAX = 500
WALL_MS_MAX = 2**48


@dataclass(slots=True)
class _Ends:
    """What one report does to one allocation."""

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

    def fail(self, index: int, cause: Cause, code: int, message: str) -> None:
        """An attempt ended so."""
        indices, said = self.causes.get((cause, code), (BitMap(), message))
        indices.add(index)
        self.causes[cause, code] = (indices, said or message)


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
    open_ = allocation.desired.indices - allocation.ended
    if job.status.state is JobState.PENDING:
        _begin_job(work, allocation, report, open_)
    block = ResultBlock(job.id, allocation.id, node.id)
    ends = _Ends()
    succeeded = indexset.within(report.succeeded, open_)
    open_ -= succeeded
    _take_successes(work, allocation, report, succeeded, block, ends)
    started = indexset.within(report.started, open_) | succeeded
    for ended in report.ended:
        if ended.index not in open_:
            continue
        open_.discard(ended.index)
        if ended.started:
            started.add(ended.index)
        if ended.cause is Cause.EXIT and ended.code == 0:
            succeeded.add(ended.index)
            if ended.index in allocation.owned:
                _add_row(block, allocation, ended)
            else:
                _keep_times(work, allocation, ended.index, _times(ended))
        else:
            _take_end(work, allocation, ended, block, ends)
    ends.dropped = indexset.within(report.dropped, open_)
    if block.index:
        work.outcome.blocks.append(block)
    _apply(work, allocation, started, succeeded, ends)
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


def _take_successes(
    work: Work,
    allocation: Allocation,
    report: AllocationReport,
    succeeded: BitMap,
    block: ResultBlock,
    ends: _Ends,
) -> None:
    """The rows of successes, and what they used."""
    columns = _sound(report.columns, sum(last - first + 1 for first, last in report.succeeded))
    # Without a row for each that it names, it may name more than there can be; and no row is looked for.
    reported = succeeded if columns == Columns() else indexset.from_ranges(report.succeeded)
    # A node may say again what is known: only what is new counts.
    ranks = range(len(reported)) if succeeded == reported else [reported.rank(one) - 1 for one in succeeded]
    if columns.duration_ms and ranks:
        rows = [_usage(columns, rank) for rank in ranks]
        average = work.soft.averages.setdefault(allocation.job.id, Average())
        average.add(len(rows), sum(row[0] for row in rows))
        ends.cpu_ms += sum(row[1] + row[2] for row in rows)
        ends.memory_peak_bytes = max(row[3] for row in rows) * 1024
    attempt = allocation.desired.first_attempt
    started_at_ms = list(accumulate(columns.started_at_ms))
    for index in succeeded:
        rank = reported.rank(index) - 1
        began_ms = started_at_ms[rank] if rank < len(started_at_ms) else 0
        times = (began_ms, *_usage(columns, rank))
        if index in allocation.owned:
            add_result(block, index, attempt, Cause.EXIT, 0, *times)
        else:
            _keep_times(work, allocation, index, times)


def _keep_times(work: Work, allocation: Allocation, index: int, times: tuple[int, ...]) -> None:
    """What a lost node finished is recorded when it is taken back, if it is (`nodes.reclaim`)."""
    session = work.soft.sessions.get(allocation.node.id)
    if session is not None:
        session.late.setdefault(allocation.id, {})[index] = times


def _sound(columns: Columns, count: int) -> Columns:
    """What a node says it measured; nothing where that cannot be: a row for each success, at a true time."""
    parts = (
        columns.started_at_ms,
        columns.duration_ms,
        columns.cpu_user_ms,
        columns.cpu_system_ms,
        columns.memory_peak_kib,
    )
    if any(len(part) not in (0, count) for part in parts):
        return Columns()
    if not all(0 <= at_ms <= WALL_MS_MAX for at_ms in accumulate(columns.started_at_ms)):
        return Columns()
    return columns


def _usage(columns: Columns, rank: int) -> tuple[int, int, int, int]:
    return (
        _column(columns.duration_ms, rank),
        _column(columns.cpu_user_ms, rank),
        _column(columns.cpu_system_ms, rank),
        _column(columns.memory_peak_kib, rank),
    )


def _column(column: tuple[int, ...], rank: int) -> int:
    return column[rank] if rank < len(column) else 0


def _times(ended: Ended) -> tuple[int, int, int, int, int]:
    return (
        ended.started_at_ms,
        ended.duration_ms,
        ended.cpu_user_ms,
        ended.cpu_system_ms,
        ended.memory_peak_kib,
    )


def _add_row(block: ResultBlock, allocation: Allocation, ended: Ended) -> None:
    add_result(
        block,
        ended.index,
        allocation.desired.first_attempt + ended.run - 1,
        ended.cause,
        ended.code,
        *_times(ended),
    )
    if ended.message:
        block.messages[ended.index] = ended.message[:MESSAGE_CHARS_MAX]


def _take_end(work: Work, allocation: Allocation, ended: Ended, block: ResultBlock, ends: _Ends) -> None:
    """One attempt that did not succeed."""
    job, index = allocation.job, ended.index
    ends.cpu_ms += ended.cpu_user_ms + ended.cpu_system_ms
    ends.memory_peak_bytes = max(ends.memory_peak_bytes, ended.memory_peak_kib * 1024)
    _add_row(block, allocation, ended)
    message = ended.message[:MESSAGE_CHARS_MAX]
    if index not in allocation.owned:
        # A lost node's attempt that is not wanted any more: it ended, and that is all. Its number
        # was counted when the node was called lost.
        ends.left.add(index)
        ends.fail(index, ended.cause, ended.code, message)
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
        until_ms = _later_ms(work.now_ms, judged.wait_ms)
        ends.waits.setdefault(until_ms, BitMap()).add(index)
    if judged.verdict is Verdict.POISON:
        ends.fail(index, Cause.POISON, 0, f"its node or agent died under it {CRASHES_MAX} times")
    else:
        ends.fail(index, ended.cause, ended.code, message)
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


def _later_ms(now_ms: int, wait_ms: int) -> int:
    """When a wait from now is over, rounded up by a sixteenth of it at most.

    So the times that tasks of a job wait for are few, however many fail one after the other.
    """
    step = max(wait_ms // 16, 1)
    return -(-(now_ms + wait_ms) // step) * step


def _apply(work: Work, allocation: Allocation, started: BitMap, succeeded: BitMap, ends: _Ends) -> None:
    """Makes the changes that a report's ends add up to."""
    job = allocation.job
    if job.lost:
        # An attempt that has started, or whose end is the task's, has taken the lost one's place.
        news = (started - allocation.status.started) | ends.failed | ends.cancelled | ends.failures
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
    changed = started | succeeded | ends.failed | ends.cancelled
    if left:
        let_go(work, allocation, left)
    status = allocation.status
    if changed - status.started - left or succeeded or ends.failed or ends.cancelled or ends.cpu_ms:
        running = (status.started | changed) - allocation.ended - succeeded - ends.failed - ends.cancelled
        work.put(
            allocation_status_key(allocation.node.id, allocation.id),
            replace(
                status,
                started=(status.started | changed) - left,
                succeeded=status.succeeded | succeeded,
                failed=status.failed | ends.failed,
                cancelled=status.cancelled | ends.cancelled,
                cpu_ms=min(status.cpu_ms + ends.cpu_ms, CPU_MS_MAX),
                memory_peak_bytes=max(status.memory_peak_bytes, ends.memory_peak_bytes),
                started_at_ms=_started_at_ms(status, running - left, work.wall_ms),
            ),
        )
    writer.flush()
    close_if_done(work, allocation)
    if job.lost:
        lost.reclaim(work, job)


def _started_at_ms(status: AllocationStatus, running: BitMap, wall_ms: int) -> tuple[tuple[int, int], ...]:
    """When those that run were heard to have started: now, for those of which it was not known."""
    known = dict(status.started_at_ms)
    return tuple((index, known.get(index, wall_ms)) for index in running)


def _begin_job(work: Work, allocation: Allocation, report: AllocationReport, open_: BitMap) -> None:
    """With its first attempt the job runs: since then by the node's clock, if that can be."""
    job = allocation.job
    ended = [one for one in report.ended if one.started and one.index in open_]
    succeeded = indexset.within(report.succeeded, open_)
    if not (ended or succeeded or indexset.within(report.started, open_)):
        return
    times = [one.started_at_ms for one in ended]
    if succeeded:
        times += accumulate(report.columns.started_at_ms)
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

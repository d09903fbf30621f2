"""The work of a node that cannot be reached: given up, taken back, or ended without the node's word.

A node that is called lost keeps its allocations, marked `lost`. What a job lets run again is owned
by them no longer; if the node comes back before another attempt has started, they take it back.
"""

from dataclasses import replace

from pyroaring import BitMap

from rota.core.cluster.records import allocation_key, empty
from rota.core.cluster.rows import block_of, both, of, tasks
from rota.core.cluster.state import Allocation, Job
from rota.core.cluster.tasks import (
    TaskWriter,
    close_if_done,
    fold,
    let_go,
    put_desired,
    record_ends,
    supersede,
    supersede_others,
)
from rota.core.cluster.verdicts import Verdict, judge_lost
from rota.core.cluster.work import Work, tasks_text
from rota.core.model import indexset
from rota.core.model.columns import pack_indices
from rota.core.model.protocol import Columns, Recall
from rota.core.model.states import Cause, EventKind, OnNodeLoss, TaskState


def give_up(work: Work, allocation: Allocation) -> None:
    """The node has been silent for too long: what it held waits for it, runs again, or ends."""
    job = allocation.job
    fold(work, allocation)
    if not allocation.remaining:
        close_if_done(work, allocation)
        return
    verdicts = judge_lost(allocation)
    # If the node comes back, it is told to end these.
    end_lost(work, allocation, verdicts.get(Verdict.CANCEL, empty()), TaskState.CANCELLED)
    end_lost(work, allocation, verdicts.get(Verdict.FAIL, empty()), TaskState.FAILED)
    held, again = verdicts.get(Verdict.HOLD, empty()), verdicts.get(Verdict.AGAIN, empty())
    if held:
        put_desired(work, allocation, replace(allocation.desired, lost=True, kept=held))
        work.event(
            EventKind.TASK_HELD,
            job=job.id,
            node=allocation.node.config.name,
            message=f"{tasks_text(len(held))} {'waits' if len(held) == 1 else 'wait'} "
            f"for node {allocation.node.config.name}, or for: rota release {job.id}",
        )
    if again:
        writer = TaskWriter(work, job)
        writer.count_attempts(again)
        writer.flush()
        put_desired(work, allocation, replace(allocation.desired, lost=True, kept=empty()))
        reclaim(work, job)


def end_lost(
    work: Work, allocation: Allocation, indices: BitMap, state: TaskState, message: str = ""
) -> None:
    """Attempts on a node out of reach end here, and nothing of them counts any more; PENDING: to run again.

    Under `hold` those of tasks that end may still run there, so that a retry waits for an operator, as
    they would have.
    """
    if not indices:
        return
    record_ends(work, allocation, indices, Cause.NODE_LOST, message)
    writer = TaskWriter(work, allocation.job)
    writer.count_attempts(indices)
    writer.failed_by(indices, Cause.NODE_LOST, 0, message)
    if state is not TaskState.PENDING:
        writer.finish(indices, state)
        if allocation.job.spec.on_node_loss is OnNodeLoss.HOLD:
            writer.hold(indices)
    let_go(work, allocation, indices)
    writer.flush()
    close_if_done(work, allocation)


def end_unclaimed(work: Work, allocation: Allocation, indices: BitMap, message: str) -> None:
    """Of what a lost node's allocation would have taken back, these are over. It is not closed here."""
    indices = indices & allocation.unclaimed
    if indices:
        record_ends(work, allocation, indices, Cause.NODE_LOST, message)
        let_go(work, allocation, indices)


def reclaim(work: Work, job: Job, *, ask: bool = False) -> None:
    """Lost allocations whose node is back take what nobody else has started; with `ask`, what others hold
    and have not started is asked back.
    """
    for allocation in list(job.lost.values()):
        if allocation.id not in job.lost:
            continue
        over = allocation.unclaimed & job.finals
        if over:
            supersede(work, allocation, over)
        if allocation.id in job.lost and work.soft.connected(allocation.node.id):
            _take_back(work, allocation, allocation.unclaimed & job.pending)
            if ask and allocation.id in job.lost:
                _dispute(work, allocation)


def _take_back(work: Work, allocation: Allocation, indices: BitMap) -> None:
    job, node = allocation.job, allocation.node
    if indices:
        writer = TaskWriter(work, job)
        # Where another attempt has been granted meanwhile its number is used, whether it started or not.
        last = BitMap(index for index in indices if job.attempts(index) == allocation.desired.first_attempt)
        writer.uncount_attempts(last)
        writer.wait(indices & job.delayed, 0)
        writer.flush()
        done = indices & allocation.status.succeeded
        if done:
            # Its times are known where this session has told them, and not an earlier one.
            exits = Columns(pack_indices(done))
            late = work.soft.sessions[node.id].late.get(allocation.id)
            if late is not None:
                told = tasks(late) & done
                exits = both(Columns(pack_indices(done - told)), of(late, told))
            work.outcome.blocks.append(block_of(allocation, exits))
    kept = allocation.desired.kept | indices
    if kept == allocation.desired.indices:
        work.put(
            allocation_key(node.id, allocation.id), replace(allocation.desired, lost=False, kept=empty())
        )
    elif indices:
        work.put(allocation_key(node.id, allocation.id), replace(allocation.desired, kept=kept))
    work.touch(job)
    started = indices & allocation.status.started
    if started:
        supersede_others(work, allocation, started)
    close_if_done(work, allocation)


def _dispute(work: Work, allocation: Allocation) -> None:
    """Asks for tasks back that others hold and have not started; a lost node's own ones go on meanwhile."""
    for other in list(allocation.job.allocations.values()):
        if other is allocation or not work.soft.connected(other.node.id):
            continue
        disputed = (allocation.unclaimed & other.remaining) - other.status.started
        if disputed:
            session = work.soft.sessions[other.node.id]
            work.send(other.node.id, Recall(other.id, session.ask(), indexset.to_ranges(disputed)))

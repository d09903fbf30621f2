"""Which nodes are there: what silence means, what is given up, what is taken back.

A node that is called lost keeps its allocations, marked `lost`. What a job lets run again is owned
by them no longer; if the node comes back before another attempt has started, they take it back.
"""

from collections.abc import Collection
from dataclasses import replace

from pyroaring import BitMap

from rota.core.cluster.check import require
from rota.core.cluster.records import ResultBlock, allocation_key, empty, node_key, node_status_key
from rota.core.cluster.soft import Soft
from rota.core.cluster.state import Allocation, Job, Node
from rota.core.cluster.tasks import (
    TaskWriter,
    add_result,
    ask_stop,
    close_if_done,
    fold,
    let_go,
    put_desired,
    record_ends,
    supersede,
    supersede_others,
)
from rota.core.cluster.work import Work, tasks_text
from rota.core.model import indexset
from rota.core.model.protocol import Recall
from rota.core.model.states import NODE_MOVES, Cause, EventKind, NodeState, OnNodeLoss, StopReason, TaskState

_EVENTS = {
    NodeState.READY: EventKind.NODE_READY,
    NodeState.SUSPECT: EventKind.NODE_SUSPECT,
    NodeState.DISCONNECTED: EventKind.NODE_DISCONNECTED,
    NodeState.LOST: EventKind.NODE_LOST,
    NodeState.GONE: EventKind.NODE_GONE,
}
_FALLING = (NodeState.READY, NodeState.SUSPECT, NodeState.DISCONNECTED, NodeState.LOST)


def begin(work: Work) -> None:
    """A leader begins: every node was heard just now, as far as it can know."""
    for node in work.cluster.nodes.values():
        if not node.config.removed:
            work.soft.heard_ms[node.id] = work.now_ms
            look(work, node.id)
            if node.config.draining and node.config.drain_deadline_ms is not None:
                work.soft.timers.arm("drain", node.id, node.config.drain_deadline_ms)
    forget_removed(work, list(work.cluster.nodes))


def forget_removed(work: Work, names: Collection[str]) -> None:
    """Of these nodes, those that were removed are forgotten once no job has anything to say of them."""
    for name in sorted(names):
        node = work.cluster.nodes.get(name)
        if node is None or not node.config.removed or node.allocations or name in work.cluster.tally_counts:
            continue
        work.drop(node_status_key(name))
        work.drop(node_key(name))


def listen_anew(work: Work) -> None:
    """Every window of silence begins again: the leader was not there to listen."""
    for name in work.soft.heard_ms:
        work.soft.heard_ms[name] = work.now_ms
        work.soft.timers.arm("node", name, work.now_ms + work.settings.suspect_ms)


def connected(work: Work, node: str) -> bool:
    """Whether the node has a stream on which it can be given work."""
    session = work.soft.sessions.get(node)
    return session is not None and session.compared


def takes_work(soft: Soft, node: Node) -> bool:
    """Whether something new may go to the node."""
    session = soft.sessions.get(node.id)
    return node.placeable and session is not None and session.compared and not session.leaving


def heard(work: Work, node: Node) -> None:
    """The node has just been heard."""
    work.soft.heard_ms[node.id] = work.now_ms
    if node.status.state is NodeState.SUSPECT and connected(work, node.id):
        become(work, node, NodeState.READY, "")
        work.place_wanted = True
    work.soft.timers.arm_earlier("node", node.id, work.now_ms + work.settings.suspect_ms)


def become(work: Work, node: Node, state: NodeState, reason: str) -> None:
    """Changes a node's state, and says so. Raises InvariantBroken where it may not go there."""
    old = node.status.state
    if old is state:
        return
    require(state in NODE_MOVES[old], "moves", f"node {node.config.name}: {old.name} -> {state.name}")
    status = replace(node.status, state=state, reason=reason, changed_at_ms=work.wall_ms)
    work.put(node_status_key(node.id), status)
    # A lost node's share of its queues' quotas is free again.
    work.place_wanted = work.place_wanted or node.lost
    work.event(_EVENTS[state], node=node.config.name, message=reason)


def say_goodbye(work: Work, node: Node, reason: str) -> None:
    """The node goes on purpose."""
    work.put(node_status_key(node.id), replace(node.status, away=True))
    fall_to(work, node, NodeState.DISCONNECTED, reason)


def fall_to(work: Work, node: Node, state: NodeState, reason: str) -> None:
    """Goes down to a state, through those between."""
    while node.status.state in _FALLING and _FALLING.index(node.status.state) < _FALLING.index(state):
        become(work, node, _FALLING[_FALLING.index(node.status.state) + 1], reason)


def _silent(silent_ms: int) -> str:
    return f"silent for {silent_ms // 1000} s" if silent_ms >= 1000 else f"silent for {silent_ms} ms"


def look(work: Work, name: str) -> None:
    """Draws the conclusions from how long the node has been silent, and sets when to look again."""
    node = work.cluster.nodes.get(name)
    if node is None or node.config.removed:
        return
    settings = work.settings
    heard_ms = work.soft.heard_ms.setdefault(node.id, work.now_ms)
    silent_ms = work.now_ms - heard_ms
    session = work.soft.sessions.get(node.id)
    if silent_ms >= settings.disconnected_ms and session is not None:
        work.close(node.id, session.stream, f"silent for {silent_ms} ms")
        del work.soft.sessions[node.id]
        session = None
    extension_ms = 0
    if silent_ms >= settings.disconnected_ms and _mass_silence(work, node):
        extension_ms = settings.lost_after_ms
    if silent_ms >= settings.lost_after_ms + extension_ms:
        fall_to(work, node, NodeState.LOST, _silent(silent_ms))
    elif silent_ms >= settings.disconnected_ms:
        fall_to(work, node, NodeState.DISCONNECTED, _silent(silent_ms))
    elif silent_ms >= settings.suspect_ms or session is None:
        reason = _silent(silent_ms) if session is not None else "its stream has closed"
        fall_to(work, node, NodeState.SUSPECT, reason)
    if node.status.state is not NodeState.READY:
        for allocation in list(node.allocations.values()):
            patience_ms = _patience_ms(work, allocation, extension_ms)
            if _to_give_up(allocation) and work.now_ms >= heard_ms + patience_ms:
                give_up(work, allocation)
    _look_again(work, node, heard_ms, extension_ms)


def _look_again(work: Work, node: Node, heard_ms: int, extension_ms: int) -> None:
    settings = work.settings
    times = [settings.suspect_ms, settings.disconnected_ms, settings.lost_after_ms + extension_ms]
    if node.status.state is not NodeState.READY:
        times += [
            _patience_ms(work, allocation, extension_ms)
            for allocation in node.allocations.values()
            if _to_give_up(allocation)
        ]
    later = [heard_ms + time for time in times if heard_ms + time > work.now_ms]
    if later:
        work.soft.timers.arm("node", node.id, min(later))


def _to_give_up(allocation: Allocation) -> bool:
    """Whether it has tasks that its node's silence would take from it; what `hold` keeps, it does not."""
    if not allocation.desired.lost:
        return True
    return bool(allocation.remaining) and allocation.job.spec.on_node_loss is not OnNodeLoss.HOLD


def fence_ms(work: Work, node: Node) -> int:
    """Silence after which a fenced attempt there must have ended, by what its agent was told last."""
    return work.settings.fence_ms(node.status.lost_after_ms)


def _patience_ms(work: Work, allocation: Allocation, extension_ms: int) -> int:
    """Silence after which an allocation is given up."""
    settings, spec = work.settings, allocation.job.spec
    if spec.on_node_loss is OnNodeLoss.RERUN_FENCED:
        return fence_ms(work, allocation.node) + extension_ms
    if spec.on_node_loss is OnNodeLoss.RERUN and spec.rerun_after:
        return max(spec.rerun_after, settings.suspect_ms) + extension_ms
    return settings.lost_after_ms + extension_ms


def _mass_silence(work: Work, node: Node) -> bool:
    """Whether more than half of at least three nodes are silent at once: then the fault is likely here."""
    alive = silent = 0
    for other in work.cluster.nodes.values():
        status = other.status
        if other.config.removed or status.state in (NodeState.LOST, NodeState.GONE) or status.away:
            continue
        if not status.journal_id:
            continue
        alive += 1
        silent_ms = work.now_ms - work.soft.heard_ms.get(other.id, work.now_ms)
        silent += silent_ms >= work.settings.disconnected_ms
    if alive < 3 or silent * 2 <= alive:
        work.soft.alarmed = False
        return False
    if not work.soft.alarmed:
        work.soft.alarmed = True
        message = (
            f"{silent} of {alive} nodes fell silent at once; none is called lost for twice the usual time"
        )
        work.event(EventKind.ALARM, node=node.config.name, message=message)
    return True


# ---------------------------------------------------------------- given up, and taken back


def give_up(work: Work, allocation: Allocation) -> None:
    """The node has been silent for too long: the job's `on_node_loss` decides."""
    job = allocation.job
    fold(work, allocation)
    if not allocation.remaining:
        close_if_done(work, allocation)
        return
    # What a lost task has read of its input is gone, so it cannot run again.
    policy = OnNodeLoss.CANCEL if job.ending or job.spec.stdin else job.spec.on_node_loss
    if policy is not OnNodeLoss.CANCEL:
        cancel_lost(work, allocation, allocation.remaining & allocation.desired.cancelled)
        if allocation.id not in allocation.node.allocations:
            return
    remaining = allocation.remaining
    match policy:
        case OnNodeLoss.CANCEL:
            cancel_lost(work, allocation, remaining)
        case OnNodeLoss.HOLD:
            put_desired(work, allocation, replace(allocation.desired, lost=True, kept=remaining))
            work.event(
                EventKind.TASK_HELD,
                job=job.id,
                node=allocation.node.config.name,
                message=f"{tasks_text(len(remaining))} {'waits' if len(remaining) == 1 else 'wait'} "
                f"for node {allocation.node.config.name}, or for: rota release {job.id}",
            )
        case OnNodeLoss.RERUN | OnNodeLoss.RERUN_FENCED:
            writer = TaskWriter(work, job)
            writer.count_attempts(remaining)
            writer.flush()
            put_desired(work, allocation, replace(allocation.desired, lost=True, kept=empty()))
            reclaim(work, job)


def cancel_lost(work: Work, allocation: Allocation, indices: BitMap) -> None:
    """Tasks that a lost node held end as cancelled; if it comes back, it is told to end them.

    Under `hold` they may still run there, so that a retry waits for an operator, as they would have.
    """
    if not indices:
        return
    record_ends(work, allocation, indices, Cause.NODE_LOST)
    writer = TaskWriter(work, allocation.job)
    writer.count_attempts(indices)
    writer.failed_by(indices, Cause.NODE_LOST, 0)
    writer.finish(indices, TaskState.CANCELLED)
    if allocation.job.spec.on_node_loss is OnNodeLoss.HOLD:
        writer.hold(indices)
    let_go(work, allocation, indices)
    writer.flush()
    close_if_done(work, allocation)


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
        if allocation.id in job.lost and connected(work, allocation.node.id):
            _take_back(work, allocation, allocation.unclaimed & job.pending)
            if ask and allocation.id in job.lost:
                dispute(work, allocation)


def _take_back(work: Work, allocation: Allocation, indices: BitMap) -> None:
    job, node = allocation.job, allocation.node
    if indices:
        writer = TaskWriter(work, job)
        # Where another attempt has been granted meanwhile its number is used, whether it started or not.
        last = BitMap(index for index in indices if job.attempts(index) == allocation.desired.first_attempt)
        writer.uncount_attempts(last)
        writer.flush()
        done = indices & allocation.status.succeeded
        if done:
            # Its times are known where this session has told them, and not an earlier one.
            late = work.soft.sessions[node.id].late.get(allocation.id, {})
            block = ResultBlock(job.id, allocation.id, node.id)
            for index in done:
                times = late.pop(index, ())
                add_result(block, index, allocation.desired.first_attempt, Cause.EXIT, 0, *times)
            work.outcome.blocks.append(block)
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


def dispute(work: Work, allocation: Allocation) -> None:
    """Asks for tasks back that others hold and have not started; a lost node's own ones go on meanwhile."""
    for other in list(allocation.job.allocations.values()):
        if other is allocation or not connected(work, other.node.id):
            continue
        disputed = (allocation.unclaimed & other.remaining) - other.status.started
        if disputed:
            session = work.soft.sessions[other.node.id]
            work.send(other.node.id, Recall(other.id, session.ask(), indexset.to_ranges(disputed)))


def drain_deadline(work: Work, name: str) -> None:
    """The drain's time is over: what still runs on the node is stopped, to run elsewhere."""
    node = work.cluster.nodes.get(name)
    if node is None or not node.config.draining:
        return
    for allocation in list(node.allocations.values()):
        if allocation.desired.lost:
            continue
        rest = allocation.remaining - allocation.desired.stopping
        ask_stop(work, allocation, rest, StopReason.PREEMPT)

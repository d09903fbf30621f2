"""Which nodes are there, and what their silence means."""

from collections.abc import Collection
from dataclasses import replace

from rota.core.cluster import lost
from rota.core.cluster.check import require
from rota.core.cluster.records import node_key, node_status_key
from rota.core.cluster.soft import Session, Soft
from rota.core.cluster.state import Allocation, Node
from rota.core.cluster.tasks import (
    ask_stop,
    put_desired,
)
from rota.core.cluster.work import Work
from rota.core.model.states import NODE_MOVES, EventKind, NodeState, OnNodeLoss, StopReason

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
            # Of thousands, each in its turn: none has a stream.
            work.soft.timers.arm("node", node.id, work.now_ms)
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


def not_listened(work: Work, late_ms: int) -> None:
    """The leader was not there to listen for so long: that is nobody's silence.

    But one that is late again and again excuses no node for longer than it may be silent.
    """
    soft = work.soft
    for name, heard_ms in soft.heard_ms.items():
        excused_ms = soft.excused_ms.get(name, 0)
        more_ms = min(late_ms, work.now_ms - heard_ms)
        if excused_ms:
            more_ms = min(more_ms, max(work.settings.lost_after_ms - excused_ms, 0))
        soft.heard_ms[name] = heard_ms + more_ms
        soft.excused_ms[name] = excused_ms + more_ms
    for session in soft.sessions.values():
        session.heard_ms = min(session.heard_ms + late_ms, work.now_ms)


def end_session(work: Work, session: Session, reason: str) -> None:
    """Ends the node's stream from this side; what follows from that is for the caller to see to."""
    work.close(session.node, session.stream, reason)
    if work.soft.sessions.get(session.node) is session:
        del work.soft.sessions[session.node]
        work.cluster.news.nodes[session.node] = None


def takes_work(soft: Soft, node: Node) -> bool:
    """Whether something new may go to the node."""
    session = soft.sessions.get(node.id)
    return node.placeable and session is not None and session.compared and not session.leaving


def heard(work: Work, session: Session, node: Node) -> None:
    """The node has just been heard. One that began anew without end is as good as silent."""
    session.heard_ms = work.now_ms
    if session.counts:
        work.soft.heard_ms[node.id] = work.now_ms
        work.soft.excused_ms.pop(node.id, None)
        work.mass_silence = None
    if node.status.state is NodeState.SUSPECT and session.compared:
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


def _silent(work: Work, node: Node, silent_ms: int) -> str:
    if node.id in work.soft.beginning:
        return f"for {silent_ms // 1000} s it has dialled without saying all that it holds"
    return f"silent for {silent_ms // 1000} s" if silent_ms >= 1000 else f"silent for {silent_ms} ms"


def limits(work: Work) -> tuple[int, int]:
    """Silence after which a node is suspect, and disconnected: never less than a few of its heartbeats."""
    beat_ms = work.settings.heartbeat_ms(len(work.cluster.node_names))
    return max(work.settings.suspect_ms, 3 * beat_ms), max(work.settings.disconnected_ms, 6 * beat_ms)


def look(work: Work, name: str) -> None:
    """Draws the conclusions from how long the node has been silent, and sets when to look again."""
    node = work.cluster.nodes.get(name)
    if node is None or node.config.removed:
        return
    settings = work.settings
    suspect_ms, disconnected_ms = limits(work)
    heard_ms = work.soft.heard_ms.setdefault(node.id, work.now_ms)
    silent_ms = work.now_ms - heard_ms
    session = work.soft.sessions.get(node.id)
    if session is not None and work.now_ms - session.heard_ms >= disconnected_ms:
        end_session(work, session, f"silent for {work.now_ms - session.heard_ms} ms")
        session = None
    extension_ms = 0
    if silent_ms >= disconnected_ms and _mass_silence(work):
        extension_ms = settings.lost_after_ms
    if silent_ms >= settings.lost_after_ms + extension_ms:
        fall_to(work, node, NodeState.LOST, _silent(work, node, silent_ms))
    elif silent_ms >= disconnected_ms:
        fall_to(work, node, NodeState.DISCONNECTED, _silent(work, node, silent_ms))
    elif silent_ms >= suspect_ms or session is None:
        reason = _silent(work, node, silent_ms) if session is not None else "its stream has closed"
        fall_to(work, node, NodeState.SUSPECT, reason)
    if node.status.state is not NodeState.READY:
        for allocation in list(node.allocations.values()):
            patience_ms = _patience_ms(work, allocation, extension_ms)
            if _to_give_up(allocation) and work.now_ms >= heard_ms + patience_ms:
                if session is not None and session.compared:
                    # It would take the work back at once, and is to say first what it holds.
                    end_session(work, session, f"silent for {silent_ms} ms")
                    session = None
                lost.give_up(work, allocation)
    _look_again(work, node, heard_ms, extension_ms)


def _look_again(work: Work, node: Node, heard_ms: int, extension_ms: int) -> None:
    settings = work.settings
    suspect_ms, disconnected_ms = limits(work)
    times = [suspect_ms, disconnected_ms, settings.lost_after_ms + extension_ms]
    session = work.soft.sessions.get(node.id)
    if session is not None:
        times.append(session.heard_ms + disconnected_ms - heard_ms)
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


def _mass_silence(work: Work) -> bool:
    """Whether more than half of at least three nodes are silent at once: then the fault is likely here."""
    if work.mass_silence is None:
        work.mass_silence = _count_silent(work)
    return work.mass_silence


def _count_silent(work: Work) -> bool:
    _, disconnected_ms = limits(work)
    alive = silent = 0
    for other in work.cluster.nodes.values():
        status = other.status
        if other.config.removed or status.state in (NodeState.LOST, NodeState.GONE) or status.away:
            continue
        if not status.journal_id:
            continue
        alive += 1
        silent_ms = work.now_ms - work.soft.heard_ms.get(other.id, work.now_ms)
        silent += silent_ms >= disconnected_ms
    if alive < 3 or silent * 2 <= alive:
        work.soft.alarmed = False
        return False
    if not work.soft.alarmed:
        work.soft.alarmed = True
        message = (
            f"{silent} of {alive} nodes fell silent at once; none is called lost for twice the usual time"
        )
        work.event(EventKind.ALARM, message=message)
    return True


def drain_deadline(work: Work, name: str) -> None:
    """The drain's time is over: what still runs on the node is stopped, to run elsewhere."""
    node = work.cluster.nodes.get(name)
    if node is None or not node.config.draining:
        return
    for allocation in list(node.allocations.values()):
        if allocation.unclaimed:
            # What it may yet take back is to end as well.
            work.soft.timers.arm_earlier("drain", name, work.now_ms + work.settings.suspect_ms)
        rest = allocation.remaining - allocation.desired.stopping
        ask_stop(work, allocation, rest, StopReason.PREEMPT)


def undo_drain(work: Work, node: Node) -> None:
    """The drain was withdrawn, or ends later: what it asked for and the node has not heard of is not wanted.

    What the node has heard of it ends, as it was told.
    """
    for allocation in list(node.allocations.values()):
        stops = tuple(stop for stop in allocation.desired.stops if stop.reason is not StopReason.PREEMPT)
        if stops != allocation.desired.stops:
            put_desired(work, allocation, replace(allocation.desired, stops=stops))

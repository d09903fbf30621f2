"""Nodes' streams: who is heard, what they say, and the comparison when they come back.

After Hello and the Holding pages, and once the reports up to the Hello's last sequence are in, what
the node holds is compared with what it should hold, and the difference is sent. Nothing is
remembered of what was sent before.
"""

from dataclasses import replace
from enum import StrEnum

from pyroaring import BitMap

from rota.core.cluster import feeding, lost, nodes, reports
from rota.core.cluster.inputs import Done, FromNode, Send, StreamClosed, ToNode, Why
from rota.core.cluster.leases import fit_leases, fit_quota, tell_lease
from rota.core.cluster.records import (
    NodeInventory,
    allocation_key,
    inventory_key,
    lease_key,
    node_status_key,
)
from rota.core.cluster.soft import Session
from rota.core.cluster.state import Allocation, Node
from rota.core.cluster.tasks import close_if_done, stop
from rota.core.cluster.work import Work
from rota.core.model import indexset
from rota.core.model.protocol import (
    PROTOCOL_VERSION,
    RECALL_ALL,
    Ack,
    AllocationReport,
    Down,
    Drain,
    Ended,
    Forget,
    Goodbye,
    Grant,
    Heartbeat,
    HeartbeatAck,
    Hello,
    Holding,
    HoldingEnd,
    InputTaken,
    OutputHeld,
    Recall,
    Refused,
    Report,
    Resize,
    Stop,
    Template,
    Welcome,
)
from rota.core.model.resources import amount_text
from rota.core.model.states import Cause, EventKind, NodeState, StopReason

REFUSED_RETRY_MS_MIN = 1_000
# A node that is refused again and again for one reason is an event once in so long.
REFUSED_EVENT_MS = 60_000
# Leases and allocations of one node that are not known here, of each kind: far more than it would have.
# Of more, those that came first are ended, and the node says again what it holds.
STRANGE_MAX = 10_000
# Of one resource of one node, all units together: far beyond any truth, and a number of the wire.
CAPACITY_MAX = 2**60


def receive(work: Work, item: FromNode) -> None:
    """A message of a node."""
    if isinstance(item.message, Hello):
        _hello(work, item.node, item.stream, item.message)
        return
    session = work.soft.sessions.get(item.node)
    if session is None or session.stream != item.stream:
        return
    node = work.cluster.nodes[item.node]
    nodes.heard(work, session, node)
    match item.message:
        case Holding() | HoldingEnd() if session.holding_ended:
            pass  # once more, of what has been compared
        case Holding():
            session.holding_count += 1
            _take_page(node, session, item.message)
        case HoldingEnd(pages) if pages != session.holding_count:
            end_stream(work, session, f"{session.holding_count} of {pages} pages of what it holds came")
        case HoldingEnd():
            session.holding_ended = True
            work.soft.timers.disarm("holding", node.id)
            _compare_if_ready(work, node, session)
        case Heartbeat() | Report() if not session.holding_ended:
            end_stream(work, session, "what the node holds did not come whole")
        case Heartbeat():
            _heartbeat(work, node, session, item.message)
        case Report():
            _report(work, node, session, item.message)
        case OutputHeld(jobs):
            _forget_output(work, node, jobs)
        case InputTaken():
            feeding.taken(work, node, item.message)
        case Goodbye(reason, last_sequence):
            if session.compared and last_sequence == node.status.acknowledged:
                _end_what_was_on_its_way(work, node)
            nodes.say_goodbye(work, node, reason or "its agent was stopped")
            end_stream(work, session, "goodbye")


def _take_page(node: Node, session: Session, page: Holding) -> None:
    """Keeps what the comparison needs of it, and no more than is known here and STRANGE_MAX.

    What is not known now will not be: nothing is granted before the comparison.
    """
    for lease in page.leases:
        known = node.leases.get(lease.lease)
        if known is None:
            _keep_strange(session, session.strange_leases, lease.lease)
        else:
            # That it has more slots than it should is all there is to know of those.
            most = len(known.desired.slots)
            session.held_leases[lease.lease] = lease.slots if len(lease.slots) <= most else ()
    for part in page.allocations:
        allocation = node.allocations.get(part.allocation)
        if allocation is None:
            _keep_strange(session, session.strange_allocations, part.allocation)
        else:
            # A large one comes in several pieces.
            held = session.held_allocations.setdefault(part.allocation, BitMap())
            held |= indexset.within(part.waiting, allocation.job.all)
            held |= indexset.within(part.started, allocation.job.all)


def _keep_strange(session: Session, numbers: set[int], number: int) -> None:
    if len(numbers) < STRANGE_MAX:
        numbers.add(number)
    elif number not in numbers:
        session.more_is_strange = True


def holding_overdue(work: Work, name: str) -> None:
    """A session whose node has not said in time what it holds is ended: it would be heard, and of no use."""
    session = work.soft.sessions.get(name)
    if session is not None and not session.holding_ended:
        end_stream(work, session, f"what the node holds did not come within {work.settings.holding_ms} ms")


def _heartbeat(work: Work, node: Node, session: Session, heartbeat: Heartbeat) -> None:
    if heartbeat.leaving and not session.leaving:
        session.leaving = True
        work.cluster.news.nodes[node.id] = None
    if heartbeat.sequence_sent > node.status.acknowledged:
        end_stream(work, session, "a report was lost on the way")
    elif session.counts:
        # Else the node must not take this for a sign that it is waited for.
        work.confirm()
        work.send(node.id, HeartbeatAck(heartbeat.sent_ms))


def _forget_output(work: Work, node: Node, jobs: tuple[int, ...]) -> None:
    """Of jobs that are not kept any more; one with a number still to come is another leader's."""
    forgotten = tuple(
        job for job in jobs if job not in work.cluster.jobs and job < work.cluster.meta.next_job
    )
    if forgotten:
        work.send(node.id, Forget(forgotten))


def _end_what_was_on_its_way(work: Work, node: Node) -> None:
    """The node has told everything, holds nothing, and obeys nothing any more: what it was sent is free."""
    for allocation in list(node.allocations.values()):
        lost.end_unclaimed(work, allocation, allocation.unclaimed, "the node has left without it")
        unstarted = allocation.remaining - allocation.status.started
        report = AllocationReport(allocation.id, dropped=indexset.to_ranges(unstarted))
        reports.take_allocation(work, node, report)
    for lease in list(node.leases.values()):
        if not lease.allocations:
            work.drop(lease_key(node.id, lease.id))


def closed(work: Work, item: StreamClosed) -> None:
    """A stream has ended, on either side's wish or none."""
    session = work.soft.sessions.get(item.node)
    if session is not None and session.stream == item.stream:
        del work.soft.sessions[item.node]
        work.cluster.news.nodes[item.node] = None
        nodes.look(work, item.node)


def pass_on(work: Work, item: ToNode) -> None:
    """The shell's own message for a node."""
    session = work.soft.sessions.get(item.node)
    if session is None:
        node = work.cluster.nodes.get(item.node)
        name = node.config.name if node is not None else item.node
        work.refuse(item.ticket, Why.REFUSED, f"node {name} is not connected; try again when it is back")
        return
    work.send(item.node, item.body)
    work.reply(item.ticket, Done(1))


def end_stream(work: Work, session: Session, reason: str) -> None:
    """Ends a session from this side; the node dials again if it wants."""
    nodes.end_session(work, session, reason)
    nodes.look(work, session.node)


# ---------------------------------------------------------------- hello


class _Reason(StrEnum):
    """Why a Hello is not accepted, apart from the words, which tell of this Hello."""

    UNKNOWN = "unknown"
    PROTOCOL = "protocol"
    CLUSTER = "cluster"
    RESTORED = "restored"
    LATER_LEADER = "later-leader"
    POOLS = "pools"
    CAPACITY = "capacity"
    OLD_JOURNAL = "old-journal"
    COPY = "copy"
    NEW_JOURNAL = "new-journal"


def _hello(work: Work, node_id: str, stream: int, hello: Hello) -> None:
    node = work.cluster.nodes.get(node_id)
    refusal = _refusal(work, node, hello)
    if refusal is not None or node is None:
        assert refusal is not None
        reason, refused = refusal
        refused.hello_sent_ms = hello.sent_ms
        if not refused.retry_ms:
            # For good: only who truly leads may say so.
            work.confirm_wanted = True
        work.outcome.orders.append(Send(node_id, stream, Down(work.cluster.commit.term, 0, 1, refused)))
        work.close(node_id, stream, refused.message)
        if node is not None and not node.config.removed:
            _say_refused(work, node, reason, refused.message)
        return
    old = work.soft.sessions.get(node_id)
    if old is not None and old.stream == stream:
        end_stream(work, old, "a second Hello on one stream")
        return
    if old is not None:
        work.close(node_id, old.stream, "a newer stream of the same node has come")
    new_journal = hello.journal_id != node.status.journal_id
    fresh = new_journal or node.status.journal_new
    counts = node_id not in work.soft.beginning
    work.soft.beginning.add(node_id)
    session = Session(node_id, stream, work.number(), hello, fresh, work.now_ms, counts)
    work.soft.sessions[node_id] = session
    work.cluster.news.nodes[node_id] = None
    status = replace(
        node.status,
        boot_id=hello.boot_id,
        journal_id=hello.journal_id,
        away=False,
        journal_new=fresh,
        # Until this session's Welcome is there, the agent goes by what it was told before.
        lost_after_ms=max(hello.lost_after_ms, work.settings.lost_after_ms),
    )
    # What was acknowledged to this journal once counts, also where another one came between.
    known = 0 if new_journal else status.acknowledged
    status = replace(status, acknowledged=max(known, hello.acknowledged))
    # Also where nothing in it changed: the session's number must not be used again.
    work.put(node_status_key(node_id), status)
    if node.inventory != hello.inventory:
        work.put(inventory_key(node_id), NodeInventory(hello.inventory))
    nodes.heard(work, session, node)
    work.soft.timers.arm("holding", node_id, work.now_ms + work.settings.holding_ms)
    meta = work.cluster.meta
    work.send(
        node_id,
        Welcome(
            node_id=node_id,
            node_name=node.config.name,
            cluster=meta.uuid,
            incarnation=meta.incarnation,
            acknowledged=status.acknowledged,
            heartbeat_ms=work.settings.heartbeat_ms(len(work.cluster.node_names)),
            lost_after_ms=work.settings.lost_after_ms,
            hello_sent_ms=hello.sent_ms,
        ),
    )


def _say_refused(work: Work, node: Node, reason: _Reason, message: str) -> None:
    """An event, unless the same was one just now: it is a commit, and takes an older event's place."""
    said_ms = work.soft.refused_ms
    for key in [key for key, at_ms in said_ms.items() if work.now_ms - at_ms >= REFUSED_EVENT_MS]:
        del said_ms[key]
    if (node.id, reason) not in said_ms:
        said_ms[node.id, reason] = work.now_ms
        work.event(EventKind.NODE_REFUSED, node=node.config.name, message=message)


def _refusal(work: Work, node: Node | None, hello: Hello) -> tuple[_Reason, Refused] | None:
    """Why a Hello is not accepted, if it is not."""
    cluster = work.cluster
    if node is None or node.config.removed:
        return _Reason.UNKNOWN, Refused(
            "this node is not known here; it was removed, or it belongs to another cluster"
        )
    if hello.protocol != PROTOCOL_VERSION:
        return _Reason.PROTOCOL, Refused(
            f"the agent speaks protocol {hello.protocol}, this cluster {PROTOCOL_VERSION}; update it"
        )
    if hello.cluster and hello.cluster != cluster.meta.uuid:
        return _Reason.CLUSTER, Refused(
            f"the agent belongs to cluster {hello.cluster}, this is {cluster.meta.uuid}"
        )
    if hello.incarnation > cluster.meta.incarnation:
        return _Reason.RESTORED, Refused(
            "the agent has seen a later restore of this cluster than this controller knows"
        )
    if hello.term > cluster.commit.term:
        return _Reason.LATER_LEADER, Refused(
            "the agent has obeyed a later leader than this one", REFUSED_RETRY_MS_MIN
        )
    names = [pool.name for pool in hello.inventory.pools]
    if len(set(names)) < len(names):
        return _Reason.POOLS, Refused("the agent declares two pools of one name")
    for resource, amount in hello.inventory.capacity().items():
        if amount > CAPACITY_MAX:
            most = amount_text(resource, CAPACITY_MAX)
            return _Reason.CAPACITY, Refused(
                f"the agent declares {amount_text(resource, amount)} of {resource} in all its pools; "
                f"at most {most} are allowed"
            )
    status = node.status
    if not status.journal_id:
        return None
    if hello.journal_id == status.journal_id:
        if hello.last_sequence < status.acknowledged:
            return _Reason.OLD_JOURNAL, Refused(
                "the agent's journal is older than what it has already reported: it was restored or copied; "
                "remove the node and let it join again"
            )
        return None
    silent_ms = work.now_ms - work.soft.heard_ms.get(node.id, work.now_ms)
    suspect_ms, _ = nodes.limits(work)
    if silent_ms < suspect_ms and not status.away:
        return _Reason.COPY, Refused(
            f"node {node.config.name} was heard {silent_ms} ms ago with another journal: if the home of the "
            "agent that is refused is a copy (of a disk, say), remove that home and join with a new token; "
            f"the node's own agent is let in once the other is silent for {suspect_ms} ms",
            max(suspect_ms - silent_ms, REFUSED_RETRY_MS_MIN),
        )
    open_work = any(not allocation.desired.lost for allocation in node.allocations.values())
    if hello.boot_id == status.boot_id and open_work and silent_ms < nodes.fence_ms(work, node):
        return _Reason.NEW_JOURNAL, Refused(
            "the agent's journal is new though the machine has not booted: what the former one ran may "
            "still run; it is waited for until that must have ended",
            work.settings.suspect_ms,
        )
    return None


# ---------------------------------------------------------------- reports


def _report(work: Work, node: Node, session: Session, report: Report) -> None:
    status = node.status
    if report.journal_id != status.journal_id:
        end_stream(work, session, "a report of another journal")
        return
    if report.last_sequence <= status.acknowledged:
        work.send(node.id, Ack(status.acknowledged))
        return
    straddles = report.first_sequence <= session.hello.last_sequence < report.last_sequence
    if report.first_sequence != status.acknowledged + 1 or (straddles and not session.compared):
        end_stream(
            work, session, f"expected a report from {status.acknowledged + 1}, got {report.first_sequence}"
        )
        return
    for allocation in report.allocations:
        reports.take_allocation(work, node, allocation)
    for resized in report.resized:
        reports.take_resized(work, node, resized)
    work.put(node_status_key(node.id), replace(node.status, acknowledged=report.last_sequence))
    work.send(node.id, Ack(report.last_sequence))
    _comes_forward(work, node, session)
    _compare_if_ready(work, node, session)


# ---------------------------------------------------------------- the comparison


def _comes_forward(work: Work, node: Node, session: Session) -> None:
    """The session has been of use, so the node counts as heard."""
    work.soft.beginning.discard(node.id)
    if not session.counts:
        session.counts = True
        nodes.heard(work, session, node)


def _compare_if_ready(work: Work, node: Node, session: Session) -> None:
    if (
        session.compared
        or not session.holding_ended
        or node.status.acknowledged < session.hello.last_sequence
    ):
        return
    # Before anything is sent: a lease goes out with the size that it is to have.
    fit_leases(work, node)
    session.compared = True
    work.cluster.news.nodes[node.id] = None
    _comes_forward(work, node, session)
    for allocation in list(node.allocations.values()):
        _end_what_is_gone(work, node, session, allocation)
    _compare_leases(work, node, session)
    for allocation in list(node.allocations.values()):
        _compare_allocation(work, node, session, allocation)
    for number in session.strange_allocations | (session.held_allocations.keys() - node.allocations.keys()):
        work.send(node.id, Stop(number, session.ask(), (), StopReason.SUPERSEDED, 0))
    for number in session.strange_leases | (session.held_leases.keys() - node.leases.keys()):
        work.send(node.id, Resize(number, 0))
    session.held_leases, session.held_allocations = {}, {}
    session.strange_leases, session.strange_allocations = set(), set()
    if node.status.journal_new:
        work.put(node_status_key(node.id), replace(node.status, journal_new=False))
    nodes.become(work, node, NodeState.READY, "")
    for job in {allocation.job.id: allocation.job for allocation in node.allocations.values()}.values():
        lost.reclaim(work, job, ask=True)
    for queue in sorted({lease.desired.queue for lease in node.leases.values()}):
        # What it held was nobody's charge while it was lost.
        fit_quota(work, queue)
    if node.config.draining:
        work.send(node.id, Drain(True))
        deadline_ms = node.config.drain_deadline_ms
        if deadline_ms is not None and work.now_ms >= deadline_ms:
            nodes.drain_deadline(work, node.id)
    work.place_wanted = True
    if session.more_is_strange:
        end_stream(work, session, f"the node holds more than {STRANGE_MAX} things that are not known here")


def _held(session: Session, allocation: Allocation) -> BitMap:
    return session.held_allocations.get(allocation.id, BitMap())


def _end_what_is_gone(work: Work, node: Node, session: Session, allocation: Allocation) -> None:
    """With a new journal, what the node does not hold has ended without a report."""
    if not session.fresh:
        return
    gone = allocation.desired.indices - allocation.ended - _held(session, allocation)
    reports.end_unheard(work, allocation, gone, Cause.NODE_REBOOT, "the node has booted anew")


def _compare_leases(work: Work, node: Node, session: Session) -> None:
    for lease in list(node.leases.values()):
        held = session.held_leases.get(lease.id)
        if held is None and session.fresh:
            # What it holds of the lease's work it will drop: a grant without a lease comes back.
            work.drop(lease_key(node.id, lease.id))
            continue
        desired = lease.desired
        if desired.slots and (held is None or set(held) != {slot.slot for slot in desired.slots}):
            tell_lease(work, lease)
        elif desired.target < len(desired.slots):
            work.send(node.id, Resize(lease.id, desired.target))


def _compare_allocation(work: Work, node: Node, session: Session, allocation: Allocation) -> None:
    job, desired = allocation.job, allocation.desired
    held = _held(session, allocation)
    if desired.lost:
        # What it would take back and does not hold has not been granted for good, or is over.
        missing = allocation.desired.indices - allocation.ended - held
        lost.end_unclaimed(work, allocation, missing, "the node came back without it")
        close_if_done(work, allocation)
        if allocation.id not in node.allocations:
            return
    missing = allocation.remaining - held
    if missing == allocation.remaining and missing:
        _grant_again(work, allocation)
    elif missing:
        # Held in part: indices leave a node through its reports alone, so these cannot come back.
        ended = tuple(
            Ended(index, Cause.AGENT_ERROR, message="lost by its agent", started=False) for index in missing
        )
        reports.take_allocation(work, node, AllocationReport(allocation.id, ended=ended))
    if allocation.id not in node.allocations:
        return
    # What the node still holds though it has ended here, or belongs to another attempt.
    extra = held - allocation.desired.indices
    if extra:
        stop(work, allocation, extra, StopReason.SUPERSEDED)
    for wanted in allocation.desired.stops:
        stop(work, allocation, wanted.indices, wanted.reason, wanted.grace_ms)
    if job.config.held:
        work.send(node.id, Recall(allocation.id, session.ask(), count=RECALL_ALL))


def _grant_again(work: Work, allocation: Allocation) -> None:
    """The grant never came. What is no longer wanted need not begin for that."""
    remaining = allocation.remaining
    unwanted = remaining if allocation.job.config.held else remaining & allocation.desired.cancelled
    unwanted = unwanted - allocation.status.started
    if unwanted:
        dropped = AllocationReport(allocation.id, dropped=indexset.to_ranges(unwanted))
        reports.take_allocation(work, allocation.node, dropped)
    if allocation.id in allocation.node.allocations and allocation.remaining:
        send_grant(work, allocation)


def send_grant(work: Work, allocation: Allocation) -> None:
    """Grants what remains of an allocation, with a number higher than any before."""
    desired = replace(allocation.desired, grant=work.number())
    work.put(allocation_key(allocation.node.id, allocation.id), desired)
    tell_grant(work, allocation)


def tell_grant(work: Work, allocation: Allocation) -> None:
    """Sends a grant whose number has just been given, and the job's template before the first."""
    node, job, desired = allocation.node, allocation.job, allocation.desired
    session = work.soft.sessions[node.id]
    version = (job.id, desired.version)
    spec = job.versions[desired.version]
    if version not in session.templates_sent:
        session.templates_sent.add(version)
        work.send(node.id, Template(job.id, desired.version, spec, len(job.all), job.config.account))
    lines: tuple[str, ...] = ()
    if spec.lines:
        lines = tuple(spec.lines[job.all.rank(index) - 1] for index in allocation.remaining)
    work.send(
        node.id,
        Grant(
            allocation=allocation.id,
            lease=desired.lease,
            job=job.id,
            version=desired.version,
            grant=desired.grant,
            first_attempt=desired.first_attempt,
            indices=indexset.to_ranges(allocation.remaining),
            lines=lines,
            never_stall=desired.never_stall,
        ),
    )

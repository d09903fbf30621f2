"""What operators ask: queues, tokens, enrolment, and what is to become of nodes."""

import difflib
from dataclasses import replace

from rota.core.cluster import nodes, reports
from rota.core.cluster.expiries import expiry_ms
from rota.core.cluster.inputs import (
    Done,
    DropQueue,
    EditNode,
    Enrol,
    Enrolled,
    LabelNode,
    NodeEdit,
    PutQueue,
    PutToken,
    PutUser,
    RemoveNode,
    RevokeToken,
    Why,
)
from rota.core.cluster.leases import fit_quota
from rota.core.cluster.records import (
    Idempotency,
    NodeConfig,
    NodeStatus,
    idempotency_key,
    inventory_key,
    lease_key,
    node_key,
    node_status_key,
    queue_key,
    token_key,
    user_key,
)
from rota.core.cluster.state import Allocation, Cluster, Node
from rota.core.cluster.tasks import TaskWriter
from rota.core.cluster.work import Work, tasks_text
from rota.core.model.protocol import Drain, Refused
from rota.core.model.resources import BUILT_IN, NOTHING, Resources
from rota.core.model.spec import QUEUE_DEFAULT
from rota.core.model.states import Cause, EventKind, NodeState, OnNodeLoss, TokenKind

ENROL_KEY_MS = 86_400_000

# ---------------------------------------------------------------- queues


def put_queue(work: Work, item: PutQueue) -> None:
    """Makes a queue, or changes one."""
    if work.cluster.queue(item.name) is not None and not item.update:
        work.refuse(
            item.ticket,
            Why.CONFLICT,
            f"queue '{item.name}' exists; to change it: rota queue update {item.name}",
        )
        return
    unknown = _unknown_resources(work.cluster, item.config.quota or NOTHING)
    if unknown:
        work.refuse(item.ticket, Why.INVALID, *unknown)
        return
    work.put(queue_key(item.name), item.config)
    work.event(EventKind.QUEUE_CHANGED, by=item.by, message=f"queue {item.name}")
    fit_quota(work, item.name)
    work.place_wanted = True
    work.reply(item.ticket, Done())


def _unknown_resources(cluster: Cluster, quota: Resources) -> list[str]:
    """What a quota names that no node has: it would limit nothing."""
    pools = [pool for node in cluster.nodes.values() for pool in node.pools]
    known = [*BUILT_IN, *sorted({name for pool in pools for name, _ in pool.resources.named})]
    problems = []
    for name, _ in quota.named:
        near = difflib.get_close_matches(name, known, 1)
        if name not in known and (near or pools):
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            problems.append(f"quota {name}: no node has such a resource; {hint}")
    return problems


def drop_queue(work: Work, item: DropQueue) -> None:
    """Removes a queue that has no work."""
    if item.name == QUEUE_DEFAULT:
        work.refuse(
            item.ticket,
            Why.REFUSED,
            f"queue '{QUEUE_DEFAULT}' is always there; to change it: rota queue update {QUEUE_DEFAULT}",
        )
        return
    if item.name not in work.cluster.queues:
        work.refuse(item.ticket, Why.NOT_FOUND, f"there is no queue '{item.name}'; see: rota queue ls")
        return
    users = [job.id for job in work.cluster.active.values() if job.spec.queue == item.name]
    if users:
        jobs = "a job" if len(users) == 1 else f"{len(users)} jobs"
        says = f"queue '{item.name}' has {jobs} that {'has' if len(users) == 1 else 'have'} not ended"
        work.refuse(item.ticket, Why.REFUSED, f"{says} (job {users[0]}); see: rota ls --queue {item.name}")
        return
    work.drop(queue_key(item.name))
    work.event(EventKind.QUEUE_CHANGED, by=item.by, message=f"queue {item.name} removed")
    work.reply(item.ticket, Done())


# ---------------------------------------------------------------- users, tokens and enrolment


def put_user(work: Work, item: PutUser) -> None:
    """Keeps who a user is and what the user may do."""
    work.put(user_key(item.name), item.config)
    work.reply(item.ticket, Done())


def put_token(work: Work, item: PutToken) -> None:
    """Keeps a new token (the hash of its secret)."""
    if item.token in work.cluster.tokens:
        work.refuse(item.ticket, Why.CONFLICT, f"token {item.token} exists")
        return
    work.put(token_key(item.token), item.config)
    kept_ms = max(expiry_ms(item.config) - work.wall_ms, 0)
    work.soft.timers.arm_earlier("expiry", "", work.now_ms + kept_ms)
    work.event(EventKind.TOKEN_CHANGED, by=item.by, message=f"token {item.token} created")
    work.reply(item.ticket, Done())


def revoke_token(work: Work, item: RevokeToken) -> None:
    """A revoked token enrols nobody any more."""
    token = work.cluster.tokens.get(item.token)
    if token is None:
        work.refuse(item.ticket, Why.NOT_FOUND, f"there is no token '{item.token}'; see: rota token ls")
        return
    if not token.revoked:
        work.put(token_key(item.token), replace(token, revoked=True))
        work.event(EventKind.TOKEN_CHANGED, by=item.by, message=f"token {item.token} revoked")
    work.reply(item.ticket, Done())


def enrol(work: Work, item: Enrol) -> None:
    """Takes one use of a token; a node gets its UUID and its name."""
    key = idempotency_key(f"token:{item.token}", item.key)
    known = work.cluster.idempotency.get(key.removeprefix("idem/"))
    token = work.cluster.tokens.get(item.token)
    # The same answer whether the token or its secret is wrong: guesses learn nothing.
    if token is None or token.secret_sha256 != item.secret_sha256 or token.kind is not item.kind:
        work.refuse(item.ticket, Why.REFUSED, "the token is not valid; make one with: rota token create")
        return
    if known is not None:
        _enrol_again(work, item, known)
        return
    if token.revoked:
        work.refuse(
            item.ticket, Why.REFUSED, f"token {item.token} was revoked; make one with: rota token create"
        )
    elif token.expires_at_ms <= work.wall_ms:
        work.refuse(
            item.ticket, Why.REFUSED, f"token {item.token} has expired; make one with: rota token create"
        )
    elif token.uses_left <= 0:
        work.refuse(
            item.ticket, Why.REFUSED, f"token {item.token} is used up; make one with: rota token create"
        )
    elif item.kind is TokenKind.NODE and item.name in work.cluster.node_names:
        work.refuse(
            item.ticket,
            Why.CONFLICT,
            f"a node named '{item.name}' exists; take another name with --name, "
            f"or remove it: rota node rm {item.name}",
        )
    else:
        work.put(token_key(item.token), replace(token, uses_left=token.uses_left - 1))
        digest = item.node.encode() + b" " + item.name.encode()
        work.put(key, Idempotency((), digest, work.wall_ms + ENROL_KEY_MS))
        work.soft.timers.arm_earlier("expiry", "", work.now_ms + ENROL_KEY_MS)
        if item.kind is TokenKind.NODE:
            work.put(node_key(item.node), NodeConfig(item.name, registered_at_ms=work.wall_ms))
            work.event(EventKind.NODE_REGISTERED, node=item.name, message=f"with token {item.token}")
        work.reply(item.ticket, Enrolled(item.node, item.name))


def _enrol_again(work: Work, item: Enrol, known: Idempotency) -> None:
    node, _, name = known.digest.decode().partition(" ")
    if name != item.name:
        work.refuse(item.ticket, Why.CONFLICT, f"the same request was made for the name '{name}'")
    else:
        work.reply(item.ticket, Enrolled(node, name))


# ---------------------------------------------------------------- nodes


def _find(work: Work, ticket: int, name: str) -> Node | None:
    node = work.cluster.find_node(name)
    if node is None:
        work.refuse(ticket, Why.NOT_FOUND, f"there is no node '{name}'; see: rota node ls")
    return node


def edit_node(work: Work, item: EditNode) -> None:
    """Cordons, drains or resumes a node."""
    node = _find(work, item.ticket, item.node)
    if node is None:
        return
    config = node.config
    match item.edit:
        case NodeEdit.CORDON:
            config = replace(config, cordoned=True)
        case NodeEdit.DRAIN:
            deadline_ms = None if item.deadline_ms is None else work.now_ms + item.deadline_ms
            config = replace(config, cordoned=True, draining=True, drain_deadline_ms=deadline_ms)
        case NodeEdit.RESUME:
            config = replace(config, cordoned=False, draining=False, drain_deadline_ms=None)
    changed = config != node.config
    work.reply(item.ticket, Done(changed=changed))
    if not changed:
        return
    draining_changed = config.draining != node.config.draining
    work.put(node_key(node.id), config)
    if draining_changed and work.soft.connected(node.id):
        work.send(node.id, Drain(config.draining))
    if config.draining and config.drain_deadline_ms is not None:
        work.soft.timers.arm("drain", node.id, config.drain_deadline_ms)
    else:
        work.soft.timers.disarm("drain", node.id)
    nodes.undo_drain(work, node)
    work.event(EventKind.NODE_CHANGED, node=config.name, by=item.by, message=item.edit.value)
    work.place_wanted = True


def label_node(work: Work, item: LabelNode) -> None:
    """Sets and removes labels."""
    node = _find(work, item.ticket, item.node)
    if node is None:
        return
    labels = dict(node.config.labels) | dict(item.labels)
    for name in item.remove:
        labels.pop(name, None)
    config = replace(node.config, labels=tuple(sorted(labels.items())))
    changed = config != node.config
    work.reply(item.ticket, Done(changed=changed))
    if not changed:
        return
    work.put(node_key(node.id), config)
    work.event(EventKind.NODE_CHANGED, node=config.name, by=item.by, message="labels")
    work.place_wanted = True


def remove_node(work: Work, item: RemoveNode) -> None:
    """Forgets a node. Its work is given up as the jobs say; its certificate counts for nothing any more."""
    node = _find(work, item.ticket, item.node)
    if node is None:
        return
    heard_ms = work.soft.heard_ms.get(node.id, work.now_ms)
    session = work.soft.sessions.get(node.id)
    held = sum(len(allocation.remaining) for allocation in node.allocations.values())
    if not item.force and (session is not None or held):
        what = "is connected" if session is not None else f"holds {tasks_text(held)}"
        work.refuse(
            item.ticket,
            Why.REFUSED,
            f"node {node.config.name} {what}; stop its agent and drain it, or use --force",
        )
        return
    if session is not None:
        work.send(node.id, Refused("this node was removed from the cluster"))
        work.close(node.id, session.stream, "the node was removed")
        del work.soft.sessions[node.id]
        work.cluster.news.nodes[node.id] = None
    for allocation in list(node.allocations.values()):
        _end_on_removal(work, allocation, heard_ms + nodes.fence_ms(work, node))
    for lease in list(node.leases):
        work.drop(lease_key(node.id, lease))
    work.drop(inventory_key(node.id))
    work.put(node_status_key(node.id), NodeStatus(NodeState.GONE, changed_at_ms=work.wall_ms))
    work.put(node_key(node.id), replace(node.config, removed=True))
    work.soft.heard_ms.pop(node.id, None)
    work.soft.excused_ms.pop(node.id, None)
    work.soft.beginning.discard(node.id)
    work.soft.timers.disarm("node", node.id)
    work.event(EventKind.NODE_GONE, node=node.config.name, by=item.by, message="removed")
    nodes.forget_removed(work, [node.id])
    work.place_wanted = True
    work.reply(item.ticket, Done())


def _end_on_removal(work: Work, allocation: Allocation, fenced_until_ms: int) -> None:
    """What it held runs elsewhere: at once, or once its agent cannot run it any more."""
    job, remaining = allocation.job, allocation.remaining
    reports.end_unheard(work, allocation, allocation.desired.indices, Cause.NODE_LOST, "the node was removed")
    # They may run there, also those that end here as cancelled, and may be retried.
    writer = TaskWriter(work, job)
    if job.spec.on_node_loss is OnNodeLoss.HOLD:
        writer.hold(remaining)
    elif job.spec.on_node_loss is OnNodeLoss.RERUN_FENCED and fenced_until_ms > work.now_ms:
        writer.fence(remaining, fenced_until_ms)
        work.soft.timers.arm_earlier("retry", str(job.id), fenced_until_ms)
    writer.flush()

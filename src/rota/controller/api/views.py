"""The cluster as the contract shows it: functions of committed state, which change nothing."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import TopologicalSorter
from urllib.parse import unquote

from pyroaring import BitMap

from rota.core.cluster.records import (
    AllocationStatus,
    Event,
    NodeTally,
    QueueConfig,
    ResultBlock,
    TokenConfig,
)
from rota.core.cluster.rows import results
from rota.core.cluster.settling import cannot_be_met
from rota.core.cluster.soft import Soft
from rota.core.cluster.state import Allocation, Cluster, Job, Node
from rota.core.cluster.step import Machine
from rota.core.cluster.waiting import Reasons, Waiting, on_nodes_count
from rota.core.model import indexset
from rota.core.model.protocol import Inventory
from rota.core.model.resources import NOTHING, Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import TASK_ENDS, Cause, JobState, NodeState, TaskState
from rota.wire.convert import codec
from rota.wire.gen.v1 import cluster_pb2, job_pb2, node_pb2

EXIT_TIME_LIMIT = 124
EXIT_ROTA = 125
EXIT_SIGNAL = 128
EXIT_CANCELLED = 130
EXIT_KILLED = 137
# Sums over many nodes, each of which may declare much, could be beyond it.
AMOUNT_MAX = 2**63 - 1

_NO_TALLY = NodeTally()

_SPEC = codec(JobSpec, job_pb2.JobSpec)
_RESOURCES = codec(Resources, job_pb2.Resources)
_INVENTORY = codec(Inventory, node_pb2.Inventory)
_EVENT = codec(Event, cluster_pb2.Event)


@dataclass(frozen=True, slots=True)
class Now:
    """The time of a view: cluster time, and the wall clock's."""

    cluster_ms: int
    wall_ms: int


# ---------------------------------------------------------------- jobs


def job(cluster: Cluster, one: Job, reasons: Reasons, clock: Now) -> job_pb2.Job:
    """All that is said of a job but for its nodes, each by itself: see `job_nodes`."""
    view = job_brief(cluster, one, reasons, clock)
    view.spec.CopyFrom(_SPEC.to_message(one.spec))
    return view


def job_brief(cluster: Cluster, one: Job, reasons: Reasons, clock: Now) -> job_pb2.Job:
    """The same, of the spec only name, queue, priority and labels."""
    config, status, spec = one.config, one.status, one.spec
    waiting = reasons.of_job(one)
    open_ = [allocation.status for allocation in one.allocations.values()]
    usage: list[NodeTally | AllocationStatus] = [*one.tallies.values(), *open_]
    view = job_pb2.Job(
        id=one.id,
        spec=job_pb2.JobSpec(
            name=spec.name, queue=spec.queue, priority=spec.priority, labels=dict(spec.labels)
        ),
        owner=config.owner,
        state=int(status.state),  # type: ignore[arg-type]
        reason=status.reason or (waiting.says if waiting is not None else ""),
        pending_reason=int(waiting.reason) if waiting is not None else 0,  # type: ignore[arg-type]
        retry_in_ms=_retry_in_ms(waiting, clock),
        cause=int(status.cause or 0),  # type: ignore[arg-type]
        tasks=task_counts(one),
        version=config.version,
        cancelled=config.cancelled,
        held=config.held,
        submitted_at_ms=config.submitted_at_ms,
        started_at_ms=status.started_at_ms,
        ended_at_ms=status.ended_at_ms,
        retried_at_ms=status.retried_at_ms,
        elapsed_ms=_elapsed_ms(one, clock.wall_ms),
        cpu_ms=sum(used.cpu_ms for used in usage),
        memory_peak_bytes=max((used.memory_peak_bytes for used in usage), default=0),
    )
    if one.ended:
        view.exit_code = exit_code(one)
    return view


def _retry_in_ms(waiting: Waiting | None, clock: Now) -> int:
    return max(0, waiting.until_ms - clock.cluster_ms) if waiting is not None and waiting.until_ms else 0


def task_counts(one: Job) -> job_pb2.TaskCounts:
    """How many tasks are where; those that wait for a lost node are pending and held."""
    kept = kept_started = 0
    for allocation in one.lost.values():
        if allocation.waits_for_node:
            kept += len(allocation.remaining)
            kept_started += allocation.remaining.intersection_cardinality(allocation.status.started)
    placed = on_nodes_count(one) - kept
    running = one.count_started - kept_started
    return job_pb2.TaskCounts(
        total=len(one.all),
        pending=len(one.pending) + kept,
        allocated=placed - running,
        running=running,
        succeeded=one.count_succeeded,
        failed=one.count_failed,
        cancelled=one.count_cancelled,
        backoff=one.pending.intersection_cardinality(one.delayed),
        held=one.pending.intersection_cardinality(one.held) + kept,
    )


def _elapsed_ms(one: Job, wall_ms: int) -> int:
    status = one.status
    if not status.started_at_ms:
        return 0
    return max(0, (status.ended_at_ms or wall_ms) - status.started_at_ms)


def job_nodes(one: Job) -> list[str]:
    """The nodes that have done something for a job, or hold something of it."""
    holding = (allocation.node.id for allocation in one.allocations.values())
    return list(dict.fromkeys([*one.tallies, *holding]))


def job_node(cluster: Cluster, one: Job, node: str) -> job_pb2.JobNode:
    """What one of them has done and holds: closed allocations' tally and the open ones."""
    tally = one.tallies.get(node, _NO_TALLY)
    view = job_pb2.JobNode(
        node=node_name(cluster, node),
        node_id=node,
        succeeded=tally.succeeded,
        failed=tally.failed,
        cancelled=tally.cancelled,
        cpu_ms=tally.cpu_ms,
        memory_peak_bytes=tally.memory_peak_bytes,
    )
    known = cluster.nodes.get(node)
    for allocation in known.allocations.values() if known is not None else ():
        if allocation.job is not one:
            continue
        status, owned = allocation.status, allocation.owned
        if not allocation.waits_for_node:
            running = allocation.remaining.intersection_cardinality(status.started)
            view.running += running
            view.allocated += len(allocation.remaining) - running
        view.succeeded += owned.intersection_cardinality(status.succeeded)
        view.failed += owned.intersection_cardinality(status.failed)
        view.cancelled += owned.intersection_cardinality(status.cancelled)
        view.cpu_ms += status.cpu_ms
        view.memory_peak_bytes = max(view.memory_peak_bytes, status.memory_peak_bytes)
    ended = view.succeeded + view.failed + view.cancelled
    view.ended_percent = 100 * ended / len(one.all) if one.all else 0.0
    return view


def exit_code(one: Job) -> int:
    """What `rota run` ends with: that of the first task (by index) that did not succeed, else 0."""
    if one.status.state is JobState.SUCCEEDED:
        return 0
    if one.status.state is JobState.CANCELLED:
        return EXIT_CANCELLED
    first: tuple[int, Cause, int] | None = None
    for segment in sorted(one.exceptions):
        failed = one.segment(segment).failed
        for group in one.exceptions[segment].groups:
            indices = group.indices & failed
            if indices and (first is None or indices.min() < first[0]):
                first = (indices.min(), group.cause, group.code)
        if first is not None:
            return exit_code_of(first[1], first[2])
    return EXIT_ROTA


def exit_code_of(cause: Cause, code: int) -> int:
    """The exit code of an attempt that ended so."""
    match cause:
        case Cause.EXIT:
            return code
        case Cause.SIGNAL:
            return EXIT_SIGNAL + code
        case Cause.OOM:
            return EXIT_KILLED
        case Cause.TIME_LIMIT | Cause.DEADLINE:
            return EXIT_TIME_LIMIT
        case Cause.STOPPED:
            return EXIT_CANCELLED
        case _:
            return EXIT_ROTA


def failures(one: Job) -> list[job_pb2.FailureGroup]:
    """Failed tasks by cause and code, the largest group first."""
    groups: dict[tuple[Cause, int], tuple[BitMap, str]] = {}
    for segment, exceptions in sorted(one.exceptions.items()):
        failed = one.segment(segment).failed
        for group in exceptions.groups:
            known, message = groups.get((group.cause, group.code), (BitMap(), ""))
            groups[group.cause, group.code] = (known | (group.indices & failed), message or group.message)
    for allocation in one.allocations.values():
        for segment, part in indexset.segments_of(allocation.owned & allocation.status.failed):
            for group in one.exceptions_of(segment).groups:
                known, message = groups.get((group.cause, group.code), (BitMap(), ""))
                groups[group.cause, group.code] = (known | (group.indices & part), message or group.message)
    return [
        job_pb2.FailureGroup(
            cause=int(cause),  # type: ignore[arg-type]
            code=code,
            count=len(indices),
            indices=indexset.text(indices),
            message=message,
        )
        for (cause, code), (indices, message) in sorted(groups.items(), key=lambda item: -len(item[1][0]))
        if indices
    ]


def cancelled_dependents(cluster: Cluster, one: Job) -> list[int]:
    """The jobs that a job which goes on again has left cancelled, each behind those that it is to run after.

    Those that another job keeps from running are not among them.
    """
    found: dict[int, set[int]] = {one.id: set()}
    waiting = deque([one.id])
    while waiting:
        for number in cluster.dependents.get(waiting.popleft(), ()):
            job = cluster.jobs[number]
            if number not in found and job.ended and job.status.cause is Cause.DEPENDENCY:
                found[number] = {after.job for after in job.config.after}
                waiting.append(number)
    graph = {number: after & found.keys() for number, after in found.items()}
    order: dict[int, None] = {}
    for number in TopologicalSorter(graph).static_order():
        stays = any(
            after.job not in order and cannot_be_met(cluster, after)
            for after in cluster.jobs[number].config.after
        )
        if number != one.id and not stays:
            order[number] = None
    return list(order)


# ---------------------------------------------------------------- tasks


def tasks_in(one: Job, states: Iterable[TaskState]) -> BitMap:
    """The indices of a job whose tasks are in one of these states."""
    wanted = set(states)
    result = BitMap()
    if TaskState.PENDING in wanted:
        result |= one.pending
    for segment in one.segments.values():
        for state, indices in (
            (TaskState.SUCCEEDED, segment.succeeded),
            (TaskState.FAILED, segment.failed),
            (TaskState.CANCELLED, segment.cancelled),
        ):
            if state in wanted:
                result |= indices
    for allocation in one.allocations.values():
        for state, indices in _parts(allocation):
            if state in wanted:
                result |= indices
    return result


def _parts(allocation: Allocation) -> list[tuple[TaskState, BitMap]]:
    status, owned, running = allocation.status, allocation.owned, allocation.running
    ended = [
        (TaskState.SUCCEEDED, owned & status.succeeded),
        (TaskState.FAILED, owned & status.failed),
        (TaskState.CANCELLED, owned & status.cancelled),
    ]
    if allocation.waits_for_node:
        return [(TaskState.PENDING, allocation.remaining), *ended]
    return [(TaskState.RUNNING, running), (TaskState.ALLOCATED, allocation.remaining - running), *ended]


def holder(one: Job, index: int) -> Allocation | None:
    """The allocation that a task is on, if it is on one."""
    if index not in one.owned:
        return None
    return next(allocation for allocation in one.allocations.values() if index in allocation.owned)


def task_state(one: Job, index: int) -> TaskState:
    """The state of one task."""
    allocation = holder(one, index)
    if allocation is not None:
        return next(state for state, indices in _parts(allocation) if index in indices)
    segment = one.segment(index // indexset.SEGMENT_SIZE)
    if index in segment.succeeded:
        return TaskState.SUCCEEDED
    if index in segment.failed:
        return TaskState.FAILED
    return TaskState.CANCELLED if index in segment.cancelled else TaskState.PENDING


def task(
    cluster: Cluster,
    one: Job,
    index: int,
    reasons: Reasons,
    clock: Now,
) -> job_pb2.Task:
    """One task; of its attempts the one that is on a node."""
    state = task_state(one, index)
    allocation = holder(one, index)
    waiting = reasons.of_task(one, index)
    view = job_pb2.Task(
        job=one.id,
        index=index,
        state=int(state),  # type: ignore[arg-type]
        stop_requested=state not in TASK_ENDS
        and (one.ending or (allocation is not None and index in allocation.desired.stopping)),
        pending_reason=int(waiting.reason) if waiting is not None else 0,  # type: ignore[arg-type]
        reason=waiting.says if waiting is not None else "",
        retry_in_ms=_retry_in_ms(waiting, clock),
    )
    view.attempt_count = attempt_count(one, index)
    if allocation is not None and index in allocation.remaining:
        number = attempt_number(allocation, index)
        attempt = view.attempts.add(
            number=number,
            node=allocation.node.config.name,
            node_id=allocation.node.id,
            allocation=allocation.id,
        )
        if index in allocation.status.started:
            view.attempt_count = max(view.attempt_count, number)
            attempt.started_at_ms = dict(allocation.status.started_at_ms)[index]
            attempt.duration_ms = max(0, clock.wall_ms - attempt.started_at_ms)
    return view


def attempt_count(one: Job, index: int) -> int:
    """How many attempts at a task have ended, or were given up with their node."""
    # One that succeeded is not counted by the job, another one is once its allocation is closed.
    state = task_state(one, index)
    ended_here = state in TASK_ENDS and holder(one, index) is not None
    return one.attempts(index) + (ended_here or state is TaskState.SUCCEEDED)


def attempts_ended(one: Job, indices: BitMap, times: int) -> BitMap:
    """Those of the tasks at which so many attempts have ended, and been put on record."""
    # As attempt_count.
    uncounted = tasks_in(one, [TaskState.SUCCEEDED]) & indices
    for allocation in one.allocations.values():
        status = allocation.status
        uncounted |= (status.failed | status.cancelled) & allocation.owned & indices
    tried = (one.attempted | uncounted) & indices
    # Of these it is not known yet how they end.
    open_ended = [allocation.unclaimed for allocation in one.lost.values()]
    if times == 1 and not open_ended:
        return tried
    return BitMap(
        index
        for index in tried
        if one.attempts(index) + (index in uncounted) - sum(index in some for some in open_ended) >= times
    )


def attempt_number(allocation: Allocation, index: int) -> int:
    """The attempt at a task that an allocation is on, as people count."""
    return allocation.desired.first_attempt + dict(allocation.status.runs).get(index, 1) - 1


def ended_attempts(cluster: Cluster, index: int, blocks: Iterable[ResultBlock]) -> list[job_pb2.Attempt]:
    """The attempts at a task that the archive's blocks have."""
    result = [
        job_pb2.Attempt(
            number=one.attempt,
            node=node_name(cluster, block.node_id),
            node_id=block.node_id,
            allocation=block.allocation,
            cause=int(one.cause),  # type: ignore[arg-type]
            code=one.code,
            message=block.messages.get(index, ""),
            started_at_ms=one.started_at_ms,
            duration_ms=one.duration_ms,
            cpu_user_ms=one.cpu_user_ms,
            cpu_system_ms=one.cpu_system_ms,
            memory_peak_bytes=one.memory_peak_kib * 1024,
        )
        for block in blocks
        for one in results(block, BitMap([index]))
    ]
    return sorted(result, key=lambda attempt: attempt.number)


# ---------------------------------------------------------------- nodes


def node_name(cluster: Cluster, node: str) -> str:
    """A node's name; its UUID where it is forgotten."""
    found = cluster.nodes.get(node)
    return found.config.name if found is not None else node


def node(one: Node, soft: Soft, now_ms: int, address: str) -> node_pb2.Node:
    """All that is said of a node."""
    # A node that has never been heard has said no journal; heard_ms is the leader's beginning at least.
    heard_ms = soft.heard_ms.get(one.id) if one.status.journal_id else None
    running = sum(
        allocation.remaining.intersection_cardinality(allocation.status.started)
        for allocation in one.allocations.values()
    )
    labels = {**dict(one.inventory.labels), **dict(one.config.labels)}
    deadline_ms = one.config.drain_deadline_ms
    return node_pb2.Node(
        id=one.id,
        name=one.config.name,
        state=int(one.status.state),  # type: ignore[arg-type]
        cordoned=one.config.cordoned,
        draining=one.config.draining,
        labels=labels,
        inventory=_INVENTORY.to_message(one.inventory),
        capacity=resources(one.capacity()),
        charged=resources(one.total_charged()),
        running=running,
        allocated=sum(len(allocation.remaining) for allocation in one.allocations.values()) - running,
        silent_ms=-1 if heard_ms is None else max(0, now_ms - heard_ms),
        # gRPC's way to write a peer: `ipv4:127.0.0.1:47868`, `ipv6:%5B::1%5D:47868`.
        address=unquote(address.removeprefix("ipv4:").removeprefix("ipv6:")),
        boot_id=one.status.boot_id,
        reason=one.status.reason,
        drain_deadline_ms=0 if deadline_ms is None else max(0, deadline_ms - now_ms),
    )


def resources(amount: Resources) -> job_pb2.Resources:
    """Amounts of resources; one beyond what the contract can say is the most that it can."""
    return _RESOURCES.to_message(
        Resources(
            min(amount.cpu, AMOUNT_MAX),
            min(amount.memory, AMOUNT_MAX),
            min(amount.gpu, AMOUNT_MAX),
            min(amount.disk, AMOUNT_MAX),
            tuple((name, min(part, AMOUNT_MAX)) for name, part in amount.named),
        )
    )


# ---------------------------------------------------------------- the rest


def queue(cluster: Cluster, name: str, config: QueueConfig) -> cluster_pb2.Queue:
    """A queue, with how many jobs it has."""
    view = cluster_pb2.Queue(
        name=name,
        weight=config.weight,
        priority_min=config.priority_min,
        priority_max=config.priority_max,
        charged=resources(cluster.queue_charged.get(name, NOTHING)),
    )
    if config.quota is not None:
        view.quota.CopyFrom(resources(config.quota))
        if not config.quota.cpu:
            view.quota.ClearField("cpu")
    for one in cluster.active.values():
        if one.spec.queue == name:
            if one.status.state is JobState.RUNNING:
                view.jobs_running += 1
            else:
                view.jobs_pending += 1
    return view


def token(name: str, config: TokenConfig) -> cluster_pb2.Token:
    """A token, without its secret."""
    return cluster_pb2.Token(
        id=name,
        kind=int(config.kind),  # type: ignore[arg-type]
        created_at_ms=config.created_at_ms,
        expires_at_ms=config.expires_at_ms,
        uses_left=config.uses_left,
        revoked=config.revoked,
        created_by=config.created_by,
    )


def event(one: Event) -> cluster_pb2.Event:
    """An event."""
    return _EVENT.to_message(one)


@dataclass(slots=True)
class NodeSums:
    """How many nodes there are, and of those that are ready what they have and what is taken of it."""

    count: int = 0
    ready: int = 0
    capacity: Resources = NOTHING
    charged: Resources = NOTHING

    def add(self, nodes: Iterable[str], machine: Machine) -> None:
        """Takes in those of the nodes that there are."""
        for name in nodes:
            node = machine.cluster.nodes.get(name)
            if node is None or node.config.removed:
                continue
            self.count += 1
            if node.status.state is NodeState.READY:
                self.ready += 1
                self.capacity = self.capacity.plus(node.capacity())
                self.charged = self.charged.plus(node.total_charged())


def summary(cluster: Cluster, nodes: NodeSums) -> cluster_pb2.GetClusterResponse:
    """The cluster in numbers."""
    running = sum(one.status.state is JobState.RUNNING for one in cluster.active.values())
    return cluster_pb2.GetClusterResponse(
        uuid=cluster.meta.uuid,
        incarnation=cluster.meta.incarnation,
        term=cluster.commit.term,
        nodes_ready=nodes.ready,
        nodes=nodes.count,
        jobs_pending=len(cluster.active) - running,
        jobs_running=running,
        capacity=resources(nodes.capacity),
        charged=resources(nodes.charged),
    )

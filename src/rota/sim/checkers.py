"""Who looks on: what is on the disk, said and decided, against what was promised.

Each failure is an InvariantBroken that names the invariant. What is true of processes has `truth`.
"""

from dataclasses import dataclass, field

from pyroaring import BitMap

from rota.core.cluster.check import check_cluster, check_job, check_node, check_room, require, same
from rota.core.cluster.inputs import Outcome, Refusal, Reply, Send, Submitted
from rota.core.cluster.records import (
    META_COMMIT,
    AllocationDesired,
    Key,
    LeaseDesired,
    NodeConfig,
    NodeStatus,
    Record,
    allocation_key,
    job_key,
    lease_key,
    node_key,
    node_status_key,
    parse_key,
    version_key,
)
from rota.core.cluster.recount import check_index
from rota.core.cluster.state import Cluster, Job
from rota.core.cluster.state import Node as ClusterNode
from rota.core.model.protocol import Ack, Grant, Lease, Pool, Template
from rota.core.model.resources import NOTHING, Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import (
    JOB_ENDS,
    JOB_MOVES,
    NODE_MOVES,
    TASK_MOVES,
    DependencyWhen,
    JobState,
    NodeState,
    TaskState,
)
from rota.sim.disk import Disk
from rota.sim.leader import Leader
from rota.sim.truth import Truth
from rota.sim.world import World
from rota.store.port import Changes
from rota.wire import records as wire

LOAD_CHECK_EVENTS = 50
_MET = {
    DependencyWhen.SUCCEEDED: {JobState.SUCCEEDED},
    DependencyWhen.FINISHED: set(JOB_ENDS),
    DependencyWhen.FAILED: {JobState.FAILED},
}
_FALLING = (NodeState.READY, NodeState.SUSPECT, NodeState.DISCONNECTED, NodeState.LOST)


@dataclass(slots=True)
class _Seen:
    """A job when it was last looked at. The sets are the cluster's own, which it does not change."""

    state: JobState = JobState.PENDING
    tasks: dict[TaskState, BitMap] = field(default_factory=dict)
    # Who holds which tasks: the allocation's number, below zero that of a lost one.
    holders: list[tuple[int, BitMap]] = field(default_factory=list)

    def holder(self, index: int) -> int:
        return next((number for number, indices in self.holders if index in indices), 0)


@dataclass(slots=True)
class Checkers:
    """All of them. `disk` is set once it is there."""

    world: World
    disk: Disk = field(init=False)
    truth: Truth = field(default_factory=Truth)
    # Accepted jobs, those that users retried (to wait for no other job), those whose retention was over.
    accepted: dict[int, JobSpec] = field(default_factory=dict)
    retried: set[int] = field(default_factory=set)
    dependencies_ignored: set[int] = field(default_factory=set)
    forgotten: set[int] = field(default_factory=set)
    _jobs: dict[int, _Seen] = field(default_factory=dict)
    _nodes: dict[str, NodeState] = field(default_factory=dict)
    _job_of: dict[int, int] = field(default_factory=dict)
    # What nodes declare, and what is left of their units.
    _room: dict[str, tuple[tuple[Pool, ...], dict[tuple[str, int], Resources]]] = field(default_factory=dict)
    _slots: dict[int, int] = field(default_factory=dict)
    _next_number: int = 0
    # The event at which loading the disk was last looked at.
    _load_checked: int = 0
    # The disk's records, and what their bytes say.
    _read: dict[str, tuple[Record, Record]] = field(default_factory=dict)

    # ------------------------------------------------------------ the disk

    def committed(self, changes: Changes) -> None:
        """What has become durable."""
        for key, record in changes.records.items():
            if isinstance(record, AllocationDesired):
                self._job_of[parse_key(key).number] = record.job
        self.truth.committed(changes)

    # ------------------------------------------------------------ what is said

    def speaks(self, leader: Leader, order: Send | Reply) -> None:
        """Nothing is said that is not on the disk."""
        if isinstance(order, Reply):
            self._check_reply(order)
            return
        records, node, body = self.disk.records, order.node, order.message.body
        config = records.get(node_key(node))
        if not isinstance(config, NodeConfig) or config.removed:
            # What was to be said before its removal in the same step: nobody listens.
            return
        known: Record | None
        match body:
            case Grant():
                known = records.get(allocation_key(node, body.allocation))
                holds = isinstance(known, AllocationDesired) and known.grant == body.grant
                require(holds, "committed-first", "{} says more than {}", body, known)
            case Lease():
                known = records.get(lease_key(node, body.lease))
                slots = [slot.slot for slot in body.slots]
                holds = isinstance(known, LeaseDesired) and max(slots, default=0) < known.next_slot
                require(holds, "committed-first", "{} says more than {}", body, known)
            case Ack():
                known = records.get(node_status_key(node))
                holds = isinstance(known, NodeStatus) and known.acknowledged >= body.sequence
                require(holds, "committed-first", "{} says more than {}", body, known)
            case Template():
                known = records.get(version_key(body.job, body.version))
                require(known is not None, "committed-first", "a template that is not kept: job {}", body.job)
            case _:
                pass

    def _check_reply(self, reply: Reply) -> None:
        if isinstance(reply.answer, Submitted):
            for job in reply.answer.jobs:
                kept = job_key(job) in self.disk.records or self._may_be_gone(job)
                require(kept, "accepted-is-kept", "job {} was accepted and is not on the disk", job)

    # ------------------------------------------------------------ turns

    def turned(self, leader: Leader, outcome: Outcome) -> None:
        """After a turn, where readers are answered."""
        cluster = leader.machine.cluster
        touched: dict[int, Job | None] = {}
        nodes: set[str] = set()
        for text, record in outcome.changes.items():
            shown = cluster.records.get(text)
            require(shown is record, "read-committed", "{}: a read shows {}", text, shown)
            require(self.disk.records.get(text) is record, "read-committed", "{} is not on the disk", text)
            if text.startswith("ev/"):
                continue
            key = parse_key(text)
            if key.node:
                nodes.add(key.node)
            job = key.job or (self._job_of.get(key.number, 0) if "/alloc/" in text else 0)
            if job:
                touched[job] = cluster.jobs.get(job)
            if isinstance(record, AllocationDesired) and key.number >= self._next_number:
                self._check_granted(cluster, key, record)
            elif isinstance(record, LeaseDesired):
                self._check_quota(cluster, key, record)
        self._next_number = max(self._next_number, cluster.commit.next_number)
        for number, found in touched.items():
            if found is None:
                self._check_forgotten(number)
            else:
                check_job(found)
                self._check_moves(found)
                self._check_limits(found)
        # One that was removed, and of which nobody speaks, is forgotten.
        for node in [cluster.nodes[node] for node in sorted(nodes & cluster.nodes.keys())]:
            check_node(node)
            self._check_room(node)
            self._check_node_move(node.id, node.status.state)
        check_index(leader.machine.placing.index, cluster, leader.machine.soft)
        if self.world.event_count >= self._load_checked + LOAD_CHECK_EVENTS:
            self._check_load(cluster)

    def _check_room(self, node: ClusterNode) -> None:
        """One that has come back with less than is charged to it gets nothing more until it has room."""
        pools, short = self._room.get(node.id, ((), {}))
        if pools == node.pools:
            check_room(node, short)
        self._room[node.id] = node.pools, {unit: node.free(*unit) for unit in node.charged}

    def _check_granted(self, cluster: Cluster, key: Key, record: AllocationDesired) -> None:
        """A new allocation: its job may run, there and now."""
        job, node = cluster.jobs[record.job], cluster.nodes[key.node]
        name = f"job {job.id} on node {node.config.name}"
        require(not job.config.held and not job.ending, "granted-unasked", "{}: it is held, or ends", name)
        asleep = record.indices & (job.delayed | job.held)
        require(not asleep, "granted-unasked", "{}: {} are to wait", name, asleep)
        open_ = node.status.state is NodeState.READY and not node.config.cordoned and not node.config.draining
        fits = open_ and job.spec.node in ("", node.config.name) and node.id not in job.status.avoid
        require(fits, "granted-unasked", "{}: {}, {}, {}", name, node.status, node.config, job.status.avoid)
        self._check_dependencies(cluster, job)
        if job.spec.max_running:
            out = sum(len(allocation.remaining) for allocation in job.allocations.values())
            require(
                out <= job.spec.max_running, "max-running", "{}: {} of {}", name, out, job.spec.max_running
            )

    def _check_dependencies(self, cluster: Cluster, job: Job) -> None:
        """What it was submitted to wait for has ended as was asked, or with a retry was given up."""
        # One that has begun goes on, whatever becomes of the others in a retry.
        if job.id in self.dependencies_ignored or job.status.state is JobState.RUNNING:
            return
        for wanted in job.spec.after:
            others = (
                [after.job for after in job.config.after] if not wanted.job.isdecimal() else [int(wanted.job)]
            )
            for number in others:
                other = cluster.jobs.get(number)
                met = other is None or other.status.state in _MET[wanted.when]
                require(met, "dependencies", "job {} runs before job {} has ended", job.id, number)

    def _check_quota(self, cluster: Cluster, key: Key, record: LeaseDesired) -> None:
        """No slot is added to a queue's leases beyond its quota."""
        before, now = self._slots.get(key.number, 0), len(record.slots)
        self._slots[key.number] = now
        queue = cluster.queue(record.queue)
        if now <= before or queue is None or queue.quota is None:
            return
        charged = NOTHING
        for node in cluster.nodes.values():
            if node.status.state not in (NodeState.LOST, NodeState.GONE):
                for lease in node.leases.values():
                    if lease.desired.queue == record.queue:
                        charged = charged.plus(lease.desired.shape, len(lease.desired.slots))
        for name in dict(record.shape.items()):
            limit = queue.quota.get(name)
            said = f"queue {record.queue} has {charged.get(name)} of {limit} {name}"
            require(not limit or charged.get(name) <= limit, "quota", said)

    def _check_limits(self, job: Job) -> None:
        limit = job.spec.max_failures
        over = limit is not None and job.count_failed > limit
        require(
            not over or job.ending or job.ended,
            "max-failures",
            "job {} goes on with {}",
            job.id,
            job.count_failed,
        )

    # ------------------------------------------------------------ moves

    def _check_moves(self, job: Job) -> None:
        seen = self._jobs.setdefault(job.id, _Seen())
        retried = job.id in self.retried
        old_state, new_state = seen.state, job.status.state
        legal = new_state is old_state or new_state in JOB_MOVES[old_state]
        if retried and JobState.PENDING in JOB_MOVES[old_state]:
            legal = legal or new_state in JOB_MOVES[JobState.PENDING]
        require(legal, "moves", "job {}: {} -> {}", job.id, old_state.name, new_state.name)
        now = _Seen(new_state, _tasks(job), _holders(job))
        for after, indices in now.tasks.items():
            news = indices - seen.tasks.get(after, BitMap())
            for before, were in seen.tasks.items() if news else ():
                moved = news & were
                if moved:
                    back = before in (TaskState.FAILED, TaskState.CANCELLED)
                    said = f"job {job.id}, tasks {moved}: {before.name} -> {after.name}"
                    require(retried or not back, "moves", "{}, unasked", said)
                    require(_may_move(before, after, moved, seen, now, retried=retried), "moves", said)
        self._jobs[job.id] = now

    def _check_node_move(self, node: str, state: NodeState) -> None:
        old = self._nodes.get(node, NodeState.DISCONNECTED)
        if state is not old:
            # A step may pass through several, the way up always in one.
            back = NodeState.READY in NODE_MOVES[old] and state in _FALLING
            down = back or (
                state in _FALLING and old in _FALLING and _FALLING.index(old) < _FALLING.index(state)
            )
            require(
                down or state in NODE_MOVES[old], "moves", "node {}: {} -> {}", node, old.name, state.name
            )
            self._nodes[node] = state

    # ------------------------------------------------------------ what is kept

    def _may_be_gone(self, job: int) -> bool:
        """Whether a job may have been forgotten: it had ended, and was to be kept for a short time alone."""
        seen = self._jobs.get(job)
        return (
            seen is not None
            and seen.state in JOB_ENDS
            and self.truth.specs[job].retention < self.world.now_ms
        )

    def _check_forgotten(self, job: int) -> None:
        require(self._may_be_gone(job), "accepted-is-kept", "job {} was accepted and is gone", job)
        self.forgotten.add(job)

    def loaded(self, leader: Leader) -> None:
        """A new leader has loaded: nothing that was accepted is missing."""
        cluster = leader.machine.cluster
        check_cluster(cluster)
        # The last commit may have been its predecessor's dying one, of which no turn told.
        for kept in cluster.jobs.values():
            self._check_moves(kept)
        for job, spec in self.accepted.items():
            found = cluster.jobs.get(job)
            if found is None:
                self._check_forgotten(job)
            else:
                require(found.spec == spec, "accepted-is-kept", "job {} was accepted and is another", job)
        for node in cluster.nodes.values():
            self._check_room(node)
            self._slots.update((lease.id, len(lease.desired.slots)) for lease in node.leases.values())
        self._next_number = max(self._next_number, cluster.commit.next_number)
        self._check_load(cluster)

    def _check_load(self, cluster: Cluster) -> None:
        """The disk's bytes give the same cluster, unless another has led since."""
        if cluster.commit is not self.disk.records.get(META_COMMIT):
            return
        self._load_checked = self.world.event_count
        before, self._read = self._read, {}
        for key, record in sorted(self.disk.records.items()):
            known = before.get(key)
            # What has not changed since the last look is as it was read then.
            if known is None or known[0] is not record:
                known = record, wire.decode(key, wire.encode(record))
            self._read[key] = known
        same(cluster, Cluster.load((key, read) for key, (_, read) in self._read.items()))

    def refused(self, answer: Refusal) -> None:
        """A refusal says why."""
        require(all(answer.problems), "refusals", answer)

    def at_the_end(self, cluster: Cluster) -> None:
        """Everything has ended: what was accepted is there, and what succeeded has its row."""
        check_cluster(cluster)
        kept, accepted = set(cluster.jobs), set(self.accepted)
        gone = accepted - kept - self.forgotten
        require(not gone, "accepted-is-kept", "jobs {} were accepted and are gone", gone)
        require(kept <= accepted, "accepted-once", "jobs {} are there and nobody's", kept - accepted)
        for job in cluster.jobs.values():
            recorded = BitMap(self.truth.succeeded.get(job.id, ()))
            succeeded = _tasks(job)[TaskState.SUCCEEDED]
            said = f"job {job.id}: {succeeded} succeeded, {recorded} are recorded so"
            require(succeeded == recorded, "one-outcome", said)


def _may_move(
    before: TaskState, after: TaskState, moved: BitMap, seen: _Seen, now: _Seen, *, retried: bool
) -> bool:
    """Whether tasks may have gone so in one turn, which may make several moves."""
    if after in TASK_MOVES[before]:
        return True
    again = TaskState.PENDING in TASK_MOVES[before]
    if retried and again and after is TaskState.CANCELLED:
        return True
    # Back to pending, and on with another holder.
    on = after is TaskState.ALLOCATED or after in TASK_MOVES[TaskState.ALLOCATED]
    # A lost node's allocation may end what it had before it is nobody's, and be the same one still.
    another = all(seen.holder(index) != now.holder(index) or seen.holder(index) < 0 for index in moved)
    return (again or before is TaskState.PENDING) and on and another


def _holders(job: Job) -> list[tuple[int, BitMap]]:
    """Who holds which tasks: those that a lost node's allocation would take back are held by -allocation."""
    sound = [(one.id, one.owned) for one in job.allocations.values() if not one.desired.lost]
    return sound + [(-one.id, one.desired.indices) for one in job.lost.values()]


def _tasks(job: Job) -> dict[TaskState, BitMap]:
    """The tasks in each state. What is kept for a lost node is pending until somebody holds it."""
    allocated, running = BitMap(), BitMap()
    succeeded, failed, cancelled = BitMap(), BitMap(), BitMap()
    for segment in job.segments.values():
        succeeded |= segment.succeeded
        failed |= segment.failed
        cancelled |= segment.cancelled
    for allocation in job.allocations.values():
        status, owned = allocation.status, allocation.owned
        if not allocation.desired.lost:
            allocated |= owned
            running |= owned & status.started
        succeeded |= owned & status.succeeded
        failed |= owned & status.failed
        cancelled |= owned & status.cancelled
    ended = succeeded | failed | cancelled
    return {
        TaskState.PENDING: job.all - allocated - ended,
        TaskState.ALLOCATED: allocated - running - ended,
        TaskState.RUNNING: running - ended,
        TaskState.SUCCEEDED: succeeded,
        TaskState.FAILED: failed,
        TaskState.CANCELLED: cancelled,
    }

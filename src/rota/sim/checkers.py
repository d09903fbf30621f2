"""Who looks on: the truth about processes and the disk, against what is said and what was promised.

Each failure is an InvariantBroken that names the invariant.
"""

from dataclasses import dataclass, field

from rota.core.cluster.check import (
    check_cluster,
    check_job,
    check_node,
    require,
    same,
    task_states,
)
from rota.core.cluster.inputs import Outcome, Refusal, Reply, Send, Submitted
from rota.core.cluster.records import (
    META_COMMIT,
    AllocationDesired,
    LeaseDesired,
    NodeStatus,
    Record,
    ResultBlock,
    allocation_key,
    job_key,
    lease_key,
    node_status_key,
    version_key,
)
from rota.core.cluster.state import Cluster, Job
from rota.core.model import indexset
from rota.core.model.protocol import Ack, Grant, Lease, Stop, Template
from rota.core.model.resources import NOTHING, Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import (
    JOB_MOVES,
    NODE_MOVES,
    TASK_MOVES,
    JobState,
    NodeState,
    OnNodeLoss,
    TaskState,
)
from rota.sim.disk import Disk
from rota.sim.leader import Leader
from rota.sim.node import Node, Process
from rota.sim.world import World
from rota.store.port import Changes
from rota.wire import records as wire

LOAD_CHECK_EVENTS = 50
_STRICT = (OnNodeLoss.RERUN_FENCED, OnNodeLoss.HOLD)


@dataclass(slots=True)
class Checkers:
    """All of them. `disk` is set once it is there."""

    world: World
    disk: Disk = field(init=False)
    # Accepted jobs and their templates; those that an operator let be started twice.
    accepted: dict[int, JobSpec] = field(default_factory=dict)
    forced: set[int] = field(default_factory=set)
    retried: set[int] = field(default_factory=set)
    _outcomes: set[tuple[int, int, int]] = field(default_factory=set)
    _starts: set[tuple[int, int, int]] = field(default_factory=set)
    _live: dict[tuple[int, int], set[tuple[int, int, int]]] = field(default_factory=dict)
    _used: dict[str, Resources] = field(default_factory=dict)
    _tasks: dict[int, dict[int, tuple[TaskState, int]]] = field(default_factory=dict)
    _jobs: dict[int, JobState] = field(default_factory=dict)
    _nodes: dict[str, NodeState] = field(default_factory=dict)

    # ------------------------------------------------------------ processes: the truth

    def process_started(self, node: Node, process: Process) -> None:
        """An attempt's process is there."""
        require(
            process.attempt not in self._starts, "started-once", f"{process.attempt} started again on {node}"
        )
        self._starts.add(process.attempt)
        task = (process.job, process.attempt[1])
        live = self._live.setdefault(task, set())
        strict = process.spec.on_node_loss in _STRICT and process.job not in self.forced
        require(
            not (live and strict), "never-two-live", f"task {task}: {process.attempt} on {node} beside {live}"
        )
        live.add(process.attempt)
        used = self._used.get(node.name, NOTHING).plus(process.shape)
        self._used[node.name] = used
        free = node.resources.plus(used, -1)
        require(not free.negative, "oversubscribed", f"{node}: {used} is used of {node.resources}")

    def process_ended(self, node: Node, process: Process) -> None:
        """Nothing of it is left."""
        self._live[process.job, process.attempt[1]].discard(process.attempt)
        self._used[node.name] = self._used[node.name].plus(process.shape, -1)

    # ------------------------------------------------------------ the disk

    def committed(self, changes: Changes) -> None:
        """What has become durable: each attempt has one outcome."""
        for block in changes.blocks:
            assert isinstance(block, ResultBlock)
            for index, attempt in zip(block.index, block.attempt, strict=True):
                one = (block.job, index, attempt)
                require(one not in self._outcomes, "one-outcome", f"attempt {one} has ended twice")
                self._outcomes.add(one)

    # ------------------------------------------------------------ what is said

    def speaks(self, leader: Leader, order: Send | Reply) -> None:
        """Nothing is said that is not on the disk."""
        if isinstance(order, Reply):
            self._check_reply(order)
            return
        records, node, body = self.disk.records, order.node, order.message.body
        known: Record | None
        match body:
            case Grant():
                known = records.get(allocation_key(node, body.allocation))
                holds = isinstance(known, AllocationDesired) and known.grant == body.grant
                require(holds, "committed-first", f"{body} says more than {known}")
            case Lease():
                known = records.get(lease_key(node, body.lease))
                slots = [slot.slot for slot in body.slots]
                holds = isinstance(known, LeaseDesired) and max(slots, default=0) < known.next_slot
                require(holds, "committed-first", f"{body} says more than {known}")
            case Ack():
                known = records.get(node_status_key(node))
                holds = isinstance(known, NodeStatus) and known.acknowledged >= body.sequence
                require(holds, "committed-first", f"{body} says more than {known}")
            case Template():
                known = records.get(version_key(body.job, body.version))
                require(known is not None, "committed-first", f"a template that is not kept: job {body.job}")
            case Stop():
                pass
            case _:
                pass

    def _check_reply(self, reply: Reply) -> None:
        if isinstance(reply.answer, Submitted):
            for job in reply.answer.jobs:
                kept = job_key(job) in self.disk.records
                require(kept, "accepted-is-kept", f"job {job} was accepted and is not on the disk")

    # ------------------------------------------------------------ turns

    def turned(self, leader: Leader, outcome: Outcome) -> None:
        """After a turn, where readers are answered."""
        cluster = leader.machine.cluster
        jobs: dict[int, Job] = {}
        for key, record in outcome.changes.items():
            shown = cluster.records.get(key)
            require(shown is record, "read-committed", f"{key}: a read shows {shown}")
            require(self.disk.records.get(key) is record, "read-committed", f"{key} is not on the disk")
            if key.startswith(("cfg/job/", "st/job/")):
                number = int(key.split("/")[2], 16)
                if number in cluster.jobs:
                    jobs[number] = cluster.jobs[number]
            elif isinstance(record, AllocationDesired):
                jobs[record.job] = cluster.jobs[record.job]
            if "/alloc/" in key:
                for job in cluster.active.values():
                    jobs[job.id] = job
        for job in jobs.values():
            check_job(job)
            self._check_moves(job)
        for node in cluster.nodes.values() if outcome.changes else ():
            check_node(node)
            self._check_node_move(node.id, node.status.state)
        if self.world.event_count % LOAD_CHECK_EVENTS == 0:
            self._check_load(cluster)

    def _check_moves(self, job: Job) -> None:
        old_state = self._jobs.get(job.id, JobState.PENDING)
        new_state = job.status.state
        legal = new_state is old_state or new_state in JOB_MOVES[old_state]
        if job.id in self.retried and JobState.PENDING in JOB_MOVES[old_state]:
            legal = legal or new_state in JOB_MOVES[JobState.PENDING]
        require(legal, "moves", f"job {job.id}: {old_state.name} -> {new_state.name}")
        self._jobs[job.id] = new_state
        new = task_states(job)
        old = self._tasks.get(job.id, {})
        for index, (state, holder) in new.items():
            before, held_by = old.get(index, (TaskState.PENDING, 0))
            legal = state is before or state in TASK_MOVES[before]
            if job.id in self.retried and TaskState.PENDING in TASK_MOVES[before]:
                legal = legal or state is TaskState.CANCELLED
            if not legal and holder != held_by:
                # Several moves in one step: back to pending, and on with another holder.
                left = before is TaskState.PENDING or TaskState.PENDING in TASK_MOVES[before]
                legal = left and (state is TaskState.ALLOCATED or state in TASK_MOVES[TaskState.ALLOCATED])
            require(legal, "moves", f"task {job.id}/{index}: {before.name} -> {state.name}")
            back = before in (TaskState.FAILED, TaskState.CANCELLED) and state is not before
            asked = not back or job.id in self.retried
            require(asked, "moves", f"task {job.id}/{index} left {before.name} unasked")
        self._tasks[job.id] = new

    def _check_node_move(self, node: str, state: NodeState) -> None:
        old = self._nodes.get(node, NodeState.DISCONNECTED)
        if state is not old:
            # A step may pass through several, the way up always in one.
            chain = [NodeState.READY, NodeState.SUSPECT, NodeState.DISCONNECTED, NodeState.LOST]
            back = NodeState.READY in NODE_MOVES[old] and state in chain
            down = back or (state in chain and old in chain and chain.index(old) < chain.index(state))
            require(down or state in NODE_MOVES[old], "moves", f"node {node}: {old.name} -> {state.name}")
            self._nodes[node] = state

    # ------------------------------------------------------------ loading

    def loaded(self, leader: Leader) -> None:
        """A new leader has loaded: nothing that was accepted is missing."""
        cluster = leader.machine.cluster
        check_cluster(cluster)
        # The last commit may have been its predecessor's dying one, of which no turn told.
        for kept in cluster.jobs.values():
            self._check_moves(kept)
        for job, spec in self.accepted.items():
            found = cluster.jobs.get(job)
            require(
                found is not None and found.spec == spec,
                "accepted-is-kept",
                f"job {job} was accepted and is gone",
            )
        self._check_load(cluster)

    def _check_load(self, cluster: Cluster) -> None:
        """The disk's bytes give the same cluster, unless another has led since."""
        if cluster.commit is not self.disk.records.get(META_COMMIT):
            return
        bytes_by_key = {key: wire.encode(record) for key, record in self.disk.records.items()}
        loaded = Cluster.load((key, wire.decode(key, bytes_by_key[key])) for key in sorted(bytes_by_key))
        same(cluster, loaded)

    def refused(self, answer: Refusal) -> None:
        """A refusal says why."""
        require(all(answer.problems), "refusals", answer)


def task_count(spec: JobSpec) -> int:
    """How many tasks a job has."""
    return len(indexset.parse(spec.array, 1_000_000)) if spec.array else 1

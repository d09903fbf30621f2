"""The cluster as a value: the records, and what follows from them.

`put` and `drop` are the only mutations; a live leader, a loading leader and a standby run the same
code. What is derived (who holds which index, what is free, counters) is kept true by them and is
compared with a recount by `check`. Bitmaps within records are shared and never changed; the bitmaps
of a `Job` here are its own.

Records must come in an order in which what they refer to is there: that of their keys does.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from pyroaring import BitMap

from rota.core.cluster.expiries import Expiries
from rota.core.cluster.news import News
from rota.core.cluster.records import (
    NO_EXCEPTIONS,
    AllocationDesired,
    AllocationStatus,
    ClusterMeta,
    Commit,
    EventRecord,
    Exceptions,
    Idempotency,
    JobConfig,
    JobStatus,
    JobVersion,
    Key,
    LeaseDesired,
    NodeConfig,
    NodeInventory,
    NodeStatus,
    NodeTally,
    QueueConfig,
    Record,
    Segment,
    TokenConfig,
    UserConfig,
    parse_key,
    token_key,
)
from rota.core.model import indexset, planes
from rota.core.model.protocol import Inventory, Pool
from rota.core.model.resources import NOTHING, Resources
from rota.core.model.spec import QUEUE_DEFAULT, JobSpec
from rota.core.model.states import JOB_ENDS, NodeState

_NO_STATUS = AllocationStatus()
_NO_SEGMENT = Segment()
_EMPTY = BitMap()


def _own(found: BitMap, shared: BitMap = _EMPTY) -> BitMap:
    """A set that may be changed, of one that was perhaps shared until now: most sets of most jobs are."""
    return found.copy() if found is shared else found


class Allocation:
    """Indices of one job queued on one lease. What it owns is nobody else's."""

    __slots__ = ("desired", "id", "job", "node", "owned", "remaining", "status")

    def __init__(self, number: int, node: "Node", job: "Job", desired: AllocationDesired) -> None:
        self.id = number
        self.node = node
        self.job = job
        self.desired = desired
        self.status = _NO_STATUS
        # Of a lost node's allocation only what is kept for it.
        self.owned = desired.kept if desired.lost else desired.indices
        # Owned and not ended.
        self.remaining = self.owned

    @property
    def ended(self) -> BitMap:
        return self.status.ended

    @property
    def running(self) -> BitMap:
        return self.status.started & self.remaining

    @property
    def waits_for_node(self) -> bool:
        """Whether what is left of it waits for a lost node to come back."""
        return self.desired.lost and self.node.lost

    @property
    def unclaimed(self) -> BitMap:
        """Of a lost node's allocation: what it would take back if the node returned in time."""
        return self.desired.indices - self.desired.kept if self.desired.lost else _EMPTY


class Lease:
    """Slots of one shape on one node for one queue: all that is charged to the node."""

    __slots__ = ("allocations", "desired", "id", "load", "node")

    def __init__(self, number: int, node: "Node", desired: LeaseDesired) -> None:
        self.id = number
        self.node = node
        self.desired = desired
        self.allocations: dict[int, Allocation] = {}
        # Tasks that are on it and have not ended.
        self.load = 0


class Node:
    """A node: its four parts, and what is charged to it, by unit of capacity."""

    __slots__ = ("allocations", "charged", "config", "id", "inventory", "leases", "status")

    def __init__(self, node: str, config: NodeConfig) -> None:
        self.id = node
        self.config = config
        self.inventory = Inventory()
        self.status = NodeStatus(NodeState.DISCONNECTED)
        self.leases: dict[int, Lease] = {}
        self.allocations: dict[int, Allocation] = {}
        # By (pool, unit); the lease's resources times its slots.
        self.charged: dict[tuple[str, int], Resources] = {}

    @property
    def pools(self) -> tuple[Pool, ...]:
        return self.inventory.pools

    @property
    def placeable(self) -> bool:
        return self.status.state is NodeState.READY and not self.config.cordoned and not self.config.draining

    def pool(self, name: str) -> Pool | None:
        """A pool by its name; None where the node declares it no longer."""
        for pool in self.inventory.pools:
            if pool.name == name:
                return pool
        return None

    @property
    def lost(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.status.state in (NodeState.LOST, NodeState.GONE)

    def free(self, pool: str, unit: int) -> Resources:
        """What is left of one unit; negative where more is charged than the node now declares."""
        found = self.pool(pool)
        whole = NOTHING if found is None or unit >= found.units else found.resources
        charged = self.charged.get((pool, unit))
        return whole if charged is None else whole.plus(charged, -1)

    def total_charged(self) -> Resources:
        total = NOTHING
        for charged in self.charged.values():
            total = total.plus(charged)
        return total

    def capacity(self) -> Resources:
        return self.inventory.capacity()


class Job:
    """A job: its records, and who holds which of its indices."""

    __slots__ = (
        "all",
        "allocations",
        "attempted",
        "config",
        "count_cancelled",
        "count_failed",
        "count_started",
        "count_succeeded",
        "delayed",
        "exceptions",
        "fenced",
        "finals",
        "held",
        "id",
        "lost",
        "owned",
        "pending",
        "segments",
        "spec",
        "status",
        "tallies",
        "versions",
    )

    def __init__(self, job: int, config: JobConfig) -> None:
        self.id = job
        self.config = config
        self.spec = JobSpec()
        self.versions: dict[int, JobSpec] = {}
        self.status = JobStatus()
        self.segments: dict[int, Segment] = {}
        self.exceptions: dict[int, Exceptions] = {}
        self.tallies: dict[str, NodeTally] = {}
        # Open allocations, and those of them whose node was called lost.
        self.allocations: dict[int, Allocation] = {}
        self.lost: dict[int, Allocation] = {}
        # What is empty, and pending where it is all, is shared until it changes: see `_own`.
        self.all = _EMPTY
        # In the segments; owned by allocations; neither.
        self.finals = _EMPTY
        self.owned = _EMPTY
        self.pending = _EMPTY
        # With ended attempts; with a time to wait for, of which some for an earlier attempt's certain end;
        # held for an operator.
        self.attempted = _EMPTY
        self.delayed = _EMPTY
        self.fenced = _EMPTY
        self.held = _EMPTY
        # Tasks by their end, in segments and allocations; started ones that have not ended.
        self.count_succeeded = 0
        self.count_failed = 0
        self.count_cancelled = 0
        self.count_started = 0

    @property
    def count_ended(self) -> int:
        return self.count_succeeded + self.count_failed + self.count_cancelled

    @property
    def ended(self) -> bool:
        return self.status.state in JOB_ENDS

    @property
    def ending(self) -> bool:
        """Nothing of it shall start any more."""
        return self.config.cancelled or self.status.stopping

    def attempts(self, index: int) -> int:
        """Attempts at a task that ended other than by success (a lost one counts until it is taken back)."""
        if index not in self.attempted:
            return 0
        return planes.number(self.segments[index // indexset.SEGMENT_SIZE].attempts, index)

    def failures(self, index: int) -> int:
        """Failures of a task that count towards its retries."""
        return planes.number(self.exceptions_of(index // indexset.SEGMENT_SIZE).failures, index)

    def crashes(self, index: int) -> int:
        """How often a node or agent has died under a task."""
        return planes.number(self.exceptions_of(index // indexset.SEGMENT_SIZE).crashes, index)

    def moved(self, changed: BitMap) -> None:
        """Decides anew for these indices whether they are pending."""
        pending = _own(self.pending, self.all)
        pending -= changed
        pending |= (changed & self.all) - self.finals - self.owned
        self.pending = pending

    def segment(self, number: int) -> Segment:
        return self.segments.get(number, _NO_SEGMENT)

    def exceptions_of(self, number: int) -> Exceptions:
        return self.exceptions.get(number, NO_EXCEPTIONS)


class Cluster:
    """All of it. Iteration orders are those of insertion, so equal histories give equal decisions."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.meta = ClusterMeta()
        self.commit = Commit()
        self.jobs: dict[int, Job] = {}
        self.nodes: dict[str, Node] = {}
        self.node_names: dict[str, str] = {}
        self.queues: dict[str, QueueConfig] = {}
        self.queue_charged: dict[str, Resources] = {}
        self.tokens: dict[str, TokenConfig] = {}
        self.users: dict[str, UserConfig] = {}
        # The oldest goes first, again and again, for which a plain dict looks at all that went before.
        self.events: OrderedDict[int, EventRecord] = OrderedDict()
        self.idempotency: dict[str, Idempotency] = {}
        self.expiries = Expiries(self.records)
        # What has changed, for those who keep an index of it.
        self.news = News()
        # Jobs that have not ended; jobs that wait for a job, by the job.
        self.active: dict[int, Job] = {}
        self.dependents: dict[int, set[int]] = {}
        # Of how many jobs a node has a tally.
        self.tally_counts: dict[str, int] = {}
        self._putters: dict[type, Callable[[Key, Any], None]] = {
            ClusterMeta: self._put_meta,
            Commit: self._put_commit,
            JobConfig: self._put_job,
            JobVersion: self._put_version,
            JobStatus: self._put_job_status,
            Segment: lambda key, record: self._set_segment(self.jobs[key.job], key.number, record),
            Exceptions: lambda key, record: self._set_exceptions(self.jobs[key.job], key.number, record),
            NodeTally: self._put_tally,
            QueueConfig: self._put_queue,
            TokenConfig: self._put_token,
            UserConfig: self._put_user,
            NodeConfig: self._put_node,
            NodeInventory: self._put_inventory,
            NodeStatus: self._put_node_status,
            LeaseDesired: self._put_lease,
            AllocationDesired: self._put_allocation,
            AllocationStatus: self._set_allocation_status,
            Idempotency: self._put_idempotency,
        }
        self._droppers: dict[type, Callable[[Key], None]] = {
            JobConfig: self._drop_job,
            JobVersion: self._drop_version,
            JobStatus: self._drop_job_status,
            Segment: self._drop_segment,
            Exceptions: self._drop_exceptions,
            NodeTally: self._drop_tally,
            QueueConfig: self._drop_queue,
            TokenConfig: lambda key: self._forget(self.tokens, key.name),
            UserConfig: self._drop_user,
            NodeConfig: self._drop_node,
            NodeInventory: self._drop_inventory,
            NodeStatus: self._drop_node_status,
            LeaseDesired: self._drop_lease,
            AllocationDesired: self._drop_allocation,
            AllocationStatus: lambda key: self._set_allocation_status(key, _NO_STATUS),
            Idempotency: lambda key: self._forget(self.idempotency, key.name),
        }

    @classmethod
    def load(cls, records: Iterable[tuple[str, Record]]) -> "Cluster":
        """The cluster of these records, in the order of their keys."""
        cluster = cls()
        for key, record in records:
            cluster.put(key, record)
        return cluster

    def put(self, key: str, record: Record, at: Key | None = None) -> None:
        """Puts a record in place of the one with this key, if any. `at` is the key taken apart, if known."""
        if isinstance(record, EventRecord):
            self.events[record.event.seq] = record
        else:
            self._putters[type(record)](at or parse_key(key), record)
        self.records[key] = record

    def drop(self, key: str) -> None:
        """Removes a record; nothing happens where there is none."""
        record = self.records.pop(key, None)
        if isinstance(record, EventRecord):
            self.events.pop(record.event.seq, None)
        elif record is not None:
            self._droppers[type(record)](parse_key(key))

    @staticmethod
    def _forget(table: dict[Any, Any], key: Any) -> None:
        table.pop(key, None)

    # ------------------------------------------------------------ meta, queues, tokens, events

    def _put_meta(self, key: Key, record: ClusterMeta) -> None:
        self.meta = record

    def _put_commit(self, key: Key, record: Commit) -> None:
        self.commit = record

    def _put_queue(self, key: Key, record: QueueConfig) -> None:
        self.queues[key.name] = record
        self.news.queues[key.name] = None

    def _drop_queue(self, key: Key) -> None:
        self.queues.pop(key.name, None)
        self.news.queues[key.name] = None

    def _put_token(self, key: Key, record: TokenConfig) -> None:
        self.expiries.put(token_key(key.name), self.tokens.get(key.name), record)
        self.tokens[key.name] = record

    def _put_user(self, key: Key, record: UserConfig) -> None:
        # A new table each time: who was handed the one before sees it as it was.
        self.users = {**self.users, key.name: record}

    def _drop_user(self, key: Key) -> None:
        self.users = {name: user for name, user in self.users.items() if name != key.name}

    def _put_idempotency(self, key: Key, record: Idempotency) -> None:
        self.expiries.put(f"idem/{key.name}", self.idempotency.get(key.name), record)
        self.idempotency[key.name] = record

    def queue(self, name: str) -> QueueConfig | None:
        """A queue by name; `default` is always there."""
        found = self.queues.get(name)
        return QueueConfig() if found is None and name == QUEUE_DEFAULT else found

    # ------------------------------------------------------------ jobs

    def _put_job(self, key: Key, record: JobConfig) -> None:
        self.news.jobs[key.job] = None
        job = self.jobs.get(key.job)
        if job is None:
            job = self.jobs[key.job] = Job(key.job, record)
            self.active[key.job] = job
        else:
            self._depend_no_more(job)
        for after in record.after:
            self.dependents.setdefault(after.job, set()).add(key.job)
        job.config = record
        if record.version in job.versions:
            job.spec = job.versions[record.version]

    def _drop_job(self, key: Key) -> None:
        job = self.jobs.pop(key.job, None)
        self.active.pop(key.job, None)
        self._tell_of_job(key.job)
        if job is not None:
            self._depend_no_more(job)
            for node in job.tallies:
                self._count_tally(node, -1)

    def _tell_of_job(self, number: int) -> None:
        """Its state has changed, which others may wait for."""
        self.news.jobs[number] = None
        self.news.jobs.update(dict.fromkeys(sorted(self.dependents.get(number, ()))))

    def _depend_no_more(self, job: Job) -> None:
        for after in job.config.after:
            waiting = self.dependents.get(after.job, set())
            waiting.discard(job.id)
            if not waiting:
                self.dependents.pop(after.job, None)

    def _put_version(self, key: Key, record: JobVersion) -> None:
        self.news.jobs[key.job] = None
        job = self.jobs[key.job]
        job.versions[key.number] = record.spec
        if key.number == job.config.version:
            job.spec = record.spec
            job.all = indexset.of_job(record.spec.array, len(record.spec.lines))
            taken = job.finals or job.owned
            job.pending = job.all - job.finals - job.owned if taken else job.all

    def _drop_version(self, key: Key) -> None:
        job = self.jobs.get(key.job)
        if job is not None:
            job.versions.pop(key.number, None)

    def _put_job_status(self, key: Key, record: JobStatus) -> None:
        job = self.jobs[key.job]
        self._tell_of_job(key.job)
        job.status = record
        if job.ended:
            self.active.pop(key.job, None)
        else:
            self.active[key.job] = job

    def _drop_job_status(self, key: Key) -> None:
        job = self.jobs.get(key.job)
        if job is not None:
            job.status = JobStatus()
            self._tell_of_job(key.job)

    def _drop_segment(self, key: Key) -> None:
        job = self.jobs.get(key.job)
        if job is not None:
            self._set_segment(job, key.number, _NO_SEGMENT)

    def _set_segment(self, job: Job, number: int, record: Segment) -> None:
        self.news.jobs[job.id] = None
        old = job.segment(number)
        job.segments[number] = record
        if not (record.succeeded or record.failed or record.cancelled or record.attempts):
            del job.segments[number]
        job.count_succeeded += len(record.succeeded) - len(old.succeeded)
        job.count_failed += len(record.failed) - len(old.failed)
        job.count_cancelled += len(record.cancelled) - len(old.cancelled)
        before = old.succeeded | old.failed | old.cancelled
        after = record.succeeded | record.failed | record.cancelled
        changed = before ^ after
        if changed:
            job.finals = _own(job.finals)
            job.finals ^= changed
            job.moved(changed)
        if record.attempts != old.attempts:
            job.attempted = _own(job.attempted)
            job.attempted -= planes.any_of(old.attempts)
            job.attempted |= planes.any_of(record.attempts)

    def _drop_exceptions(self, key: Key) -> None:
        job = self.jobs.get(key.job)
        if job is not None:
            self._set_exceptions(job, key.number, NO_EXCEPTIONS)

    def _set_exceptions(self, job: Job, number: int, record: Exceptions) -> None:
        self.news.jobs[job.id] = None
        old = job.exceptions.pop(number, NO_EXCEPTIONS)
        job.delayed, job.fenced, job.held = _own(job.delayed), _own(job.fenced), _own(job.held)
        for one in (*old.backoffs, *old.fences):
            job.delayed -= one.indices
        for one in old.fences:
            job.fenced -= one.indices
        job.held -= old.held
        if record != NO_EXCEPTIONS:
            job.exceptions[number] = record
        for one in (*record.backoffs, *record.fences):
            job.delayed |= one.indices
        for one in record.fences:
            job.fenced |= one.indices
        job.held |= record.held

    def _put_tally(self, key: Key, record: NodeTally) -> None:
        tallies = self.jobs[key.job].tallies
        if key.node not in tallies:
            self._count_tally(key.node, 1)
        tallies[key.node] = record

    def _drop_tally(self, key: Key) -> None:
        job = self.jobs.get(key.job)
        if job is not None and job.tallies.pop(key.node, None) is not None:
            self._count_tally(key.node, -1)

    def _count_tally(self, node: str, sign: int) -> None:
        count = self.tally_counts.pop(node, 0) + sign
        if count:
            self.tally_counts[node] = count

    # ------------------------------------------------------------ nodes

    def _put_node(self, key: Key, record: NodeConfig) -> None:
        self.news.nodes[key.node] = None
        node = self.nodes.get(key.node)
        if node is None:
            node = self.nodes[key.node] = Node(key.node, record)
        if self.node_names.get(node.config.name) == key.node:
            del self.node_names[node.config.name]
        node.config = record
        if not record.removed:
            self.node_names[record.name] = key.node

    def _drop_node(self, key: Key) -> None:
        node = self.nodes.pop(key.node, None)
        self.news.nodes[key.node] = None
        if node is not None and self.node_names.get(node.config.name) == key.node:
            del self.node_names[node.config.name]

    def find_node(self, name_or_id: str) -> Node | None:
        """A node by name or UUID; removed ones are not found."""
        node = self.nodes.get(self.node_names.get(name_or_id, name_or_id))
        return None if node is None or node.config.removed else node

    def _put_inventory(self, key: Key, record: NodeInventory) -> None:
        self.nodes[key.node].inventory = record.inventory
        self.news.nodes[key.node] = None

    def _drop_inventory(self, key: Key) -> None:
        node = self.nodes.get(key.node)
        if node is not None:
            node.inventory = Inventory()
            self.news.nodes[key.node] = None

    def _put_node_status(self, key: Key, record: NodeStatus) -> None:
        self._set_node_status(self.nodes[key.node], record)

    def _drop_node_status(self, key: Key) -> None:
        node = self.nodes.get(key.node)
        if node is not None:
            self._set_node_status(node, NodeStatus(NodeState.DISCONNECTED))

    def _set_node_status(self, node: Node, status: NodeStatus) -> None:
        """A queue is charged for what nodes hold that may come back; a lost one's share is free again."""
        was_lost = node.lost
        if node.status.state is not status.state:
            self.news.nodes[node.id] = None
        node.status = status
        if node.lost != was_lost:
            for lease in node.leases.values():
                slots = len(lease.desired.slots)
                self._charge_queue(lease.desired, -slots if node.lost else slots)

    # ------------------------------------------------------------ leases

    def _put_lease(self, key: Key, record: LeaseDesired) -> None:
        node = self.nodes[key.node]
        self._tell_of_lease(node, key.number, record)
        lease = node.leases.get(key.number)
        if lease is None:
            lease = node.leases[key.number] = Lease(key.number, node, record)
            # A store is loaded in the order of the keys: allocations come before leases.
            for number, allocation in node.allocations.items():
                if allocation.desired.lease == key.number:
                    lease.allocations[number] = allocation
                    lease.load += len(allocation.remaining)
            self._charge(node, record, len(record.slots))
            return
        assert lease.desired.shape == record.shape, (lease.desired, record)
        self._charge(node, record, len(record.slots) - len(lease.desired.slots))
        lease.desired = record

    def _drop_lease(self, key: Key) -> None:
        node = self.nodes.get(key.node)
        lease = node.leases.pop(key.number, None) if node is not None else None
        if node is not None and lease is not None:
            self._tell_of_lease(node, key.number, lease.desired)
            self._charge(node, lease.desired, -len(lease.desired.slots))

    def _tell_of_lease(self, node: Node, number: int, lease: LeaseDesired) -> None:
        self.news.leases[node.id, number] = None
        self.news.units[node.id, lease.pool, lease.unit] = None

    def _charge(self, node: Node, lease: LeaseDesired, slots: int) -> None:
        if not slots:
            return
        unit = (lease.pool, lease.unit)
        charged = node.charged.get(unit, NOTHING).plus(lease.shape, slots)
        if charged == NOTHING:
            node.charged.pop(unit, None)
        else:
            node.charged[unit] = charged
        if not node.lost:
            self._charge_queue(lease, slots)

    def _charge_queue(self, lease: LeaseDesired, slots: int) -> None:
        self.news.queues[lease.queue] = None
        total = self.queue_charged.get(lease.queue, NOTHING).plus(lease.shape, slots)
        if total == NOTHING:
            self.queue_charged.pop(lease.queue, None)
        else:
            self.queue_charged[lease.queue] = total

    # ------------------------------------------------------------ allocations

    def _put_allocation(self, key: Key, record: AllocationDesired) -> None:
        node = self.nodes[key.node]
        job = self.jobs[record.job]
        allocation = node.allocations.get(key.number)
        if allocation is None:
            self._add_allocation(Allocation(key.number, node, job, record))
            return
        self._count(allocation, -1)
        before = allocation.owned
        allocation.desired = record
        allocation.owned = record.kept if record.lost else record.indices
        if record.lost:
            job.lost[key.number] = allocation
        else:
            job.lost.pop(key.number, None)
        allocation.remaining = allocation.owned - allocation.ended
        self._count(allocation, 1)
        self._own(job, before ^ allocation.owned)

    def _add_allocation(self, allocation: Allocation) -> None:
        """A new one, of which nothing has been reported: what it owns was nobody's."""
        node, job, number = allocation.node, allocation.job, allocation.id
        node.allocations[number] = job.allocations[number] = allocation
        if (lease := node.leases.get(allocation.desired.lease)) is not None:
            lease.allocations[number] = allocation
        if allocation.desired.lost:
            job.lost[number] = allocation
        self._count(allocation, 1)
        if allocation.owned:
            job.owned = _own(job.owned)
            job.owned |= allocation.owned
            job.pending = _own(job.pending, job.all)
            job.pending -= allocation.owned

    def _drop_allocation(self, key: Key) -> None:
        node = self.nodes.get(key.node)
        allocation = node.allocations.pop(key.number, None) if node is not None else None
        if node is None or allocation is None:
            return
        self._count(allocation, -1)
        allocation.job.allocations.pop(key.number, None)
        allocation.job.lost.pop(key.number, None)
        if allocation.desired.lease in node.leases:
            node.leases[allocation.desired.lease].allocations.pop(key.number, None)
        self._own(allocation.job, allocation.owned.copy())

    def _set_allocation_status(self, key: Key, record: AllocationStatus) -> None:
        node = self.nodes.get(key.node)
        allocation = node.allocations.get(key.number) if node is not None else None
        if allocation is None:
            return
        self._count(allocation, -1)
        allocation.status = record
        allocation.remaining = allocation.owned - allocation.ended
        self._count(allocation, 1)

    @staticmethod
    def _own(job: Job, changed: BitMap) -> None:
        if changed:
            job.owned = _own(job.owned)
            job.owned ^= changed
            job.moved(changed)

    def _count(self, allocation: Allocation, sign: int) -> None:
        """Adds or takes away what an allocation counts for: of what it does not own, nothing."""
        job, owned, status = allocation.job, allocation.owned, allocation.status
        self.news.jobs[job.id] = None
        self.news.leases[allocation.node.id, allocation.desired.lease] = None
        if status is not _NO_STATUS:
            job.count_succeeded += sign * owned.intersection_cardinality(status.succeeded)
            job.count_failed += sign * owned.intersection_cardinality(status.failed)
            job.count_cancelled += sign * owned.intersection_cardinality(status.cancelled)
            job.count_started += sign * allocation.remaining.intersection_cardinality(status.started)
        lease = allocation.node.leases.get(allocation.desired.lease)
        if lease is not None:
            lease.load += sign * len(allocation.remaining)

"""What must be true of a cluster after every step: what is derived equals a recount of the records.

For tests and the simulator; what costs little is also required where it could break. A failure is an
`InvariantBroken` that names the invariant.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType

from pyroaring import BitMap

from rota.core.cluster.leases import devices_free
from rota.core.cluster.state import Allocation, Cluster, Job, Node
from rota.core.model import indexset
from rota.core.model.resources import NOTHING, Resources
from rota.core.model.states import TaskState


class InvariantBroken(AssertionError):
    """`name` is the invariant's; the message says what was found."""

    def __init__(self, name: str, found: str) -> None:
        super().__init__(f"{name}: {found}")
        self.name = name


def require(holds: object, name: str, found: object, *values: object) -> None:
    """Raises InvariantBroken unless it holds.

    Only then `values` are put into the text `found`: to write a set out costs more than to compare it.
    """
    if not holds:
        raise InvariantBroken(name, str(found).format(*values) if values else str(found))


def check_job(job: Job) -> None:
    """Who holds which index, and the counters."""
    owned, finals = BitMap(), BitMap()
    counts = {"succeeded": 0, "failed": 0, "cancelled": 0, "started": 0}
    for number, segment in job.segments.items():
        for part in (segment.succeeded, segment.failed, segment.cancelled):
            require(part.isdisjoint(finals), "one-end", "job {}: {} ended twice", job.id, part & finals)
            finals |= part
        inside = segment.succeeded | segment.failed | segment.cancelled
        low, high = number * indexset.SEGMENT_SIZE, (number + 1) * indexset.SEGMENT_SIZE
        require(
            not inside or low <= inside.min() <= inside.max() < high,
            "segments",
            "job {}: segment {}",
            job.id,
            number,
        )
        counts["succeeded"] += len(segment.succeeded)
        counts["failed"] += len(segment.failed)
        counts["cancelled"] += len(segment.cancelled)
    for allocation in job.allocations.values():
        _check_allocation(job, allocation, owned)
        owned |= allocation.owned
        status = allocation.status
        counts["succeeded"] += len(allocation.owned & status.succeeded)
        counts["failed"] += len(allocation.owned & status.failed)
        counts["cancelled"] += len(allocation.owned & status.cancelled)
        counts["started"] += len(allocation.remaining & status.started)
    require(owned.isdisjoint(finals), "one-holder", "job {}: {} ended and held", job.id, owned & finals)
    require(owned == job.owned, "counters", "job {}: owned {}, recounted {}", job.id, job.owned, owned)
    require(finals == job.finals, "counters", "job {}: ended {}, recounted {}", job.id, job.finals, finals)
    pending = job.all - finals - owned
    require(
        pending == job.pending, "counters", "job {}: pending {}, recounted {}", job.id, job.pending, pending
    )
    require(
        finals | owned <= job.all, "indices", "job {}: {} are not its", job.id, (finals | owned) - job.all
    )
    derived = {
        "succeeded": job.count_succeeded,
        "failed": job.count_failed,
        "cancelled": job.count_cancelled,
        "started": job.count_started,
    }
    require(derived == counts, "counters", "job {}: {}, recounted {}", job.id, derived, counts)
    _check_exceptions(job)
    _check_tallies(job)
    if job.ended:
        require(job.count_ended == len(job.all), "ended-is-all", "job {} ended with {}", job.id, counts)


def _check_exceptions(job: Job) -> None:
    """A task is said once to have ended so, and waits for one time."""
    for number, said in job.exceptions.items():
        name = f"job {job.id}: exceptions {number}"
        waiting, grouped = BitMap(), BitMap()
        for sets in (said.backoffs, said.fences):
            for one, other in pairwise(sets):
                require(one.until_ms < other.until_ms, "exceptions", "{}: {}", name, sets)
            seen = BitMap()
            for one in sets:
                require(one.indices and one.indices.isdisjoint(seen), "exceptions", "{}: {}", name, sets)
                seen |= one.indices
            waiting |= seen
        for group in said.groups:
            require(group.indices.isdisjoint(grouped), "exceptions", "{}: {} and another", name, group)
            grouped |= group.indices
        require(waiting <= job.delayed and said.held <= job.held, "counters", "{}: {}", name, said)


def _check_tallies(job: Job) -> None:
    """What nodes are said to have done is what has ended, each task on one node at most."""
    succeeded = sum(len(segment.succeeded) for segment in job.segments.values())
    failed, cancelled = BitMap(), BitMap()
    for segment in job.segments.values():
        failed |= segment.failed
        cancelled |= segment.cancelled
    tallied = BitMap()
    for node, tally in job.tallies.items():
        name = f"job {job.id}, node {node}"
        require(tally.unsuccessful.isdisjoint(tallied), "tallies", "{}: {} twice", name, tally.unsuccessful)
        tallied |= tally.unsuccessful
        parts = (len(tally.unsuccessful & failed), len(tally.unsuccessful & cancelled))
        require(
            parts == (tally.failed, tally.cancelled), "tallies", "{}: {}, recounted {}", name, tally, parts
        )
    most = sum(tally.succeeded for tally in job.tallies.values())
    require(most == succeeded, "tallies", "job {}: {} succeeded, {} on nodes", job.id, succeeded, most)


def _check_allocation(job: Job, allocation: Allocation, owned: BitMap) -> None:
    name = f"job {job.id}, allocation {allocation.id}"
    both = owned & allocation.owned
    require(not both, "one-holder", "{}: {} held twice", name, both)
    status, desired = allocation.status, allocation.desired
    for part in (
        status.started,
        status.succeeded,
        status.failed,
        status.cancelled,
        desired.kept,
        *(stop.indices for stop in desired.stops),
    ):
        require(part <= desired.indices, "indices", "{}: {} of {}", name, part, desired.indices)
    stops = sum(len(stop.indices) for stop in desired.stops)
    require(stops == len(desired.stopping), "stops", "{}: an index is to be stopped for two reasons", name)
    require(all(stop.indices for stop in desired.stops), "stops", "{}: a stop of nothing", name)
    ended = len(status.succeeded) + len(status.failed) + len(status.cancelled)
    require(ended == len(allocation.ended), "one-end", "{}: an index ended twice", name)
    require(allocation.remaining == allocation.owned - allocation.ended, "counters", "{}: remaining", name)
    require(allocation.remaining or allocation.unclaimed, "closed", "{} has nothing left and is open", name)
    require(desired.lost == (allocation.id in job.lost), "counters", "{}: lost", name)


def check_node(node: Node) -> None:
    """The charges are those of the leases, and no device is given twice."""
    charged: dict[tuple[str, int], Resources] = {}
    for lease in node.leases.values():
        desired = lease.desired
        unit = (desired.pool, desired.unit)
        before = charged.get(unit, NOTHING)
        charged[unit] = before.plus(desired.shape, len(desired.slots))
        numbers = [slot.slot for slot in desired.slots]
        require(len(set(numbers)) == len(numbers), "slots", "lease {}: slots {}", lease.id, numbers)
        require(desired.target <= len(numbers), "slots", "lease {}: target {}", lease.id, desired.target)
        load = sum(len(one.remaining) for one in lease.allocations.values())
        require(load == lease.load, "counters", "lease {}: load {}, recounted {}", lease.id, lease.load, load)
        open_ = {one.id for one in node.allocations.values() if one.desired.lease == lease.id}
        require(
            open_ == set(lease.allocations),
            "counters",
            "lease {}: {} {}",
            lease.id,
            open_,
            set(lease.allocations),
        )
    charged = {unit: amount for unit, amount in charged.items() if amount != NOTHING}
    require(
        charged == node.charged,
        "counters",
        "node {}: charged {}, is {}",
        node.config.name,
        node.charged,
        charged,
    )
    for name, number in node.charged:
        pool = node.pool(name)
        if pool is not None:
            devices = devices_free(node, pool, number)
            shared = [device for device, left in devices.items() if left < 0]
            require(not shared, "oversubscribed", "node {}: {} are given twice", node.config.name, shared)


def check_room(node: Node, short: Mapping[tuple[str, int], Resources] = MappingProxyType({})) -> None:
    """Nothing is charged beyond what there is.

    Of a node that came back with less than is charged to it, `short` says by how much: no more than that.
    """
    for unit in node.charged:
        free, least = node.free(*unit), short.get(unit, NOTHING)
        more = [name for name, amount in free.items() if amount < min(least.get(name), 0)]
        require(not more, "oversubscribed", "node {}: {} is free of {}", node.config.name, free, unit)


def check_cluster(cluster: Cluster, jobs: Iterable[Job] | None = None) -> None:
    """All nodes, and these jobs (nothing means all)."""
    for node in cluster.nodes.values():
        check_node(node)
    tallies = Counter(node for job in cluster.jobs.values() for node in job.tallies)
    require(
        tallies == cluster.tally_counts, "counters", "tallies {}, recounted {}", cluster.tally_counts, tallies
    )
    for job in cluster.jobs.values() if jobs is None else jobs:
        check_job(job)


def same(cluster: Cluster, other: Cluster) -> None:
    """Two clusters of the same records say the same in everything derived."""
    require(cluster.records == other.records, "load", "records differ")
    require(list(cluster.jobs) == sorted(cluster.jobs), "load", "the order of jobs")
    require(cluster.jobs.keys() == other.jobs.keys(), "load", "jobs differ")
    for number, job in cluster.jobs.items():
        twin = other.jobs[number]
        for field in ("all", "pending", "owned", "finals", "attempted", "delayed", "fenced", "held"):
            require(
                getattr(job, field) == getattr(twin, field),
                "load",
                "job {}: {} {} here, {} loaded",
                number,
                field,
                getattr(job, field),
                getattr(twin, field),
            )
        for field in ("count_succeeded", "count_failed", "count_cancelled", "count_started"):
            require(getattr(job, field) == getattr(twin, field), "load", "job {}: {}", number, field)
        require(job.lost.keys() == twin.lost.keys(), "load", "job {}: lost allocations", number)
    require(cluster.active.keys() == other.active.keys(), "load", "active jobs")
    require(cluster.tally_counts == other.tally_counts, "load", "tallies of nodes")
    require(cluster.dependents == other.dependents, "load", "dependents")
    require(cluster.node_names == other.node_names, "load", "names of nodes")
    require(cluster.expiries.next() == other.expiries.next(), "load", "what is to be forgotten next")
    require(cluster.queue_charged == other.queue_charged, "load", "charges of queues")
    for node_id, node in cluster.nodes.items():
        twin_node = other.nodes[node_id]
        require(node.charged == twin_node.charged, "load", "node {}: charged", node_id)
        require(node.leases.keys() == twin_node.leases.keys(), "load", "node {}: leases", node_id)
        for lease_id, lease in node.leases.items():
            require(
                lease.allocations.keys() == twin_node.leases[lease_id].allocations.keys(),
                "load",
                "lease {}: allocations",
                lease_id,
            )


def task_states(job: Job) -> dict[int, tuple[TaskState, int]]:
    """Every task's state, and the allocation that holds it (0: none). For small jobs.

    The holder of a task that a lost node's allocation would take back is that one, below zero.
    """
    holders = {index: -one.id for one in job.lost.values() for index in one.desired.indices}
    for one in job.allocations.values():
        if not one.desired.lost:
            holders |= dict.fromkeys(one.owned, one.id)
    return {index: (state, holders.get(index, 0)) for index, state in _states(job).items()}


def _states(job: Job) -> dict[int, TaskState]:
    states = dict.fromkeys(job.all, TaskState.PENDING)
    for segment in job.segments.values():
        states.update(dict.fromkeys(segment.succeeded, TaskState.SUCCEEDED))
        states.update(dict.fromkeys(segment.failed, TaskState.FAILED))
        states.update(dict.fromkeys(segment.cancelled, TaskState.CANCELLED))
    for allocation in job.allocations.values():
        status, owned = allocation.status, allocation.owned
        if not allocation.waits_for_node:
            states.update(dict.fromkeys(owned, TaskState.ALLOCATED))
            states.update(dict.fromkeys(owned & status.started, TaskState.RUNNING))
        states.update(dict.fromkeys(owned & status.succeeded, TaskState.SUCCEEDED))
        states.update(dict.fromkeys(owned & status.failed, TaskState.FAILED))
        states.update(dict.fromkeys(owned & status.cancelled, TaskState.CANCELLED))
    return states

"""Room for what is to go first: slots of what is to go later are asked back, and what comes of it is kept.

Work goes before other work of its queue by priority, then by age; between queues by their shares of the
nodes for their weights, a slot at a time (the queue that gives has still no less than the one that
takes: Ghodsi et al., "Dominant Resource Fairness", NSDI 2011). Nothing that runs is stopped: slots are
given back as their tasks end. Nothing is remembered from pass to pass but the leases' targets.
"""

from collections.abc import Sequence

from rota.core.cluster.leases import shrink
from rota.core.cluster.state import Job, Lease, Node
from rota.core.cluster.work import Work
from rota.core.model.protocol import Pool
from rota.core.model.resources import NOTHING, Resources

# So many kinds of work are looked at in one pass; the others wait for the next.
KINDS_MAX = 16
# And so many slots of each.
SLOTS_MAX = 64

_Unit = tuple[str, str, int]
_WHOLE = 1000
"""Thousandths of one device."""


def rank(job: Job) -> tuple[int, int]:
    """A queue's work goes in this order."""
    return (-job.spec.priority, job.id)


def share(charged: Resources, whole: Resources, weight: int) -> float:
    """A queue's dominant share of the nodes, for its weight."""
    parts = (amount / max(whole.get(name), 1) for name, amount in charged.items())
    return max(parts, default=0.0) / max(weight, 1)


class Claims:
    """Those of one pass, over the nodes that take work."""

    def __init__(self, work: Work, nodes: Sequence[Node], whole: Resources) -> None:
        self._work = work
        self._nodes = nodes
        self._whole = whole
        self._kinds: set[tuple[Resources, str, str]] = set()
        self._leases: dict[_Unit, list[Lease]] = {}
        # What is free of a unit once all that is asked back has come, less what is kept there.
        self._left: dict[_Unit, Resources] = {}
        self._kept: set[_Unit] = set()
        # What a queue's leases will hold then.
        self._charged: dict[str, Resources] = {}
        self._shapes: set[tuple[Resources, str]] = set()

    def free(self, node: Node, pool: str, unit: int) -> Resources:
        """What is free there now for whoever comes later in the pass."""
        free = node.free(pool, unit)
        if (node.id, pool, unit) not in self._kept:
            return free
        return free.least(self._left[node.id, pool, unit])

    def make(self, job: Job, nodes: Sequence[Node], count: int) -> None:
        """Keeps room for so many slots of a job that found none, where there will be some or can be."""
        spec = job.spec
        kind = (spec.resources, spec.queue, spec.node)
        if kind in self._kinds or len(self._kinds) >= KINDS_MAX:
            return
        self._kinds.add(kind)
        if not self._leases:
            self._look()
        if self._shapes <= {(spec.resources, spec.queue)}:
            return
        found = []
        for unit in (unit for node in nodes for unit in self._units(node, spec.resources)):
            taken = self._taken(job, unit)
            if taken is not None:
                found.append((sum(taken.values()), unit))
        count = min(count, SLOTS_MAX)
        for _, unit in sorted(found):
            while count and (taken := self._taken(job, unit)) is not None:
                self._take(job, unit, taken)
                count -= 1

    def _look(self) -> None:
        for node in self._nodes:
            for lease in node.leases.values():
                desired = lease.desired
                unit = (node.id, desired.pool, desired.unit)
                self._leases.setdefault(unit, []).append(lease)
                left = self._left.get(unit) or node.free(desired.pool, desired.unit)
                self._left[unit] = left.plus(desired.shape, len(desired.slots) - desired.target)
                charged = self._charged.get(desired.queue, NOTHING)
                self._charged[desired.queue] = charged.plus(desired.shape, desired.target)
                self._shapes.add((desired.shape, desired.queue))

    def _units(self, node: Node, shape: Resources) -> list[_Unit]:
        """Units of a node with work on them, where freed slots would make room for a shape."""
        result = []
        for pool in node.pools:
            for number in range(pool.units):
                unit = (node.id, pool.name, number)
                leases = self._leases.get(unit, [])
                whole_fits = not shape.missing_in(pool.resources)
                if leases and whole_fits and _devices_alike(pool, leases, shape):
                    result.append(unit)
        return result

    def _taken(self, job: Job, unit: _Unit) -> dict[int, int] | None:
        """How many slots of which leases would have to be given back for one slot there; None: no way."""
        shape = job.spec.resources
        left, taken = self._left[unit], dict[int, int]()
        charged = dict(self._charged)
        charged[job.spec.queue] = charged.get(job.spec.queue, NOTHING).plus(shape)
        # Of other queues before of this one; what is to go last, and the newest, gives first.
        for lease in sorted(self._leases[unit], key=lambda one: self._order(job, one), reverse=True):
            desired = lease.desired
            while (missing := shape.missing_in(left)) and taken.get(lease.id, 0) < desired.target:
                gives = any(desired.shape.get(name) for name in missing)
                if not gives or not self._yields(job, lease, charged):
                    break
                taken[lease.id] = taken.get(lease.id, 0) + 1
                left = left.plus(desired.shape)
                charged[desired.queue] = charged[desired.queue].plus(desired.shape, -1)
        return None if shape.missing_in(left) else taken

    def _order(self, job: Job, lease: Lease) -> tuple[bool, tuple[int, int], int]:
        other = lease.desired.queue != job.spec.queue
        return (other, self._first(lease), lease.id)

    @staticmethod
    def _first(lease: Lease) -> tuple[int, int]:
        """The rank of the first of the jobs that a lease works on; behind all others where it has none."""
        jobs = (one.job for one in lease.allocations.values() if one.remaining)
        return min(map(rank, jobs), default=(_WHOLE * _WHOLE, 0))

    def _yields(self, job: Job, lease: Lease, charged: dict[str, Resources]) -> bool:
        """Whether the job goes before what the lease works on, by one slot more. `charged` has its own."""
        desired, queue = lease.desired, job.spec.queue
        if desired.queue == queue:
            return desired.shape != job.spec.resources and rank(job) < self._first(lease)
        rest = charged[desired.queue].plus(desired.shape, -1)
        return self._share(desired.queue, rest) >= self._share(queue, charged[queue])

    def _share(self, queue: str, charged: Resources) -> float:
        config = self._work.cluster.queue(queue)
        return share(charged, self._whole, config.weight if config is not None else 1)

    def _take(self, job: Job, unit: _Unit, taken: dict[int, int]) -> None:
        """Asks for these slots back, and keeps one for the job."""
        for lease in self._leases[unit]:
            count = taken.get(lease.id, 0)
            if count:
                desired = lease.desired
                shrink(self._work, lease, desired.target - count)
                self._left[unit] = self._left[unit].plus(desired.shape, count)
                self._charged[desired.queue] = self._charged[desired.queue].plus(desired.shape, -count)
        shape, queue = job.spec.resources, job.spec.queue
        self._left[unit] = self._left[unit].plus(shape, -1)
        self._kept.add(unit)
        self._charged[queue] = self._charged.get(queue, NOTHING).plus(shape)


def _devices_alike(pool: Pool, leases: Sequence[Lease], shape: Resources) -> bool:
    """Whether GPUs that are freed slot by slot are GPUs for the shape, and no pieces of several."""
    if not shape.gpu or not pool.devices:
        return True
    held = {lease.desired.shape.gpu for lease in leases} - {0}
    even = shape.gpu % _WHOLE == 0 or _WHOLE % shape.gpu == 0
    return even and all(gpu % _WHOLE == 0 or gpu == shape.gpu for gpu in held)

"""Slots that are asked back for what is to go first.

Work goes before other work of its queue by priority, then by age; between queues by their shares of the
nodes for their weights, a slot at a time (the queue that gives has still no less than the one that
takes: Ghodsi et al., "Dominant Resource Fairness", NSDI 2011). Nothing that runs is stopped: slots are
given back as their tasks end.

Each slot that is asked for makes room by itself, with what is free beside it, so that nothing is kept
idle. Only where none does, and the tasks there are short, room is gathered on one unit of a node, and kept
for a while: a task that is longer than the others of its job must not keep the rest of a node idle for ever.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rota.core.cluster.leases import shrink
from rota.core.cluster.soft import Gathering
from rota.core.cluster.state import Cluster, Job, Lease, Node
from rota.core.cluster.waiting import grantable_count, quota_slots
from rota.core.cluster.work import Work
from rota.core.model.resources import NOTHING, Resources

# So many kinds of work are looked at in one pass; the others wait for the next.
KINDS_MAX = 8
# And so many slots of each are on their way at once.
SLOTS_MAX = 64
# Room is gathered where tasks take no longer than this, for so long at most, and not again for a while.
SHORT_TASK_MS = 10_000
GATHERING_MS_MAX = 60_000
GATHERING_PAUSE_MS = 600_000
# Where no unit would do, another look is taken after this.
GATHERING_LOOK_MS = 1_000

_WHOLE = 1000
"""Thousandths of one device."""


def rank(job: Job) -> tuple[int, int]:
    """A queue's work goes in this order."""
    return (-job.spec.priority, job.id)


def share(cluster: Cluster, queue: str, charged: Resources, whole: Resources) -> float:
    """What a queue's dominant share of the whole is with so much charged, for its weight."""
    config = cluster.queue(queue)
    parts = (amount / max(whole.get(name), 1) for name, amount in charged.items())
    return max(parts, default=0.0) / max(config.weight if config is not None else 1, 1)


_Kind = tuple[Resources, str, str, tuple[str, ...]]


@dataclass(slots=True)
class _Short:
    """A kind of work that found no room: its first job, where it may go, and for how many tasks.

    For no more than `most`, which its queue's quota leaves it.
    """

    job: Job
    nodes: Sequence[Node]
    count: int
    most: int
    # Of which one slot makes room for it, and how many of it go before the job; how far these were looked at.
    leases: list[tuple[Lease, int]] = field(default_factory=list)
    coming: int = 0
    place: int = -1


class Claims:
    """Those of one pass. `whole` is what there is to share."""

    def __init__(self, work: Work, whole: Resources) -> None:
        self._work = work
        self._whole = whole
        self._shorts: dict[_Kind, _Short] = {}
        # What queues will hold more or less than now once all that is asked back has come, and is given
        # to those that are to have it; slots on their way that are spoken for.
        self._change: dict[str, Resources] = {}
        self._spoken: Counter[int] = Counter()
        for kind, one in work.soft.gathering.items():
            if one.place and work.now_ms >= one.until_ms:
                # It has taken too long.
                work.soft.gathering[kind] = Gathering(None, work.now_ms + GATHERING_PAUSE_MS)

    def free(self, job: Job, node: Node, pool: str, unit: int) -> Resources:
        """What is free there for the job: nothing where room is gathered for another kind of work."""
        place = (node.id, pool, unit)
        for kind, gathering in self._work.soft.gathering.items():
            if gathering.place == place and kind != _kind(job):
                return NOTHING
        return node.free(pool, unit)

    def make(self, job: Job, nodes: Sequence[Node], count: int) -> None:
        """So many tasks of the first job of its kind found no room on these nodes."""
        kind = _kind(job)
        if nodes and kind not in self._shorts and len(self._shorts) < KINDS_MAX:
            most = quota_slots(self._work.cluster, job, SLOTS_MAX)
            self._shorts[kind] = _Short(job, nodes, min(count, most), most)

    def more(self, job: Job) -> None:
        """Nor did those of a later job of that kind."""
        short = self._shorts.get(_kind(job))
        if short is not None and short.count < short.most:
            short.count = min(short.count + grantable_count(job), short.most)

    def close(self) -> None:
        """The pass is over: slots are asked back, one at a time for the queue that has the smallest share."""
        if self._shorts:
            self._look()
        shorts = list(self._shorts.values())
        while shorts:
            short = min(shorts, key=self._turn)
            if not (short.count and self._one(short)):
                shorts.remove(short)
        for short in self._shorts.values():
            self._gather(short)
        gathering = self._work.soft.gathering
        for kind, one in list(gathering.items()):
            if kind not in self._shorts if one.place else self._work.now_ms >= one.until_ms:
                del gathering[kind]

    def _turn(self, short: "_Short") -> tuple[float, tuple[int, int]]:
        queue = short.job.spec.queue
        return (self._share(queue, self._holds(queue, self._change)), rank(short.job))

    def _look(self) -> None:
        """What is on its way, and who could give."""
        for node in self._work.cluster.nodes.values():
            if not node.lost:
                for lease in node.leases.values():
                    desired = lease.desired
                    self._give(desired.queue, desired.shape, desired.target - len(desired.slots))
        for short in self._shorts.values():
            for lease in (lease for node in short.nodes for lease in node.leases.values()):
                if _makes_room(lease, short.job.spec.resources):
                    short.leases.append((lease, self._kept(short.job, lease)))
            # Of other queues before of its own; the newest first.
            queue = short.job.spec.queue
            short.leases.sort(key=lambda pair: (pair[0].desired.queue == queue, -pair[0].id))

    def _give(self, queue: str, shape: Resources, slots: int) -> None:
        if slots:
            self._change[queue] = self._change.get(queue, NOTHING).plus(shape, slots)

    def _one(self, short: "_Short") -> bool:
        """One slot more that is on its way, or asked for now; False where there is none."""
        job = short.job
        while short.coming < len(short.leases):
            lease, _ = short.leases[short.coming]
            if len(lease.desired.slots) - lease.desired.target > self._spoken[lease.id]:
                self._spoken[lease.id] += 1
                self._give(job.spec.queue, job.spec.resources, 1)
                short.count -= 1
                return True
            short.coming += 1
        # One of each in turn, so that what goes first is spread as well.
        for _ in range(len(short.leases)):
            short.place = (short.place + 1) % len(short.leases)
            lease, kept = short.leases[short.place]
            if self._yields(job, lease, kept, self._change):
                self._ask(job, lease)
                short.count -= 1
                return True
        return False

    # ------------------------------------------------------------ several slots for one

    def _gather(self, short: "_Short") -> None:
        """Asks for several slots of one unit, unless that was done, or is not to be done just now."""
        work, job, kind = self._work, short.job, _kind(short.job)
        if kind in work.soft.gathering or short.leases:
            return
        taken_already = {one.place for one in work.soft.gathering.values()}
        for node in short.nodes:
            for place, leases in _by_unit(node).items():
                if place not in taken_already and (slots := self._enough(job, node, leases)) is not None:
                    for lease in leases:
                        for _ in range(slots[lease.id]):
                            self._ask(job, lease)
                    self._set(kind, place, GATHERING_MS_MAX)
                    return
        self._set(kind, None, GATHERING_LOOK_MS)

    def _set(self, kind: _Kind, place: tuple[str, str, int] | None, for_ms: int) -> None:
        soft, until_ms = self._work.soft, self._work.now_ms + for_ms
        soft.gathering[kind] = Gathering(place, until_ms)
        if place is not None:
            soft.timers.arm_earlier("gathering", "", until_ms)

    def _enough(self, job: Job, node: Node, leases: Sequence[Lease]) -> Counter[int] | None:
        """How many slots of which leases of a unit make room for one task; None where they cannot soon."""
        shape, slots = job.spec.resources, Counter[int]()
        pool = leases[0].desired.pool
        found = node.pool(pool)
        if found is None or (shape.gpu and found.devices) or not all(map(self._quick, leases)):
            return None
        left = node.free(pool, leases[0].desired.unit)
        change = dict(self._change)
        for lease in sorted(leases, key=lambda one: (one.desired.queue == job.spec.queue, -one.id)):
            desired = lease.desired
            left = left.plus(desired.shape, len(desired.slots) - desired.target)
            kept = self._kept(job, lease)
            while shape.missing_in(left) and self._yields(job, lease, kept + slots[lease.id], change):
                slots[lease.id] += 1
                left = left.plus(desired.shape)
                change[desired.queue] = change.get(desired.queue, NOTHING).plus(desired.shape, -1)
        return None if shape.missing_in(left) else slots

    def _quick(self, lease: Lease) -> bool:
        """Whether all that runs there is known to take little time."""
        averages = self._work.soft.averages
        found = (averages.get(one.job.id) for one in lease.allocations.values() if one.remaining)
        return all(one is not None and one.successes and one.mean_ms <= SHORT_TASK_MS for one in found)

    # ------------------------------------------------------------ who goes first

    @staticmethod
    def _kept(job: Job, lease: Lease) -> int:
        """Slots of a lease that work on what goes before the job in its queue."""
        if lease.desired.queue != job.spec.queue:
            return 0
        if lease.desired.shape == job.spec.resources:
            return lease.desired.target
        first = (one.remaining for one in lease.allocations.values() if rank(one.job) < rank(job))
        return sum(map(len, first))

    def _yields(self, job: Job, lease: Lease, kept: int, change: dict[str, Resources]) -> bool:
        """Whether the job goes before what one slot more of the lease works on."""
        desired, spec = lease.desired, job.spec
        if desired.target <= kept:
            return False
        if desired.queue == spec.queue:
            return True
        mine = self._holds(spec.queue, change)
        if mine == NOTHING:
            # However large its work is for its share: it has nothing.
            return True
        rest = self._holds(desired.queue, change).plus(desired.shape, -1)
        return self._share(desired.queue, rest) >= self._share(spec.queue, mine.plus(spec.resources))

    def _holds(self, queue: str, change: dict[str, Resources]) -> Resources:
        now = self._work.cluster.queue_charged.get(queue, NOTHING)
        return now.plus(change.get(queue, NOTHING))

    def _share(self, queue: str, charged: Resources) -> float:
        return share(self._work.cluster, queue, charged, self._whole)

    def _ask(self, job: Job, lease: Lease) -> None:
        desired = lease.desired
        shrink(self._work, lease, desired.target - 1)
        self._spoken[lease.id] += 1
        self._give(desired.queue, desired.shape, -1)
        self._give(job.spec.queue, job.spec.resources, 1)


def _kind(job: Job) -> _Kind:
    """Jobs alike in this find room in the same places."""
    return (job.spec.resources, job.spec.queue, job.spec.node, job.status.avoid)


def _by_unit(node: Node) -> dict[tuple[str, str, int], list[Lease]]:
    result: dict[tuple[str, str, int], list[Lease]] = {}
    for lease in node.leases.values():
        result.setdefault((node.id, lease.desired.pool, lease.desired.unit), []).append(lease)
    return result


def _makes_room(lease: Lease, shape: Resources) -> bool:
    """Whether one slot of the lease, with what is free beside it, is room for the shape."""
    desired = lease.desired
    free = lease.node.free(desired.pool, desired.unit).plus(desired.shape)
    if shape.missing_in(free):
        return False
    pool = lease.node.pool(desired.pool)
    return pool is not None and (
        not (shape.gpu and pool.devices) or _devices_serve(desired.shape.gpu, shape.gpu)
    )


def _devices_serve(held: int, wanted: int) -> bool:
    """Whether the GPUs that one slot has are room for the shape by themselves: parts are no whole."""
    return held == wanted or (held % _WHOLE == 0 and held >= wanted > 0)

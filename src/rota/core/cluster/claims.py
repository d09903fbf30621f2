"""Slots that are asked back for what is to go first.

Work goes before other work of its queue by priority, then by age; between queues by their shares of the
nodes for their weights, a slot at a time (the queue that gives has still no less than the one that
takes: Ghodsi et al., "Dominant Resource Fairness", NSDI 2011). Nothing that runs is stopped: slots are
given back as their tasks end.

Each slot that is asked for makes room by itself, with what is free beside it, so that nothing is kept
idle. Only where none does, and the tasks there are short, room is gathered on one unit of a node, and kept
for a while: a task that is longer than the others of its job must not keep the rest of a node idle for ever.

Whether a queue gives way to another is asked once for a kind of leases; its leases are looked at, newest
first, only where it does.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from rota.core.cluster.index import Group, Index, Kind, rank
from rota.core.cluster.leases import shrink
from rota.core.cluster.soft import Gathering
from rota.core.cluster.state import Cluster, Job, Lease, Node
from rota.core.cluster.waiting import quota_slots
from rota.core.cluster.work import Work
from rota.core.model.resources import NOTHING, Resources
from rota.core.placement.room import WHOLE_DEVICE

# So many groups are helped in one pass, and of each queue so many looked at for those that can be; the others
# wait for the next.
GROUPS_MAX = 8
GROUPS_LOOKED_AT_MAX = 64
# And so many slots of each are on their way at once.
SLOTS_MAX = 64
# So many kinds of leases are asked in one pass, and of what they have so many leases for one group.
KINDS_MAX = 256
LEASES_MAX = 256
# Room is gathered where tasks take no longer than this, for so long at most, and not again for a while.
SHORT_TASK_MS = 10_000
GATHERING_MS_MAX = 60_000
GATHERING_PAUSE_MS = 600_000
# Where no unit would do, another look is taken after this, at so many.
GATHERING_LOOK_MS = 1_000
GATHERING_UNITS_MAX = 256

Place = tuple[str, str, int]
"""Node, pool and unit."""


def share(cluster: Cluster, queue: str, charged: Resources, whole: Resources) -> float:
    """What a queue's dominant share of the whole is with so much charged, for its weight."""
    config = cluster.queue(queue)
    parts = (amount / max(whole.get(name), 1) for name, amount in charged.items())
    return max(parts, default=0.0) / max(config.weight if config is not None else 1, 1)


@dataclass(slots=True)
class _Short:
    """A group that found no room: its first job, and for how many tasks; no more than its quota leaves it."""

    group: Group
    job: Job
    count: int
    # Of which one slot makes room for it, and how many of it go before the job; how far these were looked at.
    leases: list[tuple[Lease, int]] = field(default_factory=list)
    coming: int = 0
    place: int = -1


class Claims:
    """Those of one pass."""

    def __init__(self, work: Work, index: Index) -> None:
        self._work = work
        self._index = index
        self._shorts: list[_Short] = []
        # What queues will hold more or less than now once all that is asked back has come, and is given
        # to those that are to have it; slots on their way that are spoken for.
        self._change: dict[str, Resources] = {}
        self._spoken: Counter[int] = Counter()

    def run(self) -> int:
        """Slots are asked back, one at a time for the queue that has the smallest share. Returns how many."""
        self._shorts = self._find()
        asked = 0
        if self._shorts:
            self._look()
        shorts = list(self._shorts)
        while shorts:
            short = min(shorts, key=self._turn)
            if short.count and self._one(short):
                asked += 1
            else:
                shorts.remove(short)
        for short in self._shorts:
            self._gather(short)
        wanted = {group.claim for groups in self._index.parked.values() for group in groups}
        gathering = self._work.soft.gathering
        for kind, one in list(gathering.items()):
            if kind not in wanted if one.place else self._work.now_ms >= one.until_ms:
                del gathering[kind]
                self._let_go(one.place)
        return asked

    def _find(self) -> list[_Short]:
        """The groups that are to be helped: of each queue in turn the one that goes first."""
        parked = self._index.parked
        queues = sorted(parked, key=lambda queue: (self._share(queue, self._holds(queue, {})), queue))
        lists = [self._of_queue(queue) for queue in queues]
        return [one for row in zip_longest(*lists) for one in row if one is not None][:GROUPS_MAX]

    def _of_queue(self, queue: str) -> list[_Short]:
        """A queue's groups that can be helped: those with quota left, and a node that takes work."""
        found: list[_Short] = []
        for group in self._index.parked[queue].firsts(GROUPS_LOOKED_AT_MAX):
            job = self._index.jobs_of(group, 1)[0]
            count = min(group.total, quota_slots(self._work.cluster, job, SLOTS_MAX))
            node = self._work.cluster.node_names.get(group.node, "")
            if count and (not group.node or (self._index.taking(node) and node not in group.avoid)):
                found.append(_Short(group, job, count))
                if len(found) == GROUPS_MAX:
                    break
            else:
                self._index.put_behind(group)
        return found

    def _turn(self, short: _Short) -> tuple[float, tuple[int, int]]:
        queue = short.job.spec.queue
        return (self._share(queue, self._holds(queue, self._change)), rank(short.job))

    # ------------------------------------------------------------ who could give

    def _look(self) -> None:
        """What is on its way, and who could give."""
        for kind in self._index.leaving:
            self._give(kind.queue, kind.shape, -sum(kind.leaving.values()))
        kinds = self._index.kinds
        looked_at = [kinds[key] for key, _ in zip(list(kinds), range(KINDS_MAX), strict=False)]
        for short in self._shorts:
            if short.count:
                queue = short.job.spec.queue
                found = [pair for kind in looked_at for pair in self._givers(short, kind)]
                # Of other queues before of its own; the newest first.
                short.leases = heapq.nsmallest(
                    LEASES_MAX, found, key=lambda pair: (pair[0].desired.queue == queue, -pair[0].id)
                )
        if len(kinds) > KINDS_MAX:
            # The others' turn is in the next pass.
            for kind in looked_at:
                kinds[kind.key] = kinds.pop(kind.key)

    def _givers(self, short: _Short, kind: Kind) -> Iterable[tuple[Lease, int]]:
        """Leases of a kind that give a slot back, or might: with how many of it go before the job."""
        job = short.job
        own = kind.queue == job.spec.queue
        numbers: Iterable[int]
        if (own and (kind.shape == job.spec.resources or not self._works_on_later(kind, job))) or (
            not own and not self._gives_way(job, kind.queue, kind.shape, self._change)
        ):
            numbers = kind.leaving
        else:
            numbers = self._making_room(kind, job.spec.resources)
        for lease in [kind.leases[number] for number in numbers]:
            usable = self._index.taking(lease.node.id) and short.group.may_go_to(lease.node)
            if usable and _makes_room(lease, job.spec.resources):
                yield lease, self._kept(job, lease) if own else 0

    def _works_on_later(self, kind: Kind, job: Job) -> bool:
        """Whether a job that goes after this one has anything on leases of the kind."""
        last = kind.workers.first()
        return last is not None and kind.workers.rank(last) < (job.spec.priority, -job.id)

    def _making_room(self, kind: Kind, shape: Resources) -> list[int]:
        """Leases of a kind of which one slot, with what is free beside it, may be room for the shape."""
        room, numbers, rows = self._index.room, [], []
        for number, lease in kind.leases.items():
            row = self._index.row(lease.node.id, lease.desired.pool, lease.desired.unit)
            if row is not None:
                numbers.append(number)
                rows.append(row)
        fits = room.free_at_least(np.array(rows, np.intp), shape, kind.shape)
        # The newest, for that is the order in which they are asked.
        return heapq.nlargest(LEASES_MAX, (numbers[place] for place in np.flatnonzero(fits)))

    def _give(self, queue: str, shape: Resources, slots: int) -> None:
        if slots:
            self._change[queue] = self._change.get(queue, NOTHING).plus(shape, slots)

    def _one(self, short: _Short) -> bool:
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

    def _gather(self, short: _Short) -> None:
        """Asks for several slots of one unit, unless that was done, or is not to be done just now."""
        soft, kind = self._work.soft, short.group.claim
        if kind in soft.gathering or short.leases or not short.count:
            return
        taken_already = {one.place for one in soft.gathering.values()}
        for node in self._nodes(short):
            for place, leases in _by_unit(node).items():
                if place in taken_already:
                    continue
                slots = self._enough(short.job, node, leases)
                if slots is not None:
                    for lease in leases:
                        for _ in range(slots[lease.id]):
                            self._ask(short.job, lease)
                    self._set(kind, place, GATHERING_MS_MAX)
                    return
        self._set(kind, None, GATHERING_LOOK_MS)

    def _nodes(self, short: _Short) -> list[Node]:
        """Nodes of so many units that could carry the group's tasks; the next time those that follow."""
        room, soft, group = self._index.room, self._work.soft, short.group
        rows = np.flatnonzero(room.could_ever(group.kind.shape))
        if len(rows) > GATHERING_UNITS_MAX:
            first = soft.gathering_looked % len(rows)
            soft.gathering_looked = first + GATHERING_UNITS_MAX
            rows = np.roll(rows, -first)[:GATHERING_UNITS_MAX]
        units = (room.units[row] for row in rows)
        names = dict.fromkeys(
            unit.node for unit in units if unit is not None and self._index.taking(unit.node)
        )
        nodes = [self._work.cluster.nodes[name] for name in names]
        return [node for node in nodes if group.may_go_to(node)]

    def _set(
        self, kind: tuple[Resources, str, str, tuple[str, ...]], place: Place | None, for_ms: int
    ) -> None:
        soft, until_ms = self._work.soft, self._work.now_ms + for_ms
        soft.gathering[kind] = Gathering(place, until_ms)
        if place is not None:
            soft.timers.arm_earlier("gathering", "", until_ms)

    def _let_go(self, place: Place | None) -> None:
        """No room is gathered there any more: others may have it."""
        row = self._index.row(*place) if place is not None else None
        if row is not None:
            self._index.wake_for_room([row])

    def give_up(self) -> None:
        """Of what is gathered, what has taken too long. Before work is placed."""
        for kind, one in self._work.soft.gathering.items():
            if one.place and self._work.now_ms >= one.until_ms:
                self._work.soft.gathering[kind] = Gathering(None, self._work.now_ms + GATHERING_PAUSE_MS)
                self._let_go(one.place)

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
        desired = lease.desired
        if desired.target <= kept:
            return False
        return desired.queue == job.spec.queue or self._gives_way(job, desired.queue, desired.shape, change)

    def _gives_way(self, job: Job, queue: str, shape: Resources, change: dict[str, Resources]) -> bool:
        """Whether another queue still has no less than the job's once it has given it a slot of a shape."""
        spec = job.spec
        mine = self._holds(spec.queue, change)
        if mine == NOTHING:
            # However large its work is for its share: it has nothing.
            return True
        rest = self._holds(queue, change).plus(shape, -1)
        return self._share(queue, rest) >= self._share(spec.queue, mine.plus(spec.resources))

    def _holds(self, queue: str, change: dict[str, Resources]) -> Resources:
        now = self._work.cluster.queue_charged.get(queue, NOTHING)
        return now.plus(change.get(queue, NOTHING))

    def _share(self, queue: str, charged: Resources) -> float:
        return share(self._work.cluster, queue, charged, self._index.whole)

    def _ask(self, job: Job, lease: Lease) -> None:
        desired = lease.desired
        shrink(self._work, lease, desired.target - 1)
        self._spoken[lease.id] += 1
        self._give(desired.queue, desired.shape, -1)
        self._give(job.spec.queue, job.spec.resources, 1)


def _by_unit(node: Node) -> dict[Place, list[Lease]]:
    result: dict[Place, list[Lease]] = {}
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
    return held == wanted or (held % WHOLE_DEVICE == 0 and held >= wanted > 0)

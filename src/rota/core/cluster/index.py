"""What placing goes by, kept as the cluster moves: room, leases by kind, and waiting jobs by group.

Leases of one *kind* (shape and queue) are as good as one another for a task; waiting jobs of one *group*
(kind, the one node they name, the nodes they are kept off, priority) are placed alike, in the order of
their numbers. Nothing here is decided, and nothing is stored: `refresh` reads the news of the cluster, and
looks at what has changed alone. `recount.check_index` compares it with a recount.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from rota.core.cluster.leases import devices_free
from rota.core.cluster.news import Item, Ranked
from rota.core.cluster.nodes import takes_work
from rota.core.cluster.settling import waits_for
from rota.core.cluster.soft import Soft
from rota.core.cluster.state import Cluster, Job, Lease, Node
from rota.core.cluster.waiting import grantable_count
from rota.core.cluster.work import PIECE_JOBS
from rota.core.model.protocol import Pool
from rota.core.model.resources import NOTHING, Resources
from rota.core.placement.room import Room, Rows, Unit

SLOTS_OF_LEASE_MAX = 1_024
# However little a task asks for, a machine runs no more of them at once.
SLOTS_OF_UNIT_MAX = 4_096
# What has changed is taken in by so many nodes, or leases and units, before others may be served.
PIECE_NODES = 64
PIECE_LEASES = 256
# Of the empty units of a pool, so many beyond the last that is used have a row.
UNITS_AHEAD = 1_024

LeaseId = tuple[str, int]
"""Node and number."""


class Kind:
    """Leases of one shape and queue, and the groups that wait for such."""

    __slots__ = (
        "backlogs",
        "fed",
        "groups",
        "idle",
        "key",
        "leases",
        "leaving",
        "low",
        "since_ms",
        "slots",
        "workers",
    )

    def __init__(self, shape: Resources, queue: str) -> None:
        self.key = (shape, queue)
        self.leases: dict[int, Lease] = {}
        # Slots of those on nodes that take work; of these leases, the ones with idle slots, most first,
        # and the ones with more tasks than slots, most first.
        self.slots = 0
        self.idle: Ranked[int] = Ranked()
        self.backlogs: Ranked[int] = Ranked()
        # Since when nothing has changed on a lease.
        self.since_ms: dict[int, int] = {}
        # Those that have changed since it was seen to that enough is queued on them.
        self.low: dict[int, Lease] = {}
        # Those that give slots back: how many.
        self.leaving: dict[int, int] = {}
        # Jobs with tasks on them, those that go last first.
        self.workers: Ranked[int] = Ranked()
        # Groups with something to place, by the name of the one node they may go to (none: any).
        self.groups: dict[str, dict[Group, None]] = {}
        # By whose average the leases were last filled, and how many tasks were to be on a slot.
        self.fed: tuple[int, float] = (0, 0.0)

    @property
    def shape(self) -> Resources:
        return self.key[0]

    @property
    def queue(self) -> str:
        return self.key[1]

    def waiting(self) -> Iterator["Group"]:
        """All its groups with something to place."""
        for groups in self.groups.values():
            yield from groups


class Group:
    """Waiting jobs that are alike in all that placing asks for."""

    __slots__ = ("avoid", "counts", "jobs", "kind", "node", "parked", "plan", "priority", "total")

    def __init__(self, kind: Kind, node: str, avoid: tuple[str, ...], priority: int) -> None:
        self.kind = kind
        self.node = node
        self.avoid = avoid
        self.priority = priority
        # How many tasks of each may be granted now, and of all.
        self.jobs: Ranked[int] = Ranked()
        self.counts: dict[int, int] = {}
        self.total = 0
        # It has found no room, or its queue's quota leaves none: until that changes, no slots are sought.
        self.parked = False
        # What was chosen for it and was too much for one pass: rows, and slots on each.
        self.plan: list[tuple[int, int]] = []

    @property
    def rank(self) -> tuple[int, int]:
        """Where it stands in its queue: by its first job."""
        return (-self.priority, self.jobs.first() or 0)

    def may_go_to(self, node: Node) -> bool:
        """Whether it is the node that its jobs name, and none that they are kept off."""
        return self.node in ("", node.config.name) and node.id not in self.avoid

    @property
    def claim(self) -> tuple[Resources, str, str, tuple[str, ...]]:
        """What room is gathered for."""
        return (*self.kind.key, self.node, self.avoid)


def rank(job: Job) -> tuple[int, int]:
    """A queue's work goes in this order."""
    return (-job.spec.priority, job.id)


class _Counted(NamedTuple):
    """Of a lease what was counted: slots, and idle ones (less than none: tasks wait), where it may get more;
    and all its slots, also those that it gives back, by which its unit is taken.
    """

    kind: Kind
    slots: int
    idle: int
    taken: int
    unit: tuple[str, str, int]


class Index:
    """The index of one cluster, for the leader alone."""

    def __init__(self, cluster: Cluster, soft: Soft) -> None:
        self._cluster = cluster
        self._soft = soft
        self.room = Room()
        # Cluster time of the pass.
        self.now_ms = 0
        # What the nodes that take work have, all together; how much each of these has.
        self.whole = NOTHING
        self._taking: dict[str, Resources] = {}
        self._rows: dict[str, dict[tuple[str, int], int]] = {}
        self.kinds: dict[tuple[Resources, str], Kind] = {}
        # Kinds with idle slots, and with slots that are being given back.
        self.idle: dict[Kind, None] = {}
        self.leaving: dict[Kind, None] = {}
        self._groups: dict[tuple[Kind, str, tuple[str, ...], int], Group] = {}
        self._group_of: dict[int, Group] = {}
        # By queue: groups to be looked at, and groups that found no room.
        self.awake: dict[str, Ranked[Group]] = {}
        self.parked: dict[str, Ranked[Group]] = {}
        # How often one of these was put behind the others.
        self._behind = 0
        self._parked_shapes: dict[Resources, dict[Group, None]] = {}
        self._no_quota: dict[str, dict[Group, None]] = {}
        # Of parked shapes their amounts, a line each; lines that are nobody's ask for more than there is.
        self._lines: dict[Resources, int] = {}
        self._line_shapes: list[Resources | None] = []
        self._lines_unused: list[int] = []
        self._amounts = np.zeros((0, 0), np.int64)
        # Leases that have changed, and of a known one what was counted: its kind, slots, unit.
        self.touched: dict[LeaseId, None] = {}
        self._counted: dict[LeaseId, _Counted] = {}
        self._unit_slots: dict[tuple[str, str, int], int] = {}
        # For tests and figures: how many jobs were looked at.
        self.jobs_looked_at = 0

    # ------------------------------------------------------------ what has changed

    def refresh(self) -> None:
        """Takes in what has changed in the cluster since the last time."""
        while self._cluster.news:
            self._refresh()

    def catch_up(self) -> Iterator[None]:
        """Takes in what has changed, where it is very much, in pieces ahead of `refresh`."""
        news = self._cluster.news
        while len(news.nodes) > PIECE_NODES:
            freed: list[int] = []
            for name in (some := _taken(news.nodes, PIECE_NODES)):
                self._see_node(name)
            for name in some:
                self._see_units(name, freed)
            self._wake_avoiding()
            self.wake_for_room(freed)
            yield
        while len(news.leases) > PIECE_LEASES:
            for node, number in _taken(news.leases, PIECE_LEASES):
                self._see_lease(node, number)
            yield
        while len(news.units) > PIECE_LEASES:
            freed = []
            for node, pool, unit in _taken(news.units, PIECE_LEASES):
                self._see_unit(node, pool, unit, freed)
            self.wake_for_room(freed)
            yield
        while len(news.jobs) > PIECE_JOBS:
            for job in _taken(news.jobs, PIECE_JOBS):
                self._see_job(job)
            self.jobs_looked_at += PIECE_JOBS
            yield

    def _refresh(self) -> None:
        news = self._cluster.news
        nodes, news.nodes = news.nodes, {}
        for name in nodes:
            self._see_node(name)
        leases, news.leases = news.leases, {}
        for node, number in leases:
            self._see_lease(node, number)
        units, news.units = news.units, {}
        freed: list[int] = []
        for node, pool, unit in units:
            if node not in nodes:
                self._see_unit(node, pool, unit, freed)
        for name in nodes:
            self._see_units(name, freed)
        if nodes:
            self._wake_avoiding()
        self.wake_for_room(freed)
        jobs, news.jobs = news.jobs, {}
        self.jobs_looked_at += len(jobs)
        for job in jobs:
            self._see_job(job)
        queues, news.queues = news.queues, {}
        for queue in queues:
            for group in self._no_quota.pop(queue, {}):
                self._unpark(group)

    # ------------------------------------------------------------ nodes and units

    def taking(self, node: str) -> bool:
        """Whether something new may go to the node."""
        return node in self._taking

    def _see_node(self, name: str) -> None:
        node = self._cluster.nodes.get(name)
        before = self._taking.pop(name, None)
        if before is not None:
            self.whole = self.whole.plus(before, -1)
        if node is not None and takes_work(self._soft, node):
            self._taking[name] = node.capacity()
            self.whole = self.whole.plus(self._taking[name])
        if node is not None:
            for number in node.leases:
                self._see_lease(name, number)

    def _see_units(self, name: str, freed: list[int]) -> None:
        """The rows of a node's units, all of them."""
        node = self._cluster.nodes.get(name)
        known = self._rows.pop(name, {})
        wanted = dict.fromkeys(_units(node)) if node is not None else {}
        for unit in [unit for unit in known if unit not in wanted]:
            self.room.give(known.pop(unit))
        if node is None or not wanted:
            return
        self._rows[name] = known
        for pool, number in wanted:
            self._see_unit(name, pool, number, freed)

    def _see_unit(self, name: str, pool_name: str, unit: int, freed: list[int]) -> None:
        node = self._cluster.nodes.get(name)
        pool = node.pool(pool_name) if node is not None else None
        if node is None or pool is None or unit >= pool.units:
            return
        rows = self._rows.setdefault(name, {})
        value = self._unit(node, pool, unit)
        row = rows.get((pool_name, unit))
        if row is None:
            rows[pool_name, unit] = row = self.room.take(value)
            freed.append(row)
        elif self.room.set(row, value):
            freed.append(row)
        if (name, pool_name, unit) in self._unit_slots:
            ahead = min(pool.units - 1, unit + UNITS_AHEAD // 2)
            if (pool_name, ahead) not in rows:
                # So that there are always some that are empty.
                self._cluster.news.nodes[name] = None

    def _unit(self, node: Node, pool: Pool, unit: int) -> Unit:
        slots = 0
        if node.id in self._taking:
            taken = self._unit_slots.get((node.id, pool.name, unit), 0)
            slots = max(min(SLOTS_OF_LEASE_MAX, SLOTS_OF_UNIT_MAX - taken), 0)
        devices = tuple(devices_free(node, pool, unit).values()) if pool.devices else ()
        charged = node.charged.get((pool.name, unit))
        free = pool.resources if charged is None else pool.resources.plus(charged, -1)
        there = not (node.lost or node.config.removed)
        return Unit(node.id, pool.name, unit, free, pool.resources, slots, there, devices)

    def rows_of(self, nodes: tuple[str, ...]) -> Rows:
        """The rows of some nodes, in order."""
        return np.array(sorted(row for node in nodes for row in self._rows.get(node, {}).values()), np.intp)

    def row(self, node: str, pool: str, unit: int) -> int | None:
        """The row of a unit; None where it has none."""
        return self._rows.get(node, {}).get((pool, unit))

    # ------------------------------------------------------------ what nodes tell

    def telling(self, shape: Resources, avoid: tuple[str, ...]) -> list[str]:
        """Some nodes of which the same follows as of all: why tasks of the shape have no place.

        Those that the shape fits into, that have the most of a resource, and that have the most of it free,
        one of each; and all that have changed since they were last looked at.
        """
        room = self.room
        removed = tuple(node.id for node in self._cluster.nodes.values() if node.config.removed)
        known = np.ones(room.size, np.bool_)
        known[self.rows_of(removed)] = False
        wanted = known & room.holds(shape)
        rows, able = np.flatnonzero(known), np.flatnonzero(wanted)
        wanted[self.rows_of(avoid)] = False
        open_ = np.flatnonzero(wanted)
        open_ = open_[room.open(open_)]
        found = [*able[:1]]
        if len(open_):
            found.append(open_[room.score(shape, open_).argmin()])
        for name, _ in shape.items():  # noqa: PERF102 (no dictionary)
            found += [room.most_whole(name, rows), room.most_free(name, open_)]
        units = [room.units[row] for row in found if row is not None]
        names = [unit.node for unit in units if unit is not None]
        return list(dict.fromkeys([*names, *self._unseen()])) or list(self._cluster.nodes)

    def able(self, shape: Resources) -> list[str]:
        """All nodes that could hold a task of the shape if they were empty."""
        unseen = self._unseen()
        units = [self.room.units[row] for row in np.flatnonzero(self.room.holds(shape))]
        seen = [unit.node for unit in units if unit is not None and unit.node not in unseen]
        return list(dict.fromkeys(seen)) + [
            name
            for name in unseen
            if name in self._cluster.nodes
            and any(not shape.missing_in(pool.resources) for pool in self._cluster.nodes[name].pools)
        ]

    def _unseen(self) -> dict[str, None]:
        news = self._cluster.news
        return news.nodes | dict.fromkeys(node for node, _, _ in news.units)

    # ------------------------------------------------------------ leases

    def _see_lease(self, node_id: str, number: int) -> None:
        node = self._cluster.nodes.get(node_id)
        lease = node.leases.get(number) if node is not None else None
        name = (node_id, number)
        self.touched[name] = None
        counted = self._counted.pop(name, None)
        if counted is not None:
            counted.kind.slots -= counted.slots
            self._count_unit(counted.unit, -counted.taken)
        if lease is None:
            if counted is not None:
                self._forget_lease(counted.kind, number)
            return
        desired = lease.desired
        kind = self._kind(desired.shape, desired.queue)
        kind.leases[number] = lease
        kind.since_ms[number] = self.now_ms
        taking = node_id in self._taking
        unit = (node_id, desired.pool, desired.unit)
        slots = desired.target if taking else 0
        idle = desired.target - lease.load if taking else 0
        more = slots > 0 and (counted is None or not counted.slots or idle > counted.idle)
        self._counted[name] = _Counted(kind, slots, idle, len(desired.slots), unit)
        self._count_unit(unit, len(desired.slots))
        kind.slots += slots
        if idle > 0:
            kind.idle.put(number, -idle)
            kind.backlogs.discard(number)
        elif taking and idle < 0:
            kind.backlogs.put(number, idle)
            kind.idle.discard(number)
        else:
            kind.idle.discard(number)
            kind.backlogs.discard(number)
        if slots:
            kind.low[number] = lease
        else:
            kind.low.pop(number, None)
        if len(desired.slots) > desired.target and not lease.node.lost:
            kind.leaving[number] = len(desired.slots) - desired.target
        else:
            kind.leaving.pop(number, None)
        self._list(kind)
        if more:
            self._wake_kind(kind, lease)

    def _forget_lease(self, kind: Kind, number: int) -> None:
        kind.leases.pop(number, None)
        kind.since_ms.pop(number, None)
        kind.idle.discard(number)
        kind.backlogs.discard(number)
        kind.low.pop(number, None)
        kind.leaving.pop(number, None)
        self._list(kind)
        self._forget_kind(kind)

    def _count_unit(self, unit: tuple[str, str, int], slots: int) -> None:
        count = self._unit_slots.pop(unit, 0) + slots
        if count:
            self._unit_slots[unit] = count

    def _list(self, kind: Kind) -> None:
        for table, listed in ((self.idle, len(kind.idle)), (self.leaving, len(kind.leaving))):
            if listed:
                table[kind] = None
            else:
                table.pop(kind, None)

    def _kind(self, shape: Resources, queue: str) -> Kind:
        kind = self.kinds.get((shape, queue))
        if kind is None:
            kind = self.kinds[shape, queue] = Kind(shape, queue)
        return kind

    def _forget_kind(self, kind: Kind) -> None:
        if not kind.leases and not kind.groups and not len(kind.workers):
            self.kinds.pop(kind.key, None)
            self._soft.kinds.pop(kind.key, None)

    # ------------------------------------------------------------ jobs

    def _see_job(self, number: int) -> None:
        job = self._cluster.active.get(number)
        old = self._group_of.get(number)
        count = 0
        if job is not None:
            if not (job.config.held or job.ending) and job.pending and not waits_for(self._cluster, job):
                count = grantable_count(job)
            kind = self._kind(job.spec.resources, job.spec.queue)
            if job.allocations:
                # Those that go last first.
                kind.workers.put(number, (job.spec.priority, -number))
            else:
                kind.workers.discard(number)
        elif (gone := self._cluster.jobs.get(number)) is not None:
            spec = gone.spec
            if (kind_of := self.kinds.get((spec.resources, spec.queue))) is not None:
                kind_of.workers.discard(number)
                self._forget_kind(kind_of)
        if job is not None and count:
            group = self._group(job)
            if old is not None and old is not group:
                self._leave(old, number)
            self._join(group, number, count)
        elif old is not None:
            self._leave(old, number)
        if job is not None and not count:
            self._forget_kind(self._kind(job.spec.resources, job.spec.queue))

    def _group(self, job: Job) -> Group:
        spec = job.spec
        kind = self._kind(spec.resources, spec.queue)
        key = (kind, spec.node, job.status.avoid, spec.priority)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
            kind.groups.setdefault(spec.node, {})[group] = None
        return group

    def _join(self, group: Group, number: int, count: int) -> None:
        more = count - group.counts.get(number, 0)
        group.counts[number] = count
        group.total += more
        group.jobs.put(number, number)
        self._group_of[number] = group
        queue = group.kind.queue
        if group.parked:
            self.parked[queue].put(group, (0, *group.rank))
        if (more > 0 and not group.parked) or group in self.awake.get(queue, ()):
            self.wake(group)

    def _leave(self, group: Group, number: int) -> None:
        del self._group_of[number]
        group.total -= group.counts.pop(number)
        group.jobs.discard(number)
        if group.counts:
            self._rank_anew(group)
            return
        self.sleep(group)
        self._unpark(group, wake=False)
        kind = group.kind
        del self._groups[kind, group.node, group.avoid, group.priority]
        del kind.groups[group.node][group]
        if not kind.groups[group.node]:
            del kind.groups[group.node]
        self._forget_kind(kind)

    def _rank_anew(self, group: Group) -> None:
        queue = group.kind.queue
        if group in self.awake.get(queue, ()):
            self.awake[queue].put(group, group.rank)
        if group.parked:
            self.parked[queue].put(group, (0, *group.rank))

    def group_of(self, number: int) -> Group | None:
        """The group of a job that waits; None for another."""
        return self._group_of.get(number)

    def limited(self, group: Group) -> bool:
        """Whether it is the quota of its queue that the group waits for."""
        return group in self._no_quota.get(group.kind.queue, ())

    def jobs_of(self, group: Group, count: int) -> list[Job]:
        """Its first jobs, so many."""
        return [self._cluster.jobs[number] for number in group.jobs.firsts(count)]

    # ------------------------------------------------------------ awake and parked

    def wake(self, group: Group) -> None:
        """The group is to be looked at."""
        self.awake.setdefault(group.kind.queue, Ranked()).put(group, group.rank)

    def put_behind(self, group: Group) -> None:
        """The parked group cannot be helped now: those that can are not to wait for it."""
        self._behind += 1
        self.parked[group.kind.queue].put(group, (self._behind, *group.rank))

    def sleep(self, group: Group) -> None:
        """The group has been looked at."""
        group.plan = []
        _take(self.awake, group)

    def _wake_kind(self, kind: Kind, lease: Lease) -> None:
        for name in ("", lease.node.config.name):
            for group in kind.groups.get(name, ()):
                self.wake(group)

    def _wake_avoiding(self) -> None:
        """Jobs that are kept off nodes may be kept off all of them by now."""
        for group in [group for group in self._groups.values() if group.avoid]:
            self._unpark(group)
            self.wake(group)

    def park(self, group: Group, *, quota: bool) -> None:
        """There is no room for the group, or its queue's quota leaves it none."""
        self._unpark(group, wake=False)
        group.parked = True
        shape, queue = group.kind.key
        self.parked.setdefault(queue, Ranked()).put(group, (0, *group.rank))
        if quota:
            self._no_quota.setdefault(queue, {})[group] = None
            return
        self._parked_shapes.setdefault(shape, {})[group] = None
        if shape not in self._lines:
            self._add_line(shape)

    def _unpark(self, group: Group, *, wake: bool = True) -> None:
        if not group.parked:
            return
        group.parked = False
        shape, queue = group.kind.key
        _take(self.parked, group)
        quota = self._no_quota.get(queue)
        if quota is not None:
            quota.pop(group, None)
            if not quota:
                del self._no_quota[queue]
        groups = self._parked_shapes.get(shape, {})
        groups.pop(group, None)
        if not groups and self._parked_shapes.pop(shape, None) is not None:
            line = self._lines.pop(shape)
            self._line_shapes[line] = None
            self._amounts[line] = np.iinfo(np.int64).max
            self._lines_unused.append(line)
        if wake:
            self.wake(group)

    def _add_line(self, shape: Resources) -> None:
        width = self.room.columns_count()
        if self._amounts.shape[1] != width:
            more = width - self._amounts.shape[1]
            self._amounts = np.pad(self._amounts, ((0, 0), (0, more)))
            # Of shapes that asked for what nobody had, somebody may have some now.
            for other, line in self._lines.items():
                self._amounts[line] = self.room.line(other) or np.iinfo(np.int64).max
        if not self._lines_unused:
            first = len(self._line_shapes)
            more = max(first, 16)
            self._amounts = np.pad(self._amounts, ((0, more), (0, 0)), constant_values=np.iinfo(np.int64).max)
            self._line_shapes += [None] * more
            self._lines_unused = list(range(first + more - 1, first - 1, -1))
        line = self._lines[shape] = self._lines_unused.pop()
        self._line_shapes[line] = shape
        self._amounts[line] = self.room.line(shape) or np.iinfo(np.int64).max

    def wake_for_room(self, freed: list[int]) -> None:
        """These rows have more room: whatever fits there is looked at again."""
        if not freed or not self._lines:
            return
        if self._amounts.shape[1] != self.room.columns_count():
            # A new resource: who asked for it fitted nowhere.
            for group in [group for groups in self._parked_shapes.values() for group in groups]:
                self._unpark(group)
            return
        for line in np.flatnonzero(self.room.fits(self._amounts, freed)):
            shape = self._line_shapes[line]
            assert shape is not None, line
            for group in list(self._parked_shapes[shape]):
                node = self._cluster.node_names.get(group.node, "")
                if not group.node or any(
                    unit is not None and unit.node == node for unit in map(self.room.units.__getitem__, freed)
                ):
                    self._unpark(group)


def _taken(news: dict[Item, None], count: int) -> list[Item]:
    """So many of them, the oldest, which are news no more."""
    some = list(islice(news, count))
    for one in some:
        del news[one]
    return some


def _take(table: dict[str, Ranked[Group]], group: Group) -> None:
    queue = group.kind.queue
    ranked = table.get(queue)
    if ranked is not None:
        ranked.discard(group)
        if not len(ranked):
            del table[queue]


def _units(node: Node) -> Iterator[tuple[str, int]]:
    """The units of a node that have a row: of each pool those up to the last used, and some ahead."""
    seen: set[str] = set()
    for pool in node.pools:
        if pool.name in seen:
            continue
        seen.add(pool.name)
        used = max((unit for name, unit in node.charged if name == pool.name), default=-1)
        yield from ((pool.name, unit) for unit in islice(range(pool.units), used + 1 + UNITS_AHEAD))

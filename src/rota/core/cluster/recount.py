"""What the index of placing must equal after a pass: a recount. For tests and the simulator."""

import numpy as np

from rota.core.cluster.check import require
from rota.core.cluster.index import SLOTS_OF_LEASE_MAX, SLOTS_OF_UNIT_MAX, Group, Index, Kind
from rota.core.cluster.leases import devices_free, units_of
from rota.core.cluster.nodes import takes_work
from rota.core.cluster.settling import waits_for
from rota.core.cluster.soft import Soft
from rota.core.cluster.state import Cluster, Lease, Node
from rota.core.cluster.waiting import grantable_count
from rota.core.model.protocol import Pool
from rota.core.model.resources import NOTHING, Resources
from rota.core.placement.room import FULL, Room, Unit


def check_index(index: Index, cluster: Cluster, soft: Soft) -> None:
    """Raises InvariantBroken where they differ; says nothing where the cluster has changed since the pass."""
    if cluster.news:
        return
    taking = [node for node in cluster.nodes.values() if takes_work(soft, node)]
    _check_room(index, cluster, {node.id for node in taking})
    whole = NOTHING
    for node in taking:
        whole = whole.plus(node.capacity())
    require(whole == index.whole, "index", "whole {}, recounted {}", index.whole, whole)
    leases: dict[tuple[Resources, str], list[Lease]] = {}
    for node in cluster.nodes.values():
        for lease in node.leases.values():
            leases.setdefault((lease.desired.shape, lease.desired.queue), []).append(lease)
    for key in leases.keys() | index.kinds.keys():
        require(key in index.kinds, "index", "there is no kind {}", key)
        _check_kind(index, index.kinds[key], leases.get(key, []))
    _check_groups(index, cluster, soft)
    timed = soft.timers.at_ms("placing", "") is not None
    require(timed or not index.awake, "index", "{} are to be looked at, and no pass is due", index.awake)
    gone = soft.averages.keys() - cluster.active.keys()
    require(not gone, "index", "averages are kept of jobs {}, which have ended", gone)


def _check_room(index: Index, cluster: Cluster, taking: set[str]) -> None:
    fresh, rows = Room(), 0
    for node in cluster.nodes.values():
        for pool in node.pools:
            if pool is not node.pool(pool.name):
                continue
            for number in units_of(node, pool, 1):
                row = index.row(node.id, pool.name, number)
                require(row is not None, "index", "node {} has no row of {}", node.id, number)
                assert row is not None
                found, wanted = index.room.units[row], _unit(node, pool, number, node.id in taking)
                require(found == wanted, "index", "row {} says {}, recounted {}", row, found, wanted)
                while fresh.size < row:
                    fresh.take(Unit("", "", 0, NOTHING, NOTHING, 0, there=False))
                if fresh.size == row:
                    fresh.take(wanted)
                else:
                    fresh.set(row, wanted)
                rows += 1
    for shape in {key[0] for key in index.kinds}:
        scores, wanted_scores = index.room.scored(shape), fresh.scored(shape)
        for row, unit in enumerate(fresh.units):
            if unit is not None and unit.node:
                score, other = scores[row], wanted_scores[row]
                require(score == other, "index", "{} in row {}: {}, recounted {}", shape, row, score, other)


def _unit(node: Node, pool: Pool, number: int, taking: bool) -> Unit:
    taken = sum(
        len(lease.desired.slots)
        for lease in node.leases.values()
        if (lease.desired.pool, lease.desired.unit) == (pool.name, number)
    )
    slots = max(min(SLOTS_OF_LEASE_MAX, SLOTS_OF_UNIT_MAX - taken), 0) if taking else 0
    devices = tuple(devices_free(node, pool, number).values())
    there = not (node.lost or node.config.removed)
    return Unit(
        node.id, pool.name, number, node.free(pool.name, number), pool.resources, slots, there, devices
    )


def _check_kind(index: Index, kind: Kind, leases: list[Lease]) -> None:
    taking = [lease for lease in leases if index.taking(lease.node.id)]
    wanted = {
        "leases": {lease.id for lease in leases},
        "slots": sum(lease.desired.target for lease in taking),
        "idle": {lease.id for lease in taking if lease.desired.target > lease.load},
        "backlogs": {lease.id for lease in taking if lease.desired.target < lease.load},
        "leaving": {
            lease.id: len(lease.desired.slots) - lease.desired.target
            for lease in leases
            if len(lease.desired.slots) > lease.desired.target and not lease.node.lost
        },
    }
    found = {
        "leases": set(kind.leases),
        "slots": kind.slots,
        "idle": set(kind.idle),
        "backlogs": set(kind.backlogs),
        "leaving": kind.leaving,
    }
    require(found == wanted, "index", "kind {}: {}, recounted {}", kind.key, found, wanted)
    listed = (kind in index.idle, kind in index.leaving)
    require(listed == (bool(wanted["idle"]), bool(kind.leaving)), "index", "kind {}: {}", kind.key, listed)


def _check_groups(index: Index, cluster: Cluster, soft: Soft) -> None:
    """Every job that may start something is in its group, which is awake or parked; and that rightly."""
    seen: set[Group] = set()
    for job in cluster.jobs.values():
        count = 0
        if job.id in cluster.active and not (job.config.held or job.ending) and not waits_for(cluster, job):
            count = grantable_count(job)
        group = index.group_of(job.id)
        if not count:
            require(group is None, "index", "job {} has nothing to place", job.id)
            continue
        require(group is not None, "index", "job {} waits, and is in no group", job.id)
        assert group is not None
        key = (group.kind.key, group.node, group.avoid, group.priority)
        spec = job.spec
        wanted = ((spec.resources, spec.queue), spec.node, job.status.avoid, spec.priority)
        require(key == wanted, "index", "job {} is of {}, not {}", job.id, wanted, key)
        require(group.counts.get(job.id) == count, "index", "job {} has {} to place", job.id, count)
        seen.add(group)
    for group in seen:
        queue = group.kind.queue
        require(group.total == sum(group.counts.values()), "index", "the total of {}", group.kind.key)
        awake, parked = group in index.awake.get(queue, ()), group in index.parked.get(queue, ())
        require(
            parked == group.parked and (awake or parked), "index", "group {} is forgotten", group.kind.key
        )
        if group.plan:
            _check_plan(index, group, awake=awake)
        if not awake:
            _check_asleep(index, soft, group)


def _check_plan(index: Index, group: Group, *, awake: bool) -> None:
    """What is kept of a choice is of a group whose turn goes on, and names each row once."""
    rows = [row for row, count in group.plan if count > 0]
    right = len(set(rows)) == len(group.plan) and all(0 <= row < index.room.size for row in rows)
    require(awake and not group.parked and right, "index", "the plan of {}: {}", group.kind.key, group.plan)


def _check_asleep(index: Index, soft: Soft, group: Group) -> None:
    """A group that nobody looks at has no slot to use."""
    for number in group.kind.idle:
        node = group.kind.leases[number].node
        usable = group.node in ("", node.config.name) and node.id not in group.avoid
        require(not usable, "index", "group {} sleeps beside an idle slot", group.kind.key)
    if not (group.node or group.avoid) and not index.limited(group):
        score = index.room.scored(group.kind.shape)
        gathered = [index.row(*one.place) for one in soft.gathering.values() if one.place is not None]
        fits = [row for row in np.flatnonzero(score <= FULL) if int(row) not in gathered]
        require(not fits, "index", "group {} is parked, and fits into {}", group.kind.key, fits)

"""Placing: pending tasks get leases and allocations; idle slots go back; backlogs are evened out.

Runs once at the end of a step in which work or room may have appeared, and looks at what has changed since
(`index`). Groups of equal jobs are taken by their queues' shares, then by priority and number; what a group
gets is chosen once for all its jobs. One that found no room is parked: no slots are sought for it until a
node that could take it changes. A pass that would be long goes on in the next step.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
from pyroaring import BitMap

from rota.core.cluster.claims import Claims, share
from rota.core.cluster.index import PIECE_LEASES, SLOTS_OF_LEASE_MAX, Group, Index, Kind
from rota.core.cluster.leases import devices_free, shrink, take_devices, tell_lease
from rota.core.cluster.records import AllocationDesired, Key, LeaseDesired, allocation_key, lease_key
from rota.core.cluster.soft import Average, Soft
from rota.core.cluster.state import Allocation, Cluster, Job, Lease
from rota.core.cluster.streams import tell_grant
from rota.core.cluster.tasks import put_job_status
from rota.core.cluster.waiting import grantable_count, quota_slots
from rota.core.cluster.work import Work
from rota.core.model import indexset
from rota.core.model.protocol import Recall, Slot
from rota.core.model.resources import NOTHING
from rota.core.model.states import EventKind, OnNodeLoss
from rota.core.placement.choose import spread
from rota.core.placement.room import Unit
from rota.core.placement.sizing import Pace, backlog_wanted, recall_count

GRANT_INDICES_MAX = 65_536
# Room for a Grant's ranges, so that a message stays under its limit.
GRANT_RANGES_MAX = 16_000
GRANT_LINES_BYTES_MAX = 128 * 1024
# A backlog of many allocations is asked back with so many messages at most.
RECALLS_MAX = 128
# A lease on which nothing has ended for so many times what a task takes stands still.
STILL_FACTOR = 3
# So many idle leases are looked at for one that could take what is asked back.
USABLE_LOOKED_AT_MAX = 16
# A pass comes in pieces of so many grants and leases; and of leases that may be short of work so many are
# looked at in one.
PIECE_PLACED = 32
LOW_LOOKED_MAX = 512
# Leases are looked at again when their tasks have turned out to be so much shorter.
PACE_FACTOR = 1.5

# Of a parked group so many jobs are looked at, at once.
PARKED_JOBS_MAX = 8
# Of a queue's parked groups, before idle slots are given back.
PARKED_LOOKED_AT_MAX = 16

_NO_AVERAGE = Average()


class Placing:
    """The passes of one leader, and what is kept between them."""

    def __init__(self, cluster: Cluster, soft: Soft) -> None:
        self.index = Index(cluster, soft)

    def place(self, work: Work) -> Iterator[None]:
        """One pass, for something may have changed; in pieces."""
        work.place_wanted = False
        self.index.now_ms = work.now_ms
        yield from self.index.catch_up()
        yield from _Pass(work, self.index).run()


class _Batch:
    """Jobs of a group, in order, that are served at once: with so many tasks to place."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = deque(jobs)
        self.left = sum(map(grantable_count, jobs))


class _Pass:
    def __init__(self, work: Work, index: Index) -> None:
        self.work = work
        self.index = index
        self.cluster = work.cluster
        # How much may still be placed in this piece of the pass.
        self.left = 0
        self.claims = Claims(work, index)

    def run(self) -> Iterator[None]:
        index = self.index
        index.refresh()
        self.claims.give_up()
        left = self.work.settings.placed_at_once
        while index.awake and left > 0:
            self.left = piece = min(left, PIECE_PLACED)
            self._serve_next()
            left -= piece - self.left
            yield
            index.refresh()
        self._even_out()
        self.claims.run()
        index.refresh()
        if index.awake:
            # What there was no budget for, or what claims have made room for.
            self.work.soft.timers.arm("placing", "", self.work.now_ms)
        yield from self._give_back()

    # ------------------------------------------------------------ order

    def _serve_next(self) -> None:
        """What goes first of the queue with the smallest share for its weight."""
        awake, served = self.index.awake, self.work.soft.served
        alone = len(awake) == 1
        name = next(iter(awake))
        if not alone:
            name = min(awake, key=lambda queue: (self._share(queue), served.get(queue, 0), queue))
        first = awake[name].first()
        assert first is not None, name
        self.left -= 1
        # Of one queue all the jobs that come before another group's; of several one, for it changes shares.
        # Of a group that is parked a few, for few slots are freed at a time: if it were more, it comes again.
        most = min(self.left, PARKED_JOBS_MAX) if first.parked else self.left
        jobs = self.index.jobs_of(first, max(most, 1) if alone else 1)
        if len(jobs) > 1 and (rest := awake[name].firsts(2)[1:]):
            limit = rest[0].rank
            jobs = [job for job in jobs if (-job.spec.priority, job.id) < limit] or jobs[:1]
        before = self.left
        self._serve(first, _Batch(jobs))
        if self.left == before > 0:
            self.index.sleep(first)

    def _share(self, queue: str) -> float:
        charged = self.cluster.queue_charged.get(queue, NOTHING)
        return share(self.cluster, queue, charged, self.index.whole)

    # ------------------------------------------------------------ one group

    def _serve(self, group: Group, batch: _Batch) -> None:
        if group.avoid and self._fails_everywhere(group):
            for job in batch.jobs:
                put_job_status(self.work, job, avoid=(), fails_everywhere=True)
            self.left -= 1
            return
        self._fill_idle(group, batch)
        if batch.left > 0 and not group.parked:
            self._widen(group, batch)
        if batch.left > 0 and self.left > 0:
            self._queue_ahead(group, batch)

    def _fails_everywhere(self, group: Group) -> bool:
        """Whether its jobs failed in a row on every node that could carry them.

        Then they are at fault themselves: they are kept off none any more, and run to their end.
        """
        # Also nodes that are away for a moment, or take nothing now: jobs wait for them.
        room = self.index.room
        able = {
            unit.node
            for unit in (room.units[row] for row in np.flatnonzero(room.could_ever(group.kind.shape)))
            if unit is not None and group.node in ("", self.cluster.nodes[unit.node].config.name)
        }
        return bool(able) and able.issubset(group.avoid)

    def _fill_idle(self, group: Group, batch: _Batch) -> None:
        """Idle slots of fitting leases take one task each, the emptiest leases first."""
        kind = group.kind
        if not len(kind.idle) or not batch.left:
            return
        picky = bool(group.node or group.avoid)
        numbers = kind.idle.firsts(len(kind.idle) if picky else min(batch.left, self.left))
        leases = [kind.leases[number] for number in numbers]
        if picky:
            leases = [lease for lease in leases if group.may_go_to(lease.node)]
        idle = [(lease.desired.target - lease.load, lease) for lease in leases]
        sharers = len(idle) if picky else len(kind.idle)
        while batch.left > 0 and idle and self.left > 0:
            share = max(batch.left // sharers, 1)
            rest = []
            for count, lease in idle:
                taken = min(count, share, batch.left)
                if taken and self.left > 0:
                    # With what is to be queued ahead in the same grant: half of what waits is left to others.
                    ahead = self._wanted(group, batch.jobs[0], lease) - lease.load if taken == count else 0
                    self._give(group, batch, lease, max(taken, ahead))
                    if count > taken:
                        rest.append((count - taken, lease))
            idle, sharers = rest, len(rest)

    def _widen(self, group: Group, batch: _Batch) -> None:
        """New slots where there is room."""
        wanted = batch.left
        left = quota_slots(self.cluster, batch.jobs[0], wanted)
        if self.work.soft.gathering:
            # Where room is gathered may have changed.
            group.plan = []
        if group.plan and self._carry_out(group, batch, left):
            return
        rows, counts = self._choose(group, left)
        group.plan = list(zip(rows[::-1], counts[::-1], strict=True))
        self._carry_out(group, batch, left)
        if group.plan:
            return
        if sum(counts) < left:
            # A lease has a bound, and a row that has reached it may have room for another.
            if SLOTS_OF_LEASE_MAX not in counts:
                self.index.park(group, quota=False)
        elif left < wanted:
            self.index.park(group, quota=True)

    def _carry_out(self, group: Group, batch: _Batch, most: int) -> int:
        """What was chosen, or what there still is of it, as far as the pass goes. Returns how many slots."""
        room, before = self.index.room, most
        while group.plan and self.left > 0 and most > 0:
            row, count = group.plan.pop()
            count = min(count, most, room.slots_of(group.kind.shape, row))
            unit = room.units[row]
            # A row that was given back may be another node's by now.
            if unit is None or not count or not group.may_go_to(self.cluster.nodes[unit.node]):
                continue
            lease = self._open_slots(unit, group.kind, count)
            self._give(group, batch, lease, lease.desired.target - lease.load)
            most -= count
        if self.left > 0:
            group.plan = []
        return before - most

    def _choose(self, group: Group, slots: int) -> tuple[list[int], list[int]]:
        """Rows with room for so many of the group's tasks, and for how many each."""
        index = self.index
        only = None
        if group.node:
            only = index.rows_of((self.cluster.node_names.get(group.node, ""),))
        without = list(index.rows_of(group.avoid)) if group.avoid else []
        for claim, gathering in self.work.soft.gathering.items():
            # Nothing is free where room is gathered for other work.
            if gathering.place is not None and claim != group.claim:
                row = index.row(*gathering.place)
                without += [] if row is None else [row]
        return spread(index.room, group.kind.shape, slots, only, without)

    def _open_slots(self, unit: Unit, kind: Kind, count: int) -> Lease:
        """Slots in a lease of this kind that is not about to shrink, else in a new one."""
        node = self.cluster.nodes[unit.node]
        leases = kind.leases if len(kind.leases) < len(node.leases) else node.leases
        lease = next(
            (
                lease
                for lease in leases.values()
                if (lease.desired.shape, lease.desired.queue) == kind.key
                and (lease.node, lease.desired.pool, lease.desired.unit) == (node, unit.pool, unit.unit)
                and lease.desired.target == len(lease.desired.slots) > 0
                and len(lease.desired.slots) + count <= SLOTS_OF_LEASE_MAX
            ),
            None,
        )
        first = lease.desired.next_slot if lease is not None else 0
        slots = _slots(first, count)
        if unit.devices and kind.shape.gpu:
            pool = node.pool(unit.pool)
            assert pool is not None, unit
            free = devices_free(node, pool, unit.unit)
            slots = tuple(replace(slot, devices=take_devices(free, kind.shape.gpu)) for slot in slots)
        self.left -= 1
        if lease is None:
            number = self.work.number()
            desired = LeaseDesired(*kind.key, slots, count, count, unit.pool, unit.unit)
            self.work.put(lease_key(node.id, number), desired, Key(LeaseDesired, 0, node.id, number))
            message = f"lease {number} for queue {kind.queue}"
            self.work.event(EventKind.LEASE_OPENED, node=node.config.name, message=message)
            lease = node.leases[number]
        else:
            desired = replace(
                lease.desired,
                slots=(*lease.desired.slots, *slots),
                target=lease.desired.target + count,
                next_slot=first + count,
            )
            self.work.put(lease_key(node.id, lease.id), desired)
        tell_lease(self.work, lease)
        return lease

    # ------------------------------------------------------------ grants

    def _queue_ahead(self, group: Group, batch: _Batch) -> None:
        """Leases whose queue is below half of what it should be are filled."""
        kind = group.kind
        self._look_again_if_faster(group, batch)
        for looked, (number, lease) in enumerate(list(kind.low.items())):
            if self.left <= 0 or batch.left <= 0:
                return
            if looked == LOW_LOOKED_MAX and not (group.node or group.avoid):
                # The rest in the next piece; those that were looked at are low no more.
                self.left -= 1
                return
            if not group.may_go_to(lease.node):
                continue
            wanted = self._wanted(group, batch.jobs[0], lease)
            if lease.load * 2 < wanted:
                self._give(group, batch, lease, wanted - lease.load)
            elif not (group.node or group.avoid):
                del kind.low[number]

    def _look_again_if_faster(self, group: Group, batch: _Batch) -> None:
        """Leases that had enough have too little once their tasks turn out to be shorter."""
        kind, settings, job = group.kind, self.work.settings, batch.jobs[0]
        pace = self._pace(group, job)
        slots = SLOTS_OF_LEASE_MAX
        wanted = backlog_wanted(pace, slots, settings.queued_ahead_ms, settings.long_task_ms) / slots
        by = job.id if _knows(job, kind) else 0
        fed_by, fed = kind.fed
        if fed_by != by:
            kind.fed = (by, wanted)
        elif wanted > fed * PACE_FACTOR:
            kind.fed = (by, wanted)
            kind.low.update(
                (number, lease)
                for number, lease in kind.leases.items()
                if lease.desired.target and self.index.taking(lease.node.id)
            )

    def _wanted(self, group: Group, job: Job, lease: Lease) -> int:
        """How many tasks the lease is to have, those that run included."""
        settings, pace = self.work.settings, self._pace(group, job)
        return backlog_wanted(pace, lease.desired.target, settings.queued_ahead_ms, settings.long_task_ms)

    def _pace(self, group: Group, job: Job) -> Pace:
        """What is known of a job's tasks; of one with few tasks, by those that asked for the same."""
        kind, soft = group.kind, self.work.soft
        average, pending = soft.averages.get(job.id, _NO_AVERAGE), group.counts[job.id]
        if not _knows(job, kind):
            others = soft.kinds.get(kind.key, _NO_AVERAGE)
            average = Average(others.successes, max(average.mean_ms, others.mean_ms))
            pending = group.total
        once = job.spec.on_node_loss in (OnNodeLoss.HOLD, OnNodeLoss.RERUN_FENCED)
        return Pace(average.successes, average.mean_ms, once, pending, kind.slots)

    def _give(self, group: Group, batch: _Batch, lease: Lease, count: int) -> None:
        """So many tasks of a batch go to a lease, and of its later jobs no more than each may have there."""
        asked = batch.jobs[0] if batch.jobs else None
        while count > 0 and batch.jobs:
            job = batch.jobs[0]
            if job is not asked:
                count = min(count, self._wanted(group, job, lease) - lease.load)
                if count <= 0:
                    return
            most = min(count, grantable_count(job))
            if most:
                self._grant(job, lease, most)
                count -= most
                batch.left -= most
            if not grantable_count(job):
                batch.jobs.popleft()

    def _grant(self, job: Job, lease: Lease, count: int) -> None:
        """Queues the lowest ready tasks on a lease. Those of one allocation have equally many attempts."""
        while count > 0:
            ready = job.pending - job.delayed - job.held if job.delayed or job.held else job.pending
            assert ready, job.id
            attempts, alike = _alike(job, ready)
            indices = indexset.take_first(alike, min(count, GRANT_INDICES_MAX))
            indices = _within_message(job, indices)
            number = self.work.number()
            desired = AllocationDesired(
                lease=lease.id,
                job=job.id,
                version=job.config.version,
                first_attempt=attempts + 1,
                indices=indices,
                grant=self.work.number(),
                never_stall=job.status.fails_everywhere,
            )
            node = lease.node.id
            self.work.put(allocation_key(node, number), desired, Key(AllocationDesired, 0, node, number))
            tell_grant(self.work, lease.node.allocations[number])
            soft = self.work.soft
            soft.served_count += 1
            soft.served[job.spec.queue] = soft.served_count
            count -= len(indices)
            self.left -= 1

    # ------------------------------------------------------------ giving back, evening out

    def _even_out(self) -> None:
        """Half of the longest backlog is asked back when a fitting slot elsewhere idles."""
        for kind in self.index.idle:
            longest = kind.backlogs.first()
            if longest is not None:
                self._recall(kind, kind.leases[longest])
                # Should it turn out to stand still, it is to be seen while there are idle slots.
                at_ms = self.work.now_ms + self.work.settings.recall_backlog_ms
                self.work.soft.timers.arm_earlier("placing", "", at_ms)

    def _recall(self, kind: Kind, lease: Lease) -> None:
        session = self.work.soft.sessions[lease.node.id]
        if lease.id in session.recalls:
            return
        idle = [kind.leases[number] for number in kind.idle.firsts(USABLE_LOOKED_AT_MAX)]
        count, messages = None, 0
        # What was granted last is asked for first; that the last question is answered ends them all.
        for allocation in list(reversed(lease.allocations.values())):
            waiting = len(allocation.remaining) - len(allocation.running)
            if waiting <= 0 or not _may_move(allocation, idle):
                continue
            if count is None:
                count = self._recall_count(kind, lease, allocation.job)
            part = min(count, waiting)
            if part <= 0 or messages == RECALLS_MAX:
                return
            number = session.ask()
            session.recalls[lease.id] = (allocation.id, number)
            self.work.send(lease.node.id, Recall(allocation.id, number, count=part))
            count, messages = count - part, messages + 1

    def _recall_count(self, kind: Kind, lease: Lease, job: Job) -> int:
        """How much of a lease's backlog, of which this job's tasks are the last, is asked back."""
        known = self.work.soft.averages.get(job.id) or self.work.soft.kinds.get(kind.key, _NO_AVERAGE)
        slots, limit_ms = lease.desired.target, self.work.settings.recall_backlog_ms
        waiting, still_ms = lease.load - slots, self.work.now_ms - kind.since_ms[lease.id]
        if still_ms >= max(limit_ms, STILL_FACTOR * known.mean_ms):
            # It waits behind tasks that take longer than others did: what is expected of it is nothing.
            return waiting
        return recall_count(waiting, slots, known.mean_ms, limit_ms)

    def _give_back(self) -> Iterator[None]:
        """Idle slots: at once where other work waits for room, else after they have been idle for a while."""
        touched, self.index.touched = self.index.touched, {}
        timers = self.work.soft.timers
        for node_id, number in touched:
            node = self.cluster.nodes.get(node_id)
            lease = node.leases.get(number) if node is not None else None
            name = f"{node_id}/{number}"
            if lease is None or lease.desired.target <= lease.load:
                timers.disarm("linger", name)
            else:
                timers.arm_earlier("linger", name, self.work.now_ms + self.work.settings.linger_ms)
        if self.index.parked:
            yield from self._give_to_parked()

    def _give_to_parked(self) -> Iterator[None]:
        """Idle slots go back that parked work may wait for: room on a node, or in its queue's quota."""
        parked = self.index.parked.values()
        looked_at = [group for groups in parked for group in groups.firsts(PARKED_LOOKED_AT_MAX)]
        limited = {group.kind.queue for group in looked_at if self.index.limited(group)}
        waiting = [group for group in looked_at if not self.index.limited(group)]
        of_all = any(len(groups) > PARKED_LOOKED_AT_MAX for groups in parked)
        for kind in [kind for kind in self.index.idle if not kind.groups]:
            for done, number in enumerate(list(kind.idle), start=1):
                lease = kind.leases[number]
                wanted = of_all or kind.queue in limited
                if wanted or any(group.may_go_to(lease.node) for group in waiting):
                    shrink(self.work, lease, lease.load)
                if done % PIECE_LEASES == 0:
                    yield


def go_on(work: Work, name: str) -> None:
    """The last pass was not over."""
    work.place_wanted = True


def gathering_over(work: Work, name: str) -> None:
    """Room has been gathered for as long as it may be: others may have it."""
    work.place_wanted = True
    times = [one.until_ms for one in work.soft.gathering.values() if one.place and one.until_ms > work.now_ms]
    if times:
        work.soft.timers.arm("gathering", name, min(times))


def linger_over(work: Work, name: str) -> None:
    """A lease's slots have been idle for as long as they may."""
    node_id, _, number = name.partition("/")
    node = work.cluster.nodes.get(node_id)
    lease = node.leases.get(int(number)) if node is not None else None
    if lease is not None and lease.desired.target > lease.load:
        shrink(work, lease, lease.load)


def _may_move(allocation: Allocation, idle: list[Lease]) -> bool:
    """Whether what waits in it may go on, and to one of these leases."""
    job = allocation.job
    return not (job.config.held or job.ending or allocation.desired.lost) and any(
        job.spec.node in ("", other.node.config.name) and other.node.id not in job.status.avoid
        for other in idle
    )


def _knows(job: Job, kind: Kind) -> bool:
    """Whether a job has tasks enough to show how long they take before they are all out."""
    return len(job.all) > 2 * kind.slots


@lru_cache(maxsize=64)
def _slots(first: int, count: int) -> tuple[Slot, ...]:
    return tuple(Slot(number, ()) for number in range(first, first + count))


def _alike(job: Job, ready: BitMap) -> tuple[int, BitMap]:
    """Of the ready tasks those with as many ended attempts as the first one has."""
    if not job.attempted:
        return 0, ready
    first = ready.min()
    attempts = job.attempts(first)
    if attempts == 0:
        return 0, ready - job.attempted
    segment = first // indexset.SEGMENT_SIZE
    planes = job.segments[segment].attempts
    alike = ready & BitMap(range(segment * indexset.SEGMENT_SIZE, (segment + 1) * indexset.SEGMENT_SIZE))
    for bit, plane in enumerate(planes):
        alike = alike & plane if attempts >> bit & 1 else alike - plane
    return attempts, alike


def _within_message(job: Job, indices: BitMap) -> BitMap:
    """As many of the first indices as one Grant has room for, with their ranges and lines."""
    if len(indices) > GRANT_RANGES_MAX:
        ranges = indexset.to_ranges(indices)
        if len(ranges) > GRANT_RANGES_MAX:
            indices = indexset.from_ranges(ranges[:GRANT_RANGES_MAX])
    lines = job.spec.lines
    if not lines:
        return indices
    size = 0
    for count, index in enumerate(indices):
        size += len(lines[job.all.rank(index) - 1].encode()) + 8
        if size > GRANT_LINES_BYTES_MAX and count:
            return indexset.take_first(indices, count)
    return indices

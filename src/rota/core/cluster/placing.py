"""Placing: pending tasks get leases and allocations; idle slots go back; backlogs are evened out.

Runs once at the end of a step in which work or room may have appeared. Jobs are taken by their
queues' shares, then by priority and number. A shape that found no room is not tried again in the
same pass.
"""

from collections.abc import Iterable
from dataclasses import replace

from pyroaring import BitMap

from rota.core.cluster.claims import Claims, rank, share
from rota.core.cluster.leases import devices_free, devices_room, shrink, take_devices, tell_lease, units_of
from rota.core.cluster.nodes import takes_work
from rota.core.cluster.records import AllocationDesired, LeaseDesired, allocation_key, lease_key
from rota.core.cluster.settling import waits_for
from rota.core.cluster.soft import Average
from rota.core.cluster.state import Job, Lease, Node
from rota.core.cluster.streams import send_grant
from rota.core.cluster.tasks import put_job_status
from rota.core.cluster.waiting import grantable_count, quota_slots, ready_count
from rota.core.cluster.work import Work
from rota.core.model import indexset
from rota.core.model.protocol import Pool, Recall, Slot
from rota.core.model.resources import NOTHING, Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import EventKind, OnNodeLoss
from rota.core.placement.choose import Place, spread
from rota.core.placement.sizing import Pace, backlog_wanted, recall_count

SLOTS_OF_LEASE_MAX = 1_024
# However little a task asks for, a machine runs no more of them at once.
SLOTS_OF_UNIT_MAX = 4_096
GRANT_INDICES_MAX = 65_536
# Room for a Grant's ranges, so that a message stays under its limit.
GRANT_RANGES_MAX = 16_000
GRANT_LINES_BYTES_MAX = 128 * 1024

_NO_AVERAGE = Average()


def place(work: Work) -> None:
    """One pass."""
    if not work.place_wanted:
        return
    work.place_wanted = False
    _Pass(work).run()


class _Pass:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.cluster = work.cluster
        self.nodes = [
            (rank, node)
            for rank, node in enumerate(work.cluster.nodes.values())
            if takes_work(work.soft, node)
        ]
        # (shape, queue, name of the one node) that found no room; what idle leases are kept for.
        self.parked: set[tuple[Resources, str, str]] = set()
        # Of these also every slot has work: a job that is to have one task a slot gets nothing more.
        self.full: set[tuple[Resources, str, str]] = set()
        self.hungry = False
        self.whole = NOTHING
        for _, node in self.nodes:
            self.whole = self.whole.plus(node.capacity())
        self.claims = Claims(work, self.whole)
        self.wanted_shapes: set[tuple[Resources, str]] = set()

    def run(self) -> None:
        if self.nodes:
            for job in self._in_order():
                self._serve(job)
            self._even_out()
        self.claims.close()
        self._give_back()

    # ------------------------------------------------------------ order

    def _in_order(self) -> Iterable[Job]:
        """Jobs with something to place: the queue with the smallest share for its weight goes first."""
        waiting: dict[str, list[Job]] = {}
        for job in self.cluster.active.values():
            if job.config.held or job.ending or not ready_count(job):
                continue
            if not waits_for(self.cluster, job):
                waiting.setdefault(job.spec.queue, []).append(job)
        for jobs in waiting.values():
            jobs.sort(key=rank, reverse=True)
        served = self.work.soft.served
        while waiting:
            name = next(iter(waiting))
            if len(waiting) > 1:
                name = min(waiting, key=lambda queue: (self._share(queue), served.get(queue, 0), queue))
            yield waiting[name].pop()
            if not waiting[name]:
                del waiting[name]

    def _share(self, queue: str) -> float:
        return share(self.cluster, queue, self.cluster.queue_charged.get(queue, NOTHING), self.whole)

    # ------------------------------------------------------------ one job

    def _serve(self, job: Job) -> None:
        spec = job.spec
        kind = (spec.resources, spec.queue, spec.node)
        alike = not job.status.avoid
        if alike and kind in self.full and job.id not in self.work.soft.averages:
            # Thousands of jobs may wait for the same: they are not looked at one by one.
            self.claims.more(job)
            return
        nodes = self._able(job)
        leases = [
            lease
            for _, node in nodes
            for lease in node.leases.values()
            if lease.desired.shape == spec.resources
            and lease.desired.queue == spec.queue
            and lease.desired.target
        ]
        self._fill_idle(job, leases)
        if grantable_count(job) and not self._parked(job):
            leases += self._widen(job, nodes)
        else:
            self.claims.more(job)
        if grantable_count(job):
            self._queue_ahead(job, leases)
        if alike and kind in self.parked and all(lease.load >= lease.desired.target for lease in leases):
            self.full.add(kind)
        if job.pending:
            self.wanted_shapes.add((spec.resources, spec.queue))

    def _able(self, job: Job) -> list[tuple[int, Node]]:
        """The nodes that the job may go to.

        One that failed in a row on every node that could carry it is at fault itself: it is kept off
        none any more, and runs to its end.
        """
        spec = job.spec
        named = [(rank, node) for rank, node in self.nodes if spec.node in ("", node.config.name)]
        if not job.status.avoid:
            return named
        # Also those that are away for a moment, or take nothing now: it waits for them.
        able = [
            node.id
            for node in self.cluster.nodes.values()
            if spec.node in ("", node.config.name)
            and not (node.lost or node.config.removed)
            and any(not spec.resources.missing_in(pool.resources) for pool in node.pools)
        ]
        if able and set(job.status.avoid).issuperset(able):
            put_job_status(self.work, job, avoid=(), fails_everywhere=True)
            return named
        return [(rank, node) for rank, node in named if node.id not in job.status.avoid]

    def _parked(self, job: Job) -> bool:
        spec = job.spec
        return (spec.resources, spec.queue, spec.node) in self.parked and not job.status.avoid

    def _fill_idle(self, job: Job, leases: list[Lease]) -> None:
        """Idle slots of fitting leases take one task each, the emptiest leases first."""
        idle = [(lease.desired.target - lease.load, lease) for lease in leases]
        idle = sorted((pair for pair in idle if pair[0] > 0), key=lambda pair: (-pair[0], pair[1].id))
        left = grantable_count(job)
        while left > 0 and idle:
            share = max(left // len(idle), 1)
            rest = []
            for count, lease in idle:
                taken = min(count, share, left)
                if taken:
                    self._grant(job, lease, taken)
                    left -= taken
                if count > taken and left > 0:
                    rest.append((count - taken, lease))
            idle = rest

    def _widen(self, job: Job, nodes: list[tuple[int, Node]]) -> list[Lease]:
        """New slots where there is room; returns the leases that got some."""
        spec, left = job.spec, grantable_count(job)
        left = quota_slots(self.cluster, job, left)
        places = []
        for number, node in nodes:
            for pool in node.pools:
                for unit in units_of(node, pool, left):
                    free = self.claims.free(job, node, pool.name, unit)
                    most = _slots_max(node, pool, unit, spec)
                    places.append(Place(node.id, pool.name, unit, number, free, pool.resources, most))
        given = spread(places, spec.resources, left) if left else []
        short = left - sum(count for _, count in given)
        if short or not left:
            if not job.status.avoid:
                self.parked.add((spec.resources, spec.queue, spec.node))
            self.hungry = True
        result = []
        for found, count in given:
            lease = self._open_slots(self.cluster.nodes[found.node], found, spec.resources, spec.queue, count)
            self._grant(job, lease, min(lease.desired.target - lease.load, grantable_count(job)))
            result.append(lease)
        if short:
            self.claims.make(job, [node for _, node in nodes], short)
        return result

    def _open_slots(self, node: Node, found: Place, shape: Resources, queue: str, count: int) -> Lease:
        """Slots in a lease of this shape that is not about to shrink, else in a new one."""
        lease = next(
            (
                lease
                for lease in node.leases.values()
                if lease.desired.shape == shape
                and lease.desired.queue == queue
                and (lease.desired.pool, lease.desired.unit) == (found.pool, found.unit)
                and lease.desired.target == len(lease.desired.slots) > 0
                and len(lease.desired.slots) + count <= SLOTS_OF_LEASE_MAX
            ),
            None,
        )
        first = lease.desired.next_slot if lease is not None else 0
        pool = node.pool(found.pool)
        assert pool is not None, found
        free = devices_free(node, pool, found.unit)
        slots = [Slot(number, take_devices(free, shape.gpu)) for number in range(first, first + count)]
        if lease is None:
            number = self.work.number()
            desired = LeaseDesired(shape, queue, tuple(slots), len(slots), len(slots), found.pool, found.unit)
            self.work.put(lease_key(node.id, number), desired)
            self.work.event(
                EventKind.LEASE_OPENED, node=node.config.name, message=f"lease {number} for queue {queue}"
            )
            lease = node.leases[number]
        else:
            number = lease.id
            desired = replace(
                lease.desired,
                slots=(*lease.desired.slots, *slots),
                target=lease.desired.target + len(slots),
                next_slot=first + len(slots),
            )
            self.work.put(lease_key(node.id, number), desired)
        tell_lease(self.work, lease)
        return lease

    # ------------------------------------------------------------ grants

    def _queue_ahead(self, job: Job, leases: list[Lease]) -> None:
        """Leases whose queue is below half of what it should be are filled."""
        slots_all = sum(lease.desired.target for lease in leases)
        average = self.work.soft.averages.get(job.id, _NO_AVERAGE)
        once = job.spec.on_node_loss in (OnNodeLoss.HOLD, OnNodeLoss.RERUN_FENCED)
        for lease in leases:
            pace = Pace(average.successes, average.mean_ms, once, ready_count(job), slots_all)
            wanted = backlog_wanted(
                pace,
                lease.desired.target,
                self.work.settings.queued_ahead_ms,
                self.work.settings.long_task_ms,
            )
            load = lease.load
            if load * 2 < wanted:
                self._grant(job, lease, min(wanted - load, grantable_count(job)))

    def _grant(self, job: Job, lease: Lease, count: int) -> None:
        """Queues the lowest ready tasks on a lease. Those of one allocation have equally many attempts."""
        while count > 0:
            ready = job.pending - job.delayed - job.held if job.delayed or job.held else job.pending
            if not ready:
                return
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
                grant=0,
                never_stall=job.status.fails_everywhere,
            )
            key = allocation_key(lease.node.id, number)
            self.work.put(key, desired)
            send_grant(self.work, lease.node.allocations[number])
            soft = self.work.soft
            soft.served_count += 1
            soft.served[job.spec.queue] = soft.served_count
            count -= len(indices)

    # ------------------------------------------------------------ giving back, evening out

    def _even_out(self) -> None:
        """Half of the longest backlog is asked back when a fitting slot elsewhere idles."""
        by_shape: dict[tuple[Resources, str], list[Lease]] = {}
        for _, node in self.nodes:
            for lease in node.leases.values():
                by_shape.setdefault((lease.desired.shape, lease.desired.queue), []).append(lease)
        for leases in by_shape.values():
            idle = [lease for lease in leases if lease.desired.target > lease.load]
            if not idle or len(leases) < 2:
                continue
            longest = max(leases, key=lambda lease: (lease.load - lease.desired.target, -lease.id))
            self._recall(longest, idle)

    def _recall(self, lease: Lease, idle: list[Lease]) -> None:
        session = self.work.soft.sessions[lease.node.id]
        if lease.id in session.recalls or not lease.allocations:
            return
        allocation = max(
            lease.allocations.values(), key=lambda one: (len(one.remaining) - len(one.running), one.id)
        )
        job = allocation.job
        usable = any(
            job.spec.node in ("", other.node.config.name) and other.node.id not in job.status.avoid
            for other in idle
        )
        mean_ms = self.work.soft.averages.get(job.id, _NO_AVERAGE).mean_ms
        waiting = min(lease.load - lease.desired.target, len(allocation.remaining) - len(allocation.running))
        count = recall_count(waiting, lease.desired.target, mean_ms, self.work.settings.recall_backlog_ms)
        if count and usable and not job.config.held and not job.ending and not allocation.desired.lost:
            number = session.ask()
            session.recalls[lease.id] = (allocation.id, number)
            self.work.send(lease.node.id, Recall(allocation.id, number, count=count))

    def _give_back(self) -> None:
        """Idle slots: at once where other work waits for room, else after they have been idle for a while."""
        for node in self.cluster.nodes.values():
            for lease in list(node.leases.values()):
                name = f"{node.id}/{lease.id}"
                if lease.desired.target <= lease.load:
                    self.work.soft.timers.disarm("linger", name)
                elif self.hungry and (lease.desired.shape, lease.desired.queue) not in self.wanted_shapes:
                    shrink(self.work, lease, lease.load)
                else:
                    self.work.soft.timers.arm_earlier(
                        "linger", name, self.work.now_ms + self.work.settings.linger_ms
                    )


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


def _slots_max(node: Node, pool: Pool, unit: int, spec: JobSpec) -> int:
    """Slots that one lease may get on a unit, whatever amounts are free: whole devices are not shared."""
    taken = sum(
        len(lease.desired.slots)
        for lease in node.leases.values()
        if (lease.desired.pool, lease.desired.unit) == (pool.name, unit)
    )
    room = max(min(SLOTS_OF_LEASE_MAX, SLOTS_OF_UNIT_MAX - taken), 0)
    if spec.resources.gpu and pool.devices:
        room = min(room, devices_room(devices_free(node, pool, unit), spec.resources.gpu))
    return room


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

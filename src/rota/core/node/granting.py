"""What the leader gives and takes: leases, grants, recalls, stops; and what the node gives back unasked."""

from rota.core.model.protocol import RECALL_ALL, Grant, Lease, Ranges, Recall, Resize, Slot, Stop
from rota.core.model.states import Cause, OnNodeLoss, StopReason
from rota.core.node.book import Book
from rota.core.node.entries import Drop, Granted, LeaseKept
from rota.core.node.entries import Resize as Resized
from rota.core.node.held import AllocationHeld, Held, LeaseHeld
from rota.core.node.indices import Indices, normal, size
from rota.core.node.inputs import Returned
from rota.core.node.running import Attempts, Place

# So that one entry fits into a Report, whatever is dropped.
DROP_RANGES_MAX = 8_192
START_FAILURES_MAX = 3
FAILURES_MAX = 20
FAILURES_PER_SLOT_MAX = 2
STREAKS_COUNT_MAX = 1_000

CAUSE_OF_STOP = {
    StopReason.CANCEL: Cause.STOPPED,
    StopReason.PREEMPT: Cause.PREEMPTED,
    StopReason.DEADLINE: Cause.DEADLINE,
    StopReason.SUPERSEDED: Cause.STOPPED,
}
_FAILURES = frozenset({Cause.SIGNAL, Cause.OOM, Cause.TIME_LIMIT, Cause.START_FAILED})


class Granting:
    """Who may run what here."""

    def __init__(self, book: Book[Held], attempts: Attempts) -> None:
        self._book = book
        self._held = book.held
        self._attempts = attempts
        # Failures and failed starts in a row, by job.
        self._streaks: dict[int, tuple[int, int]] = {}
        # Stalled jobs, and the entry that said so: what was granted before the leader knew is dropped too.
        self._stalled: dict[int, int] = {}
        self.draining = False
        self.leaving = False

    # ------------------------------------------------------------ leases

    def lease(self, message: Lease) -> None:
        """Takes the slots that are new, and marks those for leaving that the leader does not know."""
        held = self._held.leases.get(message.lease)
        slots = {} if held is None else dict(held.slots)
        next_slot = 0 if held is None else held.next_slot
        listed = {slot.slot: slot for slot in message.slots}
        fresh = {number: slot for number, slot in sorted(listed.items()) if number >= next_slot}
        if held is None and not fresh:
            return
        if fresh:
            self._keep_lease(message, slots | fresh, max(next_slot, *fresh) + 1)
        place = self._attempts.places.setdefault(message.lease, Place())
        place.free.extend(fresh)
        place.target = 0 if self.leaving else message.target
        place.surplus = frozenset(slots) - frozenset(listed)
        self._attempts.changed[message.lease] = None

    def _keep_lease(self, message: Lease, slots: dict[int, Slot], next_slot: int) -> None:
        self._book.write(
            LeaseKept(
                message.lease,
                message.shape,
                message.queue,
                tuple(slots.values()),
                next_slot,
                pool=message.pool,
                unit=message.unit,
            )
        )

    def resize(self, message: Resize) -> None:
        """Slots above the target go as they become idle."""
        place = self._attempts.places.get(message.lease)
        if place is not None:
            place.target = 0 if self.leaving else message.target
            self._attempts.changed[message.lease] = None

    def settle(self) -> None:
        """Frees what is to go, and starts what can start, on every lease that was touched."""
        for number in self._attempts.changed:
            lease = self._held.leases.get(number)
            if lease is not None and number in self._attempts.places:
                self._trim(lease)
                if lease.slots:
                    self._attempts.fill(lease)
        self._attempts.changed.clear()

    def _trim(self, lease: LeaseHeld) -> None:
        place = self._attempts.places[lease.lease]
        if place.target is None and not place.surplus:
            return
        idle = sorted(place.free, key=lambda slot: (slot not in place.surplus, -slot))
        freed = [slot for slot in idle if slot in place.surplus]
        if place.target is not None:
            freed = idle[: max(len(freed), len(lease.slots) - place.target)]
        if not freed:
            return
        if len(freed) == len(lease.slots):
            for number in tuple(lease.waiting):
                self._drop(number, self._attempts.unstarted(self._held.allocations[number]).ranges())
            for number in dict.fromkeys(number for number, _ in place.ready):
                self._drop(number, self._attempts.unstarted(self._held.allocations[number]).ranges())
        self._book.write(Resized(lease.lease, tuple(sorted(freed))))
        place.free = [slot for slot in place.free if slot not in freed]
        place.surplus -= frozenset(freed)
        if not lease.slots:
            del self._attempts.places[lease.lease]

    # ------------------------------------------------------------ grants

    def grant(self, message: Grant) -> str:
        """Takes indices to run; a reason why the stream must end where that cannot be.

        A grant number that is not above all seen is old news. A held allocation takes only the
        indices that it never had: what it had has run, runs, waits, or its end or drop is on its way
        to the leader, and a second try is another allocation's.
        """
        if message.grant <= self._held.grant:
            return ""
        if (message.job, message.version) not in self._held.templates:
            return f"allocation {message.allocation} came without the template of job {message.job}"
        indices = normal(message.indices)
        if message.lines and len(message.lines) != size(indices):
            return f"allocation {message.allocation} has {size(indices)} tasks and {len(message.lines)} lines"
        self._book.write(
            Granted(
                message.allocation,
                message.lease,
                message.job,
                message.version,
                message.grant,
                message.first_attempt,
                indices,
                message.lines,
                message.never_stall,
            )
        )
        held = self._held.allocations.get(message.allocation)
        if held is None:
            return ""
        stalled = message.job in self._stalled and not message.never_stall
        lease = self._held.leases.get(held.lease)
        if self.draining or self.leaving or stalled or lease is None or not lease.slots:
            self._drop(message.allocation, self._attempts.unstarted(held).ranges(), stalled=stalled)
        else:
            self._attempts.changed[held.lease] = None
        return ""

    def recall(self, message: Recall) -> None:
        """Gives back what has not started: the indices named, or the last `count`."""
        held = self._held.allocations.get(message.allocation)
        given: Ranges = ()
        if held is not None:
            unstarted = self._attempts.unstarted(held)
            named = normal(message.indices)
            given = unstarted.common(named) if named else unstarted.last(message.count)
            if named or message.count == RECALL_ALL:
                # Nobody asks again for what is in a run.
                self._attempts.recall(message.allocation, named)
        self._drop(message.allocation, given, answers=message.recall)

    def stop(self, message: Stop) -> None:
        """Gives back what has not started, and ends what runs."""
        held = self._held.allocations.get(message.allocation)
        given: Ranges = ()
        asked = Indices(normal(message.indices)) if message.indices else None
        if held is not None:
            unstarted = self._attempts.unstarted(held)
            given = unstarted.ranges() if asked is None else unstarted.common(asked.ranges())
        self._drop(message.allocation, given, answers=message.stop)
        cause = CAUSE_OF_STOP[message.reason]
        for index, running in self._attempts.running.get(message.allocation, {}).items():
            if asked is None or index in asked:
                grace_ms = running.spec.grace if message.grace_ms is None else message.grace_ms
                if message.reason == StopReason.SUPERSEDED:
                    grace_ms = 0
                self._attempts.stop(running, cause, grace_ms)

    # ------------------------------------------------------------ giving back

    def _drop(self, number: int, indices: Ranges, *, answers: int = 0, stalled: bool = False) -> None:
        """Writes a Drop, in pieces where it is large; the last is the answer, which alone may be empty."""
        held = self._held.allocations.get(number)
        if held is not None and indices:
            self._attempts.unready(held, indices)
        while len(indices) > DROP_RANGES_MAX:
            self._book.write(Drop(number, indices[:DROP_RANGES_MAX], 0, stalled))
            indices = indices[DROP_RANGES_MAX:]
        if indices or answers or stalled:
            self._book.write(Drop(number, indices, answers, stalled))

    def drop_all(self) -> None:
        """Gives back everything that has not started."""
        for held in list(self._held.allocations.values()):
            self._drop(held.allocation, self._attempts.unstarted(held).ranges())

    def drop_fenced(self) -> None:
        """Gives back what may be granted elsewhere by now, and must not start twice."""
        for held in list(self._held.allocations.values()):
            if self._held.template(held).spec.on_node_loss == OnNodeLoss.RERUN_FENCED:
                unstarted = self._attempts.unstarted(held).ranges()
                if unstarted:
                    self._drop(held.allocation, unstarted)

    def leave(self) -> None:
        """The node goes: work and slots are given back as they become idle."""
        self.leaving = True
        self.drop_all()
        for number, place in self._attempts.places.items():
            place.target = 0
            self._attempts.changed[number] = None

    def returned(self, news: Returned) -> None:
        """What a run did not come to: it is the next, unless this node is to start no more of it by now."""
        for number, indices in reversed(news.tasks):
            held = self._held.allocations[number]
            unwanted = self._attempts.returned(number, indices)
            stalled = held.job in self._stalled and not held.never_stall
            if self.draining or self.leaving or stalled:
                self._drop(number, indices, stalled=stalled)
            elif unwanted:
                self._drop(number, unwanted)

    # ------------------------------------------------------------ failures in a row

    def judge(
        self, allocation: AllocationHeld, slot_count: int, cause: Cause, code: int, *, unstarted: bool = False
    ) -> None:
        """Counts failures of a job in a row; too many, and this node has no more of it.

        `unstarted`: it could not be started, which is this node's fault, whatever the job.
        """
        job = allocation.job
        if cause == Cause.EXIT and code == 0:
            self._streaks.pop(job, None)
            return
        counts = cause == Cause.EXIT or cause in _FAILURES or unstarted
        if allocation.never_stall or not counts:
            return
        failures, start_failures = self._streaks.pop(job, (0, 0))
        failures += 1
        start_failures += unstarted
        if start_failures < START_FAILURES_MAX and failures < max(
            FAILURES_MAX, FAILURES_PER_SLOT_MAX * slot_count
        ):
            self._streaks[job] = (failures, start_failures)
            if len(self._streaks) > STREAKS_COUNT_MAX:
                del self._streaks[next(iter(self._streaks))]
            return
        self._stall(allocation)

    def _stall(self, allocation: AllocationHeld) -> None:
        for held in list(self._held.allocations.values()):
            if held.job == allocation.job and held is not allocation and not held.never_stall:
                unstarted = self._attempts.unstarted(held).ranges()
                if unstarted:
                    self._drop(held.allocation, unstarted, stalled=True)
        for held in self._held.allocations.values():
            if held.job == allocation.job and not held.never_stall:
                # The leader may know of the stall, and grant again, before what is in a run comes back.
                self._attempts.recall(held.allocation, ())
        # The one that failed says so even where nothing is left of it.
        self._drop(allocation.allocation, self._attempts.unstarted(allocation).ranges(), stalled=True)
        self._stalled[allocation.job] = self._held.sequence

    def acknowledged(self, sequence: int) -> None:
        """The leader knows all up to here: of these stalled jobs it grants nothing by mistake."""
        for job in [job for job, said in self._stalled.items() if said <= sequence]:
            del self._stalled[job]

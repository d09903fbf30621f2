"""Attempts: which index runs next in which slot, and how one ends.

An index is intended (INTENT is written), waits in its lease's `ready`, is given to a free slot with those
that follow it (a run), becomes live (START) if it lasts, and ends (END); what of a run has not been started
comes back. When nothing of its run is left the slot is free. Everything here but `held` is made again after
a crash, when nothing runs.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from rota.core.model.protocol import Ended, Ranges
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, OnNodeLoss
from rota.core.node.book import Book
from rota.core.node.entries import Attempt, End, Ends, Intent, Start
from rota.core.node.held import AllocationHeld, Held, LeaseHeld
from rota.core.node.indices import Indices, each, normal
from rota.core.node.inputs import (
    RUN_MS_MAX,
    Exited,
    InputLost,
    KillTree,
    Part,
    Ran,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
)
from rota.core.node.signals import SIGTERM, parse
from rota.core.node.timers import Timers

INTENT_COUNT_MAX = 64
# Tasks of one run.
RUN_COUNT_MAX = 64
# So many allocations are counted to see how much there is to share.
COUNTED_MAX = 4 * RUN_COUNT_MAX
MESSAGE_CHARS_MAX = 1_000

# Jobs that may not be started twice: an intent whose fate nobody knows costs them more than a line in
# the journal does.
_STRICT = frozenset({OnNodeLoss.HOLD, OnNodeLoss.RERUN_FENCED})


@dataclass(slots=True)
class Run:
    """The tasks of one Spawn command. `left` have not ended and not come back; the slot is taken so long."""

    lease: int
    slot: int
    began_ms: int
    count: int = 0
    left: int = 0
    # Of them, those that were started and did as they should.
    succeeded: int = 0


@dataclass(slots=True)
class Running:
    """An attempt between its Spawn command and its end. Times are boot-clock milliseconds."""

    attempt: Attempt
    run: Run
    spec: JobSpec
    live: bool = False
    # It is to come back if it has not started: who asked for it was told what there was then.
    recalled: bool = False
    # Why it is being stopped; its end says this, if it was still running by then.
    cause: Cause | None = None
    message: str = ""
    warn_at_ms: int | None = None
    limit_at_ms: int | None = None
    kill_at_ms: int | None = None
    killed: bool = False


@dataclass(slots=True)
class Place:
    """Where a lease's work runs."""

    # Slots without a run.
    free: list[int] = field(default_factory=list)
    # How many tasks a slot is given at once: what it has lately done in time.
    length: int = 1
    # Intended and not spawned yet: (allocation, index), in order.
    ready: deque[tuple[int, int]] = field(default_factory=deque)
    # No more slots than this are to be kept.
    target: int | None = None
    # Slots that the leader does not know: they go as soon as they are idle.
    surplus: frozenset[int] = frozenset()


class Attempts:
    """All that runs, and what is about to."""

    def __init__(self, book: Book[Held]) -> None:
        self._book = book
        self._held = book.held
        self._timers: Timers[Attempt] = Timers()
        self._fenced: dict[Attempt, Running] = {}
        self.running: dict[int, dict[int, Running]] = {}
        leases = book.held.leases.values()
        self.places = {lease.lease: Place(free=list(lease.slots)) for lease in leases if lease.slots}
        # Leases to look at when the step ends.
        self.changed: dict[int, None] = dict.fromkeys(self.places)
        # Until when attempts that may not outlive the node's contact may run, and where no start may happen.
        self.fence_ms: int | None = None
        self._ran_out = False
        self.resting = False

    # ------------------------------------------------------------ starting

    def fill(self, lease: LeaseHeld) -> None:
        """Spawns what comes next on the lease, until no slot is free or nothing waits."""
        place = self.places[lease.lease]
        if self.resting:
            return
        while place.free:
            count = self._share(lease, place)
            if len(place.ready) < count:
                self._intend(lease, place)
                if not place.ready:
                    return
            self._spawn(place, lease.lease, count)

    def _share(self, lease: LeaseHeld, place: Place) -> int:
        """How many tasks the next run may have: when little is left, each slot is to have some of it."""
        if place.length == 1:
            return 1
        shares = 2 * len(lease.slots)
        count = len(place.ready)
        for number in islice(lease.waiting, COUNTED_MAX):
            if count >= place.length * shares:
                break
            count += len(self._held.allocations[number].waiting)
        return max(min(place.length, count // shares), 1)

    def _intend(self, lease: LeaseHeld, place: Place) -> None:
        room = INTENT_COUNT_MAX
        for number in tuple(lease.waiting):
            allocation = self._held.allocations[number]
            spec = self._held.template(allocation).spec
            if spec.on_node_loss == OnNodeLoss.RERUN_FENCED and not self.in_contact:
                continue
            count = room
            if spec.on_node_loss in _STRICT:
                count = min(room, len(place.free) - len(place.ready))
            indices = allocation.waiting.first(count)
            if indices:
                self._book.write(Intent(number, indices))
                before = len(place.ready)
                place.ready.extend((number, index) for index in each(indices))
                room -= len(place.ready) - before
            if room <= 0 or allocation.waiting:
                return

    def _spawn(self, place: Place, lease: int, count: int) -> None:
        """Gives a slot as many of the next tasks, of whatever jobs; those that must run alone do."""
        run = Run(lease, place.free.pop(), self._book.now_ms)
        parts: list[Part] = []
        start_before_ms = None
        ready = place.ready
        while ready and run.count < count:
            number, index = ready[0]
            allocation = self._held.allocations[number]
            spec = self._held.template(allocation).spec
            alone = spec.stdin or spec.on_node_loss in _STRICT
            if alone and run.count:
                break
            ready.popleft()
            running = Running((number, index, 1), run, spec)
            self.running.setdefault(number, {})[index] = running
            run.count += 1
            part = parts[-1] if parts else None
            line = allocation.lines.get(index)
            lines = () if line is None else (line,)
            if part is not None and part.allocation == number and part.indices[-1][1] == index - 1:
                part.indices = ((part.indices[0][0], index),)
                part.lines += lines
            else:
                first = allocation.first_attempt
                parts.append(
                    Part(number, allocation.job, allocation.version, first, ((index, index),), lines)
                )
            if spec.on_node_loss == OnNodeLoss.RERUN_FENCED:
                self._fenced[running.attempt] = running
                start_before_ms = self.fence_ms
            if alone:
                break
        run.left = run.count
        self._book.command(Spawn(lease, run.slot, tuple(parts), start_before_ms))

    def spawned(self, news: Spawned) -> None:
        """The process is there: from now on it counts as started."""
        running = self._find(news.attempt)
        assert not running.live, news
        running.live = True
        number, index, run = news.attempt
        start = Start(
            number, index, run, running.run.slot, news.pid, news.start_ticks, self._wall_ms(news.at_ms)
        )
        self._book.write(start)
        if running.cause is not None:
            self._signal_stop(running)
        elif running.spec.time_limit:
            running.limit_at_ms = news.at_ms + running.spec.time_limit
            warning = parse(running.spec.signal)
            if warning is not None:
                running.warn_at_ms = max(running.limit_at_ms - warning[1], self._book.now_ms)
            self._set_timer(running)

    # ------------------------------------------------------------ ending

    def spawn_failed(self, news: SpawnFailed) -> Ended:
        """No process came to be."""
        return self._end(
            self._find(news.attempt),
            Ended(
                index=news.attempt[1],
                cause=news.cause,
                run=news.attempt[2],
                message=news.message[:MESSAGE_CHARS_MAX],
                started=False,
            ),
        )

    def exited(self, news: Exited) -> Ended:
        """The whole process tree is gone."""
        running = self._find(news.attempt)
        number, index, run = news.attempt
        start = self._held.allocations[number].live.get(index)
        started_at_ms = start.started_at_ms if start else self._wall_ms(news.at_ms) if news.at_ms else 0
        cause, message = news.cause, news.message
        if running.cause is not None and not news.ended_before_signal:
            cause, message = running.cause, message or running.message
        return self._end(
            running,
            Ended(
                index,
                cause,
                news.code,
                run,
                message[:MESSAGE_CHARS_MAX],
                started_at_ms,
                news.duration_ms,
                news.cpu_user_ms,
                news.cpu_system_ms,
                news.memory_peak_kib,
                started_at_ms > 0,
            ),
        )

    def ran(self, news: Ran) -> None:
        """These have ended by themselves."""
        number, of_allocation = news.allocation, self.running[news.allocation]
        live = self._held.allocations[number].live
        order = sorted(range(len(news.index)), key=news.index.__getitem__)
        started_at_ms = []
        for at in order:
            index = news.index[at]
            start = live.get(index)
            started_at_ms.append(start.started_at_ms if start else self._wall_ms(news.at_ms[at]))
            running = of_allocation[index]
            running.run.succeeded += not news.code[at]
            self._over(running)

        def column(values: tuple[int, ...]) -> tuple[int, ...]:
            return tuple([values[at] for at in order])

        self._book.write(
            Ends(
                number,
                column(news.index),
                column(news.code),
                tuple(started_at_ms),
                column(news.duration_ms),
                column(news.cpu_user_ms),
                column(news.cpu_system_ms),
                column(news.memory_peak_kib),
            )
        )

    def recall(self, number: int, indices: Ranges) -> None:
        """Of these, or all of the allocation, none is to start here that comes back from its run."""
        named = Indices(indices) if indices else None
        for index, running in self.running.get(number, {}).items():
            if not running.live and (named is None or index in named):
                running.recalled = True

    def returned(self, number: int, indices: Ranges) -> Ranges:
        """These were not started, and are ready again; those of them that are not to start are given back."""
        unwanted = []
        for index in reversed(list(each(indices))):
            running = self._find((number, index, 1))
            self._over(running)
            self.places[running.run.lease].ready.appendleft((number, index))
            if running.cause is not None or running.recalled:
                unwanted.append((index, index))
        return normal(tuple(unwanted))

    def _end(self, running: Running, ended: Ended) -> Ended:
        running.run.succeeded += (ended.cause, ended.code) == (Cause.EXIT, 0)
        self._over(running)
        self._book.write(End(running.attempt[0], ended))
        return ended

    def _over(self, running: Running) -> None:
        """It is no longer in its slot, which may be free with that."""
        number, index, _ = running.attempt
        if running.live:
            self._timers.put(running.attempt, None)
        self._fenced.pop(running.attempt, None)
        of_allocation = self.running[number]
        del of_allocation[index]
        if not of_allocation:
            del self.running[number]
        run = running.run
        run.left -= 1
        if not run.left:
            place = self.places[run.lease]
            place.free.append(run.slot)
            self.changed[run.lease] = None
            if run.succeeded < run.count:
                place.length = max(run.succeeded, 1)
            elif self._book.now_ms - run.began_ms <= RUN_MS_MAX // 2:
                # A short one, where little was left, says less.
                place.length = min(max(2 * run.count, place.length), RUN_COUNT_MAX)

    def _wall_ms(self, at_ms: int) -> int:
        """The time of people at a time of the boot clock that has just been."""
        return self._book.wall_ms - (self._book.now_ms - at_ms)

    def _find(self, attempt: Attempt) -> Running:
        running = self.running.get(attempt[0], {}).get(attempt[1])
        assert running is not None, attempt
        assert running.attempt == attempt, attempt
        return running

    # ------------------------------------------------------------ stopping

    def stop(self, running: Running, cause: Cause, grace_ms: int) -> None:
        """TERM now and KILL after the grace. The first reason given stays; a shorter grace counts."""
        first = running.cause is None
        if first:
            running.cause = cause
            running.warn_at_ms = running.limit_at_ms = None
        kill_at_ms = self._book.now_ms + grace_ms
        if running.kill_at_ms is None or kill_at_ms < running.kill_at_ms:
            running.kill_at_ms = kill_at_ms
        if running.live:
            self._signal_stop(running, term=first)

    def _signal_stop(self, running: Running, *, term: bool = True) -> None:
        assert running.kill_at_ms is not None
        if running.kill_at_ms > self._book.now_ms:
            if term:
                self._book.command(Signal(running.attempt, SIGTERM, tree=True))
            self._set_timer(running)
        elif not running.killed:
            running.killed = True
            self._book.command(KillTree(running.attempt))

    def input_lost(self, news: InputLost) -> None:
        """It would wait for ever, or read what is not all: it is killed."""
        running = self.running.get(news.allocation, {}).get(news.index)
        if running is not None and running.cause is None:
            running.message = news.message
            self.stop(running, Cause.AGENT_ERROR, 0)

    def stop_all(self, cause: Cause, grace_ms: int) -> None:
        """Stops everything that runs."""
        for of_allocation in self.running.values():
            for running in of_allocation.values():
                self.stop(running, cause, grace_ms)

    # ------------------------------------------------------------ time

    @property
    def in_contact(self) -> bool:
        """Whether the leader has been heard of so lately that it does not call this node lost."""
        return self.fence_ms is not None and self._book.now_ms < self.fence_ms

    def meet_fence(self, fence_ms: int) -> None:
        """The leader was in contact: fenced attempts may run until then."""
        if not self.in_contact:
            self.changed.update(dict.fromkeys(self.places))
        self.fence_ms = fence_ms
        self._ran_out = False

    def contact_ran_out(self) -> bool:
        """Whether the leader may call this node lost; said once, until contact is made again."""
        said, self._ran_out = self._ran_out, not self.in_contact
        return self._ran_out and not said

    def on_time(self) -> None:
        """Does what is due."""
        for attempt in self._timers.take_due(self._book.now_ms):
            self._due(self._find(attempt))

    @property
    def any_fenced(self) -> bool:
        return bool(self._fenced)

    def stop_fenced(self) -> None:
        """Contact was lost for too long: another attempt may begin elsewhere, so these end at once."""
        for running in self._fenced.values():
            self.stop(running, Cause.NODE_LOST, 0)

    def _due(self, running: Running) -> None:
        now_ms = self._book.now_ms
        if running.kill_at_ms is not None:
            self._signal_stop(running, term=False)
            return
        if running.warn_at_ms is not None and running.warn_at_ms <= now_ms:
            warning = parse(running.spec.signal)
            assert warning is not None, running.spec.signal
            running.warn_at_ms = None
            self._book.command(Signal(running.attempt, warning[0], tree=False))
        if running.limit_at_ms is not None and running.limit_at_ms <= now_ms:
            self.stop(running, Cause.TIME_LIMIT, running.spec.grace)
        else:
            self._set_timer(running)

    def _set_timer(self, running: Running) -> None:
        times = (running.kill_at_ms, running.warn_at_ms, running.limit_at_ms)
        self._timers.put(running.attempt, next((at_ms for at_ms in times if at_ms is not None), None))

    def next_ms(self) -> int | None:
        """When something is due."""
        times = [self._timers.next_ms()]
        if self.in_contact and any(not running.killed for running in self._fenced.values()):
            times.append(self.fence_ms)
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    # ------------------------------------------------------------ what has not started

    def unstarted(self, allocation: AllocationHeld) -> Indices:
        """The allocation's indices that are in no run."""
        indices = Indices(allocation.waiting.ranges())
        place = self.places.get(allocation.lease)
        if place is not None and allocation.intended:
            for number, index in place.ready:
                if number == allocation.allocation:
                    indices.add(((index, index),))
        return indices

    def unready(self, allocation: AllocationHeld, indices: Ranges) -> None:
        """These are not to be spawned."""
        place = self.places.get(allocation.lease)
        if place is not None and place.ready and allocation.intended:
            gone = Indices(indices)
            place.ready = deque(
                (number, index)
                for number, index in place.ready
                if number != allocation.allocation or index not in gone
            )

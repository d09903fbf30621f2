"""How this process keeps up: how long its event loop is away from what waits, and what collects garbage when.

A pause is the time from one look for events to the next: for so long nobody else was served. It is measured
where the loop asks the kernel, so that an idle process has nothing to do for it.

Garbage: nearly all that the controller makes is freed as its last reference goes. Cycles are made by calls,
of gRPC and of errors, and are garbage before the round that made them is over (a test looks for others). So
what was made lately is looked at, between two rounds, and never all there is: that would stop a controller
with millions of objects for seconds, and find nothing. Left to itself Python looks when more objects were
made than freed: where old ones are replaced that is seldom, and then it had 150 ms of them to look at.
"""

import asyncio
import gc
import selectors
import time
from collections import deque
from dataclasses import dataclass

LONG_MS = 20
# So long a round takes up what nodes say and are told, and of what then waits so much in each further one.
ROUND_NS = 4_000_000
ROUND_COUNT_MAX = 64
# What was made in so much computing is looked at: one millisecond's work, about. Of so many such looks one is
# also at what stayed at the others.
LOOK_NS = 5_000_000
LOOKS_MAX = 4


class Garbage:
    """Looks for it instead of Python, which it keeps from doing so."""

    def __init__(self) -> None:
        gc.disable()
        self._looks = 0
        self._looked_ns = time.thread_time_ns()

    def look(self, cpu_ns: int) -> bool:
        """At what is young, if enough was computed since; `cpu_ns`: what this thread has by now."""
        if cpu_ns - self._looked_ns < LOOK_NS:
            return False
        self._looked_ns = cpu_ns
        self._looks += 1
        gc.collect(0 if self._looks % LOOKS_MAX else 1)
        return True


def keep() -> None:
    """All there is now will stay: it is not young."""
    gc.freeze()


def forget() -> None:
    """What was kept is garbage, perhaps: a look at all of it."""
    gc.unfreeze()
    gc.collect()


@dataclass(slots=True)
class Pace:
    """Since the process began to lead: the longest times, and how often they were long.

    `pause_ns_max` is by the clock on the wall, `busy_ns_max` what the loop's thread computed within one
    pause: the rest is the machine's, which had others to serve.
    """

    turns: int = 0
    turn_ns_max: int = 0
    pause_ns_max: int = 0
    busy_ns_max: int = 0
    pauses_long: int = 0
    # When the round under way began.
    round_began_ns: int = 0

    def begin(self) -> None:
        """Counts anew."""
        self.turns = self.turn_ns_max = 0
        self.pause_ns_max = self.busy_ns_max = self.pauses_long = 0


class _Selector(selectors.DefaultSelector):
    """Notes when its loop comes and goes."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace
        self._garbage = Garbage()
        pace.round_began_ns = time.perf_counter_ns()
        self._came_cpu_ns = time.thread_time_ns()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        pace = self._pace
        cpu_ns = time.thread_time_ns()
        if self._garbage.look(cpu_ns):
            cpu_ns = time.thread_time_ns()
        pause_ns = time.perf_counter_ns() - pace.round_began_ns
        # With the little that the last look for events took: a second reading would cost as much.
        busy_ns = cpu_ns - self._came_cpu_ns
        self._came_cpu_ns = cpu_ns
        if busy_ns > pace.busy_ns_max:
            pace.busy_ns_max = busy_ns
        if pause_ns > pace.pause_ns_max:
            pace.pause_ns_max = pause_ns
        if pause_ns > LONG_MS * 1_000_000:
            pace.pauses_long += 1
        found = super().select(timeout)
        pace.round_began_ns = time.perf_counter_ns()
        return found


class Rounds:
    """Lets the many who have something to do at once do it in several rounds of the event loop.

    asyncio runs whatever is ready before it looks for events again, and of a thousand streams each may have a
    message.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Until a round has time for it; who came first goes first."""
        now_ns = time.perf_counter_ns()
        if not self._waiting and now_ns - self._pace.round_began_ns < ROUND_NS:
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._next)
        self._waiting.append(turn)
        await turn

    def _next(self) -> None:
        """Lets some run in the next round, and sees to the rest in that."""
        for _ in range(min(len(self._waiting), ROUND_COUNT_MAX)):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)


def timed_loop(pace: Pace) -> asyncio.AbstractEventLoop:
    """An event loop whose pauses are noted, and that looks for garbage between its rounds."""
    return asyncio.SelectorEventLoop(_Selector(pace))

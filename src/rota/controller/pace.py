"""How this process keeps up: how long its event loop is away from what waits, and what collects garbage when.

A pause is the time from one look for events to the next: for so long nobody else was served. It is measured
where the loop asks the kernel, so that an idle process has nothing to do for it.

Garbage: nearly all that the controller makes is freed as its last reference goes; cycles are made by calls,
of gRPC and of errors, and die young. So only young objects are looked at. A look at all of them would stop a
controller with millions of objects for a large part of a second, and find nothing.
"""

import asyncio
import gc
import selectors
import time
from dataclasses import dataclass

LONG_MS = 20
# Objects made and not freed since the last look; so many looks at them before one at those that stayed, too.
# The larger one is at some 25,000 objects, and takes a few milliseconds.
YOUNG_COUNT = 5_000
YOUNG_ROUNDS = 5
NEVER = 1_000_000_000


def tend_garbage() -> None:
    """From now on only what is young is collected; all there is, only where somebody asks for it."""
    gc.set_threshold(YOUNG_COUNT, YOUNG_ROUNDS, NEVER)


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

    def begin(self) -> None:
        """Counts anew."""
        self.turns = self.turn_ns_max = 0
        self.pause_ns_max = self.busy_ns_max = self.pauses_long = 0


class _Selector(selectors.DefaultSelector):
    """Notes when its loop comes and goes."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace
        self._left_ns = time.perf_counter_ns()
        self._came_cpu_ns = time.thread_time_ns()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        pace = self._pace
        pause_ns = time.perf_counter_ns() - self._left_ns
        # With the little that the last look itself took: a second reading would cost as much.
        cpu_ns = time.thread_time_ns()
        busy_ns = cpu_ns - self._came_cpu_ns
        self._came_cpu_ns = cpu_ns
        if busy_ns > pace.busy_ns_max:
            pace.busy_ns_max = busy_ns
        if pause_ns > pace.pause_ns_max:
            pace.pause_ns_max = pause_ns
        if pause_ns > LONG_MS * 1_000_000:
            pace.pauses_long += 1
        found = super().select(timeout)
        self._left_ns = time.perf_counter_ns()
        return found


def timed_loop(pace: Pace) -> asyncio.AbstractEventLoop:
    """An event loop whose pauses are noted."""
    return asyncio.SelectorEventLoop(_Selector(pace))

"""Virtual time, chance from one seed, and the trace: the same seed gives the same history to the byte."""

import heapq
import random
from collections.abc import Callable


class World:
    """A clock and what is still to happen, in the order of time, then of scheduling."""

    def __init__(self, seed: int, *, trace: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.now_ms = 0
        self.event_count = 0
        self.chance = random.Random(seed)
        # Faults are drawn only while this holds; the last phase of a run is without.
        self.faults = True
        # What every probability of a fault is multiplied with.
        self.noise = 1.0
        self._queue: list[tuple[int, int, str | Callable[[], str], Callable[[], None]]] = []
        self._scheduled_count = 0
        self._trace = trace

    def after(self, delay_ms: int, what: str | Callable[[], str], action: Callable[[], None]) -> None:
        """Has something happen later. A text that takes work is made only where it is kept."""
        self._scheduled_count += 1
        heapq.heappush(self._queue, (self.now_ms + delay_ms, self._scheduled_count, what, action))

    def step(self) -> bool:
        """The next event; False where there is none."""
        if not self._queue:
            return False
        self.now_ms, _, what, action = heapq.heappop(self._queue)
        self.event_count += 1
        if self._trace is not None:
            text = what if isinstance(what, str) else what()
            self._trace(f"{self.event_count:>6} {self.now_ms / 1000:>9.3f} s  {text}")
        action()
        return True

    def void(self) -> None:
        """What was to happen had been overtaken: it was no event."""
        self.event_count -= 1
        self.say(lambda: "(overtaken)")

    def say(self, text: Callable[[], str]) -> None:
        """A line of the trace below the event; the text is made only where it is kept."""
        if self._trace is not None:
            self._trace(f"{'':>18}    {text()}")

    def maybe(self, probability: float) -> bool:
        """A fault happens with this probability, while faults happen."""
        return self.faults and self.chance.random() < probability * self.noise

    @property
    def wall_ms(self) -> int:
        """A wall clock: far from the virtual time, and of no use to decisions."""
        return 1_700_000_000_000 + self.now_ms

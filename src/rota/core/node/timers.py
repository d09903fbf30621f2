"""One time for each key, the earliest first."""

from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K")


class Timers(Generic[K]):
    """Keys that want to be looked at, each at one time in milliseconds. Keys are comparable."""

    def __init__(self) -> None:
        self._at: dict[K, int] = {}
        self._heap: list[tuple[int, K]] = []

    def put(self, key: K, at_ms: int | None) -> None:
        """Sets a key's time; None takes it away."""
        if at_ms is None:
            self._at.pop(key, None)
        elif self._at.get(key) != at_ms:
            self._at[key] = at_ms
            heappush(self._heap, (at_ms, key))
        # Times that were changed stay in the heap until they are due, or until they are most of it.
        if len(self._heap) > 2 * len(self._at) + 64:
            self._heap = [(at_ms, key) for key, at_ms in self._at.items()]
            heapify(self._heap)

    def take_due(self, now_ms: int) -> list[K]:
        """The keys whose time has come, in its order; they have none any more."""
        due = []
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, key = heappop(self._heap)
            if self._at.get(key) == at_ms:
                del self._at[key]
                due.append(key)
        return due

    def next_ms(self) -> int | None:
        """The earliest time."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

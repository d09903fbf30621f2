"""What has changed in the cluster's records since it was last looked at: `put` and `drop` write it down.

Whoever keeps an index of the cluster (`index`) reads it, and so looks at nothing else.
"""

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class News:
    """Names of what has changed; of leases (node, lease), of units (node, pool, unit). In order of time."""

    def __init__(self) -> None:
        self.jobs: dict[int, None] = {}
        self.nodes: dict[str, None] = {}
        self.units: dict[tuple[str, str, int], None] = {}
        self.leases: dict[tuple[str, int], None] = {}
        self.queues: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self.jobs or self.nodes or self.units or self.leases or self.queues)


class Ranked(Generic[Item]):
    """A set in the order of ranks that may change, the smallest first; of equal ranks the older first."""

    def __init__(self) -> None:
        self._ranks: dict[Item, tuple[Any, int]] = {}
        # What has another rank by now, or is gone, is passed over.
        self._heap: list[tuple[Any, int, Item]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._ranks)

    def __contains__(self, item: Item) -> bool:
        return item in self._ranks

    def __iter__(self) -> Iterator[Item]:
        return iter(self._ranks)

    def put(self, item: Item, rank: Any) -> None:
        """The item is in the set with this rank; ranks can be compared with one another."""
        known = self._ranks.get(item)
        if known is not None and known[0] == rank:
            return
        self._count += 1
        self._ranks[item] = (rank, self._count)
        heappush(self._heap, (rank, self._count, item))
        if len(self._heap) > 2 * len(self._ranks) + 16:
            self._heap = [(rank, count, item) for item, (rank, count) in self._ranks.items()]
            heapify(self._heap)

    def discard(self, item: Item) -> None:
        """The item is not in the set."""
        self._ranks.pop(item, None)

    def rank(self, item: Item) -> Any:
        """The rank of an item that is in the set."""
        return self._ranks[item][0]

    def first(self) -> Item | None:
        """The item of the smallest rank; None where there is none."""
        while self._heap:
            _, count, item = self._heap[0]
            known = self._ranks.get(item)
            if known is not None and known[1] == count:
                return item
            heappop(self._heap)
        return None

    def firsts(self, count: int) -> list[Item]:
        """So many items in order, or as many as there are."""
        first = self.first()
        if first is None or count == 1 or len(self._ranks) == 1:
            return [] if first is None else [first]
        found: list[tuple[Any, int, Item]] = []
        while len(found) < count and self.first() is not None:
            found.append(heappop(self._heap))
        for entry in found:
            heappush(self._heap, entry)
        return [item for _, _, item in found]

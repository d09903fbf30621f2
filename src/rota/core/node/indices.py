"""A set of task indices as ranges, without bitmaps: small while the indices follow one another."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from rota.core.model.protocol import Ranges

# Above so many ranges at once a set is walked through whole, instead of one search for each range.
_SEARCHED_COUNT_MAX = 16


def size(ranges: Ranges) -> int:
    """How many indices these ranges have."""
    return sum(last - first + 1 for first, last in ranges)


def each(ranges: Ranges) -> Iterator[int]:
    """Every index of these ranges."""
    for first, last in ranges:
        yield from range(first, last + 1)


def normal(ranges: Ranges) -> Ranges:
    """The same indices as ascending ranges that do not touch, whatever their order was."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        elif first <= last:
            joined.append((first, last))
    return tuple(joined)


def joined(indices: Iterable[int]) -> Ranges:
    """Ascending indices as ranges."""
    found: list[tuple[int, int]] = []
    first = last = -2
    for index in indices:
        if index == last + 1:
            last = index
            continue
        if first >= 0:
            found.append((first, last))
        first = last = index
    if first >= 0:
        found.append((first, last))
    return tuple(found)


class Indices:
    """A changing set of indices. Ranges given to it are ascending and do not touch, as on the wire."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Ranges = ()) -> None:
        self._put(ranges)

    def _put(self, ranges: Ranges) -> None:
        self._firsts = [first for first, _ in ranges]
        self._lasts = [last for _, last in ranges]

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __len__(self) -> int:
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def __contains__(self, index: int) -> bool:
        at = bisect_right(self._firsts, index) - 1
        return at >= 0 and index <= self._lasts[at]

    def __iter__(self) -> Iterator[int]:
        return each(self.ranges())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Indices):
            return NotImplemented
        return self._firsts == other._firsts and self._lasts == other._lasts

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Indices({self.ranges()})"

    def ranges(self) -> Ranges:
        """All of it."""
        return tuple(zip(self._firsts, self._lasts, strict=True))

    def first(self, count: int) -> Ranges:
        """The lowest `count` indices."""
        taken: list[tuple[int, int]] = []
        for first, last in zip(self._firsts, self._lasts, strict=True):
            if count <= 0:
                break
            last = min(last, first + count - 1)
            taken.append((first, last))
            count -= last - first + 1
        return tuple(taken)

    def last(self, count: int) -> Ranges:
        """The highest `count` indices."""
        taken: list[tuple[int, int]] = []
        for first, last in zip(reversed(self._firsts), reversed(self._lasts), strict=True):
            if count <= 0:
                break
            first = max(first, last - count + 1)
            taken.append((first, last))
            count -= last - first + 1
        return tuple(reversed(taken))

    def common(self, ranges: Ranges) -> Ranges:
        """Those of `ranges` that are in the set."""
        found: list[tuple[int, int]] = []
        for first, last in ranges:
            at = max(bisect_right(self._firsts, first) - 1, 0)
            while at < len(self._firsts) and self._firsts[at] <= last:
                low, high = max(first, self._firsts[at]), min(last, self._lasts[at])
                if low <= high:
                    found.append((low, high))
                at += 1
        return tuple(found)

    def missing(self, ranges: Ranges) -> Ranges:
        """Those of `ranges` that are not in the set."""
        rest = Indices(ranges)
        rest.remove(self.common(ranges))
        return rest.ranges()

    def add(self, ranges: Ranges) -> None:
        """Puts these into the set; some may be in it."""
        if len(ranges) > _SEARCHED_COUNT_MAX:
            self._put(normal(self.ranges() + ranges))
            return
        for first, last in ranges:
            low = bisect_left(self._lasts, first - 1)
            high = bisect_right(self._firsts, last + 1)
            if low < high:
                first, last = min(first, self._firsts[low]), max(last, self._lasts[high - 1])
            self._firsts[low:high] = [first]
            self._lasts[low:high] = [last]

    def remove(self, ranges: Ranges) -> None:
        """Takes these out of the set; some may not be in it."""
        if len(ranges) > _SEARCHED_COUNT_MAX:
            self._remove_many(ranges)
            return
        firsts, lasts = self._firsts, self._lasts
        for first, last in ranges:
            low = bisect_left(lasts, first)
            high = bisect_right(firsts, last)
            if low >= high:
                continue
            left = [(firsts[low], first - 1)] if firsts[low] < first else []
            right = [(last + 1, lasts[high - 1])] if lasts[high - 1] > last else []
            kept = left + right
            firsts[low:high] = [pair[0] for pair in kept]
            lasts[low:high] = [pair[1] for pair in kept]

    def _remove_many(self, ranges: Ranges) -> None:
        """One walk through both, in time linear in their ranges."""
        kept: list[tuple[int, int]] = []
        at = 0
        for low, high in self.ranges():
            while at < len(ranges) and ranges[at][1] < low:
                at += 1
            here = at
            while low <= high and here < len(ranges) and ranges[here][0] <= high:
                first, last = ranges[here]
                if low < first:
                    kept.append((low, first - 1))
                low = max(low, last + 1)
                here += 1
            if low <= high:
                kept.append((low, high))
        self._put(tuple(kept))

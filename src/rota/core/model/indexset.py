"""Sets of task indices: compressed bitmaps, the ranges of the wire, and the text that people write.

The bitmaps are Roaring bitmaps (Lemire et al., "Roaring Bitmaps: Implementation of an Optimized
Software Library", 2018) by way of pyroaring.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from pyroaring import BitMap

if TYPE_CHECKING:
    # Messages are not loaded for the sake of a name: commands start with this.
    from rota.core.model.protocol import Ranges

INDEX_MAX = 2**32 - 2
TASK_COUNT_MAX = 4_000_000
"""Tasks of a job."""

# Sets that are remembered by their text: many jobs have the same ones.
SETS_KNOWN_MAX = 1_024
SEGMENT_SIZE = 65_536
RANGES_PRINTED_MAX = 1_000

_ITEM = re.compile(r"(\d{1,10})(?:-(\d{1,10})(?::(\d{1,10}))?)?", re.ASCII)


class NotIndices(ValueError):
    """A text that is no index set; the message says why and what would be right."""


def full(count: int) -> BitMap:
    """0 to count - 1."""
    return BitMap(range(count)) if count else BitMap()


@lru_cache(maxsize=SETS_KNOWN_MAX)
def of_job(array: str, line_count: int) -> BitMap:
    """The tasks of a job with such an array, or so many lines; shared by jobs, so it must not be changed."""
    return parse(array, TASK_COUNT_MAX) if array else full(max(line_count, 1))


def from_ranges(ranges: "Ranges") -> BitMap:
    """The set of the wire's ranges."""
    result = BitMap()
    for first, last in ranges:
        result.add_range(first, last + 1)
    return result


def within(ranges: "Ranges", whole: BitMap) -> BitMap:
    """What of the wire's ranges is in a set; however far they reach, the cost is the set's own width."""
    result = BitMap()
    if not whole:
        return result
    low, high = whole.min(), whole.max()
    for first, last in ranges:
        if first <= high and last >= low:
            result.add_range(max(first, low), min(last, high) + 1)
    return result & whole


def to_ranges(indices: BitMap) -> "Ranges":
    """The wire's ranges of a set, in time linear in the number of ranges."""
    count = len(indices)
    if count and indices.max() - indices.min() == count - 1:
        return ((indices.min(), indices.max()),)
    result: list[tuple[int, int]] = []
    rank = 0
    while rank < count:
        first = indices[rank]
        length = _run_length(indices, rank, first, count)
        result.append((first, first + length - 1))
        rank += length
    return tuple(result)


def _run_length(indices: BitMap, rank: int, first: int, count: int) -> int:
    """How many indices follow one another from `first`, which stands at `rank`: doubling, then halving."""
    low, high = 1, 2
    while rank + high <= count and indices[rank + high - 1] == first + high - 1:
        low, high = high, high * 2
    high = min(high, count - rank + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if indices[rank + middle - 1] == first + middle - 1:
            low = middle
        else:
            high = middle
    return low


def take_first(indices: BitMap, count: int) -> BitMap:
    """The lowest `count` of a set."""
    if count >= len(indices):
        return indices.copy()
    if count <= 0:
        return BitMap()
    first, last = indices.min(), indices[count - 1]
    if last - first == count - 1:
        return BitMap(range(first, last + 1))
    return indices & BitMap(range(last + 1))


def parse(text: str, count_max: int) -> BitMap:
    """Indices as people write them: `0-99,200`, `0-98:2` (every second). Raises NotIndices."""
    result = BitMap()
    stepped = 0
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise NotIndices(f"'{_short(text)}' is not a list of indices; try 0-99 or 0-9,20")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        step = int(match[3]) if match[3] is not None else 1
        if last < first:
            raise NotIndices(f"'{item.strip()}' is upside down; try {last}-{first}")
        if step == 0:
            raise NotIndices(f"'{item.strip()}' has a step of 0; try a step of 1 or more")
        if last > INDEX_MAX:
            raise NotIndices(f"index {last} is too large; the largest is {INDEX_MAX}")
        if (last - first) // step + 1 > count_max:
            raise NotIndices(
                f"'{item.strip()}' is {(last - first) // step + 1:,} tasks; at most {count_max:,}"
            )
        if step == 1:
            result.add_range(first, last + 1)
        else:
            # One at a time, unlike a range: so that a short text is no long work, each counts each time.
            stepped += (last - first) // step + 1
            if stepped <= count_max:
                # The last one by itself: CRoaring steps past it, and near 2**32 begins anew at 0.
                end = last - (last - first) % step
                result |= BitMap(range(first, end, step))
                result.add(end)
        if len(result) > count_max or stepped > count_max:
            raise NotIndices(f"'{_short(text)}' is more than {count_max:,} tasks")
    return result


def text(indices: BitMap | Iterable[int]) -> str:
    """As people write it, at most RANGES_PRINTED_MAX ranges, then an ellipsis."""
    ranges = to_ranges(indices if isinstance(indices, BitMap) else BitMap(indices))
    shown = [
        str(first) if first == last else f"{first}-{last}" for first, last in ranges[:RANGES_PRINTED_MAX]
    ]
    return ",".join(shown) + (",..." if len(ranges) > RANGES_PRINTED_MAX else "")


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def segments_of(indices: BitMap) -> Iterable[tuple[int, BitMap]]:
    """The set cut at multiples of SEGMENT_SIZE: (segment, its part, still numbered as in the whole)."""
    if not indices:
        return
    segment = indices.min() // SEGMENT_SIZE
    last = indices.max() // SEGMENT_SIZE
    if segment == last:
        yield segment, indices
        return
    while segment <= last:
        part = indices & BitMap(range(segment * SEGMENT_SIZE, (segment + 1) * SEGMENT_SIZE))
        if part:
            yield segment, part
            segment += 1
        else:
            rest = indices.rank((segment + 1) * SEGMENT_SIZE - 1)
            segment = indices[rest] // SEGMENT_SIZE

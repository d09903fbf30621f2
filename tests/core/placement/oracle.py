"""What `choose.spread` must equal: one slot after the other to the place that is then the least full."""

import heapq
from collections.abc import Sequence

from rota.core.model.resources import Resources
from rota.core.placement.room import WHOLE_DEVICE, Unit


def spread(units: Sequence[Unit], shape: Resources, slots: int) -> list[tuple[int, int]]:
    """(place, slots), in the order of the places."""
    room = [fits(unit, shape) for unit in units]
    given = [0] * len(units)
    heap = [(fullness(unit, shape, 1), place) for place, unit in enumerate(units) if room[place]]
    heapq.heapify(heap)
    for _ in range(min(slots, sum(room))):
        _, place = heapq.heappop(heap)
        given[place] += 1
        if given[place] < room[place]:
            heapq.heappush(heap, (fullness(units[place], shape, given[place] + 1), place))
    return [(place, count) for place, count in enumerate(given) if count]


def fits(unit: Unit, shape: Resources) -> int:
    """How many slots have room in a unit."""
    count = shape.times_in(unit.free, unit.slots)
    if shape.gpu and unit.devices:
        if shape.gpu < WHOLE_DEVICE:
            count = min(count, sum(left // shape.gpu for left in unit.devices))
        else:
            count = min(count, unit.devices.count(WHOLE_DEVICE) // -(-shape.gpu // WHOLE_DEVICE))
    return max(count, 0)


def fullness(unit: Unit, shape: Resources, slots: int) -> float:
    """The largest used part of a resource once so many slots more are charged; 0 empty, 1 full."""
    parts = [
        (unit.whole.get(name) - unit.free.get(name) + amount * slots) / unit.whole.get(name)
        for name, amount in shape.items()
        if unit.whole.get(name)
    ]
    return max(parts, default=0.0)

"""Which places get slots: spread over the least loaded, evenly."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from rota.core.model.resources import Resources


@dataclass(slots=True)
class Place:
    """One unit of capacity of a node. `rank` breaks ties and is the same for the whole run."""

    node: str
    pool: str
    unit: int
    rank: int
    free: Resources
    whole: Resources
    slots_max: int


def spread(places: Sequence[Place], shape: Resources, slots: int) -> list[tuple[Place, int]]:
    """How many slots of a shape each place gets, `slots` in all where they fit.

    Each slot goes to the place that is the least full after it, by the resource of which it then
    has the smallest part left (the dominant share: Ghodsi et al., NSDI 2011).
    """
    room = [min(shape.times_in(place.free, place.slots_max), place.slots_max) for place in places]
    if sum(room) <= slots:
        return [(place, count) for place, count in zip(places, room, strict=True) if count]
    given = [0] * len(places)
    heap = [
        (fullness(place, shape, 1), place.rank, number)
        for number, place in enumerate(places)
        if room[number] > 0
    ]
    heapq.heapify(heap)
    for _ in range(slots):
        _, rank, number = heap[0]
        given[number] += 1
        if given[number] < room[number]:
            heapq.heapreplace(heap, (fullness(places[number], shape, given[number] + 1), rank, number))
        else:
            heapq.heappop(heap)
    return [(place, count) for place, count in zip(places, given, strict=True) if count]


def fullness(place: Place, shape: Resources, slots: int) -> float:
    """The largest used part of a resource once so many slots more are charged; 0 empty, 1 full."""
    result = 0.0
    for name, amount in shape.items():
        whole = place.whole.get(name)
        if whole:
            result = max(result, (whole - place.free.get(name) + amount * slots) / whole)
    return result

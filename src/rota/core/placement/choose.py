"""Which rows get slots: spread over the least full, evenly.

Each slot goes to the row that is the least full after it, by the resource of which it then has the
smallest part left (the dominant share: Ghodsi et al., NSDI 2011); of equals to the lowest row. As a row
only becomes fuller, that is: of all (row, how many slots it then has) those that are the least full.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from rota.core.model.resources import Resources
from rota.core.placement.room import FULL, Counts, Levels, Room, Rows

# So few slots are given one by one.
ONE_BY_ONE_MAX = 64


def spread(
    room: Room, shape: Resources, slots: int, only: Rows | None = None, without: Sequence[int] = ()
) -> tuple[list[int], list[int]]:
    """Which rows get slots of a shape, and how many each: `slots` in all where they fit. Rows ascend.

    `only` these rows, which ascend, or all but `without`.
    """
    if slots <= 0:
        return [], []
    score = room.scored(shape) if only is None else room.score(shape, only)
    if without:
        score = score.copy()
        score[without if only is None else np.flatnonzero(np.isin(only, without))] = np.inf
    if slots == 1:
        if not len(score) or score[place := int(score.argmin())] > FULL:
            return [], []
        return [place if only is None else int(only[place])], [1]
    places = np.flatnonzero(score <= FULL)
    if slots < len(places) and slots <= ONE_BY_ONE_MAX:
        # No more rows than slots get any: those that are the least full with one.
        worst = np.partition(score[places], slots - 1)[slots - 1]
        better = places[score[places] < worst]
        equal = places[score[places] == worst][: slots - len(better)]
        places = np.sort(np.concatenate((better, equal)))
    rows = places if only is None else only[places]
    fits = room.slots(shape, rows)
    counts = fits if fits.sum() <= slots else _fill(room.levels(shape, rows), fits, slots)
    some = counts > 0
    return rows[some].tolist(), counts[some].tolist()


def _fill(levels: Levels, fits: Counts, slots: int) -> Counts:
    """So many slots over rows, which have room for more than that."""
    if slots <= ONE_BY_ONE_MAX:
        return _one_by_one(levels, fits, slots)
    low, high = -1.0, float(levels.at(fits).max())
    below, above = np.zeros_like(fits), fits
    # Halve until no row has more than one step between the two levels, or there is nothing between them.
    while (above - below).max() > 1:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        counts = levels.count_up_to(middle, fits)
        if counts.sum() <= slots:
            low, below = middle, counts
        else:
            high, above = middle, counts
    between = above - below
    left = slots - int(below.sum())
    if between.max() <= 1:
        rows = np.flatnonzero(between)
        first = rows[np.argsort(levels.at(below + 1)[rows], kind="stable")[:left]]
        result = below.copy()
        result[first] += 1
        return result
    # All these steps are equally full: the lowest rows first.
    before = np.cumsum(between) - between
    ties: Counts = np.clip(left - before, 0, between)
    return below + ties


def _one_by_one(levels: Levels, fits: Counts, slots: int) -> Counts:
    given = np.zeros_like(fits)
    steps = [levels.at(given + 1).tolist()]
    heap = [(full, row) for row, full in enumerate(steps[0]) if fits[row]]
    heapq.heapify(heap)
    for _ in range(slots):
        _, row = heap[0]
        given[row] += 1
        count = int(given[row])
        if count < fits[row]:
            if count == len(steps):
                steps.append(levels.at(np.full_like(fits, count + 1)).tolist())
            heapq.heapreplace(heap, (steps[count][row], row))
        else:
            heapq.heappop(heap)
    return given

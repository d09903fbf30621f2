"""The choice by columns against the plain one."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rota.core.model.resources import NOTHING, Resources
from rota.core.placement import choose
from rota.core.placement.room import Room, Rows, Unit
from tests.core.placement import oracle

GIB = 2**30


def amounts(cpu: int, gib: int, gpu: int, power: int) -> Resources:
    return Resources.of(cpu=cpu * 500, memory=gib * GIB, gpu=gpu * 500, named={"power": power * 1000})


wholes = st.builds(amounts, st.integers(0, 40), st.integers(0, 40), st.integers(0, 8), st.integers(0, 3))
shapes = st.builds(amounts, st.integers(0, 6), st.integers(0, 4), st.integers(0, 4), st.integers(0, 1))


@st.composite
def units(draw: st.DrawFn) -> Unit:
    whole = draw(wholes)
    devices: tuple[int, ...] = ()
    if whole.gpu >= 1000 and draw(st.booleans()):
        devices = tuple(draw(st.sampled_from((0, 500, 1000))) for _ in range(whole.gpu // 1000))
    # Less than nothing is free where a node came back with less than was charged to it.
    used = (
        amounts(draw(st.integers(0, 45)), draw(st.integers(0, 20)), 0, 0) if draw(st.booleans()) else NOTHING
    )
    slots = draw(st.sampled_from((0, 3, 1024)))
    return Unit("n", "", 0, whole.plus(used, -1), whole, slots, devices=devices)


def spread(
    room: Room, shape: Resources, slots: int, only: Rows | None = None, without: Sequence[int] = ()
) -> list[tuple[int, int]]:
    rows, counts = choose.spread(room, shape, slots, only, without)
    return list(zip(rows, counts, strict=True))


def filled(found: list[Unit]) -> Room:
    room = Room()
    for unit in found:
        room.take(unit)
    return room


@given(st.lists(units(), max_size=12), shapes, st.integers(1, 400))
def test_the_same_slots_as_one_after_the_other(found: list[Unit], shape: Resources, slots: int) -> None:
    assert spread(filled(found), shape, slots) == oracle.spread(found, shape, slots)


@given(st.integers(100, 160), units(), shapes, st.integers(1, 300))
def test_among_equals_the_lowest_rows_first(count: int, unit: Unit, shape: Resources, slots: int) -> None:
    found = [unit] * count
    assert spread(filled(found), shape, slots) == oracle.spread(found, shape, slots)


@given(st.lists(units(), min_size=1, max_size=9), shapes, st.integers(1, 40), st.data())
def test_some_rows_alone_or_without_some(
    found: list[Unit], shape: Resources, slots: int, data: st.DataObject
) -> None:
    rows = st.lists(st.integers(0, len(found) - 1), unique=True).map(sorted)
    only, without = data.draw(rows), data.draw(rows)
    chosen = spread(filled(found), shape, slots, np.array(only, np.intp), without)
    allowed = [row for row in only if row not in without]
    wanted = oracle.spread([found[row] for row in allowed], shape, slots)
    assert chosen == [(allowed[place], count) for place, count in wanted]


@given(
    st.lists(units(), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.one_of(st.none(), units())), max_size=8),
    st.lists(shapes, min_size=1, max_size=3),
    st.integers(1, 60),
)
def test_what_is_kept_of_a_shape_follows_the_rows(
    found: list[Unit], changes: list[tuple[int, Unit | None]], asked: list[Resources], slots: int
) -> None:
    room = filled(found)
    gone = Unit("", "", 0, NOTHING, NOTHING, 0)
    for row, unit in changes:
        for shape in asked:
            assert spread(room, shape, slots) == oracle.spread(found, shape, slots)
        if row < len(found):
            if unit is None and room.units[row] is not None:
                room.give(row)
                found[row] = gone
            elif unit is not None and room.units[row] is not None:
                room.set(row, unit)
                found[row] = unit
    for shape in asked:
        assert spread(room, shape, slots) == oracle.spread(found, shape, slots)


def test_a_shape_is_scored_once_and_then_where_a_row_has_changed() -> None:
    whole = Resources(cpu=4_000, memory=8 * GIB)
    room = filled([Unit(f"n{row}", "", 0, whole, whole, 1024) for row in range(1_000)])
    shape = Resources(cpu=1_000)
    for turn in range(50):
        row, count = spread(room, shape, 1)[0]
        assert (row, count) == (turn, 1)
        room.set(row, Unit(f"n{row}", "", 0, whole.plus(shape, -1), whole, 1024))
    assert (room.shapes_scored, room.rows_rescored) == (1, 49)


def test_a_row_is_used_again_and_rows_that_many_changed_are_all_looked_at() -> None:
    whole = Resources(cpu=4_000)
    room = filled([Unit("a", "", 0, whole, whole, 1024), Unit("b", "", 0, whole, whole, 1024)])
    shape = Resources(cpu=1_000)
    spread(room, shape, 1)
    for _ in range(3_000):
        room.set(0, Unit("a", "", 0, NOTHING, whole, 1024))
    assert spread(room, shape, 9) == [(1, 4)]
    assert room.shapes_scored == 2
    room.give(0)
    assert room.take(Unit("c", "", 0, whole, whole, 1024)) == 0
    assert spread(room, shape, 9) == [(0, 4), (1, 4)]

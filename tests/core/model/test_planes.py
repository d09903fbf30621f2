"""Numbers of indices as bit planes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from rota.core.model import planes

SETS = st.sets(st.integers(0, 20), max_size=8)


@given(st.lists(st.tuples(st.sampled_from(["increase", "decrease", "clear"]), SETS), max_size=30))
def test_planes_count_as_a_counter_does(steps: list[tuple[str, set[int]]]) -> None:
    counts: Counter[int] = Counter()
    found: planes.Planes = ()
    for what, indices in steps:
        if what == "increase":
            counts.update(indices)
            found = planes.increased(found, BitMap(indices))
        elif what == "decrease":
            some = {index for index in indices if counts[index]}
            counts.subtract(some)
            found = planes.decreased(found, BitMap(some))
        else:
            for index in indices:
                counts[index] = 0
            found = planes.cleared(found, BitMap(indices))
        assert {index: planes.number(found, index) for index in range(21)} == {
            index: counts[index] for index in range(21)
        }
        assert set(planes.any_of(found)) == {index for index, count in counts.items() if count}
        assert not found or found[-1]


def test_the_callers_set_stays_the_callers() -> None:
    mine = BitMap([1])
    found = planes.increased((), mine)
    mine.add(2)
    assert planes.number(found, 2) == 0


def test_less_than_zero_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="less than zero"):
        planes.decreased((BitMap([1]),), BitMap([2]))

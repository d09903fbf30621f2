"""Sets of indices: as ranges, as text, and cut in pieces; compared with Python's own sets."""

import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from rota.core.model import indexset
from rota.core.model.indexset import INDEX_MAX, SEGMENT_SIZE, NotIndices

# Near one another, at the ends of segments, and at the end of all.
INDICES = st.one_of(
    st.integers(0, 50),
    st.integers(SEGMENT_SIZE - 5, SEGMENT_SIZE + 5),
    st.integers(INDEX_MAX - 50, INDEX_MAX),
    st.integers(0, INDEX_MAX),
)
SETS = st.sets(INDICES, max_size=60)
RANGES = st.tuples(INDICES, st.integers(0, 300)).map(
    lambda pair: range(pair[0], min(sum(pair), INDEX_MAX) + 1)
)


@given(st.lists(RANGES, max_size=6))
def test_ranges_there_and_back(ranges: list[range]) -> None:
    wanted = sorted({index for one in ranges for index in one})
    indices = indexset.from_ranges(tuple((one[0], one[-1]) for one in ranges))
    assert list(indices) == wanted
    back = indexset.to_ranges(indices)
    assert [index for first, last in back for index in range(first, last + 1)] == wanted
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(back)), "not joined"


@given(SETS)
def test_text_there_and_back(indices: set[int]) -> None:
    if indices:
        assert set(indexset.parse(indexset.text(indices), 100)) == indices
    else:
        assert indexset.text(indices) == ""


@given(st.lists(st.tuples(INDICES, INDICES, st.integers(1, 2**32 - 1)), min_size=1, max_size=4))
def test_steps_are_pythons(items: list[tuple[int, int, int]]) -> None:
    items = [(min(a, b), max(a, b), max(step, (max(a, b) - min(a, b)) // 500)) for a, b, step in items]
    wanted = {index for first, last, step in items for index in range(first, last + 1, step)}
    text = ", ".join(f"{first}-{last}:{step}" for first, last, step in items)
    assert set(indexset.parse(text, 4_000)) == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is not a list of indices; try 0-99 or 0-9,20"),
        ("0-9,", "'0-9,' is not a list of indices; try 0-99 or 0-9,20"),
        ("1.5", "'1.5' is not a list of indices; try 0-99 or 0-9,20"),
        ("-1", "'-1' is not a list of indices; try 0-99 or 0-9,20"),
        ("٠-٩", "'٠-٩' is not a list of indices; try 0-99 or 0-9,20"),
        ("x" * 41, f"'{'x' * 37}...' is not a list of indices; try 0-99 or 0-9,20"),
        ("9-0", "'9-0' is upside down; try 0-9"),
        ("0-9:0", "'0-9:0' has a step of 0; try a step of 1 or more"),
        ("4294967295", "index 4294967295 is too large; the largest is 4294967294"),
        ("0-4000000", "'0-4000000' is 4,000,001 tasks; at most 4,000,000"),
        ("0-3999999,4000000", "'0-3999999,4000000' is more than 4,000,000 tasks"),
        ("0-7999998:2,0-7999998:2", "'0-7999998:2,0-7999998:2' is more than 4,000,000 tasks"),
    ],
)
def test_what_is_no_set_is_said(text: str, says: str) -> None:
    with pytest.raises(NotIndices) as error:
        indexset.parse(text, indexset.TASK_COUNT_MAX)
    assert str(error.value) == says


def test_a_short_text_is_no_long_work() -> None:
    started = time.process_time()
    for text in (
        "0-4294967294:4000000",
        ",".join(["0-4294967290:4000000"] * 50_000),
        "0-3999999," * 50_000 + "0",
    ):
        with suppress(NotIndices):
            indexset.parse(text, indexset.TASK_COUNT_MAX)
    assert time.process_time() - started < 10


def test_a_long_text_is_cut() -> None:
    assert indexset.text(range(0, 6_000, 2)).endswith(",1998,...")


@given(SETS, st.integers(-1, 70))
def test_the_lowest(indices: set[int], count: int) -> None:
    given_ = BitMap(indices)
    assert list(indexset.take_first(given_, count)) == sorted(indices)[: max(count, 0)]
    assert set(given_) == indices, "what is given is left as it is"


@given(SETS)
def test_segments(indices: set[int]) -> None:
    parts = list(indexset.segments_of(BitMap(indices)))
    assert [index for _, part in parts for index in part] == sorted(indices)
    assert all({index // SEGMENT_SIZE for index in part} == {segment} for segment, part in parts)


def test_all_of_a_count() -> None:
    assert list(indexset.full(0)) == []
    assert list(indexset.full(3)) == [0, 1, 2]

"""The small parts, against the plainest thing that does the same."""

from itertools import pairwise
from typing import NoReturn

from hypothesis import given
from hypothesis import strategies as st

from rota.core.model.protocol import Ranges, Template
from rota.core.model.spec import JobSpec
from rota.core.node.entries import Drop, Granted, TemplateKept
from rota.core.node.held import TEMPLATES_COUNT_MAX, Held
from rota.core.node.indices import Indices, each, normal, size
from rota.core.node.signals import parse
from rota.core.node.timers import Timers


def to_ranges(indices: set[int]) -> Ranges:
    return normal(tuple((index, index) for index in indices))


few = st.sets(st.integers(0, 60), max_size=40).map(to_ranges)
many = st.sets(st.integers(0, 400), max_size=120).map(to_ranges)
some = st.one_of(few, many)


@given(some, some)
def test_indices_are_a_set(a: Ranges, b: Ranges) -> None:
    left, right = set(each(a)), set(each(b))
    indices = Indices(a)
    assert indices.ranges() == a
    assert list(indices) == sorted(left)
    assert len(indices) == len(left) == size(a)
    assert set(each(indices.common(b))) == left & right
    assert set(each(indices.missing(b))) == right - left
    indices.add(b)
    assert indices.ranges() == to_ranges(left | right)
    assert all((index in indices) == (index in left | right) for index in range(-1, 402))
    indices.remove(a)
    assert indices.ranges() == to_ranges(right - left)


@given(some, st.integers(0, 130))
def test_first_and_last_of_indices(a: Ranges, count: int) -> None:
    indices = Indices(a)
    assert list(each(indices.first(count))) == sorted(each(a))[:count]
    assert list(each(indices.last(count))) == sorted(each(a))[-count:] if count else indices.last(0) == ()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))))
def test_normal_ranges_ascend_and_do_not_touch(pairs: list[tuple[int, int]]) -> None:
    joined = normal(tuple(pairs))
    assert set(each(joined)) == {index for first, last in pairs for index in range(first, last + 1)}
    assert all(a[1] + 1 < b[0] for a, b in pairwise(joined))


@given(st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(0, 99))), max_size=300))
def test_timers_hold_one_time_for_each_key(puts: list[tuple[int, int | None]]) -> None:
    timers: Timers[int] = Timers()
    plain: dict[int, int] = {}
    for key, at_ms in puts:
        timers.put(key, at_ms)
        plain.pop(key, None)
        if at_ms is not None:
            plain[key] = at_ms
        assert timers.next_ms() == min(plain.values(), default=None)
    assert sorted(timers.take_due(50)) == sorted(key for key, at_ms in plain.items() if at_ms <= 50)
    assert timers.next_ms() == min((at_ms for at_ms in plain.values() if at_ms > 50), default=None)


def test_timers_that_were_taken_away_take_no_room() -> None:
    timers: Timers[int] = Timers()
    for key in range(10_000):
        timers.put(key, 1_000_000)
        timers.put(key, None)
    assert len(timers._heap) < 100


def test_signals_are_read_as_jobs_name_them() -> None:
    assert parse("USR1@60s") == (10, 60_000)
    assert parse("SIGTERM@1m30s") == (15, 90_000)
    assert parse("int@1.5s") == (2, 1_500)
    assert parse("HUP") == (1, 0)
    assert parse("") is None
    assert parse("NONE@1s") is None


class Unwalked(dict[tuple[int, int], Template]):
    """Templates that nobody may go through: there are many where each job has one task."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("all templates were looked at")


def test_of_many_templates_the_one_that_was_used_least_lately_goes_and_no_other_is_looked_at() -> None:
    held = Held()
    for job in range(1, TEMPLATES_COUNT_MAX + 1):
        held.apply(TemplateKept(Template(job, 1, JobSpec(command=("true",)), 1, "")))
        held.apply(Granted(job, 1, job, 1, job, 1, ((0, 0),), (), never_stall=False))
    held.templates = Unwalked(held.templates)
    for job in (6, 5):
        held.apply(Drop(job, ((0, 0),)))
    for job in range(TEMPLATES_COUNT_MAX + 1, TEMPLATES_COUNT_MAX + 4):
        held.apply(TemplateKept(Template(job, 1, JobSpec(command=("true",)), 1, "")))
    assert (6, 1) not in held.templates
    assert (5, 1) not in held.templates
    # None but they, and what came last.
    assert len(held.templates) == TEMPLATES_COUNT_MAX + 1

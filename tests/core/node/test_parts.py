"""The small parts, against the plainest thing that does the same."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota.core.model.protocol import Ranges, Slot, Template
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.node.entries import Begin, Drop, Entry, Granted, LeaseKept, TemplateKept
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


def held_one_task_jobs(count: int) -> Held:
    """A memory of so many jobs of one task each, all of which wait."""
    held = Held()
    for job in range(1, count + 1):
        held.apply(TemplateKept(Template(job, 1, JobSpec(command=("true",)), 1, "")))
        held.apply(Granted(job, 1, job, 1, job, 1, ((0, 0),), (), never_stall=False))
    return held


def test_of_many_templates_the_one_that_was_used_least_lately_goes_and_no_other_is_looked_at() -> None:
    held = held_one_task_jobs(TEMPLATES_COUNT_MAX)
    held.templates = Unwalked(held.templates)
    for job in (6, 5):
        held.apply(Drop(job, ((0, 0),)))
    job = TEMPLATES_COUNT_MAX + 1
    held.apply(TemplateKept(Template(job, 1, JobSpec(command=("true",)), 1, "")))
    assert len(held.templates) == job, "what comes with it is not known before the grant"
    held.apply(Granted(job, 1, job, 1, job, 1, ((0, 0),), (), never_stall=False))
    assert (6, 1) not in held.templates
    assert (5, 1) in held.templates
    assert len(held.templates) == TEMPLATES_COUNT_MAX


def state(held: Held) -> tuple[object, ...]:
    """All that a memory is, with the orders that count."""
    return (
        list(held.snapshot()),
        list(held.unused_templates),
        held.templates,
        held.template_uses,
        held._templates_bytes,
        [list(lease.waiting) for lease in held.leases.values()],
    )


def replayed(entries: Iterable[Entry]) -> Held:
    held = Held()
    for entry in entries:
        held.apply(entry)
    return held


# A job to grant a task of, with the size of its script, or else one whose oldest allocation is given back.
deeds = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from([0, 0, 300_000, 1_000_000]), st.booleans()), max_size=60
)


def entries_of(held: Held, deeds: list[tuple[int, int, bool]], first: int) -> Iterator[Entry]:
    """What a machine would write, which is given a template only where it has none; each is applied."""

    def done(entry: Entry) -> Entry:
        held.apply(entry)
        return entry

    for number, (job, size_bytes, gives_back) in enumerate(deeds, first):
        oldest = next((one for one in held.allocations.values() if one.job == job), None)
        if gives_back and oldest is not None:
            yield done(Drop(oldest.allocation, oldest.waiting.ranges()))
            continue
        if (job, 1) not in held.templates:
            spec = JobSpec(command=("true",), script="x" * size_bytes)
            yield done(TemplateKept(Template(job, 1, spec, 1, "")))
        yield done(Granted(number, 1, job, 1, number, 1, ((0, 0),), (), never_stall=False))


@given(deeds, deeds, st.integers(1, 8))
def test_a_snapshot_and_what_follows_it_make_the_same_memory(
    before: list[tuple[int, int, bool]], after: list[tuple[int, int, bool]], count_max: int
) -> None:
    """Above both limits too: of the number of templates, and of their bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rota.core.node.held.TEMPLATES_COUNT_MAX", count_max)
        live = replayed([Begin("j", "b"), LeaseKept(1, Resources(cpu=1), "q", (Slot(0),), 1)])
        for _ in entries_of(live, before, 1):
            pass
        snapshot = list(live.snapshot())
        assert state(replayed(snapshot)) == state(live)
        tail = list(entries_of(live, after, 1_000))
        again = replayed([*snapshot, *tail])
        assert state(again) == state(live)
        assert all(again.template(held) for held in again.allocations.values())


def test_more_jobs_than_templates_may_be_unused_are_all_there_after_a_snapshot() -> None:
    live = held_one_task_jobs(TEMPLATES_COUNT_MAX + 200)
    assert state(replayed(live.snapshot())) == state(live)
    assert len(live.templates) == TEMPLATES_COUNT_MAX + 200

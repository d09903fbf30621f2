"""Attempts in packed columns: made with the standard library, read with NumPy, and the other way."""

import dataclasses
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from rota.core.cluster import rows
from rota.core.cluster.records import EventRecord, ResultBlock, allocation_key
from rota.core.model import columns
from rota.core.model.protocol import AllocationReport, Ended, Grant
from rota.core.model.states import Cause, EventKind, JobState, OnNodeLoss
from tests.core.cluster.scene import WALL_MS, Scene, exits

NUMBERS = st.integers(0, 300) | st.integers(0, columns.NUMBER_MAX)
ATTEMPTS = st.lists(
    st.builds(
        Ended,
        index=st.integers(0, 2**32 - 2),
        cause=st.just(Cause.EXIT),
        code=st.integers(0, 255),
        started_at_ms=st.integers(0, 2**47),
        duration_ms=NUMBERS,
        cpu_user_ms=NUMBERS,
        cpu_system_ms=NUMBERS,
        memory_peak_kib=NUMBERS,
    ),
    max_size=20,
    unique_by=lambda ended: ended.index,
).map(lambda found: sorted(found, key=lambda ended: ended.index))


@given(ATTEMPTS)
def test_columns_are_read_as_they_were_made(attempts: list[Ended]) -> None:
    packed = columns.columns_of(attempts)
    assert rows.problem(packed) == ""
    assert list(columns.exited(packed)) == attempts
    assert list(rows.tasks(packed)) == [ended.index for ended in attempts] == list(columns.indices(packed))
    count = len(attempts)
    assert rows.total(packed.cpu_user_ms, count) == sum(ended.cpu_user_ms for ended in attempts)
    assert rows.highest(packed.memory_peak_kib, count) == max(
        (ended.memory_peak_kib for ended in attempts), default=0
    )
    assert rows.succeeded_ms(packed) == sum(ended.duration_ms for ended in attempts if not ended.code)
    by_code = dict(rows.failed_by_code(packed))
    assert {index: code for code, alike in by_code.items() for index in alike} == {
        ended.index: ended.code for ended in attempts if ended.code
    }
    if attempts:
        assert rows.first_start_ms(packed) == min(ended.started_at_ms for ended in attempts)


@given(ATTEMPTS, st.data())
def test_some_of_them_and_the_others_are_all(attempts: list[Ended], data: st.DataObject) -> None:
    packed = columns.columns_of(attempts)
    some = BitMap(one.index for one in attempts if data.draw(st.booleans()))
    chosen, rest = rows.of(packed, some), rows.of(packed, rows.tasks(packed) - some)
    assert list(columns.exited(chosen)) == [one for one in attempts if one.index in some]
    assert list(columns.exited(rows.both(chosen, rest))) == attempts


@given(ATTEMPTS, st.data())
def test_a_block_gives_the_results_that_are_asked_for(attempts: list[Ended], data: st.DataObject) -> None:
    count = len(attempts)
    packed = columns.columns_of(attempts)
    block = ResultBlock(1, 2, "n", packed, columns.repeated(3, count), columns.repeated(Cause.EXIT, count))
    assert [(one.index, one.attempt, one.cause, one.code) for one in rows.results(block)] == [
        (ended.index, 3, Cause.EXIT, ended.code) for ended in attempts
    ]
    asked = BitMap(data.draw(st.sets(st.integers(0, 2**32 - 2) | st.sampled_from([*block.tasks(), 0]))))
    assert [one.index for one in rows.results(block, asked)] == list(asked & block.tasks())


CODES = (0, 3, 4, 3, 0, 0)
SWAPPED = bytes((2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0))
PACKED = exits(1, 2, 300, code=7, started_at_ms=WALL_MS, duration_ms=70_000, memory_peak_kib=5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"index": b"12345"}, "index: 5 bytes are no numbers of 4"),
        (
            {"index": SWAPPED},
            "index: the indices do not ascend",
        ),
        ({"index": PACKED.index[:4] * 3}, "index: the indices do not ascend"),
        ({"index": b""}, "code: 3 bytes are no column of 0 numbers"),
        ({"code": b"\1"}, "code: 1 bytes are no column of 3 numbers"),
        ({"code": bytes(9)}, "code: 9 bytes are no column of 3 numbers"),
        ({"code": bytes(48)}, "code: 48 bytes are no column of 3 numbers"),
        ({"code": bytes(4) + b"\0\1"}, "code: 256 is too large; the most is 255"),
        (
            {"started_after_ms": b"\xff" * 24},
            f"started_after_ms: {2**64 - 1} is too large; the most is {2**48}",
        ),
        (
            {"cpu_user_ms": columns.pack([0, 2**40 + 1, 0])},
            f"cpu_user_ms: {2**40 + 1} is too large; the most is {2**40}",
        ),
    ],
)
def test_what_is_no_column_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    assert rows.problem(PACKED) == ""
    assert rows.problem(dataclasses.replace(PACKED, **changes)) == says


def test_a_number_below_zero_is_packed_nowhere() -> None:
    with pytest.raises(OverflowError):
        columns.pack([1, -1])
    with pytest.raises(ValueError, match="5 bytes are no column of 2 numbers"):
        columns.unpack(b"12345", 2)


def _ended(scene: Scene) -> list[tuple[int | None, int]]:
    return [(event.index, event.code) for event in scene.last.events if event.kind is EventKind.ATTEMPT_ENDED]


def test_exits_with_other_codes_are_judged_by_their_failures_each() -> None:
    scene = Scene()
    node = scene.node("n", 8)
    job = scene.submit(array="0-5", retries=1, backoff=100)
    (grant,) = scene.sent(Grant)
    codes = columns.columns_of(
        [Ended(index, Cause.EXIT, code, started_at_ms=WALL_MS) for index, code in enumerate(CODES)]
    )
    scene.report(node, AllocationReport(grant.allocation, exits=codes))
    assert _ended(scene) == [(1, 3), (2, 4), (3, 3)]
    assert scene.job(job).count_succeeded == 3
    assert scene.job(job).delayed == BitMap([1, 2, 3])
    groups = scene.job(job).exceptions_of(0).groups
    assert [(group.code, group.indices) for group in groups] == [(3, BitMap([1, 3])), (4, BitMap([2]))]
    scene.wait(200)
    (again,) = scene.job(job).allocations.values()
    assert again.desired.first_attempt == 2
    scene.report(node, AllocationReport(again.id, exits=exits(1, 2, 3, code=5)))
    assert scene.job(job).count_failed == 3
    assert scene.job(job).status.state is JobState.FAILED
    assert sorted(scene.outcomes(job)) == [
        (0, 1),
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
        (3, 1),
        (3, 2),
        (4, 1),
        (5, 1),
    ]


def test_a_report_costs_as_many_records_and_blocks_for_thousands_of_ends_as_for_a_few() -> None:
    """What is counted is the structure: nothing is made for each task, and the columns are not made anew."""
    found = []
    for count in (8, 8_000):
        scene = Scene()
        node = scene.node("n", 4)
        job = scene.submit(array="0-99999", retries=1, backoff=60_000, on_node_loss=OnNodeLoss.HOLD)
        (allocation,) = scene.job(job).allocations.values()
        # As if the leader had queued much work; one in four fails.
        whole = replace(allocation.desired, indices=BitMap(range(10_000)))
        scene.machine.cluster.put(allocation_key(node, allocation.id), whole)
        ends = [
            Ended(index, Cause.EXIT, int(index % 4 == 3), started_at_ms=WALL_MS) for index in range(count)
        ]
        told = columns.columns_of(ends)
        outcome = scene.report(node, AllocationReport(allocation.id, exits=told))
        (block,) = outcome.blocks
        assert isinstance(block, ResultBlock)
        assert block.columns is told
        kinds = Counter(type(record) for record in outcome.changes.values())
        found.append({kind: number for kind, number in kinds.items() if kind is not EventRecord})
        assert scene.job(job).count_succeeded == count * 3 // 4
        assert len(scene.job(job).delayed) == count // 4
    assert found[0] == found[1]

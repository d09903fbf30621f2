"""The archive face, alike in every store."""

import pytest
from pyroaring import BitMap

from rota.core.cluster.records import Block, JobBlock, JobConfig, ResultBlock, job_key
from rota.core.model.columns import columns_of, repeated
from rota.core.model.protocol import Ended
from rota.core.model.states import Cause
from rota.store.port import Fenced, StoreError
from rota.store.sqlite import SqliteStore
from rota.wire import records
from rota.wire.records import decode_results, encode_block
from tests.contract.conftest import Opened, changes


def results(job: int, indices: list[int], allocation: int = 1) -> ResultBlock:
    count = len(indices)
    rows = [
        Ended(
            index,
            Cause.EXIT,
            started_at_ms=1_700_000_000_000,
            duration_ms=5,
            cpu_user_ms=1,
            cpu_system_ms=1,
            memory_peak_kib=100,
        )
        for index in indices
    ]
    return ResultBlock(
        job=job,
        allocation=allocation,
        node_id="n",
        columns=columns_of(rows),
        attempt=repeated(1, count),
        cause=repeated(Cause.EXIT, count),
        messages={indices[0]: "said"},
    )


def between(first: int, last: int) -> BitMap:
    return BitMap(range(first, last + 1))


def archived(job: int, at_ms: int = 0) -> JobBlock:
    return JobBlock(job, [(job_key(job), JobConfig(f"owner of {job}"))], at_ms)


async def append(opened: Opened, *blocks: Block) -> None:
    fence = (await opened.store.load("meta/")).fence
    appended = changes(fence, {})
    appended.blocks.extend(blocks)
    await opened.store.commit(appended, fence)


async def test_results_are_found_by_job_and_index_in_the_order_appended(opened: Opened) -> None:
    late, early = results(1, [100, 101], allocation=2), results(1, [0, 5, 50], allocation=3)
    await append(opened, late, early)
    await append(opened, results(2, [5]), results(1, [5], allocation=4))
    found = await opened.archive.results(1, between(0, 200))
    assert found == [late, early, results(1, [5], allocation=4)]
    assert [block.allocation for block in await opened.archive.results(1, BitMap([5]))] == [3, 4]
    assert [block.allocation for block in await opened.archive.results(1, between(101, 4_000_000))] == [2]
    assert await opened.archive.results(1, between(102, 4_000_000)) == []
    assert await opened.archive.results(1, between(6, 49)) == [], "within the block's bounds, but not in it"
    assert await opened.archive.results(3, between(0, 4_000_000)) == []


async def test_between_indices_that_are_far_apart_nothing_is_read(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`logs J/0,3999999` had read all the results of the job."""
    await append(opened, *(results(1, [low, low + 9], allocation=low + 1) for low in range(0, 100, 10)))
    read: list[ResultBlock] = []

    def counted(data: bytes) -> ResultBlock:
        read.append(decode_results(data))
        return read[-1]

    if isinstance(opened.store, SqliteStore):
        monkeypatch.setattr(records, "decode_results", counted)
    found = await opened.archive.results(1, BitMap([0, 55, 99]))
    assert [block.allocation for block in found] == [1, 91]
    if isinstance(opened.store, SqliteStore):
        assert [block.allocation for block in read] == [1, 51, 91], "55 is within the bounds of one"
    assert await opened.archive.results(1, BitMap()) == []


async def test_a_block_without_attempts_is_no_matter(opened: Opened) -> None:
    await append(opened, ResultBlock(1, 1, "n"), results(1, [0]))
    assert await opened.archive.results(1, between(0, 4_000_000)) == [results(1, [0])]
    assert await opened.archive.archived_job(1) is None


async def test_blocks_and_records_are_one_commit(opened: Opened) -> None:
    refused = changes(0, {})
    refused.blocks.append(results(1, [1]))
    with pytest.raises(Fenced):
        await opened.store.commit(refused, 5)
    assert await opened.archive.results(1, between(0, 9)) == []
    bad = results(1, [1])
    bad.columns.started_at_ms = 2**63
    refused.blocks.append(bad)
    with pytest.raises(ValueError, match="range"):
        await opened.store.commit(refused, 0)
    assert await opened.archive.results(1, between(0, 9)) == []
    assert (await opened.store.load()).fence == 0


async def test_archived_jobs_are_whole_and_listed_from_the_newest(opened: Opened) -> None:
    await append(opened, *(archived(job) for job in (3, 1, 300, 20)), results(4, [0]))
    assert await opened.archive.archived_job(20) == archived(20)
    assert await opened.archive.archived_job(4) is None
    assert await opened.archive.archived_jobs(0, 10) == [300, 20, 3, 1]
    assert await opened.archive.archived_jobs(0, 2) == [300, 20]
    assert await opened.archive.archived_jobs(20, 10) == [3, 1]
    assert await opened.archive.archived_jobs(1, 10) == []


async def test_a_job_archived_again_is_there_once(opened: Opened) -> None:
    await append(opened, archived(1, at_ms=1))
    await append(opened, archived(1, at_ms=2))
    assert await opened.archive.archived_jobs(0, 10) == [1]
    assert await opened.archive.archived_job(1) == archived(1, at_ms=2)


async def test_a_job_archived_twice_in_one_commit_is_there_as_the_last(opened: Opened) -> None:
    await append(opened, archived(1, at_ms=1), results(1, [0]), archived(1, at_ms=2))
    assert await opened.archive.archived_jobs(0, 10) == [1]
    assert await opened.archive.archived_job(1) == archived(1, at_ms=2)
    await append(opened, archived(1, at_ms=3))
    assert await opened.archive.archived_job(1) == archived(1, at_ms=3)
    assert await opened.archive.results(1, between(0, 9)) == [results(1, [0])]


async def test_forgotten_jobs_leave_nothing(opened: Opened) -> None:
    await append(opened, archived(1), results(1, [0]), archived(2), results(2, [0]), results(3, [0]))
    await opened.archive.forget([1, 3, 99])
    assert await opened.archive.archived_jobs(0, 10) == [2]
    assert [len(await opened.archive.results(job, between(0, 9))) for job in (1, 2, 3)] == [0, 1, 0]


async def test_blocks_are_pruned_by_age(opened: Opened) -> None:
    start = opened.clock.ms
    for day in range(4):
        opened.clock.ms = start + day
        await append(opened, archived(day + 1), results(day + 1, [day]))
    assert await opened.archive.prune(start, 2**60, ()) == 0
    assert await opened.archive.prune(start + 2, 2**60, ()) == 4
    assert await opened.archive.archived_jobs(0, 10) == [4, 3]
    assert [len(await opened.archive.results(job, between(0, 9))) for job in (1, 2, 3, 4)] == [0, 0, 1, 1]


async def test_blocks_are_pruned_by_quota_the_oldest_first(opened: Opened) -> None:
    block = results(1, [7])
    size = len(encode_block(block))
    start = opened.clock.ms
    for number in (3, 1, 2, 0):
        opened.clock.ms = start + number
        await append(opened, results(1, [number]))
    assert await opened.archive.prune(0, 4 * size, ()) == 0
    assert await opened.archive.prune(0, 4 * size - 1, ()) == 1
    assert [list(block.tasks()) for block in await opened.archive.results(1, between(0, 9))] == [
        [3],
        [1],
        [2],
    ]
    assert await opened.archive.prune(0, size, ()) == 2
    assert [list(block.tasks()) for block in await opened.archive.results(1, between(0, 9))] == [[3]]
    assert await opened.archive.prune(0, 0, ()) == 1
    assert await opened.archive.results(1, between(0, 9)) == []


async def test_jobs_count_for_the_quota_too_and_what_is_too_old_goes_first(opened: Opened) -> None:
    blocks: list[Block] = [archived(1), results(2, [0]), archived(3), results(4, [0])]
    sizes = [len(encode_block(block)) for block in blocks]
    start = opened.clock.ms
    for number, block in enumerate(blocks):
        opened.clock.ms = start + number
        await append(opened, block)
    assert await opened.archive.prune(start, sum(sizes), ()) == 0
    # The first is too old; without it, the quota asks for one more.
    assert await opened.archive.prune(start + 1, sum(sizes[1:]) - 1, ()) == 2
    assert await opened.archive.archived_jobs(0, 9) == [3]
    assert await opened.archive.results(2, between(0, 9)) == []
    assert await opened.archive.prune(0, sizes[3], ()) == 1
    assert await opened.archive.archived_jobs(0, 9) == []
    assert await opened.archive.results(4, between(0, 9)) == [blocks[3]]


async def test_what_is_kept_goes_by_quota_alone_and_the_last(opened: Opened) -> None:
    blocks = [results(1, [0]), results(2, [0]), results(1, [1]), results(3, [0])]
    size = len(encode_block(blocks[0]))
    start = opened.clock.ms
    for number, block in enumerate(blocks):
        opened.clock.ms = start + number
        await append(opened, block)

    async def left() -> list[list[int]]:
        found = {job: await opened.archive.results(job, between(0, 9)) for job in (1, 2, 3)}
        return [[job, *block.tasks()] for job, blocks in found.items() for block in blocks]

    assert await opened.archive.prune(start + 3, 2**60, {1, 99}) == 1
    assert await left() == [[1, 0], [1, 1], [3, 0]], "of those that are too old, what is not kept"
    assert await opened.archive.prune(start + 3, 2 * size, {1, 99}) == 1
    assert await left() == [[1, 0], [1, 1]], "it is the youngest, and not kept"
    assert await opened.archive.prune(start + 3, 2 * size - 1, {1, 99}) == 1
    assert await left() == [[1, 1]]


async def test_a_closed_archive_says_so(opened: Opened) -> None:
    await append(opened, archived(1), results(1, [0]))
    await opened.store.close()
    archive = opened.archive
    for asked in (
        archive.results(1, between(0, 9)),
        archive.archived_job(1),
        archive.archived_jobs(0, 9),
        archive.forget([1]),
        archive.prune(0, 0, ()),
    ):
        with pytest.raises(StoreError, match="closed"):
            await asked


async def test_many_blocks_are_pruned(opened: Opened) -> None:
    await append(opened, *(results(1, [number]) for number in range(1_201)))
    opened.clock.ms += 1
    await append(opened, results(1, [5_000]))
    assert await opened.archive.prune(opened.clock.ms, 2**60, ()) == 1_201
    assert [list(block.tasks()) for block in await opened.archive.results(1, between(0, 9_999))] == [[5_000]]

"""What every store keeps to: records, the fence, watches."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from rota.core.cluster.records import (
    META_COMMIT,
    Commit,
    JobConfig,
    JobVersion,
    QueueConfig,
    Record,
    job_key,
    segment_key,
    version_key,
)
from rota.core.model.spec import JobSpec
from rota.store.history import BYTES_MAX, History
from rota.store.port import Changes, Compacted, Fenced, StoreError, Watched
from tests.contract.conftest import Opened, changes, queue


def weights(watched: list[Watched]) -> list[tuple[int, dict[str, int | None]]]:
    return [
        (one.revision, {key: getattr(record, "weight", None) for key, record in one.records.items()})
        for one in watched
    ]


async def first(count: int, watch: AsyncIterator[Watched]) -> list[Watched]:
    seen: list[Watched] = []
    async for one in watch:
        seen.append(one)
        if len(seen) == count:
            break
    return seen


# ---------------------------------------------------------------- load and commit


async def test_a_new_store_is_empty(opened: Opened) -> None:
    loaded = await opened.store.load()
    assert (loaded.revision, loaded.fence, loaded.records) == (0, 0, [])


async def test_what_is_committed_is_loaded(opened: Opened) -> None:
    fence = await opened.put(0, a=QueueConfig(3), b=QueueConfig(4))
    loaded = await opened.store.load()
    assert loaded.fence == loaded.revision == fence == 1
    assert loaded.records == [
        ("cfg/queue/a", QueueConfig(3)),
        ("cfg/queue/b", QueueConfig(4)),
        (META_COMMIT, Commit(1, 1, 0, 1)),
    ]


async def test_a_record_is_replaced_and_dropped(opened: Opened) -> None:
    fence = await opened.put(0, a=QueueConfig(1), b=QueueConfig(1))
    fence = await opened.put(fence, a=QueueConfig(2), b=None, c=None)
    assert fence == 2
    assert (await opened.store.load("cfg/")).records == [("cfg/queue/a", QueueConfig(2))]


async def test_a_load_is_of_one_prefix_and_in_the_order_of_keys(opened: Opened) -> None:
    jobs = [1, 9, 10, 255, 256, 2**32, 2**63]
    records: dict[str, Record | None] = {job_key(job): JobConfig(f"owner {job}") for job in reversed(jobs)}
    records |= {version_key(9, number): JobVersion(JobSpec()) for number in (16, 2)}
    records |= {
        "cfg/queue/é": QueueConfig(),
        "cfg/queue/z": QueueConfig(),
        "cfg/queue/\U0010fffd": QueueConfig(),
    }
    await opened.store.commit(changes(0, records), 0)
    loaded = (await opened.store.load("cfg/job/")).records
    assert [key for key, _ in loaded if "/v/" not in key] == [job_key(job) for job in jobs]
    assert [key for key, _ in (await opened.store.load(job_key(9))).records] == [
        job_key(9),
        version_key(9, 2),
        version_key(9, 16),
    ]
    assert [key for key, _ in (await opened.store.load("cfg/queue/")).records] == [
        "cfg/queue/z",
        "cfg/queue/é",
        "cfg/queue/\U0010fffd",
    ]
    assert (await opened.store.load("cfg/queues")).records == []
    assert len((await opened.store.load("")).records) == len(records) + 1


async def test_a_large_value_and_many_changes_are_one_commit(opened: Opened) -> None:
    script = JobVersion(JobSpec(script="x" * (1200 * 1024)))
    records: dict[str, Record | None] = {
        queue(f"q{number}"): QueueConfig(number) for number in range(1, 20_001)
    }
    fence = await opened.store.commit(changes(0, {version_key(1, 1): script, **records}), 0)
    assert fence == 1
    loaded = await opened.store.load("cfg/")
    assert len(loaded.records) == 20_001
    assert dict(loaded.records)[version_key(1, 1)] == script


async def test_a_record_that_cannot_be_written_leaves_everything_as_it_was(opened: Opened) -> None:
    fence = await opened.put(0, a=QueueConfig(1))
    with pytest.raises(ValueError, match="range"):
        await opened.put(fence, a=QueueConfig(2), b=QueueConfig(-1))
    assert dict((await opened.store.load("cfg/")).records) == {"cfg/queue/a": QueueConfig(1)}
    assert await opened.put(fence, a=QueueConfig(3)) == fence + 1


async def test_a_change_of_the_callers_dict_after_the_commit_was_asked_changes_nothing(
    opened: Opened,
) -> None:
    asked = changes(0, {queue("a"): QueueConfig(1)})
    commit = asyncio.ensure_future(opened.store.commit(asked, 0))
    await asyncio.sleep(0)
    asked.records.clear()
    await commit
    assert dict((await opened.store.load("cfg/")).records) == {"cfg/queue/a": QueueConfig(1)}


# ---------------------------------------------------------------- the fence


@pytest.mark.parametrize("fence", [0, 1, 3, 99])
async def test_a_commit_on_another_fence_changes_nothing(opened: Opened, fence: int) -> None:
    await opened.put(0, a=QueueConfig(1))
    await opened.put(1, a=QueueConfig(2))
    with pytest.raises(Fenced, match="another has committed"):
        await opened.put(fence, a=QueueConfig(3), b=QueueConfig(3))
    loaded = await opened.store.load()
    assert (loaded.fence, dict(loaded.records)["cfg/queue/a"], len(loaded.records)) == (2, QueueConfig(2), 2)


async def test_of_many_that_commit_on_one_fence_one_wins(opened: Opened) -> None:
    for fence in range(5):
        answers = await asyncio.gather(
            *(
                opened.put(fence, winner=QueueConfig(number), **{f"w{number}": QueueConfig(fence + 1)})
                for number in range(1, 41)
            ),
            return_exceptions=True,
        )
        won = [number for number, answer in enumerate(answers, 1) if answer == fence + 1]
        assert len(won) == 1
        assert sum(isinstance(answer, Fenced) for answer in answers) == 39
        records = dict((await opened.store.load("cfg/")).records)
        assert records["cfg/queue/winner"] == QueueConfig(won[0])
        written = {key for key, record in records.items() if record == QueueConfig(fence + 1)} - {
            "cfg/queue/winner"
        }
        assert written == {queue(f"w{won[0]}")}, "nothing of the others is left"


async def test_the_same_transaction_sent_twice_is_done_once(opened: Opened) -> None:
    same = changes(0, {queue("a"): QueueConfig(7)})
    answers = await asyncio.gather(
        opened.store.commit(same, 0), opened.store.commit(same, 0), return_exceptions=True
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["Fenced", "int"]
    (meta,) = (await opened.store.load(META_COMMIT)).records
    assert meta == (META_COMMIT, Commit(1, 1, 0, 1))


async def test_a_cancelled_caller_loses_nothing_and_does_nothing_by_half(opened: Opened) -> None:
    fence = 0
    for _ in range(20):
        commit = asyncio.ensure_future(
            opened.put(fence, **{f"q{number}": QueueConfig(fence + 1) for number in range(50)})
        )
        await asyncio.sleep(0)
        commit.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await commit
        # The next one is behind it in the queue, so the load sees what became of both.
        with contextlib.suppress(Fenced):
            await opened.put(2**40)
        loaded = await opened.store.load()
        of_queues = {record.weight for _, record in loaded.records if isinstance(record, QueueConfig)}
        assert of_queues == {fence + 1}
        assert loaded.fence == fence + 1
        fence = loaded.fence
    watched = await first(20, opened.store.watch("", 0))
    assert [one.revision for one in watched] == list(range(1, 21)), "who watches sees them all"


# ---------------------------------------------------------------- watches


async def test_a_watch_begins_behind_a_revision_and_goes_on(opened: Opened) -> None:
    await opened.put(0, a=QueueConfig(1))
    await opened.put(1, a=QueueConfig(2))
    watching = asyncio.ensure_future(first(2, opened.store.watch("cfg/", 1)))
    await asyncio.sleep(0)
    await opened.put(2, a=None, b=QueueConfig(5))
    assert weights(await watching) == [
        (2, {"cfg/queue/a": 2}),
        (3, {"cfg/queue/a": None, "cfg/queue/b": 5}),
    ]


async def test_a_watch_sees_its_prefix_alone(opened: Opened) -> None:
    watching = asyncio.ensure_future(first(2, opened.store.watch("cfg/queue/a", 0)))
    await opened.put(0, b=QueueConfig(1))
    await opened.put(1, a=QueueConfig(2), b=QueueConfig(2))
    await opened.put(2, b=QueueConfig(3))
    await opened.put(3, aa=QueueConfig(4))
    assert weights(await watching) == [(2, {"cfg/queue/a": 2}), (4, {"cfg/queue/aa": 4})]


async def test_watches_miss_nothing_while_many_commit(opened: Opened) -> None:
    """Load, then watch from there: at each moment, that is what a load would give."""
    total = 300

    async def write() -> None:
        fence = 0
        while fence < total:
            answers = await asyncio.gather(
                *(
                    opened.put(fence, **{f"q{(fence + number) % 7}": QueueConfig(fence + 1)})
                    for number in range(3)
                ),
                return_exceptions=True,
            )
            assert [answer for answer in answers if isinstance(answer, int)] == [fence + 1]
            fence += 1

    async def follow(start: int) -> dict[str, Record | None]:
        async for one in opened.store.watch("", 0):
            if one.revision >= start:
                break
        loaded = await opened.store.load("")
        state: dict[str, Record | None] = dict(loaded.records)
        revision = loaded.revision
        async for one in opened.store.watch("", loaded.revision):
            assert one.revision == revision + 1
            assert one.records[META_COMMIT] == Commit(1, one.revision, one.revision - 1, 1)
            state |= one.records
            revision = one.revision
            if revision == total:
                break
        return state

    followers = [asyncio.ensure_future(follow(start)) for start in (1, 20, 100, 250)]
    await write()
    loaded = dict((await opened.store.load("")).records)
    for follower in followers:
        assert await follower == loaded


async def test_a_watch_shows_nothing_of_a_commit_that_failed(opened: Opened) -> None:
    watching = asyncio.ensure_future(first(2, opened.store.watch("cfg/", 0)))
    fence = await opened.put(0, a=QueueConfig(1))
    with pytest.raises(Fenced):
        await opened.put(0, a=QueueConfig(2))
    with pytest.raises(ValueError, match="range"):
        await opened.put(fence, a=QueueConfig(-3))
    await opened.put(fence, a=QueueConfig(4))
    assert weights(await watching) == [(1, {"cfg/queue/a": 1}), (2, {"cfg/queue/a": 4})]


async def test_a_watch_from_too_long_ago_is_told_to_load_again(opened: Opened) -> None:
    large = JobVersion(JobSpec(script="x" * 2**20))
    slow = opened.store.watch("", 0)
    fence = await opened.put(0)
    assert (await anext(slow)).revision == 1
    for _ in range(BYTES_MAX // 2**20 + 2):
        fence = await opened.store.commit(changes(fence, {version_key(1, fence): large}), fence)
    with pytest.raises(Compacted, match="no longer kept"):
        await anext(opened.store.watch("", 1))
    with pytest.raises(Compacted):
        await anext(slow)
    assert (await anext(opened.store.watch("", fence - 1))).revision == fence


async def test_the_recent_past_has_limits() -> None:
    history = History(7, commits_max=3, bytes_max=100)
    history.close()  # so that watches end where the past does

    async def kept() -> list[int]:
        found = []
        for revision in range(6, 14):
            with contextlib.suppress(Compacted):
                async for _ in history.watch("no such key", revision - 1):
                    pass
                found.append(revision)
        return found

    for revision in range(8, 12):
        history.append(revision, {META_COMMIT: b"x" * 10})
    assert await kept() == [9, 10, 11, 12, 13]
    history.append(12, {META_COMMIT: b"x" * 70})
    assert await kept() == [12, 13]
    history.append(13, {META_COMMIT: b"x" * 500})
    assert await kept() == [13], "at least the last"


async def test_closing_ends_watches_and_commits(opened: Opened) -> None:
    fence = await opened.put(0, a=QueueConfig(1))
    watching = asyncio.ensure_future(first(9, opened.store.watch("cfg/", 0)))
    await asyncio.sleep(0)
    await opened.store.close()
    assert len(await watching) == 1
    with pytest.raises(StoreError, match="closed"):
        await opened.put(fence)
    with pytest.raises(StoreError, match="closed"):
        await opened.store.load()
    await opened.store.close()


async def test_a_commit_without_meta_commit_is_a_mistake(opened: Opened) -> None:
    with pytest.raises(AssertionError):
        await opened.store.commit(Changes({segment_key(1, 0): None}), 0)

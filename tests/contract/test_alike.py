"""The stores do the same: anything that can be asked of one, in any order, is answered alike by the other."""

import random
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from pyroaring import BitMap

from rota.core.cluster.records import Block, QueueConfig
from rota.store.memory import MemoryStore
from rota.store.port import StoreError
from rota.store.sqlite import SqliteStore
from rota.wire.records import encode_block
from tests.contract.conftest import Clock, changes, queue
from tests.contract.test_archive import archived, results

STEPS = 150


async def outcome(asked: Awaitable[Any]) -> Any:
    """What was answered, or the kind of the refusal."""
    try:
        return await asked
    except StoreError as refused:
        return type(refused)


class Pair:
    """Both stores, asked the same."""

    def __init__(self, memory: MemoryStore, sqlite: SqliteStore, clock: Clock, chance: random.Random) -> None:
        self.stores = (memory, sqlite)
        self.clock = clock
        self.chance = chance
        self.fence = 0
        self.fences_refused = 0
        self.pruned = 0

    async def same(self, name: str, *arguments: Any) -> Any:
        first, second = [await outcome(getattr(store, name)(*arguments)) for store in self.stores]
        assert first == second, (name, arguments)
        return first

    def blocks(self) -> list[Block]:
        chance = self.chance
        return [
            archived(chance.randrange(8), chance.randrange(100))
            if chance.random() < 0.3
            else results(chance.randrange(8), sorted(chance.sample(range(50), chance.randrange(1, 9))))
            for _ in range(chance.choice([0, 0, 1, 3]))
        ]

    async def step(self) -> None:
        chance = self.chance
        match chance.choice(["commit"] * 4 + ["load", "results", "archived", "list", "forget", "prune"]):
            case "commit":
                self.clock.ms += chance.choice([0, 0, 1, 5])
                records = {
                    queue(chance.choice("abcdef")): chance.choice([None, QueueConfig(chance.randrange(1, 9))])
                    for _ in range(chance.randrange(4))
                }
                change = changes(self.fence, {**records})
                change.blocks = self.blocks()
                fence = self.fence if chance.random() < 0.8 else chance.randrange(self.fence + 2)
                answer = await self.same("commit", change, fence)
                if isinstance(answer, int):
                    self.fence = answer
                else:
                    self.fences_refused += 1
            case "load":
                await self.same("load", chance.choice(["", "cfg/", "cfg/queue/a", "meta/", "zzz"]))
            case "results":
                few = BitMap(chance.sample(range(150), chance.randrange(4)))
                first = chance.randrange(50)
                indices = chance.choice([few, BitMap(range(first, first + chance.choice([1, 4, 101])))])
                await self.same("results", chance.randrange(9), indices)
            case "archived":
                await self.same("archived_job", chance.randrange(9))
            case "list":
                await self.same("archived_jobs", chance.randrange(9), chance.randrange(5))
            case "forget":
                await self.same("forget", chance.sample(range(9), chance.randrange(3)))
            case "prune":
                before_ms = self.clock.ms - chance.choice([0, 3, 20, 1_000])
                size = len(encode_block(results(1, [1, 2, 3])))
                bytes_max = size * chance.choice([4, 20, 1_000])
                keep = chance.sample(range(9), chance.choice([0, 3, 6]))
                self.pruned += await self.same("prune", before_ms, bytes_max, keep)

    async def watched(self) -> list[Any]:
        """All that was committed, as each store tells those who watch."""
        seen: list[list[Any]] = []
        for store in self.stores:
            await store.close()
            seen.append([one async for one in store.watch("cfg/", 0)])
        assert seen[0] == seen[1]
        return seen[0]


@pytest.mark.parametrize("seed", range(8))
async def test_what_is_asked_of_both_is_answered_alike(seed: int, tmp_path: Path) -> None:
    clock = Clock()
    sqlite = await SqliteStore.open(tmp_path, clock)
    try:
        pair = Pair(MemoryStore(clock), sqlite, clock, random.Random(seed))
        for _ in range(STEPS):
            await pair.step()
        assert pair.fence > 20
        assert pair.fences_refused
        assert pair.pruned
        for job in range(9):
            await pair.same("results", job, BitMap(range(101)))
        await pair.same("load", "")
        await pair.same("archived_jobs", 0, 100)
        await pair.same("prune", 0, 0, ())
        assert await pair.watched()
        closed: list[tuple[str, tuple[Any, ...]]] = [
            ("load", ("",)), ("commit", (changes(0, {}), pair.fence)), ("results", (1, BitMap([1]))),
            ("archived_job", (1,)), ("archived_jobs", (0, 9)), ("forget", ([1],)), ("prune", (0, 0, ())),
        ]  # fmt: skip
        for name, arguments in closed:
            assert await pair.same(name, *arguments) is StoreError, f"{name} of a store that is closed"
    finally:
        await sqlite.close()

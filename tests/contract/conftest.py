"""The stores that the contract suite runs against."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rota.core.cluster.records import META_COMMIT, Commit, Record
from rota.store.memory import MemoryStore
from rota.store.port import Archive, Changes, Store
from rota.store.sqlite import SqliteStore


@dataclass
class Clock:
    """A wall clock that stands still until it is set."""

    ms: int = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


@dataclass
class Opened:
    """A store under test, with what tests need besides the port."""

    store: Store
    archive: Archive
    clock: Clock

    async def put(self, fence: int, **records: Record | None) -> int:
        """Commits `meta/commit` and records under the keys `test/NAME`."""
        return await self.store.commit(
            changes(fence, {queue(name): record for name, record in records.items()}), fence
        )


def queue(name: str) -> str:
    return f"cfg/queue/{name}"


def changes(seq: int, records: dict[str, Record | None]) -> Changes:
    return Changes({META_COMMIT: Commit(term=1, seq=seq + 1, now_ms=seq, next_number=1), **records})


async def memory(home: Path, clock: Clock) -> MemoryStore:
    return MemoryStore(clock)


async def sqlite(home: Path, clock: Clock) -> SqliteStore:
    return await SqliteStore.open(home, clock)


STORES: dict[str, Callable[[Path, Clock], Awaitable[MemoryStore | SqliteStore]]] = {
    "memory": memory,
    "sqlite": sqlite,
}


@pytest.fixture(params=STORES)
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opened]:
    clock = Clock()
    store = await STORES[request.param](tmp_path / "home", clock)
    yield Opened(store, store, clock)
    await store.close()

"""A store in memory, for tests and simulations. It keeps bytes, as the others do, and no record itself."""

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

from pyroaring import BitMap

from rota.core.cluster.records import META_COMMIT, JobBlock, ResultBlock
from rota.store.history import History
from rota.store.port import Changes, Fenced, Loaded, StoreError, Watched
from rota.wire import records


@dataclass(slots=True)
class _Block:
    job: int
    of_job: bool
    at_ms: int
    data: bytes


class MemoryStore:
    """Both faces of the port. `wall_ms` is the wall clock, for the age of blocks."""

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._values: dict[str, bytes] = {}
        self._blocks: list[_Block] = []
        self._revision = 0
        self._fence = 0
        self._history = History(0)
        self._closed = False

    async def load(self, prefix: str = "") -> Loaded:
        """As Store.load."""
        self._check_open()
        keys = sorted(key for key in self._values if key.startswith(prefix))
        found = [(key, records.decode(key, self._values[key])) for key in keys]
        return Loaded(self._revision, self._fence, found)

    async def commit(self, changes: Changes, fence: int) -> int:
        """As Store.commit."""
        self._check_open()
        assert changes.records.get(META_COMMIT) is not None, "every commit puts meta/commit"
        values = changes.values()
        blocks = [
            _Block(block.job, isinstance(block, JobBlock), self._wall_ms(), data)
            for block, data in zip(changes.blocks, changes.block_values(), strict=True)
        ]
        if fence != self._fence:
            raise Fenced(f"the fence is revision {self._fence} and no longer {fence}: another has committed")
        self._revision += 1
        self._fence = self._revision
        for key, value in values.items():
            if value is None:
                self._values.pop(key, None)
            else:
                self._values[key] = value
        moved = {block.job: block for block in blocks if block.of_job}
        self._blocks = [
            block
            for block in (*self._blocks, *blocks)
            if not block.of_job or moved.get(block.job, block) is block
        ]
        self._history.append(self._revision, values)
        return self._revision

    def watch(self, prefix: str, after: int) -> AsyncIterator[Watched]:
        """As Store.watch."""
        return self._history.watch(prefix, after)

    async def close(self) -> None:
        """As Store.close."""
        self._closed = True
        self._history.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")

    # ---------------------------------------------------------------- the archive

    async def results(self, job: int, indices: BitMap) -> list[ResultBlock]:
        """As Archive.results."""
        self._check_open()
        blocks = [
            records.decode_results(block.data)
            for block in self._blocks
            if block.job == job and not block.of_job
        ]
        return [block for block in blocks if not indices.isdisjoint(block.tasks())]

    async def archived_job(self, job: int) -> JobBlock | None:
        """As Archive.archived_job."""
        self._check_open()
        for block in self._blocks:
            if block.job == job and block.of_job:
                return records.decode_job(block.data)
        return None

    async def archived_jobs(self, before: int, limit: int) -> list[int]:
        """As Archive.archived_jobs."""
        self._check_open()
        jobs = {block.job for block in self._blocks if block.of_job and (not before or block.job < before)}
        return sorted(jobs, reverse=True)[:limit]

    async def forget(self, jobs: list[int]) -> None:
        """As Archive.forget."""
        self._check_open()
        self._blocks = [block for block in self._blocks if block.job not in jobs]

    async def prune(self, before_at_ms: int, bytes_max: int, keep: Collection[int]) -> int:
        """As Archive.prune."""
        self._check_open()
        size = sum(len(block.data) for block in self._blocks)
        gone: set[int] = set()
        for block in sorted(self._blocks, key=lambda block: (block.job in keep, block.at_ms)):
            if (block.at_ms < before_at_ms and block.job not in keep) or size > bytes_max:
                gone.add(id(block))
                size -= len(block.data)
        self._blocks = [block for block in self._blocks if id(block) not in gone]
        return len(gone)

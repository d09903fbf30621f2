"""The store port: what a controller needs of a store, and nothing else.

Records go in and come out as values of `rota.core.cluster.records`; how they are serialised is the
store's affair (all that write to a disk or a network use `rota.wire.records`).

Every commit is one transaction that compares the fence: the revision at which `meta/commit` was
last put. A writer that is no longer the leader therefore fails, however late its write arrives.
"""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pyroaring import BitMap

from rota.core.cluster.records import Block, JobBlock, Record, ResultBlock
from rota.wire import records as wire


class StoreError(Exception):
    """The store failed; what was asked has not happened."""


class Fenced(StoreError):
    """Another has committed since: this writer leads no longer."""


class Ambiguous(StoreError):
    """The answer was lost: the transaction may or may not have happened. `meta/commit` tells."""


class Full(StoreError):
    """No space is left: reads go on, writes are refused until there is some."""


class Compacted(StoreError):
    """The watch's beginning is no longer kept: load again, and watch from there."""


@dataclass(slots=True)
class Changes:
    """One transaction: records to put (or to drop, where None) by key, and blocks to archive.

    What is encoded ahead of the commit is not encoded again: so who made a value that cannot be is known.
    """

    records: dict[str, Record | None] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    # The bytes of a record, by its identity, which it has for as long as it is kept beside them: one that is
    # put under many keys is encoded once. Those of a block, alike.
    _encoded: dict[int, tuple[Record, bytes]] = field(default_factory=dict, repr=False)
    _encoded_blocks: dict[int, tuple[Block, bytes]] = field(default_factory=dict, repr=False)

    def encode(self, records: Mapping[str, Record | None], blocks: Iterable[Block]) -> None:
        """Encodes what is to be among the changes, unless something takes its place.

        Raises ValueError or TypeError for a value that its field cannot hold.
        """
        known = self._encoded
        for record in records.values():
            if record is not None and id(record) not in known:
                known[id(record)] = record, wire.encode(record)
        for block in blocks:
            self._encoded_blocks[id(block)] = block, wire.encode_block(block)

    def values(self) -> dict[str, bytes | None]:
        """The records' bytes. Raises as `encode` does."""
        self.encode(self.records, ())
        known = self._encoded
        return {key: None if record is None else known[id(record)][1] for key, record in self.records.items()}

    def block_values(self) -> list[bytes]:
        """The blocks' bytes. Raises as `encode` does."""
        known = self._encoded_blocks
        return [
            known[id(block)][1] if id(block) in known else wire.encode_block(block) for block in self.blocks
        ]


@dataclass(slots=True)
class Loaded:
    revision: int
    # Of `meta/commit`; 0 where it was never put.
    fence: int
    records: list[tuple[str, Record]]


@dataclass(slots=True)
class Watched:
    """The changes of one commit. `records` as in Changes, blocks are not watched."""

    revision: int
    records: dict[str, Record | None]


class Store(Protocol):
    async def load(self, prefix: str = "") -> Loaded:
        """All records under a prefix, ordered by key, as of one revision."""
        ...

    async def commit(self, changes: Changes, fence: int) -> int:
        """Applies all or nothing, on disk before it returns; the new revision.

        `changes.records` has a new `meta/commit`, so the returned revision is the next fence.
        Raises Fenced where `meta/commit` was put at another revision than `fence`.
        """
        ...

    def watch(self, prefix: str, after: int) -> AsyncIterator[Watched]:
        """Every commit behind revision `after` that touched the prefix, in order, as they come.

        Raises Compacted where `after` is too old.
        """
        ...

    async def close(self) -> None:
        """Ends watches and frees what the store holds."""
        ...


class Archive(Protocol):
    """The append-only face: blocks come in with commits, and are read and pruned here."""

    async def results(self, job: int, indices: BitMap) -> list[ResultBlock]:
        """Blocks with attempts of any of these indices of a job, in the order appended.

        A block may hold other indices of the job too. What is between the indices is not read.
        """
        ...

    async def archived_job(self, job: int) -> JobBlock | None:
        """The job as it was last moved to the archive, if it was."""
        ...

    async def archived_jobs(self, before: int, limit: int) -> list[int]:
        """Numbers of archived jobs below `before` (0: from the newest), newest first."""
        ...

    async def forget(self, jobs: list[int]) -> None:
        """Removes all blocks of these jobs."""
        ...

    async def prune(self, before_at_ms: int, bytes_max: int, keep: Collection[int]) -> int:
        """Removes blocks archived before a wall-clock time, and those over the quota; how many.

        Those of the jobs in `keep` go by quota alone, and after all others; else the oldest goes first.
        """
        ...

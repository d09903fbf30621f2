"""A store that fails on purpose: refuses a commit, loses the answer to one, or goes down with its caller.

No commit is torn here: the port promises that it is whole or absent, so that a torn one is, once the store
has recovered, one that its controller died before or after (`tests/contract/test_sqlite.py` tears SQLite's
log to see that it is so). A store that commits in parts has to be torn between them.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from pyroaring import BitMap

from rota.core.cluster.records import META_COMMIT, Block, JobBlock, Record, ResultBlock
from rota.sim.world import World
from rota.store.port import Ambiguous, Changes, Fenced, Loaded, StoreError, Watched


class Crash(BaseException):
    """The process that called dies here."""


class Values(Changes):
    """Changes that this disk keeps as they are; that they can be encoded is looked at now and then."""

    def encode(self, records: Mapping[str, Record | None], blocks: Iterable[Block]) -> None:
        """Does nothing."""


class Disk:
    """The store of a simulated cluster. It outlives its controllers.

    `on_commit` sees what has become durable, at the instant it does.
    """

    def __init__(self, world: World, on_commit: Callable[[Changes], None]) -> None:
        self._world = world
        self._on_commit = on_commit
        self.records: dict[str, Record] = {}
        self.blocks: list[Block] = []
        self.revision = 0
        self.fence = 0

    async def load(self, prefix: str = "") -> Loaded:
        """As the port says."""
        found = sorted(item for item in self.records.items() if item[0].startswith(prefix))
        return Loaded(self.revision, self.fence, found)

    async def commit(self, changes: Changes, fence: int) -> int:
        """As the port says, where chance lets it."""
        world = self._world
        if world.maybe(0.004):
            world.say(lambda: "the controller dies before the commit")
            raise Crash
        if world.maybe(0.003):
            world.say(lambda: "the commit fails for good")
            raise StoreError("the disk is on fire")
        lost = world.maybe(0.02)
        if lost and world.chance.random() < 0.5:
            world.say(lambda: "the commit is lost, and so is the answer")
            raise Ambiguous("no answer")
        if fence != self.fence:
            raise Fenced(f"meta/commit is at {self.fence}, not at {fence}")
        self._apply(changes)
        if lost:
            world.say(lambda: "the commit happens, and its answer is lost")
            raise Ambiguous("no answer")
        if world.maybe(0.004):
            world.say(lambda: "the controller dies after the commit")
            raise Crash
        return self.revision

    def _apply(self, changes: Changes) -> None:
        self.revision += 1
        for key, record in changes.records.items():
            if record is None:
                self.records.pop(key, None)
            else:
                self.records[key] = record
        if META_COMMIT in changes.records:
            self.fence = self.revision
        self.blocks += changes.blocks
        self._on_commit(changes)

    def watch(self, prefix: str, after: int) -> AsyncIterator[Watched]:
        """Nobody watches in the simulator."""
        raise StoreError(f"no watch on {prefix!r} behind {after} here")

    async def results(self, job: int, indices: BitMap) -> list[ResultBlock]:
        """As the archive's port says."""
        return [
            block
            for block in self.blocks
            if isinstance(block, ResultBlock) and block.job == job and not indices.isdisjoint(block.tasks())
        ]

    async def archived_job(self, job: int) -> JobBlock | None:
        """As the archive's port says."""
        return next(
            (block for block in self.blocks if isinstance(block, JobBlock) and block.job == job), None
        )

    async def close(self) -> None:
        """There is nothing to close."""

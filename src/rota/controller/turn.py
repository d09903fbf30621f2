"""The turn: step, commit, then speak. The controller and the simulator both run it.

(etcd's raft library calls the outcome of a step Ready, and what follows here Advance.)
"""

import asyncio
from collections.abc import Callable, Generator, Iterable

from rota.core.cluster.inputs import Input, Outcome
from rota.core.cluster.records import META_COMMIT, Commit
from rota.core.cluster.step import Machine
from rota.store.port import Ambiguous, Changes, Fenced, Store, StoreError

# A late winner among them is fenced off by the commit with which the next leader begins.
AMBIGUOUS_TRIES_MAX = 8


class Turn:
    """One leader's turns over one store. `fence` is the revision of `meta/commit` that it goes on from.

    `changes` makes what is committed; the simulator's is not encoded. `due` says, between the pieces of a
    turn, whether others on the event loop have waited for long enough.
    """

    def __init__(
        self,
        machine: Machine,
        store: Store,
        fence: int,
        changes: Callable[[], Changes] = Changes,
        due: Callable[[], bool] = lambda: False,
    ) -> None:
        self.machine = machine
        self._store = store
        self._fence = fence
        self._changes = changes
        self._due = due

    async def run(
        self,
        arrived: Iterable[Input],
        now_ms: int,
        wall_ms: int,
        speak: Callable[[Outcome], Iterable[None]],
    ) -> Outcome:
        """Takes what arrived, commits what follows, and only then has `speak` give orders and replies.

        `speak` comes in pieces as the step does: a turn may have thousands of orders.
        Raises StoreError where the commit failed for good, and StepFailed where an input could not be
        taken, or what follows from it cannot be encoded: the machine is ahead of the store then
        and must be thrown away and loaded again; nothing has been said of the step.
        """
        changes = self._changes()
        pieces = self.machine.pieces(arrived, now_ms, wall_ms, changes.encode)
        outcome = await self._whole(pieces)
        if outcome.changes:
            changes.records, changes.blocks = outcome.changes, outcome.blocks
            await self._commit(changes)
        for _ in speak(outcome):
            await self._let_others()
        return outcome

    async def _whole(self, pieces: Generator[None, None, Outcome]) -> Outcome:
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome
            await self._let_others()

    async def _let_others(self) -> None:
        """Between two pieces: serves those who have waited for long enough."""
        if self._due():
            await asyncio.sleep(0)

    async def _commit(self, changes: Changes) -> None:
        wanted = changes.records[META_COMMIT]
        assert isinstance(wanted, Commit)
        for _ in range(AMBIGUOUS_TRIES_MAX):
            try:
                self._fence = await self._store.commit(changes, self._fence)
                return
            except Ambiguous:
                loaded = await self._store.load(META_COMMIT)
                if loaded.fence == self._fence:
                    # It has not happened. The same transaction again: at most one of the two can win.
                    continue
                if loaded.records != [(META_COMMIT, wanted)]:
                    raise Fenced("another leader has committed meanwhile") from None
                self._fence = loaded.fence
                return
        raise StoreError(f"the store lost the answer to a commit {AMBIGUOUS_TRIES_MAX} times")

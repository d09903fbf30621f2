"""The one thread that writes to a database: many callers' work in one transaction, answered together.

Group commit: while one transaction goes to the disk, the next callers queue, and share the next one. Each
caller's work runs in a savepoint of its own, so that a failure of one undoes nothing of another; who is
alone needs none.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import apsw

from rota.store.port import Ambiguous, Full, StoreError

T = TypeVar("T")

GROUP_MAX = 512
"""Callers in one transaction. How many queue is up to them: each waits for its own answer."""


def translate(error: apsw.Error, name: str, committing: bool = False) -> StoreError:
    """The port's error for one of SQLite's. `committing`: it is COMMIT that failed."""
    match error:
        case apsw.FullError():
            return Full(f"no space is left on the disk of '{name}': {error}. Make room; reads go on")
        case apsw.CorruptError() | apsw.NotADBError():
            return StoreError(
                f"the file '{name}' is damaged: {error}. Put back a copy of its directory if there is one; "
                "else move the directory away: an empty cluster begins, which nodes have to join anew"
            )
        case apsw.IOError() if committing:
            # What SQLite had written when the disk failed may be whole, and be found by a recovery.
            return Ambiguous(f"the disk of '{name}' failed at the end of a commit: {error}")
    return StoreError(f"the file '{name}' cannot be used: {error}")


@dataclass(slots=True)
class _Call:
    """What one caller waits for: `work` on the writer's thread, then `after` and the answer on the loop."""

    work: Callable[[apsw.Connection], Any]
    after: Callable[[Any], None]
    answer: asyncio.Future[Any]
    result: Any = field(default=None, init=False)
    failure: Exception | None = field(default=None, init=False)


class GroupWriter:
    """Runs work on the connection that it alone writes with, from `start` to `close`."""

    def __init__(self, connection: apsw.Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="rota-store-writer", daemon=True)
        self._closed = False
        self._thread.start()

    async def run(self, work: Callable[[apsw.Connection], T], after: Callable[[T], None]) -> T:
        """The result of `work`, once what it did is on the disk.

        `after` is called with the result on the loop, in the order of the commits and ahead of the
        answers, also for a caller that was cancelled: its work is done nevertheless, and whole.
        Raises what `work` raised, after its changes have been undone, and StoreError.
        """
        if self._closed:
            raise StoreError("the store is closed")
        call = _Call(work, after, self._loop.create_future())
        self._calls.put(call)
        result: T = await call.answer
        return result

    async def close(self) -> None:
        """Ends the thread once all that was asked before is done, and closes the connection. Once only."""
        self._closed = True
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    # ---------------------------------------------------------------- on the writer's thread

    def _run(self) -> None:
        more = True
        while more:
            group = [self._calls.get()]
            while len(group) < GROUP_MAX and group[-1] is not None:
                try:
                    group.append(self._calls.get_nowait())
                except Empty:
                    break
            calls = [call for call in group if call is not None]
            more = len(calls) == len(group)
            if calls:
                self._transact(calls)
                try:
                    self._loop.call_soon_threadsafe(self._answer, calls)
                except RuntimeError:  # the loop is closed, and nobody waits any longer
                    break
        with contextlib.suppress(apsw.Error):  # what is committed is safe, also where tidying up fails
            self._connection.close()

    def _transact(self, calls: list[_Call]) -> None:
        committing = False
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for call in calls:
                self._try(call, alone=len(calls) == 1)
            if len(calls) == 1 and calls[0].failure is not None:
                self._connection.execute("ROLLBACK")
                return
            committing = True
            self._connection.execute("COMMIT")
        except apsw.Error as error:
            with contextlib.suppress(apsw.Error):
                self._connection.execute("ROLLBACK")  # which SQLite has done itself after some errors
            for call in calls:
                call.failure = call.failure or translate(error, self._name, committing)

    def _try(self, call: _Call, *, alone: bool) -> None:
        """One caller's work; what fails is undone, unless it is `alone` in its transaction."""
        if not alone:
            self._connection.execute("SAVEPOINT call")
        try:
            call.result = call.work(self._connection)
        except apsw.Error as error:
            if not self._connection.in_transaction:
                raise  # SQLite gave up the whole transaction, not this call alone
            call.failure = translate(error, self._name)
        except Exception as error:  # noqa: BLE001 the caller's, whatever it is: the thread serves others too
            call.failure = error
        if alone:
            return
        if call.failure is not None:
            self._connection.execute("ROLLBACK TO call")
        self._connection.execute("RELEASE call")

    # ---------------------------------------------------------------- on the loop

    def _answer(self, calls: list[_Call]) -> None:
        for call in calls:
            if call.failure is None:
                call.after(call.result)
        for call in calls:
            if call.answer.done():
                continue  # the caller was cancelled
            if call.failure is None:
                call.answer.set_result(call.result)
            else:
                call.answer.set_exception(call.failure)

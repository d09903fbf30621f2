"""The embedded store: one SQLite database in the home, which one process at a time opens.

One thread writes (`group.py`); reads go over connections of their own that cannot write, each as of one
revision. Every commit puts `meta/commit`, so the revision at which that was put is the store's own, and
nothing else has to count revisions.

The archive's blocks are in the same file as the records: in WAL mode, a power cut can tear a transaction
over two attached files in two.
"""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import apsw
from pyroaring import BitMap

from rota.core.cluster.records import META_COMMIT, Block, JobBlock, ResultBlock
from rota.core.model import columns
from rota.store.group import GroupWriter, translate
from rota.store.history import History
from rota.store.lock import HomeLock
from rota.store.port import Changes, Fenced, Loaded, StoreError, Watched
from rota.wire import records

T = TypeVar("T")

VERSION_MIN = (3, 51, 3)
"""Versions before it can damage a database in WAL mode when two connections write or checkpoint."""

SCHEMA = 1
APPLICATION_ID = 0x526F7461  # "Rota"
READERS_COUNT = 2

BUSY_MS_MAX = 5_000
"""Another process may hold the database for a moment: somebody looks into it, or copies it."""

PRUNE_COUNT = 500
"""Blocks removed in one transaction, so that commits do not wait long behind it."""

# `records`: the records of the core. `blocks`: the archive's; `first` and `last` are the lowest and highest
# index of a block of results, and NULL for a job that was moved there. The tables are not WITHOUT ROWID,
# which is half as fast for large values.
TABLES = """
CREATE TABLE records (key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL, revision INTEGER NOT NULL);
CREATE TABLE blocks (
    number INTEGER PRIMARY KEY, job INTEGER NOT NULL, first INTEGER, last INTEGER,
    at_ms INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE INDEX blocks_of_job ON blocks (job, first, last);
CREATE UNIQUE INDEX blocks_jobs ON blocks (job) WHERE first IS NULL;
CREATE INDEX blocks_by_age ON blocks (at_ms);
"""

JOB_MAX = 2**63 - 2
"""SQLite's integers are signed; jobs are counted up and come nowhere near."""

_Row = tuple[int, int | None, int | None, int, bytes]

PUT = (
    "INSERT INTO records VALUES {} "
    "ON CONFLICT DO UPDATE SET value = excluded.value, revision = excluded.revision"
)
DROP = "DELETE FROM records WHERE key IN ({})"
APPEND = "REPLACE INTO blocks (job, first, last, at_ms, data) VALUES {}"

ROWS_MAX = 32
"""Rows in one statement: after each statement the thread has to wait for the interpreter's lock, which the
loop has."""

STATEMENTS_MAX = 3 * ROWS_MAX + 16
"""Statements that a connection keeps ready: those with rows have a text for each number of rows."""


def check_version(version: str) -> None:
    """Raises StoreError for an SQLite that is too old to be trusted."""
    if tuple(int(part) for part in version.split(".")[:3]) < VERSION_MIN:
        wanted = ".".join(map(str, VERSION_MIN))
        raise StoreError(f"SQLite {version} can lose data: install apsw {wanted} or newer")


class SqliteStore:
    """Both faces of the port, on the event loop on which it was opened."""

    def __init__(self, opened: "_Opened", file: Path, wall_ms: Callable[[], int], vfs: str) -> None:
        self._lock: HomeLock | None = opened.lock
        self._file = file
        self._vfs = vfs
        self._wall_ms = wall_ms
        self._history = History(opened.fence)
        self._writer = GroupWriter(opened.connection, str(file))
        self._readers = ThreadPoolExecutor(READERS_COUNT, "rota-store-reader")
        self._reader = threading.local()
        self._reading: list[apsw.Connection] = []

    @classmethod
    async def open(cls, home: Path, wall_ms: Callable[[], int], vfs: str = "") -> "SqliteStore":
        """Opens the home's store, and makes it where there is none.

        `wall_ms` is the wall clock, for the age of blocks; `vfs` names another way to the disk than SQLite's
        own. Raises StoreError where another process has the home, or where the file cannot be used.
        """
        check_version(apsw.sqlite_lib_version())
        file = home / "store" / "rota.db"
        return cls(await asyncio.to_thread(_open, home, file, vfs), file, wall_ms, vfs)

    async def close(self) -> None:
        """As Store.close; what was asked before is done first, and the home is free for another process."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        self._history.close()
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._reading:
            connection.close()
        await self._writer.close()  # the last, so that the database is left as one file
        lock.release()

    # ---------------------------------------------------------------- records

    async def load(self, prefix: str = "") -> Loaded:
        """As Store.load."""

        def read(connection: apsw.Connection) -> Loaded:
            # Keys have no sign above the last of Unicode, and SQLite compares them by their bytes.
            rows = connection.execute(
                "SELECT key, value FROM records WHERE key >= ? AND key < ? ORDER BY key",
                (prefix, prefix + "\U0010ffff"),
            )
            fence = _fence(connection)
            return Loaded(fence, fence, [(key, records.decode(key, value)) for key, value in rows])

        return await self._read(read)

    async def commit(self, changes: Changes, fence: int) -> int:
        """As Store.commit."""
        assert changes.records.get(META_COMMIT) is not None, "every commit puts meta/commit"
        at_ms = self._wall_ms()
        # As it is now: the caller goes on.
        changes = replace(changes, records=dict(changes.records), blocks=list(changes.blocks))

        def write(connection: apsw.Connection) -> tuple[int, dict[str, bytes | None]]:
            # On this thread: a turn may have changed very many records.
            values = changes.values()
            rows = [
                _row(block, data, at_ms)
                for block, data in zip(changes.blocks, changes.block_values(), strict=True)
            ]
            found = _fence(connection)
            if found != fence:
                raise Fenced(f"the fence is revision {found} and no longer {fence}: another has committed")
            revision = fence + 1
            _many(
                connection,
                PUT,
                [(key, value, revision) for key, value in values.items() if value is not None],
            )
            _many(connection, DROP, [(key,) for key, value in values.items() if value is None])
            _many(connection, APPEND, rows)
            return revision, values

        revision, _ = await self._writer.run(write, lambda done: self._history.append(*done))
        return revision

    def watch(self, prefix: str, after: int) -> AsyncIterator[Watched]:
        """As Store.watch; no longer kept is what was committed before the store was opened."""
        return self._history.watch(prefix, after)

    # ---------------------------------------------------------------- the archive

    async def results(self, job: int, indices: BitMap) -> list[ResultBlock]:
        """As Archive.results."""
        if not indices:
            return []

        def read(connection: apsw.Connection) -> list[ResultBlock]:
            bounds = connection.execute(
                "SELECT number, first, last FROM blocks WHERE job = ? AND first <= ? AND last >= ?",
                (job, indices.max(), indices.min()),
            )
            numbers = sorted(
                number for number, first, last in bounds if indices.range_cardinality(first, last + 1)
            )
            found = (_results(connection, number) for number in numbers)
            return [block for block in found if not indices.isdisjoint(block.tasks())]

        return await self._read(read)

    async def archived_job(self, job: int) -> JobBlock | None:
        """As Archive.archived_job."""

        def read(connection: apsw.Connection) -> JobBlock | None:
            data = connection.execute("SELECT data FROM blocks WHERE job = ? AND first IS NULL", (job,)).get
            return None if data is None else records.decode_job(data)

        return await self._read(read)

    async def archived_jobs(self, before: int, limit: int) -> list[int]:
        """As Archive.archived_jobs."""

        def read(connection: apsw.Connection) -> list[int]:
            rows = connection.execute(
                "SELECT job FROM blocks WHERE first IS NULL AND job < ? ORDER BY job DESC LIMIT ?",
                (before or JOB_MAX + 1, limit),
            )
            return [job for (job,) in rows]

        return await self._read(read)

    async def forget(self, jobs: list[int]) -> None:
        """As Archive.forget."""
        await self._writer.run(partial(_remove, column="job", values=jobs), _nothing)

    async def prune(self, before_at_ms: int, bytes_max: int, keep: Collection[int]) -> int:
        """As Archive.prune; in several transactions where there is much to remove."""
        gone = await self._read(lambda connection: _outdated(connection, before_at_ms, bytes_max, keep))
        for start in range(0, len(gone), PRUNE_COUNT):
            numbers = gone[start : start + PRUNE_COUNT]
            await self._writer.run(partial(_remove, column="number", values=numbers), _nothing)
        return len(gone)

    # ---------------------------------------------------------------- reading

    async def _read(self, read: Callable[[apsw.Connection], T]) -> T:
        """The result of `read`, run on a reader's thread and as of one revision."""
        if self._lock is None:
            raise StoreError("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._run_read, read)

    def _run_read(self, read: Callable[[apsw.Connection], T]) -> T:
        try:
            connection = getattr(self._reader, "connection", None)
            if connection is None:
                connection = _connect(self._file, self._vfs, apsw.SQLITE_OPEN_READONLY)
                self._reader.connection = connection
                self._reading.append(connection)
            connection.execute("BEGIN")
            try:
                return read(connection)
            finally:
                connection.execute("ROLLBACK")  # it has read only
        except apsw.Error as error:
            raise translate(error, str(self._file)) from error
        except records.RecordError as error:
            raise StoreError(f"the file '{self._file}' has a value that cannot be read: {error}") from error


def _nothing(_: object) -> None:
    """For changes that nobody watches."""


# ---------------------------------------------------------------- SQL


def _fence(connection: apsw.Connection) -> int:
    revision = connection.execute("SELECT revision FROM records WHERE key = ?", (META_COMMIT,)).get
    return int(revision or 0)


def _many(connection: apsw.Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Runs a statement with `{}` for its rows, with as many of them at a time as may be."""
    for start in range(0, len(rows), ROWS_MAX):
        some = rows[start : start + ROWS_MAX]
        connection.execute(_statement(statement, len(some), len(some[0])), list(chain.from_iterable(some)))


@cache
def _statement(statement: str, rows: int, columns: int) -> str:
    row = "(" + ", ".join("?" * columns) + ")"
    return statement.format(", ".join([row] * rows))


def _results(connection: apsw.Connection, number: int) -> ResultBlock:
    return records.decode_results(
        connection.execute("SELECT data FROM blocks WHERE number = ?", (number,)).get
    )


def _row(block: Block, data: bytes, at_ms: int) -> _Row:
    if isinstance(block, JobBlock):
        return block.job, None, None, at_ms, data
    # They ascend.
    indices = columns.indices(block.columns) or (0, -1)
    return block.job, indices[0], indices[-1], at_ms, data


def _remove(connection: apsw.Connection, column: str, values: list[int]) -> None:
    """Removes blocks by their number, or by their job."""
    connection.executemany(f"DELETE FROM blocks WHERE {column} = ?", [(value,) for value in values])


def _outdated(
    connection: apsw.Connection, before_at_ms: int, bytes_max: int, keep: Collection[int]
) -> list[int]:
    """The numbers of blocks that are too old, and of those over the quota, the oldest first."""
    size = int(connection.execute("SELECT coalesce(sum(length(data)), 0) FROM blocks").get)
    jobs = json.dumps([*keep])
    gone = []
    for kept in (False, True):
        for number, at_ms, length in connection.execute(
            "SELECT number, at_ms, length(data) FROM blocks "
            "WHERE (job IN (SELECT value FROM json_each(?))) = ? ORDER BY at_ms, number",
            (jobs, kept),
        ):
            if size <= bytes_max and (kept or at_ms >= before_at_ms):
                break
            gone.append(number)
            size -= length
    return gone


# ---------------------------------------------------------------- opening


@dataclass(slots=True)
class _Opened:
    lock: HomeLock
    connection: apsw.Connection
    fence: int


def _open(home: Path, file: Path, vfs: str) -> _Opened:
    """Takes the home's lock, and makes the connection that writes, with the tables there."""
    folder = file.parent
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        lock = HomeLock(folder / "lock", home)
    except OSError as error:
        raise StoreError(f"the folder '{folder}' cannot be used: {error.strerror}") from error
    try:
        # SQLite gives its other files the mode of this one.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = _prepared(file, vfs)
        return _Opened(lock, connection, _fence(connection))
    except apsw.Error as error:
        lock.release()
        raise translate(error, str(file)) from error
    except OSError as error:
        lock.release()
        raise StoreError(f"the file '{file}' cannot be used: {error.strerror}") from error
    except StoreError:
        lock.release()
        raise


def _prepared(file: Path, vfs: str) -> apsw.Connection:
    connection = _connect(file, vfs, apsw.SQLITE_OPEN_READWRITE)
    try:
        if connection.execute("PRAGMA journal_mode = WAL").get != "wal":
            raise StoreError(
                f"the file system of '{file}' does not serve SQLite's WAL mode: use a local disk"
            )
        connection.execute("PRAGMA synchronous = FULL")
        found = int(connection.execute("PRAGMA user_version").get)
        if found > SCHEMA:
            raise StoreError(
                f"the file '{file}' was written by a newer Rota (schema {found}, this one knows {SCHEMA}): "
                "install that one, or use another home"
            )
        if found == 0:
            with connection:
                connection.execute(TABLES)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(file: Path, vfs: str, flags: int) -> apsw.Connection:
    connection = apsw.Connection(str(file), flags=flags, vfs=vfs or None, statementcachesize=STATEMENTS_MAX)
    connection.set_busy_timeout(BUSY_MS_MAX)
    return connection

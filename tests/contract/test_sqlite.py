"""What holds for the embedded store beyond the contract: processes that die, disks that fail, the files."""

import asyncio
import contextlib
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from pyroaring import BitMap

from rota.core.cluster.records import JobBlock, JobVersion, QueueConfig, Record, job_key, version_key
from rota.core.model.spec import JobSpec
from rota.store.port import Ambiguous, Full, StoreError
from rota.store.sqlite import ROWS_MAX, SqliteStore, check_version
from tests.contract.conftest import Clock, changes, queue
from tests.contract.writer import commit_number

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def store_of(home: Path, vfs: str = "") -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(home, Clock(), vfs)
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def writing(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the home open and commits; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.contract.writer", str(home)], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            yield process
        finally:
            process.kill()


def accepted(process: subprocess.Popen[bytes], count: int) -> int:
    """The last commit that the process says was accepted, when it is killed after `count` more."""
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(count)]
    process.kill()
    said += process.stdout.readlines()
    whole = [line for line in said if line.endswith(b"\n")]
    return int(whole[-1])


# ---------------------------------------------------------------- processes


async def test_what_was_accepted_survives_kill_9_of_the_writer(tmp_path: Path) -> None:
    chance = random.Random(20261121)
    for _ in range(8):
        with writing(tmp_path) as process:
            last = await asyncio.to_thread(accepted, process, chance.randrange(1, 60))
        async with store_of(tmp_path) as store:
            loaded = await store.load()
            assert last <= loaded.fence <= last + 1, "all that was accepted, and at most what was on its way"
            records = dict(loaded.records)
            assert records == {
                **{queue(f"kept-{number}"): QueueConfig(number) for number in range(1, loaded.fence + 1)},
                **dict(commit_number(loaded.fence).records),
            }
            for number in range(1, loaded.fence + 1):
                assert len(await store.results(number, BitMap([0]))) == 1
            assert await store.results(loaded.fence + 1, BitMap([0])) == []


async def test_a_torn_log_is_read_up_to_the_last_whole_commit(tmp_path: Path) -> None:
    """What a crash may leave: the log's end is missing, or is not what was written."""
    home, log = tmp_path / "home", Path("store") / "rota.db-wal"
    ends = {}
    async with store_of(home) as store:
        for fence in range(12):
            change = commit_number(fence + 1)
            change.blocks.append(JobBlock(fence + 1, [], 0))
            await store.commit(change, fence)
            ends[fence + 1] = (home / log).stat().st_size
        left = shutil.copytree(home, tmp_path / "left")
    chance = random.Random(20261121)
    whole = (left / log).read_bytes()
    for number in range(20):
        size = chance.choice([ends[12], chance.randrange(len(whole)), chance.choice([*ends.values()]) - 1])
        torn = bytearray(whole[:size])
        if number % 2 and size:
            torn[-chance.randrange(1, min(size, 4_000) + 1)] ^= 0x55
        (left / log).write_bytes(torn)
        again = shutil.copytree(left, tmp_path / f"{number}")
        intact = size if not number % 2 else size - 4_000
        async with store_of(again) as store:
            fence = (await store.load()).fence
            assert fence <= max((one for one, end in ends.items() if end <= size), default=0)
            assert fence >= max((one for one, end in ends.items() if end <= intact), default=0)
            records = dict((await store.load()).records)
            assert records == (dict(commit_number(fence).records) if fence else {}) | {
                queue(f"kept-{job}"): QueueConfig(job) for job in range(1, fence + 1)
            }
            first = BitMap([0])
            assert await store.archived_jobs(0, 99) == list(range(fence, 0, -1))
            assert [len(await store.results(job, first)) for job in range(1, 13)] == [1] * fence + [0] * (
                12 - fence
            )
            assert await store.commit(changes(fence, {}), fence) == fence + 1


async def test_the_archive_is_there_again_with_the_age_of_its_blocks(tmp_path: Path) -> None:
    clock = Clock()
    store = await SqliteStore.open(tmp_path, clock)
    for fence in range(3):
        change = commit_number(fence + 1)
        change.blocks.append(JobBlock(fence + 1, [], 0))
        await store.commit(change, fence)
        clock.ms += 10
    await store.close()
    store = await SqliteStore.open(tmp_path, clock)
    assert await store.archived_jobs(0, 9) == [3, 2, 1]
    assert await store.prune(clock.ms - 20, 2**60, ()) == 2
    assert await store.archived_jobs(0, 9) == [3, 2]
    assert [len(await store.results(job, BitMap([0]))) for job in (1, 2, 3)] == [0, 1, 1]
    await store.close()


async def test_a_second_process_is_told_who_has_the_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with writing(home) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(StoreError) as error:
            await SqliteStore.open(home, Clock())
        assert str(error.value) == (
            f"the home '{home}' is in use by process {process.pid}: stop that one first, or use another home"
        )
    async with store_of(home) as store:
        assert (await store.load()).fence > 0, "the lock went with the process"


async def test_a_home_is_free_again_after_close(tmp_path: Path) -> None:
    async with store_of(tmp_path) as store:
        await store.commit(changes(0, {queue("a"): QueueConfig(1)}), 0)
        with pytest.raises(StoreError, match="is in use by process"):
            await SqliteStore.open(tmp_path, Clock())
    async with store_of(tmp_path) as store:
        assert dict((await store.load("cfg/")).records) == {queue("a"): QueueConfig(1)}
        assert await store.commit(changes(1, {}), 1) == 2


async def test_what_was_asked_before_close_is_done(tmp_path: Path) -> None:
    async with store_of(tmp_path) as store:
        asked = asyncio.ensure_future(store.commit(changes(0, {queue("a"): QueueConfig(1)}), 0))
        await asyncio.sleep(0)
    assert await asked == 1
    async with store_of(tmp_path) as store:
        assert (await store.load()).fence == 1


async def test_many_callers_share_transactions_and_none_undoes_another(tmp_path: Path) -> None:
    async with store_of(tmp_path) as store:
        # Each is right only behind the one before, and all are asked at once.
        commits = [
            store.commit(changes(number, {queue(f"q{number}"): QueueConfig(1)}), number)
            for number in range(600)
        ]
        answers = await asyncio.gather(*commits)
        assert answers == list(range(1, 601))
        assert len((await store.load("cfg/")).records) == 600


# ---------------------------------------------------------------- files


async def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    async with store_of(home) as store:
        await store.commit(changes(0, {}), 0)
        await store.load()
        files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home / "store").iterdir()}
    assert files == dict.fromkeys(("lock", "rota.db", "rota.db-shm", "rota.db-wal"), 0o600)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home, home / "store")] == [0o700, 0o700]


@pytest.mark.parametrize(("version", "trusted"), [
    ("3.40.1", False), ("3.51.2", False), ("3.51.3", True), ("3.54.0.1", True), ("4.0.0", True),
])  # fmt: skip
def test_versions_of_sqlite_that_lose_data_are_refused(version: str, trusted: bool) -> None:
    if trusted:
        check_version(version)
    else:
        with pytest.raises(
            StoreError, match=rf"SQLite {version} can lose data: install apsw 3\.51\.3 or newer"
        ):
            check_version(version)


def at_rest(home: Path) -> apsw.Connection:
    return apsw.Connection(str(home / "store" / "rota.db"))


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    async with store_of(tmp_path):
        pass
    with at_rest(tmp_path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StoreError, match=r"newer Rota \(schema 2, this one knows 1\): install that one"):
        await SqliteStore.open(tmp_path, Clock())
    with at_rest(tmp_path) as connection:
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    async with store_of(tmp_path) as store:
        assert (await store.load()).records == []


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "store" / "rota.db"
    file.parent.mkdir()
    file.write_bytes(b"not a database " * 1000)
    for _ in range(2):  # the lock was let go
        with pytest.raises(StoreError, match=r"rota\.db' is damaged: .*Put back a copy of its directory if"):
            await SqliteStore.open(tmp_path, Clock())
    assert file.read_bytes() == b"not a database " * 1000


async def test_a_damaged_database_is_said_to_be_damaged(tmp_path: Path) -> None:
    async with store_of(tmp_path) as store:
        await store.commit(
            changes(0, {queue(f"q{number}"): QueueConfig(number) for number in range(1, 5_000)}), 0
        )
    file = tmp_path / "store" / "rota.db"
    data = bytearray(file.read_bytes())
    for page in range(8, len(data) // 4096):
        data[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"rota\.db' is damaged: .*Put back a copy of its directory if"):
        async with store_of(tmp_path) as store:
            await store.load()


async def test_a_value_that_is_no_record_is_named(tmp_path: Path) -> None:
    async with store_of(tmp_path) as store:
        await store.commit(changes(0, {queue("a"): QueueConfig(1)}), 0)
    with at_rest(tmp_path) as connection:
        connection.execute("UPDATE records SET value = x'ff' WHERE key = 'cfg/queue/a'")
    connection.close()
    async with store_of(tmp_path) as store:
        with pytest.raises(
            StoreError, match=r"rota\.db' has a value that cannot be read: 'cfg/queue/a' is no record"
        ):
            await store.load()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"the folder '.*file/store' cannot be used: File exists"):
        await SqliteStore.open(tmp_path / "file", Clock())


# ---------------------------------------------------------------- a disk that fails


class Disk(apsw.VFS):
    """Passes everything on to the real disk, unless it is told to fail; knows what is not yet safe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fail_write: type[apsw.Error] | None = None
        self.fail_sync: type[apsw.Error] | None = None
        self.written_and_not_synced: set[str] = set()
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return DiskFile(self, name, flags)


class DiskFile(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        self._name = Path(str(name.filename() if isinstance(name, apsw.URIFilename) else name)).name

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        if self._disk.fail_write is not None and self._name.endswith("-wal"):
            raise self._disk.fail_write("planted")
        super().xWrite(data, offset)
        self._disk.written_and_not_synced.add(self._name)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._disk.fail_sync is not None and self._name.endswith("-wal"):
            raise self._disk.fail_sync("planted")
        super().xSync(flags)
        self._disk.written_and_not_synced.discard(self._name)


@pytest.fixture
def disk(request: pytest.FixtureRequest) -> Iterator[Disk]:
    made = Disk(request.node.name)
    yield made
    made.unregister()


async def test_a_commit_is_on_the_disk_before_it_is_answered(tmp_path: Path, disk: Disk) -> None:
    async with store_of(tmp_path, disk.name) as store:
        for fence in range(30):
            await store.commit(changes(fence, {queue(f"q{fence}"): QueueConfig(1)}), fence)
            assert "rota.db-wal" not in disk.written_and_not_synced
        large = JobVersion(JobSpec(script="x" * 1_000_000))
        for fence in range(30, 45):  # past checkpoints
            await store.commit(changes(fence, {version_key(1, fence): large}), fence)
            assert not disk.written_and_not_synced


async def test_a_full_disk_refuses_writes_and_goes_on_reading(tmp_path: Path, disk: Disk) -> None:
    async with store_of(tmp_path, disk.name) as store:
        some = changes(0, {queue("a"): QueueConfig(1)})
        some.blocks.append(JobBlock(1, [], 0))
        await store.commit(some, 0)
        disk.fail_write = apsw.FullError
        for _ in range(3):
            with pytest.raises(
                Full, match=r"no space is left on the disk of '.*rota\.db'.*Make room; reads go on"
            ):
                await store.commit(changes(1, {queue("a"): QueueConfig(2)}), 1)
        loaded = await store.load("")
        assert (loaded.fence, dict(loaded.records)[queue("a")]) == (1, QueueConfig(1))
        with pytest.raises(Full):
            await store.forget([1])
        assert await store.archived_jobs(0, 10) == [1]
        disk.fail_write = None
        assert await store.commit(changes(1, {queue("a"): QueueConfig(3)}), 1) == 2
        assert (await anext(store.watch("cfg/", 1))).records == {queue("a"): QueueConfig(3)}
    async with store_of(tmp_path) as store:
        assert dict((await store.load("cfg/")).records) == {queue("a"): QueueConfig(3)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB, where this account may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"mounting is not allowed here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("mount") is None, reason="mounts a small disk")
async def test_a_disk_that_really_fills_up_loses_nothing(small_disk: Path) -> None:
    large = JobVersion(JobSpec(script="x" * 100_000))
    fence = 0
    async with store_of(small_disk) as store:
        with contextlib.suppress(Full):
            while fence < 100:
                fence = await store.commit(changes(fence, {version_key(1, fence): large}), fence)
        assert 10 < fence < 100
        assert len((await store.load("cfg/")).records) == fence
    async with store_of(small_disk) as store:
        assert len((await store.load("cfg/")).records) == fence


async def test_what_is_pruned_makes_room_for_what_comes(tmp_path: Path) -> None:
    large = [(version_key(1, 1), JobVersion(JobSpec(script="x" * 100_000)))]
    async with store_of(tmp_path) as store:
        for fence in range(200):
            change = changes(fence, {})
            change.blocks.append(JobBlock(fence + 1, [*large], 0))
            await store.commit(change, fence)
            await store.prune(0, 500_000, ())
        assert await store.archived_jobs(0, 99) == [200, 199, 198, 197]
        used = sum(file.stat().st_size for file in (tmp_path / "store").iterdir())
        assert used < 8 * 2**20, "of 20 MB that were appended"


async def test_a_disk_that_fails_at_the_end_of_a_commit_leaves_it_open_what_happened(
    tmp_path: Path, disk: Disk
) -> None:
    async with store_of(tmp_path, disk.name) as store:
        await store.commit(changes(0, {queue("a"): QueueConfig(1)}), 0)
        disk.fail_sync = apsw.IOError
        with pytest.raises(Ambiguous, match=r"the disk of '.*rota\.db' failed at the end of a commit"):
            await store.commit(changes(1, {queue("a"): QueueConfig(2)}), 1)
        disk.fail_sync = None
        # As the design says: the sequence is the one before, so the same transaction is sent again.
        assert (await store.load("meta/commit")).fence == 1
        assert await store.commit(changes(1, {queue("a"): QueueConfig(2)}), 1) == 2
    async with store_of(tmp_path) as store:
        assert dict((await store.load("cfg/")).records) == {queue("a"): QueueConfig(2)}


async def test_all_that_share_a_transaction_are_told_of_its_failure(tmp_path: Path, disk: Disk) -> None:
    async with store_of(tmp_path, disk.name) as store:
        fence = await store.commit(changes(0, {}), 0)
        disk.fail_write = apsw.FullError
        asked = [
            store.forget([1]),
            store.commit(changes(fence, {job_key(1): None}), fence),
            store.forget([2]),
        ]
        answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 30)
        assert [type(answer) for answer in answers] == [Full] * 3


async def test_many_records_are_written_by_few_statements(tmp_path: Path) -> None:
    ran: list[str] = []

    def note(_: object, statement: str, __: object) -> bool:
        ran.append(statement.split(maxsplit=1)[0])
        return True

    async with store_of(tmp_path) as store:
        store._writer._connection.exec_trace = note
        names = [queue(f"q-{number}") for number in range(3 * ROWS_MAX)]
        fence = await store.commit(changes(1, {name: QueueConfig(1) for name in names}), 0)
        puts = -(-(len(names) + 1) // ROWS_MAX)
        assert ran == ["BEGIN", "SELECT", *["INSERT"] * puts, "COMMIT"]
        ran.clear()
        # Put again, and dropped, in the same few.
        again: dict[str, Record | None] = {
            name: QueueConfig(2) if place % 2 else None for place, name in enumerate(names)
        }
        await store.commit(changes(2, again), fence)
        assert (ran.count("INSERT"), ran.count("DELETE")) == (2, 2)
        loaded = await store.load("cfg/queue/")
        assert loaded.records == sorted((name, QueueConfig(2)) for name in names[1::2])

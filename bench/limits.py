"""The machine's own limits: bare spawn loops, synced writes, commits, loopback, and Python's start.

What Rota is compared with in the same run: nothing that starts processes, keeps what it was told, or talks to
another process can be faster than these.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import apsw

from bench.harness import Row, Size, in_turn, medians, quantile, ratios, seconds

_BARE_LOOP = Path(__file__).with_name("bare_loop.py")
CORES = len(os.sched_getaffinity(0))


def spawns_per_s(count: int, processes: int = CORES, *, files: bool = False) -> float:
    """Of `posix_spawn` and reap of /bin/true in a loop, in so many processes at once.

    `files`: each with setsid and two files of its own. The loops begin together, Python being up.
    """
    return spawns(count, processes, files=files)[0]


def spawns(count: int, processes: int = CORES, *, files: bool = False) -> tuple[float, float]:
    """The same, and the CPU time of one spawn with what it ran, in seconds."""
    each = count // processes
    with tempfile.TemporaryDirectory(prefix="rb-") as place:
        folders = [Path(place) / str(number) for number in range(processes)]
        for folder in folders:
            folder.mkdir()
        loops = [
            subprocess.Popen(
                [sys.executable, "-S", "-E", str(_BARE_LOOP), str(each), *([str(folder)] if files else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for folder in folders
        ]
        for loop in loops:
            assert loop.stdout is not None
            loop.stdout.readline()
        began_s = time.perf_counter()
        for loop in loops:
            assert loop.stdin is not None
            loop.stdin.write("\n")
            loop.stdin.flush()
        cpu_s = sum(float(loop.communicate()[0]) for loop in loops)
        took_s = time.perf_counter() - began_s
    return each * processes / took_s, cpu_s / (each * processes)


def syncs_per_s(count: int = 300) -> float:
    """Of writing 4 KiB and `fdatasync`, one after the other, where TMPDIR is."""
    with tempfile.TemporaryFile(prefix="rb-") as file:

        def run() -> None:
            for _ in range(count):
                os.write(file.fileno(), b"x" * 4096)
                os.fdatasync(file.fileno())

        return count / seconds(run)


def commits_per_s(count: int = 300, rows: int = 1) -> float:
    """Of transactions of SQLite with full durability, each of so many rows of 200 bytes."""
    place = tempfile.mkdtemp(prefix="rb-")
    connection = apsw.Connection(f"{place}/limit.db")
    try:
        connection.execute("pragma journal_mode=wal; pragma synchronous=full")
        connection.execute("create table limits(id integer primary key, value blob)")
        values = [(b"x" * 200,)] * rows

        def run() -> None:
            for _ in range(count):
                with connection:
                    connection.executemany("insert into limits(value) values(?)", values)

        return count / seconds(run)
    finally:
        connection.close()
        shutil.rmtree(place, ignore_errors=True)


_ECHO = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as peer:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while said := peer.recv(64):
        peer.sendall(said)
"""


def echoes_per_s(count: int = 3_000) -> float:
    """Of 64 bytes to another process over loopback TCP and back, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        other = [sys.executable, "-S", "-E", "-c", _ECHO, port]
        child = os.posix_spawn(sys.executable, other, os.environ)
        with server.accept()[0] as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def run() -> None:
                for _ in range(count):
                    peer.sendall(b"x" * 64)
                    peer.recv(64)

            per_s = count / seconds(run)
        os.waitpid(child, 0)
    return per_s


def python_ms(script: str = "import click, grpc.aio") -> float:
    """How long Python takes to start, to run a script, and to end, in milliseconds."""
    return command_ms(sys.executable, "-c", script)


def command_ms(*command: str, environment: dict[str, str] | None = None) -> float:
    """How long a command takes that must succeed and whose output goes nowhere, in milliseconds."""
    return 1000 * seconds(
        lambda: subprocess.run(
            command,
            check=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )


def _spawn_loops(size: Size) -> Iterator[Row]:
    count = 10_000
    found = in_turn(
        size.rounds,
        plain=lambda: spawns_per_s(count),
        one=lambda: spawns_per_s(count // 2, 1),
        files=lambda: spawns_per_s(count, files=True),
    )
    middle = medians(found)
    yield Row("limits", f"bare spawn loop, {CORES} processes", middle["plain"], "/s")
    yield Row("limits", "bare spawn loop, 1 process", middle["one"], "/s")
    beside = {"bare loop": ratios(found, "files")["plain"]}
    yield Row("limits", "bare spawn loop with setsid and two files", middle["files"], "/s", beside)


def rows(size: Size) -> Iterator[Row]:
    """The limits, one beside another; the small ones without spawn loops, which others have in turn."""
    if not size.small:
        yield from _spawn_loops(size)
    kept = in_turn(
        size.rounds,
        sync=syncs_per_s,
        commit=commits_per_s,
        batch=lambda: 100 * commits_per_s(100, rows=100),
        echo=echoes_per_s,
    )
    middle = medians(kept)
    yield Row("limits", "write and fdatasync of 4 KiB", middle["sync"], "/s")
    yield Row("limits", "SQLite commit of one row", middle["commit"], "/s")
    yield Row("limits", "SQLite rows in commits of 100", middle["batch"], "/s")
    yield Row("limits", "loopback echo of 64 bytes", middle["echo"], "/s")
    starts = [python_ms() for _ in range(size.of(15, 5))]
    yield Row("limits", "python -c 'import click, grpc.aio'", quantile(starts, 0.5), "ms")

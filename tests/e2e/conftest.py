"""Clusters of this machine, as `rota up` makes them: each with a home of its own, stopped in any case."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROTA = [sys.executable, "-m", "rota.main"]
CALL_S_MAX = 50.0


@dataclass(frozen=True)
class Cluster:
    """A home, and the command line in it. The working directory of calls is `place`."""

    home: Path
    place: Path

    @property
    def environment(self) -> dict[str, str]:
        unset = ("ROTA_", "NO_COLOR", "FORCE_COLOR")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(unset)}
        return {**inherited, "TERM": "xterm", "ROTA_HOME": str(self.home)}

    def __call__(
        self, *arguments: str | Path, stdin: bytes | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs `rota` to its end."""
        done = self.raw(*arguments, stdin=stdin, **environment)
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def raw(
        self, *arguments: str | Path, stdin: bytes | None = None, **environment: str
    ) -> subprocess.CompletedProcess[bytes]:
        """The same, with its output as bytes."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(
            [*ROTA, *map(str, arguments)],
            env={**self.environment, **environment},
            cwd=self.place,
            capture_output=True,
            timeout=CALL_S_MAX,
            check=False,
            **given,
        )

    def ok(self, *arguments: str | Path, stdin: bytes | None = None, **environment: str) -> str:
        """What it prints; it must succeed."""
        done = self(*arguments, stdin=stdin, **environment)
        assert done.returncode == 0, done
        return done.stdout

    def unchanged(self, *arguments: str) -> str:
        """What is said where there was nothing to do: no failure, and beside the output."""
        done = self(*arguments)
        assert (done.returncode, done.stdout) == (0, ""), done
        (line,) = done.stderr.splitlines()
        return line.removeprefix("rota: ")

    def json(self, *arguments: str | Path) -> Any:
        """What it prints with `-o json`."""
        return json.loads(self.ok(*arguments, "-o", "json"))

    def submit(self, *arguments: str | Path, stdin: bytes | None = None) -> str:
        """The number of a new job."""
        return self.ok("submit", "-o", "name", *arguments, stdin=stdin).strip()

    def begin(self, *arguments: str | Path, **more: Any) -> "subprocess.Popen[bytes]":
        """Runs `rota` and does not wait."""
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen([*ROTA, *map(str, arguments)], env=self.environment, cwd=self.place, **given)

    def pid(self, name: str) -> int:
        """The process that a pid file names."""
        return int((self.home / "run" / f"{name}.pid").read_text())


def processes_of(home: Path) -> list[int]:
    """All processes that name a home on their command line."""
    return [pid for pid, line in _command_lines() if str(home) in line]


def _command_lines() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(FileNotFoundError, ProcessLookupError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                yield int(entry.name), line.decode(errors="replace")


def stop(cluster: Cluster) -> None:
    """Ends everything of a home and removes it."""
    said: object = "nothing"
    try:
        said = cluster("down", "--timeout", "10s")
    finally:
        logs = {path.name: path.read_text() for path in (cluster.home / "log").glob("*.log")}
        left = {pid: line for pid, line in _command_lines() if str(cluster.home) in line}
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(cluster.home, ignore_errors=True)
        shutil.rmtree(cluster.place, ignore_errors=True)
    assert not left, f"processes were left: {left}; 'rota down' said {said}"
    broken = {name: log for name, log in logs.items() if "Traceback" in log}
    assert not broken, f"something went wrong unseen: {broken}"


def make() -> Cluster:
    """A home that does not exist yet, in a short path, and a directory to work in."""
    place = Path(tempfile.mkdtemp(prefix="rp-", dir="/tmp"))
    return Cluster(Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp")) / "h", place)


@pytest.fixture
def new_home() -> Iterator[Cluster]:
    """A home where nothing runs yet."""
    made = make()
    yield made
    stop(made)
    made.home.parent.rmdir()


@contextmanager
def running(*options: str) -> Iterator[Cluster]:
    """A cluster of two nodes with four cores each, and what further options of `rota up` say."""
    made = make()
    try:
        made.ok("up", "--detach", "--nodes", "2", "--cpu", "4", *options)
        yield made
    finally:
        stop(made)
        made.home.parent.rmdir()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One that the tests of a module share."""
    with running() as made:
        yield made

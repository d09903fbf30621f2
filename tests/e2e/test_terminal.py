"""What is different on a terminal: colours, a bar, and a word when a job has to wait."""

import os
import pty
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.e2e.conftest import CALL_S_MAX, ROTA, Cluster
from tests.support.files import Gate


class Terminal:
    """`rota` on a terminal of its own."""

    def __init__(self, cluster: Cluster, *arguments: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        self._seen = b""
        self.process = subprocess.Popen(
            [*ROTA, *arguments],
            env={**cluster.environment, "TERM": "xterm", **environment},
            cwd=cluster.place,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def read_until(self, done: Callable[[bytes], bool]) -> str:
        """What has been seen so far, once it is enough or there is no more."""
        while not done(self._seen):
            try:
                data = os.read(self._ours, 65_536)
            except OSError:
                # The other side is closed.
                break
            if not data:
                break
            self._seen += data
        return self._seen.decode()

    def end(self) -> tuple[int, str]:
        """The exit code, and all that was seen."""
        seen = self.read_until(lambda _: False)
        os.close(self._ours)
        return self.process.wait(CALL_S_MAX), seen.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_states_are_coloured_unless_asked_not_to(
    environment: dict[str, str], coloured: bool, cluster: Cluster
) -> None:
    cluster.ok("submit", "--wait", "--", "true")
    code, seen = Terminal(cluster, "ls", **environment).end()
    assert code == 0
    assert ("\x1b[32mSUCCEEDED" in seen) == coloured
    assert ("\x1b" in seen) == coloured


def test_waiting_shows_a_bar(cluster: Cluster) -> None:
    code, seen = Terminal(cluster, "submit", "--wait", "--array", "0-9", "--", "true").end()
    assert code == 0
    assert "━" in seen
    assert "10/10" in seen


def test_a_job_that_has_to_wait_says_why(cluster: Cluster, gate: Gate) -> None:
    first = cluster.submit("--", "sh", "-c", f"{gate.wait}")
    terminal = Terminal(cluster, "run", "--after", first, "--", "echo", "hello")
    seen = terminal.read_until(lambda seen: b"waits" in seen)
    assert f"waits for job {first} to succeed" in seen
    gate.open()
    code, seen = terminal.end()
    assert code == 0
    assert seen.splitlines()[-1] == "hello"


def test_a_run_prints_nothing_of_its_own(cluster: Cluster) -> None:
    assert Terminal(cluster, "run", "--", "echo", "hello").end() == (0, "hello\n")


def test_ctrl_c_while_waiting_leaves_the_job_alone(cluster: Cluster, gate: Gate) -> None:
    number = cluster.submit("--", "sh", "-c", f"{gate.wait}")
    terminal = Terminal(cluster, "wait", number)
    terminal.read_until(lambda seen: b"running" in seen)
    terminal.process.send_signal(signal.SIGINT)
    code, seen = terminal.end()
    assert code == 130
    assert "rota: no longer waiting; the jobs go on" in seen
    assert "Traceback" not in seen
    gate.open()
    cluster.ok("wait", number)

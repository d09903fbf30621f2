"""What is taken for a task's process when its supervisor has died, and what is not."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rota.agent import facts, journal, tree
from rota.agent.cleanup import Killed, kill_journaled_trees
from rota.core.node.entries import Begin, Entry, Granted, Intent, Session, Start
from tests.support.processes import alive, kill, until_gone

# A session's leader that says the pid of a child in it, and waits; the child has nothing in its environment.
LEADER = """
import os, sys, time
if not (child := os.fork()):
    os.execve(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(1000)"], {})
print(child, flush=True)
time.sleep(1000)
"""
NODE = "00000000-0000-0000-0000-000000000007"


class Pair:
    """A session of two processes, of which a journal may say that they are a task's."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._leader = subprocess.Popen(
            [sys.executable, "-S", "-c", LEADER],
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
        assert self._leader.stdout is not None
        self.child = int(self._leader.stdout.readline())
        self.pid = self._leader.pid
        found = tree.process(self.pid)
        assert found is not None
        self.start_ticks = found.start_ticks

    def end_leader(self) -> None:
        self._leader.kill()
        self._leader.wait()

    def close(self) -> None:
        self.end_leader()
        assert self._leader.stdout is not None
        self._leader.stdout.close()
        if alive(self.child):
            kill(self.child)


@pytest.fixture
def stranger() -> Iterator[Pair]:
    made = Pair({})
    yield made
    made.close()


def _journal(home: Path, start: Start, boot_id: str = "") -> None:
    """One that says that an attempt runs."""
    entries: list[Entry] = [
        Begin("journal", boot_id or facts.boot_id()),
        Session(1, 1, 1, NODE, "n"),
        Granted(10, 1, 10, 1, 1, 1, ((0, 0),), (), False),
        Intent(10, ((0, 0),)),
        start,
    ]
    made = journal.Journal(home)
    made.begin(entries)
    made.close()


def _start(pid: int, start_ticks: int) -> Start:
    return Start(10, 0, 1, 0, pid, start_ticks, 0)


def test_what_the_journal_names_is_killed_with_its_session(tmp_path: Path, stranger: Pair) -> None:
    _journal(tmp_path, _start(stranger.pid, stranger.start_ticks))
    assert kill_journaled_trees(tmp_path) == Killed(2)
    assert not alive(stranger.child)


def test_a_later_process_with_the_pid_is_left_alone(tmp_path: Path, stranger: Pair) -> None:
    _journal(tmp_path, _start(stranger.pid, stranger.start_ticks - 1))
    assert kill_journaled_trees(tmp_path) == Killed(0)
    # And so is what it started, when it has gone.
    stranger.end_leader()
    assert kill_journaled_trees(tmp_path) == Killed(0)
    assert alive(stranger.child)


def test_of_another_boot_nothing_is_killed(tmp_path: Path, stranger: Pair) -> None:
    _journal(tmp_path, _start(stranger.pid, stranger.start_ticks), boot_id="another")
    assert kill_journaled_trees(tmp_path) == Killed(0)
    assert alive(stranger.pid)
    assert alive(stranger.child)


def test_a_process_that_is_marked_vouches_for_its_session(tmp_path: Path) -> None:
    mark = {"ROTA_NODE_ID": NODE, "ROTA_JOB_ID": "10", "ROTA_TASK_INDEX": "0", "ROTA_ATTEMPT": "1"}
    task = Pair(mark)
    try:
        # Its main process has ended, as far as the journal tells.
        _journal(tmp_path, _start(task.pid, task.start_ticks - 1))
        assert kill_journaled_trees(tmp_path) == Killed(2)
        until_gone(task.child)
    finally:
        task.close()

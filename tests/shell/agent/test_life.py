"""The supervisor's life: its end, its deaths, its link's, and a disk that is full."""

import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rota.agent.link_frames import End as EndStream
from rota.core.model.protocol import Goodbye, Hello, Holding, Refused
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, OnNodeLoss
from rota.core.node.entries import Ends
from tests.shell.agent.harness import Agent, agent
from tests.support.files import WAIT_S_MAX, Gate, until, until_there, words
from tests.support.processes import alive, kill, look_again, until_gone

SLEEP = JobSpec(command=("sleep", "1000"))


def _main(node: Agent) -> int:
    """The pid of the task that was started last."""
    return [entry.pid for entry in node.entries() if hasattr(entry, "pid")][-1]


# ---------------------------------------------------------------- the end


def test_asked_to_end_it_stops_its_tasks_says_so_and_leaves(tmp_path: Path) -> None:
    with agent(tmp_path / "home") as node:
        script = f'trap "echo term; exit 3" TERM; touch {tmp_path}/up-{{index}}; sleep 1000 & wait'
        node.grant(JobSpec(command=("sh", "-c", script)), ((0, 9),))
        until_there(tmp_path / "up-0", tmp_path / "up-1")
        node.until(lambda: len(node.started) == 2)
        assert node.end() == 0
        assert {ended.cause for ended in node.ended.values()} == {Cause.PREEMPTED}
        assert len(node.ended) == 2
        assert node.dropped == {(10, index) for index in range(2, 10)}
        assert isinstance(node.said[-1], Goodbye)
        assert node.output() == "term\n"
        assert not (tmp_path / "home" / "agent.pid").exists()
        # Nothing is left, and it can be started again.
        node.restart()
        hello = node.connect()
        assert hello.last_sequence == node.acknowledged
        assert not [said for said in node.said if isinstance(said, Holding)]
        node.lease(1, lease=2)
        node.grant(JobSpec(command=("true",)), allocation=11, lease=2)
        node.until(lambda: (11, 0) in node.succeeded)


@pytest.mark.parametrize("last", [signal.SIGINT, signal.SIGQUIT])
def test_ctrl_c_twice_does_not_wait_for_the_grace(last: signal.Signals, tmp_path: Path) -> None:
    with agent(tmp_path / "home", "--grace-ms", "600000") as node:
        script = f'trap "" TERM; touch {tmp_path}/up-{{index}}; sleep 1000'
        node.grant(JobSpec(command=("sh", "-c", script)), ((0, 9),))
        until_there(tmp_path / "up-0", tmp_path / "up-1")
        node.until(lambda: len(node.started) == 2)
        pid = _main(node)
        assert node.process is not None
        # A terminal that is closed is no reason to end.
        node.process.send_signal(signal.SIGHUP)
        if last == signal.SIGINT:
            node.process.send_signal(signal.SIGINT)
            node.until(lambda: (10, 9) in node.dropped)
            assert alive(pid)
        assert node.end(last) == 0
        assert not alive(pid)
        assert node.ended[10, 0].cause == Cause.PREEMPTED


def test_without_a_stream_it_ends_too_and_tells_later(tmp_path: Path) -> None:
    with agent(tmp_path / "home") as node:
        node.grant(SLEEP)
        node.until(lambda: (10, 0) in node.started)
        node.hang_up()
        assert node.end() == 0
        node.restart()
        node.connect()
        node.until(lambda: (10, 0) in node.ended)
        assert node.ended[10, 0].cause == Cause.PREEMPTED


def test_refused_for_good_it_ends(tmp_path: Path) -> None:
    with agent(tmp_path / "home") as node:
        node.grant(SLEEP)
        node.until(lambda: (10, 0) in node.started)
        pid = _main(node)
        node.down(Refused("this node was removed"))
        assert node.wait() == 4
        assert not alive(pid)


def test_two_agents_on_one_home_are_one_too_many(tmp_path: Path) -> None:
    with agent(tmp_path / "home") as node:
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "rota.agent", "--home", str(node.home), "--ready-fd", str(writing)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=WAIT_S_MAX, pass_fds=(writing,)
        )
        os.close(writing)
        with os.fdopen(reading) as ready:
            said = ready.read()
        assert done.returncode == 1
        sentence = (
            f"another agent (pid {node.pid}) uses {node.home}; stop it, or give this one a home of its own"
        )
        assert done.stderr == f"rota agent: {sentence}\n"
        assert said == f"{sentence}\n"


# ---------------------------------------------------------------- deaths


def test_a_dead_link_harms_nothing(tmp_path: Path, gate: Gate) -> None:
    with agent(tmp_path / "home") as node:
        node.grant(JobSpec(command=gate.argv))
        node.until(lambda: (10, 0) in node.started)
        link = int((node.home / "link.pid").read_text())
        kill(link)
        node.accept()
        link = int((node.home / "link.pid").read_text())
        node.connect()
        # Nor does one that cannot be written down.
        (node.home / "link.pid").unlink()
        (node.home / "link.pid").mkdir()
        kill(link)
        node.accept()
        node.connect()
        gate.open()
        node.until(lambda: (10, 0) in node.succeeded)
        assert node.end() == 0


def test_what_the_agent_cannot_start_it_does_not_die_of(tmp_path: Path) -> None:
    with agent(tmp_path / "home") as node:
        (mother,) = _children(node.pid) - {int((node.home / "link.pid").read_text())}
        # No descriptor is left for the next mother.
        soft, hard = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (3, hard))
        kill(mother)
        ended = node.run(SLEEP)
        assert ended is not None
        assert (ended.cause, ended.started) == (Cause.AGENT_ERROR, False)
        assert ended.message.startswith("the agent cannot start it: ")
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (soft, hard))
        look_again(lambda: len(_children(node.pid)) > 1, "there is no mother")
        assert node.run(JobSpec(script="true"), allocation=11) is None
        (node.home / "scripts" / "12.1").write_text("where a folder must be")
        ended = node.run(JobSpec(script="true"), allocation=12)
        assert ended is not None
        assert ended.message == "the agent cannot start it: its script cannot be kept: File exists"


def _children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_tasks_go_on_without_a_stream_and_are_told_of_later(tmp_path: Path) -> None:
    with agent(tmp_path / "home") as node:
        node.grant(JobSpec(command=("sh", "-c", f"echo {{index}} >> {tmp_path}/ran")), ((0, 19),))
        node.hang_up()
        until(lambda: len(words(tmp_path / "ran")) == 20, "they did not run", tmp_path)
        node.connect()
        node.until(lambda: len(node.succeeded) == 20)


def test_killed_at_random_every_task_has_one_end_and_none_runs_twice(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    count = 400
    with agent(tmp_path / "home") as node:
        spec = JobSpec(command=("sh", "-c", f"echo {{index}} >> {tmp_path}/ran"))
        node.grant(spec, ((0, count - 1),))
        for _ in range(5):
            node.until_ended(min(len(node.succeeded) + len(node.ended) + chance.randrange(1, 60), count))
            if chance.random() < 0.4:
                os.kill(int((node.home / "link.pid").read_text()), signal.SIGKILL)
                node.accept()
            else:
                node.kill()
                node.restart()
            node.connect()
        node.until_ended(count)
        assert {ended.cause for ended in node.ended.values()} <= {Cause.AGENT_ERROR}
        ran = words(tmp_path / "ran")
        assert len(ran) == len(set(ran)), "a task ran twice"
        assert {str(index) for _, index in node.succeeded} <= set(ran), "a success that did not run"
        started = {str(ended.index) for ended in node.ended.values() if ended.started}
        unknown = {str(ended.index) for ended in node.ended.values()}
        assert set(ran) <= {str(index) for _, index in node.succeeded} | unknown
        assert len(started) <= 2 * 5


def test_fenced_work_ends_when_contact_has_run_out(tmp_path: Path, gate: Gate) -> None:
    with agent(tmp_path / "home") as node:
        node.grant(JobSpec(command=gate.argv), allocation=9)
        node.until(lambda: (9, 0) in node.started)
        node.heartbeat_ms, node.lost_after_ms = 500, 1_500
        node.hang_up()
        node.connect()
        spec = JobSpec(command=("touch", f"{tmp_path}/ran-{{index}}"), on_node_loss=OnNodeLoss.RERUN_FENCED)
        node.grant(spec, ((0, 0),))
        node.until(lambda: (10, 0) in node.succeeded)
        sleep = JobSpec(command=("sleep", "1000"), on_node_loss=OnNodeLoss.RERUN_FENCED)
        node.grant(sleep, ((0, 5),), allocation=11)
        node.until(lambda: (11, 0) in node.started)
        pid = _main(node)
        node.hang_up()
        until_gone(pid, wait_s=10)
        node.connect()
        node.until(lambda: (11, 0) in node.ended)
        assert node.ended[11, 0].cause == Cause.NODE_LOST
        node.until(lambda: {(11, index) for index in range(1, 6)} <= node.dropped)
        gate.open()
        node.until(lambda: (9, 0) in node.succeeded)


# ---------------------------------------------------------------- a full disk


def test_a_journal_that_cannot_be_written_loses_no_end(tmp_path: Path, gate: Gate) -> None:
    with agent(tmp_path / "home") as node:
        node.grant(JobSpec(command=gate.argv), ((0, 3),))
        node.until(lambda: len(node.started) == 2)
        (segment,) = (node.home / "journal").glob("*.log")
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (segment.stat().st_size, unlimited))
        gate.open()
        node.until(lambda: [one for one in node.told if isinstance(one, EndStream)])
        assert "the journal cannot be written: File too large" in str(node.told[-1])
        # It takes no stream, and nothing more starts.
        node.told.clear()
        node.open_in_vain()
        assert not node.succeeded
        assert not [said for said in node.said[-1:] if isinstance(said, Hello)]
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))

        def ends() -> bool:
            return sum(len(entry.index) for entry in node.entries() if isinstance(entry, Ends)) >= 2

        until(ends, "the ends are not written", node.home / "journal")
        node.connect()
        node.until(lambda: len(node.succeeded) + len(node.ended) == 4)
        # Those that were about to be started, too: as never started.
        assert {(10, 0), (10, 1)} <= node.succeeded
        assert {ended.started for ended in node.ended.values()} <= {False}


def test_killed_while_the_journal_is_full_it_says_agent_error(tmp_path: Path, gate: Gate) -> None:
    with agent(tmp_path / "home") as node:
        node.grant(JobSpec(command=gate.argv), ((0, 1),))
        node.until(lambda: len(node.started) == 2)
        (segment,) = (node.home / "journal").glob("*.log")
        resource.prlimit(
            node.pid, resource.RLIMIT_FSIZE, (segment.stat().st_size + 7, resource.RLIM_INFINITY)
        )
        gate.open()
        node.until(lambda: [one for one in node.told if isinstance(one, EndStream)])
        node.kill()
        node.restart()
        node.connect()
        node.until(lambda: len(node.ended) == 2)
        assert {ended.cause for ended in node.ended.values()} == {Cause.AGENT_ERROR}

"""An attempt ends when its whole tree has, however its processes hide; in cgroups and without."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rota.core.model.protocol import Stop
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, StopReason
from tests.shell.agent.harness import Agent, agent
from tests.support.files import WAIT_S_MAX, until, until_there
from tests.support.hung import can_hang, hung
from tests.support.processes import alive, freeze, kill, until_gone

# Its children hide in every way, write their pids to files in a folder, and say so in a pipe.
HIDE = """
import os, signal, sys, time
def note(name):
    with open(name + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(name + ".new", name)
    os.write(ready, b".")
def child(name, *how):
    if os.fork() == 0:
        for one in how:
            one()
        note(name)
        while True:
            time.sleep(1000)
def twice():
    if os.fork():
        os._exit(0)
def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def bare():
    code = "import os, sys, time; new = sys.argv[1] + '.new'; file = open(new, 'w'); "
    code += "file.write(str(os.getpid())); file.close(); os.rename(new, sys.argv[1]); "
    code += "os.write(int(sys.argv[2]), b'.'); time.sleep(1000)"
    os.set_inheritable(ready, True)
    os.execve(sys.executable, [sys.executable, "-S", "-c", code, folder + "/bare", str(ready)], {})
def until_all_are_there():
    said = b""
    while len(said) < 5:
        said += os.read(hear, 5)
folder = sys.argv[1]
hear, ready = os.pipe()
child(folder + "/plain")
child(folder + "/session", os.setsid)
child(folder + "/daemon", os.setsid, twice, os.setsid)
child(folder + "/deaf", os.setsid, twice, deaf)
child(folder + "/unused", os.setsid, twice, bare)
"""
NAMES = ("plain", "session", "daemon", "deaf", "bare")


@pytest.fixture
def node(tmp_path: Path, way: tuple[str, ...]) -> object:
    with agent(tmp_path / "home", prefix=way) as made:
        yield made


def _hide(folder: Path, then: str) -> JobSpec:
    (folder / "hide.py").write_text(HIDE + then)
    return JobSpec(command=(sys.executable, "-S", str(folder / "hide.py"), str(folder)), cwd="/")


def _main(node: Agent) -> int:
    """The pid of the first task, once it is in the journal: its children may be there before."""
    node.until(lambda: (10, 0) in node.started)
    return next(entry.pid for entry in node.entries() if hasattr(entry, "pid"))


def _pids(folder: Path) -> list[int]:
    until_there(*(folder / name for name in NAMES))
    return [int((folder / name).read_text()) for name in NAMES]


def test_a_stop_ends_children_that_hide(node: Agent, tmp_path: Path) -> None:
    node.grant(_hide(tmp_path, "time.sleep(1000)"))
    node.until(lambda: (10, 0) in node.started)
    pids = _pids(tmp_path)
    assert all(map(alive, pids))
    node.down(Stop(10, 1, (), StopReason.CANCEL, 200))
    ended = node.until(lambda: node.ended.get((10, 0)))
    assert ended.cause == Cause.STOPPED
    assert not any(map(alive, pids)), "it had ended before its tree was gone"


def test_what_the_main_process_leaves_is_killed(node: Agent, tmp_path: Path) -> None:
    node.grant(_hide(tmp_path, "until_all_are_there()\nsys.exit(3)"))
    ended = node.until(lambda: node.ended.get((10, 0)))
    assert (ended.cause, ended.code) == (Cause.EXIT, 3)
    assert not any(map(alive, _pids(tmp_path)))


def test_attempts_side_by_side_do_not_end_each_other(node: Agent, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    node.grant(_hide(tmp_path / "a", "time.sleep(1000)"), allocation=10)
    pids = _pids(tmp_path / "a")
    for number in range(11, 31):
        assert node.run(JobSpec(command=("true",)), allocation=number) is None
    assert all(map(alive, pids))


def test_term_comes_first_and_an_end_in_time_is_its_own(node: Agent, tmp_path: Path) -> None:
    script = 'trap "echo bye; exit 7" TERM; echo ready; touch "$0.ready"; sleep 1000 & wait'
    node.grant(JobSpec(command=("sh", "-c", script, str(tmp_path / "x"))))
    until_there(tmp_path / "x.ready")
    node.down(Stop(10, 1, (), StopReason.CANCEL, 60_000))
    ended = node.until(lambda: node.ended.get((10, 0)))
    assert (ended.cause, ended.code) == (Cause.STOPPED, 7)
    assert node.output() == "ready\nbye\n"


def test_a_dead_spawner_ends_its_attempts_and_nothing_else(node: Agent, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    node.grant(_hide(tmp_path / "a", "time.sleep(1000)"))
    pids = _pids(tmp_path / "a")
    main = _main(node)
    os.kill(_parent(main), signal.SIGKILL)
    ended = node.until(lambda: node.ended.get((10, 0)))
    assert (ended.cause, ended.started) == (Cause.AGENT_ERROR, True)
    assert not any(map(alive, [main, *pids]))
    assert node.run(JobSpec(command=("true",)), allocation=11) is None


def test_a_dead_mother_is_replaced(node: Agent, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    node.grant(_hide(tmp_path / "a", "time.sleep(1000)"))
    pids = _pids(tmp_path / "a")
    main = _main(node)
    spawner = _parent(main)
    mother = _parent(spawner)
    assert _parent(mother) == node.pid
    kill(mother)
    assert node.run(JobSpec(command=("true",)), allocation=11) is None
    assert [pid for pid in (main, *pids) if not alive(pid)] == [], "the attempt goes on"
    os.kill(spawner, signal.SIGKILL)
    ended = node.until(lambda: node.ended.get((10, 0)))
    assert ended.cause == Cause.AGENT_ERROR
    assert not any(map(alive, [main, *pids]))
    assert node.run(JobSpec(command=("true",)), allocation=12) is None


def test_a_dead_supervisor_takes_everything_with_it(tmp_path: Path, way: tuple[str, ...]) -> None:
    with agent(tmp_path / "home", prefix=way) as node:
        (tmp_path / "a").mkdir()
        node.grant(_hide(tmp_path / "a", "time.sleep(1000)"))
        pids = _pids(tmp_path / "a")
        main = _main(node)
        link = int((tmp_path / "home" / "link.pid").read_text())
        spawner = _parent(main)
        node.kill()
        until_gone(link, spawner, main, *pids)
        node.restart()
        node.connect()
        ended = node.until(lambda: node.ended.get((10, 0)))
        assert (ended.cause, ended.started) == (Cause.AGENT_ERROR, True)
        assert node.run(JobSpec(command=("true",)), allocation=11) is None


def test_a_new_supervisor_ends_what_nobody_else_could(tmp_path: Path, way: tuple[str, ...]) -> None:
    with agent(tmp_path / "home", prefix=way) as node:
        (tmp_path / "a").mkdir()
        node.grant(_hide(tmp_path / "a", "time.sleep(1000)"))
        pids = _pids(tmp_path / "a")
        main = _main(node)
        link = int((tmp_path / "home" / "link.pid").read_text())
        spawner = _parent(main)
        mother = _parent(spawner)
        for pid in (link, spawner, mother, node.pid):
            freeze(pid)
        for pid in (link, spawner, mother):
            os.kill(pid, signal.SIGKILL)
        node.kill()
        assert alive(main)
        node.restart()
        # Before its greeting everything is gone; but for what has neither parent, session nor name left.
        node.connect()
        left = [pid for pid in (main, *pids) if alive(pid)]
        assert left == ([] if not way else pids[NAMES.index("bare") :])
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        ended = node.until(lambda: node.ended.get((10, 0)))
        assert ended.cause == Cause.AGENT_ERROR


# An agent that does not wait as long as others for what it has killed.
IMPATIENT = """
import runpy, sys
from rota.agent import cleanup
cleanup.WAIT_S_MAX = 0.5
runpy.run_module("rota.agent", run_name="__main__")
"""


@pytest.mark.skipif(not can_hang(), reason="needs root and FUSE")
def test_a_slot_is_not_given_on_while_what_was_killed_lives(tmp_path: Path, way: tuple[str, ...]) -> None:
    log = tmp_path / "log"
    logged = (*way, "sh", "-c", f'exec "$@" 2>> {log}', "sh")
    with hung(tmp_path / "hung") as place, agent(tmp_path / "home", prefix=logged) as node:
        cat = JobSpec(command=("cat", str(place.folder / "x")))
        node.lease(1, lease=2)
        node.grant(cat, lease=2)
        node.grant(JobSpec(command=("true",)), allocation=11, lease=2)
        place.until_somebody_waits()
        pid = _main(node)
        node.down(Stop(10, 1, (), StopReason.CANCEL, 0))
        # Other slots do their work meanwhile.
        assert node.run(JobSpec(command=("true",)), allocation=12) is None
        link = int((tmp_path / "home" / "link.pid").read_text())
        says = f"job 10, task 0: processes {pid} do not end though they were killed"
        until(lambda: says in log.read_text(), "nobody was told", tmp_path)
        assert (10, 0) not in node.ended
        assert (11, 0) not in node.started | node.succeeded
        # An agent that comes after this one does not take the slot for free either.
        node.kill()
        kill(link)
        command = [*way, sys.executable, "-c", IMPATIENT, "--home", str(node.home)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S_MAX)
        assert done.returncode == 1
        assert f"processes {pid} of an earlier agent's tasks do not end" in done.stderr.splitlines()[-1]
        place.release()
        until_gone(pid)
        node.restart()
        node.connect()
        ended = node.until(lambda: node.ended.get((10, 0)))
        assert (ended.cause, ended.started) == (Cause.AGENT_ERROR, True)


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat[stat.rindex(")") + 2 :].split()[1])

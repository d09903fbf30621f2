"""A spawner by itself: what it is asked, and what it answers."""

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rota.agent import output
from rota.agent.codec import Codec, Frames, frame
from rota.agent.spawn_frames import Feed, FromSpawner, Kill, Launch, Prepare, Setup, ToSpawner
from rota.agent.spawner import MEASURE_MS_MIN
from rota.core.model.resources import Resources
from rota.core.model.states import Cause
from rota.core.node.inputs import Exited, InputLost, Part, Ran, Returned, Spawned, SpawnFailed
from tests.support.files import WAIT_S_MAX
from tests.support.processes import alive, look_again, until_gone

# On a slow machine some end too late.
RUNS_MAX = 100


def mother() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A mother process, and the supervisor's end of her socket."""
    control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = (
        "import socket; from rota.agent.spawner_main import mother; "
        f"mother(socket.socket(fileno={end.fileno()}))"
    )
    with end:
        return subprocess.Popen([sys.executable, "-c", code], pass_fds=(end.fileno(),)), control


class Conversation:
    """A mother process, and one spawner of hers."""

    def __init__(self, home: Path) -> None:
        self.mother, self._control = mother()
        self.end, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"F7"], [theirs.fileno()])
        number, pid = self._control.recv(64).split()
        assert number == b"7"
        self.pid = int(pid)
        self.end.settimeout(WAIT_S_MAX)
        self._frames = Frames()
        self._codec: Codec[ToSpawner] = Codec(ToSpawner)
        self._answers: Codec[FromSpawner] = Codec(FromSpawner)
        self._heard: list[FromSpawner] = []
        self.say(setup(home))

    def say(self, *messages: ToSpawner) -> None:
        self.end.sendall(b"".join(frame(self._codec.encode(message)) for message in messages))

    def hear(self) -> FromSpawner:
        while not self._heard:
            data = self.end.recv(65536)
            assert data, "the spawner died"
            self._heard += map(self._answers.decode, self._frames.feed(data))
        return self._heard.pop(0)

    def close(self) -> None:
        self.end.close()
        self._control.close()
        self.mother.wait(WAIT_S_MAX)


def setup(home: Path, rest: str = "") -> Setup:
    environment = (("PATH", "/usr/bin:/bin"), ("HOME", "/"))
    return Setup(str(home), "id-n1", "n1", environment, rest, (), "", (), has_gpus=False)


def prepare(*command: str, kept: str = "", stdin: bool = False) -> Prepare:
    return Prepare(7, 1, command, "", False, "", (), "/", kept, kept, stdin, 1, "")


def launch(index: int, start_before_ms: int | None = None, cgroup: str = "", count: int = 1) -> Launch:
    """A run of so many tasks."""
    part = Part(10, 7, 1, 1, ((index, index + count - 1),))
    return Launch((part,), cgroup, Resources(), (), start_before_ms)


@pytest.fixture
def spawner(tmp_path: Path) -> Iterator[Conversation]:
    made = Conversation(tmp_path)
    yield made
    made.close()


def end_input(spawner: Conversation, home: Path, index: int) -> None:
    """Says that the task has read all that there is."""
    path = output.input_path(home, 7, 10, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    spawner.say(Feed(10, index, 0, True))


def test_a_task_is_spawned_and_its_end_told(spawner: Conversation, tmp_path: Path) -> None:
    spawner.say(prepare("sh", "-c", "read line; exit 5", stdin=True), launch(0))
    born = spawner.hear()
    assert isinstance(born, Spawned)
    assert born.attempt == (10, 0, 1)
    end_input(spawner, tmp_path, 0)
    ended = spawner.hear()
    assert isinstance(ended, Ran)
    assert (ended.allocation, ended.index, ended.code) == (10, (0,), (5,))
    assert ended.at_ms == (born.at_ms,)
    assert ended.memory_peak_kib == (0,), "less than the spawner's own is not known"


def codes(spawner: Conversation, count: int = 3) -> dict[int, int]:
    """The exit codes of so many tasks; what a slow machine did not come to is launched again."""
    found: dict[int, int] = {}
    while len(found) < count:
        answer = spawner.hear()
        if isinstance(answer, Ran):
            found |= dict(zip(answer.index, answer.code, strict=True))
        elif isinstance(answer, Returned):
            first, last = answer.tasks[0][1][0]
            spawner.say(launch(first, count=last - first + 1))
    return found


def ended_soon(spawner: Conversation, count: int) -> bool:
    """Whether so many tasks all ended before they were told of; waits until nothing is left of them."""
    soon = True
    while count > 0:
        heard = spawner.hear()
        if isinstance(heard, Ran):
            count -= len(heard.index)
        elif isinstance(heard, Returned):
            count -= sum(last - first + 1 for _, ranges in heard.tasks for first, last in ranges)
        elif isinstance(heard, Exited):
            count -= 1
        soon = soon and isinstance(heard, Ran)
    return soon


def test_a_run_is_told_of_together_when_it_is_over(spawner: Conversation) -> None:
    spawner.say(prepare("true"), launch(0, count=3))
    assert codes(spawner) == {0: 0, 1: 0, 2: 0}


def test_what_stands_behind_a_failure_comes_back(spawner: Conversation) -> None:
    script = "test $ROTA_TASK_INDEX -ne 1"
    spawner.say(prepare("sh", "-c", script), launch(0, count=4))
    assert codes(spawner, 2) == {0: 0, 1: 1}
    assert spawner.hear() == Returned(((10, ((2, 3),)),))


def test_what_stands_behind_a_task_that_lasts_comes_back(spawner: Conversation) -> None:
    spawner.say(prepare("sleep", "1000"), launch(0, count=3))
    assert isinstance(spawner.hear(), Spawned)
    assert spawner.hear() == Returned(((10, ((1, 2),)),))
    spawner.say(Kill((10, 0, 1), 9, True))
    assert isinstance(spawner.hear(), Exited)


def test_setups_cost_no_descriptors(spawner: Conversation, tmp_path: Path) -> None:
    spawner.say(prepare("true"), launch(0))
    assert codes(spawner, 1) == {0: 0}
    before = len(list(Path(f"/proc/{spawner.pid}/fd").iterdir()))
    for index in range(1, 5):
        spawner.say(setup(tmp_path), prepare("true"), launch(index))
        assert codes(spawner, 1) == {index: 0}
    assert len(list(Path(f"/proc/{spawner.pid}/fd").iterdir())) == before


def test_a_file_with_a_name_of_its_own_is_no_other_tasks(spawner: Conversation, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    spawner.say(prepare("ln", "-L", "/proc/self/fd/1", str(mine)), launch(0))
    assert codes(spawner, 1) == {0: 0}
    spawner.say(prepare("sh", "-c", "echo theirs; echo theirs >&2"), launch(1))
    assert codes(spawner, 1) == {1: 0}
    assert mine.read_text() == ""


def test_what_cannot_be_started_gives_the_others_back(spawner: Conversation) -> None:
    spawner.say(prepare("no-such-program"), launch(0, count=3))
    failed = spawner.hear()
    assert isinstance(failed, SpawnFailed)
    assert failed.attempt == (10, 0, 1)
    assert spawner.hear() == Returned(((10, ((1, 2),)),))


def test_what_is_too_late_is_not_started(spawner: Conversation) -> None:
    now_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    spawner.say(prepare("sleep", "1000"), launch(0, now_ms), launch(1, now_ms + 60_000))
    assert spawner.hear() == SpawnFailed(
        (10, 0, 1), "the node was out of contact for too long", Cause.NODE_LOST
    )
    assert isinstance(spawner.hear(), Spawned)


def test_a_signal_after_the_end_is_no_signal(spawner: Conversation, tmp_path: Path) -> None:
    spawner.say(prepare("sh", "-c", "read line", stdin=True), launch(0))
    born = spawner.hear()
    assert isinstance(born, Spawned)
    end_input(spawner, tmp_path, 0)
    until_gone(born.pid)
    spawner.say(Kill((10, 0, 1), 15, True), Kill((10, 99, 1), 9, True))
    assert isinstance(spawner.hear(), Ran), "it ended by itself"
    spawner.say(prepare("sleep", "1000"), launch(1))
    assert isinstance(spawner.hear(), Spawned)
    spawner.say(Kill((10, 1, 1), 15, True))
    ended = spawner.hear()
    assert isinstance(ended, Exited)
    assert (ended.cause, ended.code, ended.ended_before_signal) == (Cause.SIGNAL, 15, False)


def test_without_a_supervisor_it_ends_its_tasks_and_itself(spawner: Conversation) -> None:
    spawner.say(prepare("sh", "-c", "trap '' TERM; sleep 1000"), launch(0))
    born = spawner.hear()
    assert isinstance(born, Spawned)
    spawner.end.close()
    until_gone(born.pid, spawner.pid)
    assert spawner.mother.poll() is None


def test_what_makes_no_sense_ends_it(spawner: Conversation) -> None:
    spawner.end.sendall(frame(b"[99]"))
    until_gone(spawner.pid)
    assert spawner.mother.poll() is None


def test_a_supervisor_that_dies_with_an_answer_unread_is_nothing_unusual() -> None:
    process, control = mother()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(control, [b"F7"], [theirs.fileno()])
        select.select([control], [], [], WAIT_S_MAX)
        control.close()
        assert process.wait(WAIT_S_MAX) == 0


def test_a_dead_mother_is_survived(spawner: Conversation, tmp_path: Path) -> None:
    spawner.mother.kill()
    spawner.mother.wait(WAIT_S_MAX)
    spawner.say(prepare("sh", "-c", "read line", stdin=True), launch(0))
    assert isinstance(spawner.hear(), Spawned)
    end_input(spawner, tmp_path, 0)
    assert isinstance(spawner.hear(), Ran)
    assert alive(spawner.pid)


def test_without_descriptors_nothing_starts_and_then_it_goes_on(spawner: Conversation) -> None:
    # It runs by then: it needs descriptors of its own to begin.
    spawner.say(prepare("sleep", "1000", kept="none"), launch(0))
    assert isinstance(spawner.hear(), Spawned)
    soft, hard = resource.prlimit(spawner.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(spawner.pid, resource.RLIMIT_NOFILE, (3, hard))
    spawner.say(launch(1))
    reason = "the agent cannot start it: Too many open files"
    assert spawner.hear() == SpawnFailed((10, 1, 1), reason, Cause.AGENT_ERROR)
    resource.prlimit(spawner.pid, resource.RLIMIT_NOFILE, (soft, hard))
    spawner.say(launch(2))
    assert isinstance(spawner.hear(), Spawned)


def test_output_has_its_name_when_there_is_some_or_may_be(spawner: Conversation, tmp_path: Path) -> None:
    script = "case $ROTA_TASK_INDEX in 0) ;; 1) echo 1;; 2) echo 2 >&2; sleep 1000;; esac"
    spawner.say(prepare("sh", "-c", script), launch(0, count=2))
    codes(spawner, 2)
    spawner.say(launch(2))
    assert isinstance(spawner.hear(), Spawned)
    folder = output.folder(tmp_path, 7, 10, 0)
    look_again((folder / "2.1.err").exists, "the output is not there")
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == {"1.1.out": "1\n", "2.1.out": "", "2.1.err": "2\n"}
    spawner.say(Kill((10, 2, 1), 9, True))
    while not isinstance(spawner.hear(), Exited):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["1.1.out", "2.1.err"]


def test_a_file_that_somebody_still_has_is_no_other_tasks(spawner: Conversation, tmp_path: Path) -> None:
    """A task can hand its output to a process that is none of its own, and that writes later."""
    theirs = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(theirs))
        listener.listen()
        listener.settimeout(WAIT_S_MAX)
        code = (
            "import os, socket; s = socket.socket(socket.AF_UNIX)\n"
            f"s.connect({str(theirs)!r}); socket.send_fds(s, [b'x'], [1])\n"
        )
        spawner.say(prepare(sys.executable, "-c", code), launch(0))
        with listener.accept()[0] as stranger:
            _, (descriptor,), _, _ = socket.recv_fds(stranger, 1, 1)
            while not isinstance(spawner.hear(), Ran):
                pass
            spawner.say(prepare("sleep", "1000"), launch(1))
            assert isinstance(spawner.hear(), Spawned)
            os.write(descriptor, b"late")
            os.close(descriptor)
    spawner.say(Kill((10, 1, 1), 9, True))
    assert isinstance(spawner.hear(), Exited)
    assert not list((tmp_path / "out").rglob("1.1.*"))


def test_output_that_could_not_be_held_to_its_limit_is_when_it_can(
    spawner: Conversation, tmp_path: Path
) -> None:
    out = output.path(tmp_path, 7, 10, 0, 1, 1)
    code = f"import os, time; os.posix_fallocate(1, 0, {2 * output.ATTEMPT_BYTES_MAX}); time.sleep(1000)"
    soft, hard = resource.prlimit(spawner.pid, resource.RLIMIT_NOFILE)
    spawner.say(prepare(sys.executable, "-c", code), launch(0))
    assert isinstance(spawner.hear(), Spawned)
    resource.prlimit(spawner.pid, resource.RLIMIT_NOFILE, (3, hard))
    look_again(lambda: out.stat().st_size > output.ATTEMPT_BYTES_MAX, "the task has not written")
    looked_s = time.monotonic() + 4 * MEASURE_MS_MIN / 1000
    while time.monotonic() < looked_s:
        spawner.say(launch(1))
        assert isinstance(spawner.hear(), SpawnFailed)
    assert out.stat().st_blocks * 512 > output.ATTEMPT_BYTES_MAX + output.SLACK_BYTES
    resource.prlimit(spawner.pid, resource.RLIMIT_NOFILE, (soft, hard))
    look_again(
        lambda: out.stat().st_blocks * 512 < output.ATTEMPT_BYTES_MAX + 100_000, "it is not held to its limit"
    )


@pytest.mark.parametrize("missing", ["rest", "slot"])
def test_a_cgroup_that_cannot_be_used_is_the_end_of_that_start_alone(
    spawner: Conversation, tmp_path: Path, missing: str
) -> None:
    # No cgroups: what is written to them goes to files.
    for name in {"rest", "slot"} - {missing}:
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    slot = str(tmp_path / "slot")
    spawner.say(setup(tmp_path, str(tmp_path / "rest")), prepare("true"), launch(0, cgroup=slot))
    reason = f"the agent cannot start it in the cgroup {slot}: No such file or directory"
    assert spawner.hear() == SpawnFailed((10, 0, 1), reason, Cause.AGENT_ERROR)
    assert alive(spawner.pid)


def test_a_run_enters_its_cgroup_once_and_leaves_it_before_anything_else_is_done(
    spawner: Conversation, tmp_path: Path
) -> None:
    # No cgroups: each move into one is a byte more in a file.
    for name in ("rest", "5.1"):
        (tmp_path / name).mkdir()
        for file in ("cgroup.procs", "cgroup.events", "cgroup.kill"):
            (tmp_path / name / file).touch()
    slot, moves = str(tmp_path / "5.1"), [tmp_path / name / "cgroup.procs" for name in ("5.1", "rest")]
    spawner.say(setup(tmp_path, str(tmp_path / "rest")), prepare("true"))
    moved = [0, 0]
    # Until all of a run ended soon: on a slow machine one that lasts has it leave.
    for _ in range(RUNS_MAX):
        moved = [path.stat().st_size for path in moves]
        spawner.say(launch(0, cgroup=slot, count=5))
        if ended_soon(spawner, 5):
            break
    assert [path.stat().st_size for path in moves] == [size + 1 for size in moved]
    moved = [path.stat().st_size for path in moves]
    spawner.say(prepare("sleep", "60"), launch(5, cgroup=slot, count=2))
    born = spawner.hear()
    assert isinstance(born, Spawned)
    spawner.say(Kill(born.attempt, signal.SIGKILL, tree=True))
    # That of the other task's return, or ahead of it for the kill.
    assert isinstance(spawner.hear(), Returned)
    assert [path.stat().st_size for path in moves] == [size + 1 for size in moved]
    os.kill(born.pid, signal.SIGKILL)
    assert isinstance(spawner.hear(), Exited)


@pytest.mark.parametrize("what", ["unreadable", "cut off"])
def test_input_that_cannot_be_read_is_lost_to_its_task_alone(
    spawner: Conversation, tmp_path: Path, what: str
) -> None:
    path = output.input_path(tmp_path, 7, 10, 0)
    path.parent.mkdir(parents=True)
    if what == "unreadable":
        path.mkdir()
    else:
        path.write_bytes(b"1234")
    spawner.say(prepare("cat", stdin=True), launch(0))
    assert isinstance(spawner.hear(), Spawned)
    spawner.say(Feed(10, 0, 5, True))
    lost = spawner.hear()
    assert isinstance(lost, InputLost)
    why = "Is a directory" if what == "unreadable" else "it is shorter than it was"
    assert lost == InputLost(10, 0, f"its standard input cannot be read on the node: {why}")
    # It does not take what it got for all.
    spawner.say(Feed(10, 0, 5, True), Kill((10, 0, 1), 9, True))
    ended = spawner.hear()
    assert isinstance(ended, Exited)
    assert (ended.cause, ended.code) == (Cause.SIGNAL, 9)

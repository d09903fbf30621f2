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
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from rota.agent import cgroups, output
from rota.agent.codec import Codec, Frames, frame
from rota.agent.spawn_frames import Feed, FromSpawner, Kill, Launch, Prepare, Setup, ToSpawner
from rota.agent.spawner import MEASURE_MS_MIN
from rota.core.model.resources import Resources
from rota.core.model.states import Cause
from rota.core.node.inputs import Exited, InputLost, Part, Ran, Returned, Spawned, SpawnFailed
from tests.support.files import WAIT_S_MAX
from tests.support.processes import alive, look_again, until_gone


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


def setup(home: Path, rooms: str = "", rest: str = "") -> Setup:
    environment = (("PATH", "/usr/bin:/bin"), ("HOME", "/"))
    return Setup(str(home), "id-n1", "n1", environment, rooms, rest, (), "", (), has_gpus=False)


def with_rooms(home: Path, group: Path) -> Setup:
    return setup(home, str(group / "rooms"), str(group / "rest"))


def prepare(*command: str, kept: str = "", stdin: bool = False) -> Prepare:
    return Prepare(7, 1, command, "", False, "", (), "/", kept, kept, stdin, 1, "")


def launch(index: int, start_before_ms: int | None = None, count: int = 1) -> Launch:
    """A run of so many tasks."""
    part = Part(10, 7, 1, 1, ((index, index + count - 1),))
    return Launch((part,), Resources(), (), start_before_ms)


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


def test_a_run_is_told_of_together_when_it_is_over(spawner: Conversation) -> None:
    spawner.say(prepare("true"), launch(0, count=3))
    assert codes(spawner) == {0: 0, 1: 0, 2: 0}


def test_what_stands_behind_a_failure_comes_back(spawner: Conversation) -> None:
    script = "test $ROTA_TASK_INDEX -ne 1"
    spawner.say(prepare("sh", "-c", script), launch(0, count=4))
    found: dict[int, int] = {}
    back = None
    while 1 not in found or back is None:
        match spawner.hear():
            case Ran(index=indices, code=told):
                found |= dict(zip(indices, told, strict=True))
            case Returned(tasks=((10, ((first, last),)),)) if first < 2:
                # What a slow machine did not come to in time.
                spawner.say(launch(first, count=last - first + 1))
            case Returned(tasks=tasks):
                back = tasks
    assert found == {0: 0, 1: 1}
    assert back == ((10, ((2, 3),)),)


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
    setup_count = 8
    for index in range(1, 1 + setup_count):
        spawner.say(setup(tmp_path), prepare("true"), launch(index))
        assert codes(spawner, 1) == {index: 0}
    # On a slow machine a task may have taken its files with it, which are kept for the next one else.
    assert len(list(Path(f"/proc/{spawner.pid}/fd").iterdir())) < before + setup_count


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


@pytest.mark.parametrize(
    "account",
    ["", pytest.param("nobody", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root"))],
)
def test_whatever_the_agent_cannot_open_is_no_fault_of_the_task(spawner: Conversation, account: str) -> None:
    """One descriptor more each time: it is another one of those that a start takes that is not there."""
    # It runs by then: it needs descriptors of its own to begin.
    spawner.say(prepare("sleep", "1000", kept="none"), launch(0))
    assert isinstance(spawner.hear(), Spawned)
    spawner.say(replace(prepare("sleep", "1000", stdin=True), account=account))
    soft, hard = resource.prlimit(spawner.pid, resource.RLIMIT_NOFILE)
    reasons = set()
    for limit in range(3, 100):
        resource.prlimit(spawner.pid, resource.RLIMIT_NOFILE, (limit, hard))
        spawner.say(launch(limit))
        answer = spawner.hear()
        if isinstance(answer, Spawned):
            break
        assert isinstance(answer, SpawnFailed)
        assert answer.cause == Cause.AGENT_ERROR, (limit, answer)
        reasons.add(answer.message)
    resource.prlimit(spawner.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert reasons == {
        "the agent cannot start it: Too many open files",
        "the agent cannot start it: its output cannot be kept: Too many open files",
    }


def test_output_that_cannot_be_kept_is_no_fault_of_the_task(spawner: Conversation, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    spawner.say(prepare("true"), launch(0))
    reason = "the agent cannot start it: its output cannot be kept: File exists"
    assert spawner.hear() == SpawnFailed((10, 0, 1), reason, Cause.AGENT_ERROR)
    # Where the job says itself where it is to go, it is.
    spawner.say(prepare("true", kept=str(tmp_path / "out" / "x")), launch(1))
    answer = spawner.hear()
    assert isinstance(answer, SpawnFailed)
    assert answer.cause == Cause.START_FAILED


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


def test_output_that_could_not_be_named_is_held_to_its_limit_and_named_when_it_can(
    spawner: Conversation, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "out" / "7"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    code = f"import os, time; os.posix_fallocate(1, 0, {2 * output.ATTEMPT_BYTES_MAX}); time.sleep(1000)"
    spawner.say(prepare(sys.executable, "-c", code), launch(0))
    born = spawner.hear()
    assert isinstance(born, Spawned)
    out = Path(f"/proc/{born.pid}/fd/1")
    look_again(lambda: out.stat().st_size > output.ATTEMPT_BYTES_MAX, "the task has not written")
    look_again(
        lambda: out.stat().st_blocks * 512 < output.ATTEMPT_BYTES_MAX + 100_000, "it is not held to its limit"
    )
    assert not in_the_way.is_dir()
    in_the_way.unlink()
    look_again(output.path(tmp_path, 7, 10, 0, 1, 1).exists, "it is not tried again")
    assert alive(born.pid)


def test_output_that_is_lost_is_told_of(spawner: Conversation, tmp_path: Path) -> None:
    """It may have no name before its end, and then there may be no room for one."""
    in_the_way = tmp_path / "out" / "7"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    spawner.say(prepare("sh", "-c", "echo hello; exit $ROTA_TASK_INDEX"))
    path = output.path(tmp_path, 7, 10, 0, 1, 1)
    for index in (0, 3):
        spawner.say(launch(index))
        ended = spawner.hear()
        while isinstance(ended, Spawned):
            ended = spawner.hear()
        assert isinstance(ended, Exited)
        assert (ended.cause, ended.code) == (Cause.EXIT, index)
        lost = path.with_name(f"{index}.1.out")
        assert ended.message == f"its output is lost, {lost} cannot be made: Not a directory"
    # Of one that wrote nothing there is nothing to lose.
    spawner.say(prepare("true"), launch(4))
    assert codes(spawner, 1) == {4: 0}


def test_a_second_attempt_is_told_of_at_once(spawner: Conversation) -> None:
    """The first may have died with its spawner, too soon to be told of."""
    part = Part(10, 7, 1, 2, ((0, 2),))
    spawner.say(prepare("true"), Launch((part,), Resources(), ()))
    born: list[int] = []
    over = 0
    while over < 3:
        heard = spawner.hear()
        if isinstance(heard, Spawned):
            born.append(heard.attempt[1])
        elif isinstance(heard, Ran):
            over += len(heard.index)
            assert set(heard.index) <= set(born)
        elif isinstance(heard, Returned):
            # The machine is slow: they have not begun.
            over += sum(last - first + 1 for _, ranges in heard.tasks for first, last in ranges)
    assert born[0] == 0


@pytest.fixture
def group(group: Path) -> Path:
    """A cgroup for spawners' rooms, and one for the agent's other processes."""
    if not cgroups.writable():
        pytest.skip("this machine does not let the test move processes between cgroups")
    (group / "rest").mkdir()
    return group


@pytest.mark.parametrize("missing", ["rest", "rooms"])
def test_a_cgroup_that_cannot_be_used_is_the_end_of_that_start_alone(
    spawner: Conversation, group: Path, tmp_path: Path, missing: str
) -> None:
    places = {"rooms": str(group / "rooms"), "rest": str(group / "rest"), missing: str(tmp_path / "no" / "x")}
    if missing == "rooms":
        # No directory can be made below a file.
        (tmp_path / "no").touch()
    spawner.say(setup(tmp_path, **places), prepare("true"), launch(0))
    why = "No such file or directory" if missing == "rest" else "Not a directory"
    reason = f"the agent cannot start it in a cgroup below {places['rooms']}: {why}"
    assert spawner.hear() == SpawnFailed((10, 0, 1), reason, Cause.AGENT_ERROR)
    assert alive(spawner.pid)
    spawner.say(with_rooms(tmp_path, group), prepare("true"), launch(1))
    assert codes(spawner, 1) == {1: 0}


def room(pid: int) -> str:
    """The last two parts of a process's cgroup."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return "/".join(next(line for line in lines if line.startswith("0::")).split("/")[-2:])


def test_a_spawner_is_ahead_in_the_cgroup_of_the_next_task(
    spawner: Conversation, group: Path, tmp_path: Path
) -> None:
    spawner.say(with_rooms(tmp_path, group), prepare("true"), launch(0))
    assert codes(spawner, 1) == {0: 0}
    # It did not go away after it, and what follows waits for no move.
    ahead = [room(spawner.pid)]
    pids = []
    for index in (1, 2):
        spawner.say(prepare("sleep", "1000"), launch(index))
        born = spawner.hear()
        assert isinstance(born, Spawned)
        assert room(born.pid) == ahead[-1]
        pids.append(born.pid)
        # Once a task lasts, its room is its own.
        look_again(lambda: room(spawner.pid) not in ahead, "the spawner stays with a task")
        ahead.append(room(spawner.pid))
    spawner.say(Kill((10, 1, 1), signal.SIGKILL, tree=True))
    ended = spawner.hear()
    assert isinstance(ended, Exited)
    assert (ended.attempt, ended.cause) == ((10, 1, 1), Cause.SIGNAL)
    assert alive(pids[1])
    # A room is used again, also where a tree was killed in it.
    spawner.say(launch(3), launch(4))
    again = [room(told.pid) for told in (spawner.hear(), spawner.hear()) if isinstance(told, Spawned)]
    assert again == [ahead[2], ahead[0]]
    look_again(lambda: room(spawner.pid) not in ahead, "the spawner stays with a task")
    assert len([path for path in (group / "rooms").iterdir() if path.is_dir()]) == 4


def test_a_spawner_does_not_stay_with_a_retry_that_was_told_of_ahead_of_another_task(
    spawner: Conversation, group: Path, tmp_path: Path
) -> None:
    retry = Launch((Part(11, 7, 1, 2, ((0, 0),)),), Resources(), ())
    spawner.say(with_rooms(tmp_path, group), prepare("sleep", "1000"), launch(0), retry)
    born = [told.pid for told in (spawner.hear(), spawner.hear()) if isinstance(told, Spawned)]
    assert len(born) == 2
    look_again(lambda: room(spawner.pid) not in map(room, born), "the spawner stays with a task")


def room_of_a_task_that_lasts(spawner: Conversation, group: Path, home: Path) -> Path:
    """The cgroup of the first task, once its spawner has left it."""
    spawner.say(with_rooms(home, group), prepare("sleep", "1000"), launch(0))
    born = spawner.hear()
    assert isinstance(born, Spawned)
    look_again(lambda: room(spawner.pid) != room(born.pid), "the spawner stays with a task")
    return group / "rooms" / room(born.pid).split("/")[-1]


@pytest.mark.parametrize("how", ["frozen", "with a cgroup below"])
def test_a_room_that_a_task_has_changed_is_not_used_again(
    spawner: Conversation, group: Path, tmp_path: Path, how: str
) -> None:
    own = room_of_a_task_that_lasts(spawner, group, tmp_path)
    if how == "frozen":
        (own / "cgroup.freeze").write_text("1")
        look_again(lambda: "frozen 1" in (own / "cgroup.events").read_text(), "it does not freeze")
    else:
        (own / "left").mkdir()
    spawner.say(Kill((10, 0, 1), signal.SIGKILL, tree=True))
    assert isinstance(spawner.hear(), Exited)
    assert not own.exists()
    spawner.say(launch(1))
    assert isinstance(spawner.hear(), Spawned)


def test_a_room_that_was_removed_by_others_costs_no_task(
    spawner: Conversation, group: Path, tmp_path: Path
) -> None:
    own = room_of_a_task_that_lasts(spawner, group, tmp_path)
    spawner.say(Kill((10, 0, 1), signal.SIGKILL, tree=True))
    assert isinstance(spawner.hear(), Exited)
    own.rmdir()
    spawner.say(launch(1), launch(2))
    assert all(isinstance(spawner.hear(), Spawned) for _ in range(2))


def test_a_run_beside_a_task_that_lasts_stays_where_it_is(
    spawner: Conversation, group: Path, tmp_path: Path
) -> None:
    """Its spawner has children all the time, and looks for itself whether a task left something."""
    spawner.say(with_rooms(tmp_path, group), prepare("sleep", "1000"), launch(0))
    assert isinstance(spawner.hear(), Spawned)
    told = tmp_path / "told"
    spawner.say(prepare("cat", "/proc/self/cgroup", kept=str(told)), launch(1, count=5))
    over = lasted = 0
    while over < 5:
        match spawner.hear():
            case Ran(index=indices):
                over += len(indices)
            case Spawned():
                lasted += 1
            case Returned(tasks=((_, ((first, last),)),)):
                spawner.say(launch(first, count=last - first + 1))
    places = [line for line in told.read_text().splitlines() if line.startswith("0::")]
    assert len(places) == 5
    # On a slow machine one may have lasted: its room was left to it.
    assert sum(before != after for before, after in pairwise(places)) <= lasted


def test_what_a_task_leaves_is_killed_without_its_spawner(
    spawner: Conversation, group: Path, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    code = f"setsid sleep 1000 & echo $! >{left}"
    spawner.say(with_rooms(tmp_path, group), prepare("sh", "-c", code), launch(0))
    while not isinstance(spawner.hear(), Ran):
        pass
    assert not alive(int(left.read_text()))
    assert alive(spawner.pid)


def test_a_signal_ahead_of_everything_hits_the_task_alone(
    spawner: Conversation, group: Path, tmp_path: Path
) -> None:
    spawner.say(
        with_rooms(tmp_path, group),
        prepare("sleep", "1000"),
        launch(0),
        Kill((10, 0, 1), signal.SIGTERM, tree=True),
        launch(1),
        Kill((10, 1, 1), signal.SIGKILL, tree=True),
    )
    ended: dict[int, int] = {}
    while len(ended) < 2:
        answer = spawner.hear()
        if isinstance(answer, Exited):
            ended[answer.attempt[1]] = answer.code
    assert ended == {0: signal.SIGTERM, 1: signal.SIGKILL}
    assert alive(spawner.pid)


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

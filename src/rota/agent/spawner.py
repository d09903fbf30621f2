"""A spawner: the parent of tasks. One thread, a socket to the supervisor, and its children.

Where there are cgroups a spawner has many attempts at a time, each in a cgroup of its own; where there
are none it has one at a time, and the attempt's tree is all that hangs below the spawner, which is a
sub-reaper. An attempt's result is its main process's; when that has ended, what is left of the tree
is killed, and the attempt has ended when nothing is left.

What it is given is a run of tasks for one slot: it goes from one to the next without asking, and tells of
those that are over soon together, at the run's end or when one lasts.
"""

import os
import select
import signal
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import repeat
from math import ceil
from pathlib import Path
from resource import RUSAGE_SELF, getrusage, struct_rusage
from typing import assert_never

from rota.agent import cgroups, files, output, tree
from rota.agent.codec import Codec, Frames, frame
from rota.agent.kept import Keeper
from rota.agent.launch import Launcher, Plan, StartFailed, Task
from rota.agent.spawn_frames import Feed, FromSpawner, Kill, Launch, Prepare, Setup, Stuck, ToSpawner
from rota.core.model.states import Cause
from rota.core.node.entries import Attempt
from rota.core.node.indices import each, joined
from rota.core.node.inputs import (
    RUN_MS_MAX,
    Exited,
    InputLost,
    Part,
    Ran,
    Returned,
    Spawned,
    SpawnFailed,
)

RECEIVE_BYTES = 256 * 1024
# How long an ending tree is left alone before it is killed again: twice as long each time.
AGAIN_MS_MIN = 5
AGAIN_MS_MAX = 500
# An attempt that lasts so long is told of.
TELL_S = 0.005
RUN_S_MAX = RUN_MS_MAX / 1000
# So long a spawner stays in the cgroup of a task: to go away takes time, in which it sees no end.
TOGETHER_S_MAX = 0.05
# How often outputs are measured: after a start and while they grow fast, and at length. What is written in
# between is on the disk for so long.
MEASURE_MS_MIN = 50
MEASURE_MS_MAX = 1_000
# Killed processes that live so long wait for something in the kernel: a disk or a device that hangs.
STUCK_S_MIN = 5.0
# How long a spawner without a supervisor tries to end its tasks.
END_S_MAX = 10.0

_TO_SPAWNER: Codec[ToSpawner] = Codec(ToSpawner)
_FROM_SPAWNER: Codec[FromSpawner] = Codec(FromSpawner)


class SupervisorGone(Exception):
    """The socket has ended."""


class _Run:
    """What is left to start of a Launch. Times in seconds of the monotonic clock."""

    def __init__(self, launch: Launch, jobs: list[Prepare]) -> None:
        self.launch = launch
        self._jobs = jobs
        self._todo = deque(
            (number, index, line)
            for number, part in enumerate(launch.parts)
            for index, line in zip(each(part.indices), part.lines or repeat(None), strict=False)
        )
        self._planned = -1
        self._plan: Plan | StartFailed | None = None
        self.until_s = time.monotonic() + RUN_S_MAX

    def __bool__(self) -> bool:
        return bool(self._todo)

    def next(self) -> tuple[Part, int, str | None]:
        """The next task: its part, index and line."""
        number, index, line = self._todo.popleft()
        self._number = number
        return self.launch.parts[number], index, line

    def plan(self, launcher: Launcher) -> Plan:
        """How the tasks of the part that `next` gave last are started. Raises StartFailed."""
        if self._planned != self._number:
            self._planned = self._number
            try:
                self._plan = launcher.plan(
                    self._jobs[self._number], self.launch.parts[self._number], self.launch.devices
                )
            except StartFailed as failed:
                self._plan = failed
        if isinstance(self._plan, StartFailed):
            raise self._plan
        assert self._plan is not None
        return self._plan

    def rest(self) -> Returned:
        """What was not started; none of it will be."""
        parts: dict[int, list[int]] = {}
        for number, index, _ in self._todo:
            parts.setdefault(number, []).append(index)
        self._todo.clear()
        return Returned(
            tuple((self.launch.parts[number].allocation, joined(some)) for number, some in parts.items())
        )


@dataclass(slots=True)
class _Live:
    """An attempt whose tree is not gone. Times in seconds of the monotonic clock."""

    attempt: Attempt
    job: int
    run: _Run
    task: Task
    at_ms: int
    started_s: float
    room: cgroups.Room | None
    oom_kills: int
    floor_kib: int
    # TERM or KILL went out while the main process lived.
    signalled: bool = False
    status: int | None = None
    usage: struct_rusage | None = None
    ended_s: float = 0.0
    # When its tree was killed first; and whether that it lives on has been said.
    killed_s: float | None = None
    stuck: bool = False
    told: bool = False
    over: bool = False
    feeds: bool = False
    fed: int = 0
    # What is to be fed cannot be read.
    starved: bool = False
    # Bytes of output, when they were measured last.
    written: int = 0
    input: Feed = field(default_factory=lambda: Feed(0, 0, 0, False))


class Spawner:
    """Lives as long as its socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._frames = Frames()
        self._answers: list[bytes] = []
        # Ends that are not among the answers yet, by allocation: the columns of Ran.
        self._ran: dict[int, tuple[list[int], ...]] = {}
        # Whether the supervisor is to have the answers now: it has something to do.
        self._tell = False
        # Those whose start is not told, and runs whose time is not over; the oldest first.
        self._fresh: deque[_Live] = deque()
        self._runs: deque[_Run] = deque()
        # Its place is for what a process is looked up with, which must not fail.
        self._spare = -1
        self._setup: Setup | None = None
        # One for all setups: it has files open.
        self._keeper: Keeper | None = None
        self._launcher: Launcher | None = None
        self._jobs: dict[tuple[int, int], Prepare] = {}
        self._live: dict[Attempt, _Live] = {}
        self._mains: dict[int, _Live] = {}
        self._ending: dict[Attempt, _Live] = {}
        # One for all setups too; none before the first task, and where there are no cgroups.
        self._rooms: cgroups.Rooms | None = None
        # The last one that was told of, and in whose room this process may be.
        self._lasting: _Live | None = None
        self._childless = True
        self._again_ms = AGAIN_MS_MIN
        self._measured_s = 0.0
        self._looked_s = 0.0
        self._measure_ms = MEASURE_MS_MIN
        self._poll = select.poll()
        self._feeding: dict[int, _Live] = {}

    def run(self) -> None:
        """Until the supervisor is gone; then everything is killed."""
        tree.become_subreaper()
        woken = _wake_on_child()
        self._poll.register(self._end, select.POLLIN)
        self._poll.register(woken, select.POLLIN)
        try:
            while True:
                self._turn(woken)
        except SupervisorGone:
            self._kill_all()

    def _turn(self, woken: int) -> None:
        for descriptor, _ in self._poll.poll(self._timeout_ms()):
            if descriptor == woken:
                os.read(woken, 4096)
            elif descriptor in self._feeding:
                self._pump(self._feeding[descriptor])
            elif descriptor == self._end.fileno():
                self._receive()
            # Else it was fed, and what came before it in this round has ended that.
        self._reap()
        for live in list(self._ending.values()):
            self._finish(live)
        now_s = time.monotonic()
        self._tell_fresh(now_s)
        self._end_runs(now_s)
        if self._live:
            self._measure(now_s)
            self._look_for_stuck(now_s)
        if self._tell:
            self._send()
        if self._lasting is not None and self._lasting.started_s + TOGETHER_S_MAX <= now_s:
            # Its room is its own from now on: it may even be frozen by what is in it.
            self._apart(self._lasting)
            self._lasting = None

    def _send(self) -> None:
        self._tell = False
        self._seal()
        answers = b"".join(self._answers)
        self._answers.clear()
        try:
            self._end.sendall(answers)
        except OSError:
            raise SupervisorGone from None

    def _timeout_ms(self) -> int | None:
        if not self._live:
            return None
        wait_ms = self._measure_ms
        if self._ending:
            self._again_ms = min(2 * self._again_ms, AGAIN_MS_MAX)
            wait_ms = self._again_ms
        times = []
        if self._fresh:
            times.append(self._fresh[0].started_s + TELL_S)
        if self._runs:
            times.append(self._runs[0].until_s)
        if self._lasting is not None:
            times.append(self._lasting.started_s + TOGETHER_S_MAX)
        if times:
            wait_ms = min(wait_ms, max(ceil((min(times) - time.monotonic()) * 1000), 0))
        return wait_ms

    def _receive(self) -> None:
        try:
            data = self._end.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            raise SupervisorGone
        for one in self._frames.feed(data):
            self._obey(_TO_SPAWNER.decode(one))

    def _obey(self, order: ToSpawner) -> None:
        match order:
            case Launch():
                self._launch(order)
            case Kill():
                self._kill(order)
            case Prepare():
                self._jobs[order.job, order.version] = order
            case Feed():
                self._feed(order)
            case Setup():
                self._set_up(order)
            case _:
                assert_never(order)

    def _set_up(self, setup: Setup) -> None:
        self._setup = setup
        self._keeper = self._keeper or Keeper(Path(setup.home))
        self._launcher = Launcher(setup, self._keeper)
        self._jobs.clear()

    def _answer(self, answer: FromSpawner) -> None:
        """Says something, behind what ended before."""
        self._seal()
        self._answers.append(frame(_FROM_SPAWNER.encode(answer)))
        self._tell = True

    def _seal(self) -> None:
        """What has ended is among the answers."""
        for allocation, columns in self._ran.items():
            self._answers.append(frame(_FROM_SPAWNER.encode(Ran(allocation, *map(tuple, columns)))))
        self._ran.clear()

    # ------------------------------------------------------------ starting

    def _launch(self, launch: Launch) -> None:
        run = _Run(launch, [self._jobs[part.job, part.version] for part in launch.parts])
        self._go_on(run)
        if run:
            self._runs.append(run)

    def _go_on(self, run: _Run) -> None:
        """Starts what is next of a run, or has the supervisor go on with its slot."""
        if run and not self._start(run, *run.next()):
            self._give_back(run)
        elif not run:
            self._tell = True

    def _give_back(self, run: _Run) -> None:
        """Nothing more of it is started here."""
        if run:
            self._answer(run.rest())

    def _end_runs(self, now_s: float) -> None:
        """Gives back what was not started in time."""
        runs = self._runs
        while runs and (not runs[0] or runs[0].until_s <= now_s):
            self._give_back(runs.popleft())

    def _start(self, run: _Run, part: Part, index: int, line: str | None) -> bool:
        """Starts a task; whether it could be."""
        assert self._launcher is not None
        assert self._setup is not None
        launch = run.launch
        attempt = (part.allocation, index, 1)
        now_s, at_ms = time.monotonic(), _boot_ms()
        if launch.start_before_ms is not None and at_ms >= launch.start_before_ms:
            message = "the node was out of contact for too long"
            self._answer(SpawnFailed(attempt, message, Cause.NODE_LOST))
            return False
        room, where = None, ""
        try:
            self._renew_spare()
            plan = run.plan(self._launcher)
            if self._setup.rest:
                where = f" in a cgroup below {self._setup.rooms}"
                room = self._room(launch)
                where = ""
            oom_kills = room.oom_kills() if room is not None else 0
            task = self._launcher.start(plan, index, line)
        except StartFailed as failed:
            self._unstarted(room)
            self._answer(SpawnFailed(attempt, _printable(str(failed))))
            return False
        except OSError as error:
            self._unstarted(room)
            message = f"the agent cannot start it{where}: {error.strerror}"
            self._answer(SpawnFailed(attempt, message, Cause.AGENT_ERROR))
            return False
        finally:
            # No directory is to be kept from being removed or unmounted.
            os.chdir("/")
        if self._rooms is not None:
            self._rooms.started()
        self._childless = False
        floor_kib = getrusage(RUSAGE_SELF).ru_maxrss
        live = _Live(attempt, part.job, run, task, at_ms, now_s, room, oom_kills, floor_kib)
        self._live[attempt] = self._mains[task.pid] = live
        if task.stdin >= 0:
            live.feeds = True
            os.set_blocking(task.stdin, False)
        if part.number == 1:
            self._fresh.append(live)
        else:
            # One that took its spawner with it before is to be known as started, should it do so again.
            self._tell_of(live)
            self._send()
        return True

    def _room(self, launch: Launch) -> cgroups.Room:
        """Has the next process begin in a cgroup of its own. Raises OSError."""
        setup = self._setup
        assert setup is not None
        if self._rooms is None:
            self._rooms = cgroups.Rooms(Path(setup.rooms), Path(setup.rest), frozenset(setup.controllers))
        return self._rooms.enter(launch.shape)

    def _unstarted(self, room: cgroups.Room | None) -> None:
        """What was to begin there did not. Raises OSError."""
        if room is not None and self._rooms is not None:
            self._rooms.started()
            self._rooms.give_back(room)

    def _renew_spare(self) -> None:
        """Raises OSError where no descriptor can be opened."""
        self._give_spare()
        self._spare = os.dup(self._end.fileno())

    def _give_spare(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def _tell_fresh(self, now_s: float) -> None:
        """Says of those that last that they were started, and has their output where it is looked for."""
        fresh = self._fresh
        while fresh and (fresh[0].over or fresh[0].started_s + TELL_S <= now_s):
            live = fresh.popleft()
            if live.over:
                continue
            if live.status is not None:
                # It has ended, and only what it left lives on: there is no process to name any more.
                live.task.show_output()
                continue
            self._tell_of(live)

    def _tell_of(self, live: _Live) -> None:
        """Says that it was started, and has its output where it is looked for."""
        if self._lasting is None or self._lasting.started_s <= live.started_s:
            self._lasting = live
        self._give_spare()
        found = tree.process(live.task.pid)
        assert found is not None, live.task
        self._answer(Spawned(live.attempt, live.task.pid, found.start_ticks, live.at_ms))
        with suppress(OSError):
            self._renew_spare()
        live.told = True
        live.task.show_output()
        self._measure_ms = MEASURE_MS_MIN

    # ------------------------------------------------------------ ending

    def _reap(self) -> None:
        while not self._childless:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self._childless = True
                return
            if not pid:
                return
            live = self._mains.pop(pid, None)
            if live is not None:
                live.status, live.usage, live.ended_s = status, usage, time.monotonic()
                self._ending[live.attempt] = live
                self._again_ms = AGAIN_MS_MIN

    def _finish(self, live: _Live) -> None:
        """Says that an attempt has ended, if nothing of its tree is left; else kills that."""
        # What is in a cgroup descends from this process, where nobody else moved it there.
        if not self._childless and not self._is_empty(live.room):
            self._kill_tree(live)
            return
        live.over = True
        if live is self._lasting:
            self._lasting = None
        del self._live[live.attempt], self._ending[live.attempt]
        if live.feeds:
            self._close_input(live)
            with suppress(OSError):
                # It goes with the job's output.
                files.unspool(self._input_path(live))
        lost = live.task.settle_output()
        self._tell_end(live, _printable(lost))
        if live.room is not None and self._rooms is not None:
            self._rooms.give_back(live.room)
        if not live.status:
            self._go_on(live.run)
        else:
            self._give_back(live.run)
            self._tell = True

    def _is_empty(self, room: cgroups.Room | None) -> bool:
        """Whether nothing of a tree is left in its room. Raises OSError."""
        return room is not None and self._rooms is not None and self._rooms.empty(room)

    def _tell_end(self, live: _Live, message: str) -> None:
        assert live.status is not None
        assert live.usage is not None
        cause, code = Cause.EXIT, os.waitstatus_to_exitcode(live.status)
        if code < 0:
            cause, code = Cause.SIGNAL, -code
        failed = (cause, code) != (Cause.EXIT, 0)
        # Where the count cannot be read, it is told as what the process saw of it.
        with suppress(OSError):
            if failed and live.room is not None and live.room.oom_kills() > live.oom_kills:
                cause = Cause.OOM
        numbers = (
            round((live.ended_s - live.started_s) * 1000),
            round(live.usage.ru_utime * 1000),
            round(live.usage.ru_stime * 1000),
            # A process begins with its parent's peak in this count: what is not above it is unknown. Nor is
            # it told otherwise: of one that has ended, and is not reaped, /proc has no VmHWM any more, and
            # to stop each task at its exit (ptrace) costs more than the number is worth.
            live.usage.ru_maxrss if live.usage.ru_maxrss > live.floor_kib else 0,
        )
        if cause is Cause.EXIT and not live.signalled and not message:
            allocation, index, _ = live.attempt
            columns = self._ran.get(allocation)
            if columns is None:
                columns = self._ran[allocation] = tuple([] for _ in range(7))
            for column, number in zip(columns, (index, code, live.at_ms, *numbers), strict=True):
                column.append(number)
            # What was over at once is told of with others; should the supervisor die first, it runs again.
            self._tell = self._tell or live.told
            return
        self._answer(
            Exited(
                live.attempt,
                cause,
                code,
                *numbers,
                message,
                ended_before_signal=not live.signalled,
                at_ms=live.at_ms,
            )
        )

    def _kill(self, kill: Kill) -> None:
        # What has ended by now ended by itself.
        self._reap()
        live = self._live.get(kill.attempt)
        if live is None or live.status is not None:
            return
        if kill.tree:
            live.signalled = True
        if not kill.tree:
            tree.send(live.task.pid, kill.signal)
        elif kill.signal == signal.SIGKILL:
            self._kill_tree(live)
        elif (path := self._apart(live)) is not None:
            cgroups.signal_all(path, kill.signal)
        else:
            tree.signal_below(os.getpid(), kill.signal)

    def _apart(self, live: _Live) -> Path | None:
        """The cgroup of an attempt, without this process; None where it has none. Raises OSError."""
        if live.room is None or self._rooms is None:
            return None
        self._rooms.leave_this(live.room)
        return live.room.path

    def _kill_tree(self, live: _Live) -> None:
        if live.killed_s is None:
            live.killed_s = time.monotonic()
        path = self._apart(live)
        if path is not None:
            cgroups.kill(path)
        else:
            tree.kill_below(os.getpid())

    def _look_for_stuck(self, now_s: float) -> None:
        """Says of which attempts the processes do not end."""
        if now_s < self._looked_s + MEASURE_MS_MAX / 1000:
            return
        self._looked_s = now_s
        for live in self._live.values():
            if live.stuck or live.killed_s is None or now_s < live.killed_s + STUCK_S_MIN:
                continue
            live.stuck = True
            self._answer(Stuck(live.attempt, live.job, tuple(self._processes(live))))

    def _processes(self, live: _Live) -> list[int]:
        path = self._apart(live)
        if path is not None:
            return cgroups.pids(path)
        return [one.pid for one in tree.below([os.getpid()], tree.processes()) if not one.zombie]

    def _kill_all(self) -> None:
        """There is nobody left to tell."""
        for live in self._live.values():
            live.run.rest()
        deadline_s = time.monotonic() + END_S_MAX
        while self._live and time.monotonic() < deadline_s:
            for live in self._live.values():
                if live.status is None:
                    self._kill_tree(live)
            self._reap()
            for live in list(self._ending.values()):
                self._finish(live)
            time.sleep(AGAIN_MS_MIN / 1000)

    # ------------------------------------------------------------ input and output

    def _feed(self, feed: Feed) -> None:
        for live in self._live.values():
            if live.attempt[:2] == (feed.allocation, feed.index):
                live.input = feed
                self._pump(live)
                return

    def _pump(self, live: _Live) -> None:
        """Writes what has come for the task, as far as its pipe takes it."""
        stdin = live.task.stdin
        if stdin < 0 or live.starved or (live.fed == live.input.size and not live.input.end):
            # It has none, or gets no more, or nothing has come for it: its file may not even be there yet.
            return
        waits = False
        try:
            with self._input_path(live).open("rb") as spool:
                spool.seek(live.fed)
                while live.fed < live.input.size:
                    data = spool.read(min(64 * 1024, live.input.size - live.fed))
                    if not data:
                        raise OSError(0, "it is shorter than it was")
                    live.fed += os.write(stdin, data)
                    spool.seek(live.fed)
        except BlockingIOError:
            waits = True
        except BrokenPipeError:
            live.fed = live.input.size
            self._close_input(live)
            return
        except OSError as error:
            # Its end stays open: the task would take what it has got for all.
            live.starved = True
            self._stop_feeding(stdin)
            message = f"its standard input cannot be read on the node: {error.strerror}"
            self._answer(InputLost(*live.attempt[:2], message))
            return
        if waits and stdin not in self._feeding:
            self._poll.register(stdin, select.POLLOUT)
            self._feeding[stdin] = live
        elif not waits:
            self._stop_feeding(stdin)
            if live.input.end:
                self._close_input(live)

    def _input_path(self, live: _Live) -> Path:
        assert self._setup is not None
        return output.input_path(Path(self._setup.home), live.job, *live.attempt[:2])

    def _stop_feeding(self, stdin: int) -> None:
        if self._feeding.pop(stdin, None) is not None:
            self._poll.unregister(stdin)

    def _close_input(self, live: _Live) -> None:
        if live.task.stdin >= 0:
            self._stop_feeding(live.task.stdin)
            os.close(live.task.stdin)
            live.task.stdin = -1

    def _measure(self, now_s: float) -> None:
        """Holds the output of what has run for a while to its limit."""
        if now_s < self._measured_s + self._measure_ms / 1000:
            return
        self._measured_s = now_s
        grown = 0
        for live in self._live.values():
            if live.task.kept and now_s > live.started_s + MEASURE_MS_MIN / 1000:
                # Tried again: there may be no descriptor just now. Where holes cannot be punched at all, the
                # agent's warnings say so from its start.
                with suppress(OSError):
                    live.task.show_output()
                    written = output.hold_to_limit([kept.place for kept in live.task.kept])
                    grown = max(grown, written - live.written)
                    live.written = written
        fast = grown > output.SLACK_BYTES
        self._measure_ms = MEASURE_MS_MIN if fast else min(2 * self._measure_ms, MEASURE_MS_MAX)


def _wake_on_child() -> int:
    """A descriptor that is readable when a child has ended."""
    woken, waking = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return woken


def _boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def _printable(message: str) -> str:
    """File names may hold bytes that are no text."""
    return message.encode(errors="replace").decode()

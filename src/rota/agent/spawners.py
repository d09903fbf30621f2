"""The supervisor's side of the spawners: which one runs what, and what happens when one dies.

With cgroups a few spawners share all attempts. Without, each has one attempt at a time, and there
come to be as many as run at once.
"""

import contextlib
import errno
import itertools
import logging
import os
import selectors
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rota.agent import cgroups, spawner_main, tree
from rota.agent.channel import Channel
from rota.agent.cleanup import pids_text
from rota.agent.codec import Codec, Malformed
from rota.agent.facts import boot_ms
from rota.agent.spawn_frames import STUCK, Feed, FromSpawner, Kill, Launch, Prepare, Setup, Stuck, ToSpawner
from rota.core.model.states import Cause
from rota.core.node.entries import Attempt
from rota.core.node.indices import each
from rota.core.node.inputs import (
    Exited,
    InputLost,
    NodeInput,
    Part,
    Ran,
    Returned,
    Spawned,
    SpawnFailed,
)

SHARED_COUNT_MAX = 4
# Templates that a spawner keeps before it is made to forget them all.
JOBS_COUNT_MAX = 256
# How long a mother that dies is left dead: not at all at first, and twice as long each time.
RETRY_MS_MIN = 100
RETRY_MS_MAX = 5_000
# One that has lived so long did not die of her start.
LIVED_MS_MIN = 10_000
# How often it is looked whether what a dead spawner left is gone.
SWEEP_MS_MIN = 2
SWEEP_MS_MAX = 500

_log = logging.getLogger(__name__)

_TO_SPAWNER: Codec[ToSpawner] = Codec(ToSpawner)
_FROM_SPAWNER: Codec[FromSpawner] = Codec(FromSpawner)


@dataclass(slots=True)
class _Run:
    """What is left of a Launch."""

    left: int = 0


class _Spawner:
    """One spawner. Its pid is known a little after it can be spoken to."""

    def __init__(self, number: int, end: socket.socket, setup: Setup) -> None:
        self.number = number
        self.channel: Channel[FromSpawner, ToSpawner] = Channel(end, _FROM_SPAWNER, _TO_SPAWNER)
        self.pid = 0
        # What was launched and is not over, by allocation and index.
        self.tasks: dict[tuple[int, int], _Run] = {}
        self.run_count = 0
        self._jobs: set[tuple[int, int]] = set()
        # The cgroup that holds those of its tasks. Another agent may use the same group for a while: one
        # whose home was moved, and that of a copy.
        self.rooms = Path(setup.rooms, f"{os.getpid()}.{number}") if setup.rooms else None
        self.set_up(setup)

    def set_up(self, setup: Setup) -> None:
        self._jobs.clear()
        self.channel.put(replace(setup, rooms=str(self.rooms or "")))

    def prepare(self, parts: Sequence[Part], prepare: Callable[[int, int], Prepare], setup: Setup) -> None:
        """Has it know the templates of these. Raises OSError of `prepare`."""
        jobs = dict.fromkeys((part.job, part.version) for part in parts)
        fresh = [prepare(*job) for job in jobs if job not in self._jobs]
        if len(self._jobs) + len(fresh) > JOBS_COUNT_MAX:
            self.set_up(setup)
            fresh = [prepare(*job) for job in jobs]
        for prepared in fresh:
            self._jobs.add((prepared.job, prepared.version))
            self.channel.put(prepared)

    def launch(self, launch: Launch) -> None:
        run = _Run()
        for part in launch.parts:
            for index in each(part.indices):
                self.tasks[part.allocation, index] = run
                run.left += 1
        self.run_count += 1
        self.channel.put(launch)

    def over(self, allocation: int, indices: Iterable[int]) -> list[int]:
        """These have ended or were not started; those that were known to be here."""
        known = []
        for index in indices:
            run = self.tasks.pop((allocation, index), None)
            if run is not None:
                known.append(index)
                run.left -= 1
                self.run_count -= not run.left
        return known


class Spawners:
    """All spawners, and their mother. `inputs` takes what they say. Times are boot-clock milliseconds."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        setup: Setup,
        inputs: Callable[[NodeInput], None],
        own_pids: Callable[[], set[int]],
    ) -> None:
        """`own_pids` gives the supervisor's further children, which are no task's."""
        self._selector = selector
        self._setup = setup
        self._inputs = inputs
        self._own_pids = own_pids
        self._exclusive = not setup.rest
        self._count_max = min(os.cpu_count() or 1, SHARED_COUNT_MAX)
        self._spawners: list[_Spawner] = []
        self._running: dict[tuple[int, int], _Spawner] = {}
        self._unsent: set[_Spawner] = set()
        self._numbers = itertools.count(1)
        # What dead spawners ran, by their numbers, until what they left is gone.
        self._orphaned: dict[int, list[tuple[int, int]]] = {}
        # Where they were.
        self._rooms: dict[int, Path] = {}
        # Of these the mother has swept what hung below her.
        self._swept: set[int] = set()
        self._sweep_ms = SWEEP_MS_MIN
        self._retry_ms = 0
        self._started_at_ms = 0
        self.mother_pid = 0
        # None while she is dead.
        self._control: socket.socket | None = None
        # When `tend` has something to do.
        self.wake_at_ms: int | None = None
        self._start_mother()

    # ------------------------------------------------------------ what is asked of them

    def set_up(self, setup: Setup) -> None:
        """What all tasks have in common has changed."""
        self._setup = setup
        for spawner in self._spawners:
            spawner.set_up(setup)
            self._unsent.add(spawner)

    def launch(self, launch: Launch, prepare: Callable[[int, int], Prepare]) -> None:
        """Starts a run; `prepare` gives the template of a job and version where the spawner has it not.

        Raises OSError, also that of `prepare`, and nothing is started.
        """
        spawner = self._choose()
        spawner.prepare(launch.parts, prepare, self._setup)
        spawner.launch(launch)
        for part in launch.parts:
            for index in each(part.indices):
                self._running[part.allocation, index] = spawner
        self._unsent.add(spawner)

    def kill(self, attempt: Attempt, number: int, *, whole_tree: bool) -> None:
        """Signals an attempt that runs."""
        self._put(attempt, Kill(attempt, number, whole_tree))

    def feed(self, attempt: Attempt, size: int, *, end: bool) -> None:
        """Says how much of its input there is to an attempt that runs."""
        self._put(attempt, Feed(attempt[0], attempt[1], size, end))

    def _put(self, attempt: Attempt, message: ToSpawner) -> None:
        spawner = self._running.get(attempt[:2])
        if spawner is not None:
            spawner.channel.put(message)
            self._unsent.add(spawner)

    def flush(self) -> None:
        """Sends what was asked."""
        for spawner in self._unsent:
            if spawner.channel.flush():
                self._selector.modify(
                    spawner.channel, selectors.EVENT_READ | selectors.EVENT_WRITE, self._ready(spawner)
                )
        self._unsent.clear()

    def _choose(self) -> _Spawner:
        if self._exclusive:
            return next((one for one in self._spawners if not one.run_count), None) or self._add()
        if len(self._spawners) < self._count_max and all(one.run_count for one in self._spawners):
            return self._add()
        return min(self._spawners, key=lambda one: one.run_count)

    # ------------------------------------------------------------ what they say

    def _ready(self, spawner: _Spawner) -> Callable[[int], None]:
        def ready(mask: int) -> None:
            if mask & selectors.EVENT_WRITE and not spawner.channel.flush():
                self._selector.modify(spawner.channel, selectors.EVENT_READ, ready)
            if mask & selectors.EVENT_READ:
                self._hear(spawner)

        return ready

    def _hear(self, spawner: _Spawner) -> None:
        try:
            answers = spawner.channel.receive()
            for answer in answers or ():
                self._take(spawner, answer)
        except Malformed:
            answers = None
        if answers is None:
            self._bury(spawner)

    def _take(self, spawner: _Spawner, answer: FromSpawner) -> None:
        """Passes on what is said. Raises Malformed for what cannot be of tasks that it was given."""
        known = True
        over: list[tuple[int, Iterable[int]]] = []
        match answer:
            case InputLost():
                pass
            case Stuck() | Spawned():
                known = answer.attempt[:2] in spawner.tasks
            case SpawnFailed() | Exited():
                over = [(answer.attempt[0], answer.attempt[1:2])]
            case Ran():
                over = [(answer.allocation, answer.index)]
                known = len(set(map(len, _columns(answer)))) == 1
            case Returned():
                over = [(allocation, each(indices)) for allocation, indices in answer.tasks]
        for allocation, indices in over:
            wanted = list(indices)
            known = known and spawner.over(allocation, wanted) == wanted
            for index in wanted:
                self._running.pop((allocation, index), None)
        if not known:
            raise Malformed("what it tells of was not given to it")
        if isinstance(answer, Exited) and answer.message:
            _log.error("task %d of allocation %d: %s", answer.attempt[1], answer.attempt[0], answer.message)
        if isinstance(answer, Stuck):
            _tell_stuck(answer)
        else:
            self._inputs(answer)

    def _bury(self, spawner: _Spawner) -> None:
        """A spawner is dead: what it ran is killed, and ends as AGENT_ERROR when nothing of it is left."""
        self._selector.unregister(spawner.channel)
        spawner.channel.close()
        self._spawners.remove(spawner)
        self._unsent.discard(spawner)
        self._orphaned[spawner.number] = list(spawner.tasks)
        for task in spawner.tasks:
            self._running.pop(task, None)
        if spawner.rooms is not None:
            cgroups.kill(spawner.rooms)
            self._rooms[spawner.number] = spawner.rooms
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(b"S%d" % spawner.number)

    # ------------------------------------------------------------ the mother

    def tend(self, now_ms: int) -> None:
        """Does what is due: starts the mother again, and sweeps what dead spawners left."""
        if self.wake_at_ms is None or now_ms < self.wake_at_ms:
            return
        self.wake_at_ms = None
        if self._control is None:
            try:
                self._start_mother()
            except OSError as error:
                _log.error("cannot start the process that starts tasks: %s", error.strerror)
                self._mother_died(now_ms)
                return
            self._started_at_ms = now_ms
            # What hung below the last one hangs below this process.
            self._swept |= self._orphaned.keys()
        if self._swept:
            self._sweep(now_ms)

    def _sweep(self, now_ms: int) -> None:
        """Kills what had lost the mother before she was told; with it ends what dead spawners ran."""
        spared = frozenset({self.mother_pid, *(spawner.pid for spawner in self._spawners), *self._own_pids()})
        try:
            left = tree.signal_below(os.getpid(), 0, spared)
            if left:
                tree.kill_below(os.getpid(), spared)
        except OSError:
            # Not even /proc can be read now.
            left = True
        if left:
            self.wake_at_ms = now_ms + self._sweep_ms
            if self._sweep_ms < SWEEP_MS_MAX <= 2 * self._sweep_ms:
                _log.error("%s", STUCK)
            self._sweep_ms = min(2 * self._sweep_ms, SWEEP_MS_MAX)
            return
        self._sweep_ms = SWEEP_MS_MIN
        for number in self._swept:
            if number in self._rooms:
                cgroups.remove(self._rooms.pop(number))
            for allocation, index in self._orphaned.pop(number, ()):
                message = "the process that watched it died"
                self._inputs(Exited((allocation, index, 1), Cause.AGENT_ERROR, message=message))
        self._swept.clear()

    def _start_mother(self) -> None:
        """Raises OSError, and there is none."""
        control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with end:
            try:
                self._selector.register(control, selectors.EVENT_READ, self._hear_mother)
                self.mother_pid = spawner_main.fork(end)
            except OSError:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(control)
                control.close()
                raise
        self._control = control

    def _mother_died(self, now_ms: int) -> None:
        """The spawners go on; she is started again: later each time, if she dies at once."""
        if now_ms >= self._started_at_ms + LIVED_MS_MIN:
            self._retry_ms = 0
        self.wake_at_ms = now_ms + self._retry_ms
        self._retry_ms = min(max(2 * self._retry_ms, RETRY_MS_MIN), RETRY_MS_MAX)

    def _add(self) -> _Spawner:
        """Raises OSError."""
        if self._control is None:
            raise OSError(errno.EAGAIN, "the process that starts tasks died")
        ours, theirs = socket.socketpair()
        spawner = _Spawner(next(self._numbers), ours, self._setup)
        with theirs:
            try:
                self._selector.register(spawner.channel, selectors.EVENT_READ, self._ready(spawner))
            except OSError:
                spawner.channel.close()
                raise
            self._spawners.append(spawner)
            # Where that fails the mother is dead, and this spawner with her: its socket says so.
            with contextlib.suppress(OSError):
                socket.send_fds(self._control, [b"F%d" % spawner.number], [theirs.fileno()])
        return spawner

    def _hear_mother(self, _mask: int) -> None:
        assert self._control is not None
        try:
            message = self._control.recv(64)
        except OSError:
            message = b""
        if not message:
            self._selector.unregister(self._control)
            self._control.close()
            self._control = None
            self._mother_died(boot_ms())
        elif message.startswith(b"S"):
            self._swept.add(int(message[1:]))
            self.wake_at_ms = 0
        else:
            number, pid = map(int, message.split())
            for spawner in self._spawners:
                if spawner.number == number:
                    spawner.pid = pid

    def close(self) -> None:
        """Ends them, and her."""
        for spawner in self._spawners:
            spawner.channel.close()
        if self._control is not None:
            self._control.close()


def _columns(ran: Ran) -> Iterable[tuple[int, ...]]:
    """All of its columns."""
    return (getattr(ran, one.name) for one in fields(ran) if one.name != "allocation")


def _tell_stuck(stuck: Stuck) -> None:
    _log.error(
        "job %d, task %d: processes %s do not end though they were killed, which a disk or a device that "
        "hangs does to them; the task runs on, and keeps its slot, until they are gone",
        stuck.job,
        stuck.attempt[1],
        pids_text(stuck.pids),
    )

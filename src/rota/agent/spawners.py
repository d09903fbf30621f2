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
import sys
from collections.abc import Callable
from pathlib import Path

import rota
from rota.agent import cgroups, tree
from rota.agent.channel import Channel
from rota.agent.cleanup import pids_text
from rota.agent.codec import Codec, Malformed
from rota.agent.facts import boot_ms
from rota.agent.spawn_frames import STUCK, Feed, FromSpawner, Kill, Launch, Prepare, Setup, Stuck, ToSpawner
from rota.core.model.states import Cause
from rota.core.node.entries import Attempt
from rota.core.node.inputs import Exited, InputLost, NodeInput, Spawned

SHARED_COUNT_MAX = 4
# Templates that a spawner keeps before it is made to forget them all.
JOBS_COUNT_MAX = 128
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


class _Spawner:
    """One spawner. Its pid is known a little after it can be spoken to."""

    def __init__(self, number: int, end: socket.socket, setup: Setup) -> None:
        self.number = number
        self.channel: Channel[FromSpawner, ToSpawner] = Channel(end, _FROM_SPAWNER, _TO_SPAWNER)
        self.pid = 0
        self.attempts: dict[Attempt, Launch] = {}
        self._jobs: set[tuple[int, int]] = set()
        self.set_up(setup)

    def set_up(self, setup: Setup) -> None:
        self._jobs.clear()
        self.channel.put(setup)

    def launch(self, launch: Launch, prepare: Callable[[], Prepare], setup: Setup) -> None:
        job = (launch.job, launch.version)
        if job not in self._jobs:
            prepared = prepare()
            if len(self._jobs) >= JOBS_COUNT_MAX:
                self.set_up(setup)
            self._jobs.add(job)
            self.channel.put(prepared)
        self.attempts[launch.attempt] = launch
        self.channel.put(launch)


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
        self._running: dict[Attempt, _Spawner] = {}
        self._unsent: set[_Spawner] = set()
        self._numbers = itertools.count(1)
        # What dead spawners ran, by their numbers, until what they left is gone.
        self._orphaned: dict[int, list[Attempt]] = {}
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

    def launch(self, launch: Launch, prepare: Callable[[], Prepare]) -> None:
        """Starts an attempt; `prepare` gives its template where the spawner does not have it.

        Raises OSError, also that of `prepare`, and nothing is started.
        """
        spawner = self._choose()
        spawner.launch(launch, prepare, self._setup)
        self._running[launch.attempt] = spawner
        self._unsent.add(spawner)

    def kill(self, attempt: Attempt, number: int, *, whole_tree: bool) -> None:
        """Signals an attempt that runs."""
        self._put(attempt, Kill(attempt, number, whole_tree))

    def feed(self, attempt: Attempt, size: int, *, end: bool) -> None:
        """Says how much of its input there is to an attempt that runs."""
        self._put(attempt, Feed(attempt[0], attempt[1], size, end))

    def _put(self, attempt: Attempt, message: ToSpawner) -> None:
        spawner = self._running.get(attempt)
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
            return next((one for one in self._spawners if not one.attempts), None) or self._add()
        if len(self._spawners) < self._count_max and all(one.attempts for one in self._spawners):
            return self._add()
        return min(self._spawners, key=lambda one: len(one.attempts))

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
                if isinstance(answer, InputLost):
                    self._inputs(answer)
                    continue
                launch = spawner.attempts.get(answer.attempt)
                if launch is None:
                    # An attempt that was given up with a spawner thought dead is not heard of again.
                    continue
                if isinstance(answer, Stuck):
                    _tell_stuck(launch, answer.pids)
                    continue
                if not isinstance(answer, Spawned):
                    del spawner.attempts[answer.attempt], self._running[answer.attempt]
                self._inputs(answer)
        except Malformed:
            answers = None
        if answers is None:
            self._bury(spawner)

    def _bury(self, spawner: _Spawner) -> None:
        """A spawner is dead: what it ran is killed, and ends as AGENT_ERROR when nothing of it is left."""
        self._selector.unregister(spawner.channel)
        spawner.channel.close()
        self._spawners.remove(spawner)
        self._unsent.discard(spawner)
        self._orphaned[spawner.number] = list(spawner.attempts)
        for launch in spawner.attempts.values():
            del self._running[launch.attempt]
            if launch.cgroup:
                cgroups.kill(Path(launch.cgroup))
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
            for attempt in self._orphaned.pop(number, ()):
                self._inputs(Exited(attempt, Cause.AGENT_ERROR, message="the process that watched it died"))
        self._swept.clear()

    def _start_mother(self) -> None:
        """Raises OSError, and there is none."""
        control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(rota.__file__).parent.parent)
        with end:
            os.set_inheritable(end.fileno(), True)
            try:
                self._selector.register(control, selectors.EVENT_READ, self._hear_mother)
                self.mother_pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-S", "-s", "-m", "rota.agent.spawner_main", "--fd", str(end.fileno())],
                    {"PYTHONPATH": root, "PATH": os.environ.get("PATH", "")},
                )
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


def _tell_stuck(launch: Launch, pids: tuple[int, ...]) -> None:
    _log.error(
        "job %d, task %d: processes %s do not end though they were killed, which a disk or a device that "
        "hangs does to them; the task runs on, and keeps its slot, until they are gone",
        launch.job,
        launch.attempt[1],
        pids_text(pids),
    )

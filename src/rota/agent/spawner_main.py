"""The mother of the spawners: forks one whenever the supervisor asks, so that each costs little.

She is a fork of the supervisor and has what it has loaded, so that all of them share that memory. She is
told over a socketpair of whole messages. `F7` and a descriptor: fork a spawner that
talks over it, and call it 7; the answer is `7 PID`, or none and the descriptor is closed where it cannot be
forked. `S7`: kill that one and what it left, which comes to this sub-reaper; the answer, when all of it
is gone, is `S7`. At the socket's end the mother exits; spawners see their own end.
"""

import gc
import os
import select
import signal
import socket
import sys
from contextlib import suppress

from rota.agent import tree
from rota.agent.launch import DEV_NULL
from rota.agent.spawn_frames import STUCK
from rota.agent.spawner import Spawner

# How long what a dead spawner left is waited for before it is killed again: twice as long each time.
PAUSE_MS_MIN = 2
PAUSE_MS_MAX = 500


def fork(control: socket.socket) -> int:
    """Makes the mother, who listens at this end of a socketpair; her pid. Raises OSError."""
    gc.collect()
    # What is there by now stays: its pages are not to be copied because they were looked through.
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            mother(control)
            code = 0
        except BaseException:  # noqa: BLE001 - a forked child must not run its parent's code
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def mother(control: socket.socket) -> None:
    """The process, in which nothing else is to go on. Until the socket's end."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Signals to the whole process group are for the supervisor, which still has things to report.
    # SIGIO tells of a lease that somebody else ends (`kept`).
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGIO):
        signal.signal(number, signal.SIG_IGN)
    # Whatever else is open is the supervisor's: its journal's lock, and the ends of its other sockets.
    kept = {0, 1, 2, control.fileno(), DEV_NULL}
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:  # noqa: PTH208 - names alone
        if descriptor not in kept:
            with suppress(OSError):
                os.close(descriptor)
    tree.become_subreaper()
    _Mother(control).run()


class _Mother:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        # Pids by number.
        self._spawners: dict[int, int] = {}
        # Dead ones, of which something may be left.
        self._dead: list[int] = []
        self._pause_ms = PAUSE_MS_MIN

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while True:
            if poll.poll(self._pause_ms if self._dead else None) and not self._obey():
                return
            if self._dead:
                self._sweep()

    def _obey(self) -> bool:
        """Does what the next message says; False at the end."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._control, 32, 1)
        except ConnectionResetError:
            # The supervisor has died with an answer unread.
            message, descriptors = b"", []
        if not message:
            return False
        number = int(message[1:])
        if message.startswith(b"F"):
            self._fork(number, descriptors[0])
        else:
            pid = self._spawners.pop(number, None)
            if pid is not None:
                # Its socket is closed before its children come here.
                tree.send(pid, signal.SIGKILL)
            self._dead.append(number)
            self._pause_ms = PAUSE_MS_MIN
        return True

    def _fork(self, number: int, descriptor: int) -> None:
        # Python 3.11 does not pass on the flag that would say so: no task is to have it.
        os.set_inheritable(descriptor, False)
        try:
            pid = os.fork()
        except OSError as error:
            sys.stderr.write(f"cannot fork a spawner: {error.strerror}\n")
            os.close(descriptor)
            return
        if pid == 0:
            self._control.close()
            _spawn_for(descriptor)
        os.close(descriptor)
        self._spawners[number] = pid
        self._answer(b"%d %d" % (number, pid))

    def _sweep(self) -> None:
        """Kills what dead spawners left, with them; says so once it is gone."""
        spared = frozenset(self._spawners.values())
        if tree.signal_below(os.getpid(), 0, spared):
            tree.kill_below(os.getpid(), spared)
            if self._pause_ms < PAUSE_MS_MAX <= 2 * self._pause_ms:
                sys.stderr.write(f"{STUCK}\n")
            self._pause_ms = min(2 * self._pause_ms, PAUSE_MS_MAX)
            return
        for child in tree.below([os.getpid()], tree.processes()):
            if child.parent == os.getpid() and child.zombie and child.pid not in spared:
                os.waitpid(child.pid, 0)
        for number in self._dead:
            self._answer(b"S%d" % number)
        self._dead.clear()

    def _answer(self, message: bytes) -> None:
        """A supervisor that has died meanwhile is seen by its end of the socket."""
        with suppress(BrokenPipeError):
            self._control.send(message)


def _spawn_for(descriptor: int) -> None:
    """The child: a spawner, until its end."""
    code = 1
    try:
        with socket.socket(fileno=descriptor) as end:
            Spawner(end).run()
        code = 0
    except BaseException:  # noqa: BLE001 - a forked child must not run its parent's code
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)

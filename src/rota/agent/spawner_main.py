"""The mother of the spawners: forks one whenever the supervisor asks, so that each costs little.

    python -m rota.agent.spawner_main --fd N

N is an inherited end of a socketpair of whole messages. `F7` and a descriptor: fork a spawner that
talks over it, and call it 7; the answer is `7 PID`. `S7`: kill that one, and when it is gone what it
left, which has come to this sub-reaper; the answer is `S7`. At the socket's end the mother exits;
spawners see their own end.
"""

import gc
import os
import signal
import socket
import sys
import time

from rota.agent import tree
from rota.agent.spawner import Spawner

_SWEEP_PAUSE_S = 0.002
_SWEEP_S_MAX = 30.0


def main() -> int:
    """The process."""
    # Every module that is not loaded here is memory saved in each spawner.
    with socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1])) as control:
        control.set_inheritable(False)
        # Signals to the whole process group are for the supervisor, which still has things to report.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        tree.become_subreaper()
        gc.freeze()
        _Mother(control).run()
    return 0


class _Mother:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        # Pids by number.
        self._spawners: dict[int, int] = {}

    def run(self) -> None:
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._control, 32, 1)
            if not message:
                return
            number = int(message[1:])
            if message.startswith(b"F"):
                self._control.send(b"%d %d" % (number, self._fork(number, descriptors[0])))
            else:
                self._sweep(number)
                self._control.send(message)

    def _fork(self, number: int, descriptor: int) -> int:
        # Python 3.11 does not pass on the flag that would say so: no task is to have it.
        os.set_inheritable(descriptor, False)
        pid = os.fork()
        if pid == 0:
            self._control.close()
            _spawn_for(descriptor)
        os.close(descriptor)
        self._spawners[number] = pid
        return pid

    def _sweep(self, number: int) -> None:
        pid = self._spawners.pop(number, None)
        if pid is not None:
            # Its socket is closed before its children come here.
            tree.send(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        deadline_s = time.monotonic() + _SWEEP_S_MAX
        spared = frozenset(self._spawners.values())
        while tree.signal_below(os.getpid(), 0, spared) and time.monotonic() < deadline_s:
            tree.kill_below(os.getpid(), spared)
            time.sleep(_SWEEP_PAUSE_S)
        for child in tree.below([os.getpid()], tree.processes()):
            if child.parent == os.getpid() and child.zombie and child.pid not in spared:
                os.waitpid(child.pid, 0)


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


if __name__ == "__main__":
    sys.exit(main())

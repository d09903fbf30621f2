"""Processes that are not children of the test: their state, and waiting for their end."""

import os
import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

WAIT_S_MAX = 30.0


def state(pid: int) -> str:
    """A process's state, as /proc has it in one letter; X where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "X"
    return stat[stat.rindex(")") + 2]


def alive(pid: int) -> bool:
    """Whether a process lives (a zombie does not)."""
    return state(pid) not in "ZX"


def until_gone(*pids: int, wait_s: float = WAIT_S_MAX) -> None:
    """Returns once these processes have ended."""
    left = still_there(pids, wait_s)
    assert not left, f"waited {wait_s:.0f} s, and there still are {left}"


def still_there(pids: Iterable[int], wait_s: float) -> list[int]:
    """Those that have not ended within this time; returns at once when all have."""
    deadline_s = time.monotonic() + wait_s
    with selectors.DefaultSelector() as selector:
        for pid in pids:
            with suppress(ProcessLookupError):
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
        try:
            while selector.get_map() and (left_s := deadline_s - time.monotonic()) > 0:
                for key, _ in selector.select(left_s):
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
            return [key.data for key in selector.get_map().values()]
        finally:
            for key in selector.get_map().values():
                os.close(key.fd)


def kill(pid: int) -> None:
    """SIGKILL; returns once it has ended."""
    os.kill(pid, signal.SIGKILL)
    until_gone(pid)


def freeze(pid: int) -> None:
    """SIGSTOP; returns once it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    look_again(lambda: state(pid) == "T", f"process {pid} goes on")


def look_again(happened: Callable[[], object], what: str) -> None:
    """Looks every few milliseconds, at what the kernel tells nobody of.

    That is /proc: a change there is no file event, and only a parent hears that a process has stopped. All
    else has a descriptor to wait on: a process's end (`until_gone`), files (`files.until`), streams.
    """
    pause = threading.Event()
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not happened():
        assert time.monotonic() < deadline_s, f"waited {WAIT_S_MAX:.0f} s, and {what}"
        pause.wait(0.005)

"""Process trees, read from /proc: who descends from whom, and how to end all of them.

Where there is no cgroup, a tree is what hangs below a process that is a sub-reaper: children that
called setsid, or forked twice and lost their parent, come back to it.
"""

import ctypes
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)

# How often a tree that keeps forking is walked before it is killed as it stands; the next sweep goes on.
FREEZES_MAX = 10


@dataclass(frozen=True, slots=True)
class Process:
    """A line of /proc. `start_ticks` (since boot) tells it from a later one with the same pid."""

    pid: int
    parent: int
    session: int
    start_ticks: int
    zombie: bool


def become_subreaper() -> None:
    """From now on processes below this one whose parent has died become its children."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def process(pid: int) -> Process | None:
    """One process; None where there is none."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        text = os.read(descriptor, 4096)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    # The name, in brackets, may hold anything, brackets too.
    parts = text[text.rindex(b")") + 2 :].split()
    return Process(pid, int(parts[1]), int(parts[3]), int(parts[19]), parts[0] in (b"Z", b"X"))


def processes() -> Iterator[Process]:
    """All that run."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - a sweep reads hundreds of names
        if name.isdecimal():
            found = process(int(name))
            if found is not None:
                yield found


def below(roots: Iterable[int], table: Iterable[Process]) -> list[Process]:
    """Those of the table that descend from the roots, which are not among them; parents first."""
    children: dict[int, list[Process]] = {}
    for one in table:
        children.setdefault(one.parent, []).append(one)
    found: list[Process] = []
    todo = list(roots)
    while todo:
        for child in children.pop(todo.pop(), ()):
            found.append(child)
            todo.append(child.pid)
    return found


def signal_below(root: int, number: int, spared: frozenset[int] = frozenset()) -> bool:
    """Signals all below a process but the `spared` and what is below those; whether there was anything."""
    table = [one for one in processes() if one.pid not in spared]
    found = [one for one in below([root], table) if not one.zombie]
    for one in found:
        send(one.pid, number)
    return bool(found)


def kill_below(root: int, spared: frozenset[int] = frozenset()) -> None:
    """Kills everything below a process. It is stopped first, so that nothing forks away meanwhile."""
    stopped: set[int] = set()
    for _ in range(FREEZES_MAX):
        table = [one for one in processes() if one.pid not in spared]
        fresh = [one.pid for one in below([root], table) if one.pid not in stopped and not one.zombie]
        if not fresh:
            break
        for pid in fresh:
            send(pid, signal.SIGSTOP)
        stopped.update(fresh)
    for pid in stopped:
        send(pid, signal.SIGKILL)


def send(pid: int, number: int) -> bool:
    """Signals a process; whether it could be."""
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True

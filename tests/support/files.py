"""Waiting for files, and letting tasks wait for one: the kernel tells, and nobody looks again and again."""

import ctypes
import fcntl
import os
import select
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

WAIT_S_MAX = 30.0
# IN_MODIFY, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE; IN_ONLYDIR refuses what is no folder.
_CHANGES = 0x002 | 0x040 | 0x080 | 0x100 | 0x200 | 0x0100_0000
T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


def until(found: Callable[[], T | None], what: str, *folders: Path, wait_s: float = WAIT_S_MAX) -> T:
    """What `found` gives once it is true: it is asked now, and whenever a file in one of the folders comes,
    goes or is written to. The folders must exist.
    """
    watch = _check(_libc.inotify_init1(os.O_CLOEXEC))
    try:
        for folder in folders:
            _check(_libc.inotify_add_watch(watch, os.fsencode(folder), _CHANGES), folder)
        deadline_s = time.monotonic() + wait_s
        while not (seen := found()):
            ready, _, _ = select.select([watch], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"waited {wait_s:.0f} s, and {what}"
            os.read(watch, 65536)
        return seen
    finally:
        os.close(watch)


def _check(result: int, folder: Path | None = None) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(folder or ""))
    return result


def until_there(*files: Path) -> None:
    """Returns once there are these files."""
    for file in files:
        until(file.exists, f"there is no {file}", file.parent)


def words(file: Path) -> list[str]:
    """What has been written to a file so far; nothing where there is none."""
    return file.read_text().split() if file.exists() else []


class Gate:
    """Keeps tasks waiting until it is opened, and lets pass those that come later: a lock on a file.

    It opens by itself at the end of a `with` block, and when the test's process dies.
    """

    def __init__(self, file: Path) -> None:
        self._file = file.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.argv = ("flock", "-s", str(file), "true")

    @property
    def wait(self) -> str:
        """The command that waits, for a shell."""
        return shlex.join(self.argv)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def open(self) -> None:
        """Lets everyone pass; may be called again."""
        self._file.close()

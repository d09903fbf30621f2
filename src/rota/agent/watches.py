"""Being told that files change (inotify(7)): one instance for all that a process watches.

An account has 128 instances by default, and thousands of watches in each.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MODIFIED, CREATED, MOVED_HERE = 0x2, 0x100, 0x80

_MASK_ADD = 0x2000_0000
_OVERFLOW, _IGNORED = 0x4000, 0x8000
# The watch, the mask, a number that joins two events, and the length of the name behind it.
_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class Watches:
    """Tells its watches what happens; `fileno` is readable when there is something to `take`."""

    def __init__(self) -> None:
        """Raises OSError where the account has no instance left."""
        self._descriptor: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        # Who looks at the same file has the same number.
        self._watching: dict[int, set[Watch]] = {}

    def fileno(self) -> int:
        """For a selector."""
        return self._descriptor

    def take(self) -> None:
        """Tells all whose files have changed."""
        with suppress(BlockingIOError):
            data = os.read(self._descriptor, _READ_BYTES)
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                watching = self._watching.get(number, ())
                if mask & _OVERFLOW:
                    watching = set().union(*self._watching.values())
                elif mask & _IGNORED:
                    # The file is gone, and the watch with it.
                    watching = self._watching.pop(number, ())
                for watch in watching:
                    watch.changed()

    def add(self, watch: "Watch", file: Path, mask: int) -> int:
        """The number of what is watched now. Raises OSError."""
        number: int = _libc.inotify_add_watch(self._descriptor, os.fsencode(file), mask | _MASK_ADD)
        if number < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(file))
        self._watching.setdefault(number, set()).add(watch)
        return number

    def remove(self, watch: "Watch", number: int) -> None:
        """Nothing more is told of it."""
        watching = self._watching.get(number, set())
        watching.discard(watch)
        if number in self._watching and not watching:
            del self._watching[number]
            _libc.inotify_rm_watch(self._descriptor, number)

    def close(self) -> None:
        """Gives the instance back."""
        os.close(self._descriptor)


class Watch:
    """Calls `changed` when something happens to the one file that it looks at."""

    def __init__(self, watches: Watches | None, changed: Callable[[], None]) -> None:
        """Without `watches` nobody tells."""
        self._watches = watches
        self._number = -1
        self.changed = changed
        # Whether it is told at all: the account may have no watch left.
        self.works = watches is not None

    def look_at(self, file: Path, mask: int) -> None:
        """Looks at this one from now on."""
        if self._watches is None:
            return
        self.close()
        try:
            self._number = self._watches.add(self, file, mask)
            self.works = True
        except OSError as error:
            # Of a file that has gone there is nothing to tell.
            self.works = error.errno == errno.ENOENT

    def close(self) -> None:
        """Looks at nothing."""
        if self._watches is not None and self._number >= 0:
            self._watches.remove(self, self._number)
            self._number = -1

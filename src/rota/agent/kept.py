"""The files of tasks' output: each has its name from when the task has written, or has run for a while.

To make a file and remove it again costs more than half of what it costs to start a process, and most tasks
that are over soon write nothing, or not to both streams. So a task is given a file without a name
(O_TMPFILE); one that is still empty at the task's end serves the next.
"""

import errno
import fcntl
import os
import stat
from pathlib import Path

from rota.agent import output

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
_MODE = 0o600
# Unused files that are kept for the next tasks.
BLANKS_COUNT_MAX = 16


class OutputLost(Exception):
    """What a task has written cannot be given a name, and is gone with its end; the message says why."""


class Keeper:
    """Makes the files of one home."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "out"
        self._blanks: list[int] = []
        # Descriptors by their numbers: this is how a file without a name is opened, and linked.
        self._descriptors = -1
        self._makes_blanks = True

    def open(self, path: str, *, own: bool) -> tuple["Kept", int]:
        """A file that will be `path`, and a descriptor to append to it. Raises OSError.

        `own`: who writes is this process's own user, who could write to any of its files anyway.
        """
        if self._descriptors < 0:
            self._descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        blank = self._blanks.pop() if self._blanks else self._make()
        if blank < 0:
            return Kept(self, path, -1, own=own), _open_named(path)
        try:
            # One of its own for each task, so that it can be seen whether anybody still has it.
            descriptor = os.open(str(blank), _APPEND, dir_fd=self._descriptors)
        except OSError:
            os.close(blank)
            raise
        return Kept(self, path, blank, own=own), descriptor

    def _make(self) -> int:
        """A file without a name; -1 where the file system knows none."""
        if not self._makes_blanks:
            return -1
        flags = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(self._folder, flags, _MODE)
        except IsADirectoryError:
            pass
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        self._makes_blanks = False
        return -1

    def name(self, blank: int, path: str) -> None:
        """Gives a file its name. Raises OSError."""
        try:
            os.link(str(blank), path, src_dir_fd=self._descriptors, follow_symlinks=True)
        except FileNotFoundError:
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.link(str(blank), path, src_dir_fd=self._descriptors, follow_symlinks=True)

    def take_back(self, blank: int) -> bool:
        """Keeps an empty file for the next task, if nobody but this process has it open."""
        if len(self._blanks) >= BLANKS_COUNT_MAX:
            return False
        try:
            # The system gives this lease only then.
            fcntl.fcntl(blank, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(blank, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return False
        self._blanks.append(blank)
        return True


class Kept:
    """One stream of one attempt. `blank` is the descriptor of its file as long as that has no name, or -1."""

    __slots__ = ("_blank", "_keeper", "_own", "path")

    def __init__(self, keeper: Keeper, path: str, blank: int, *, own: bool) -> None:
        self._keeper = keeper
        self.path = path
        self._blank = blank
        self._own = own

    @property
    def place(self) -> str:
        """Where its file is found now, also where it has no name yet."""
        return self.path if self._blank < 0 else f"/proc/self/fd/{self._blank}"

    def show(self) -> None:
        """Its file has its name from now on. Raises OSError."""
        if self._blank >= 0:
            self._keeper.name(self._blank, self.path)
            os.close(self._blank)
            self._blank = -1

    def _show_or_lose(self) -> None:
        try:
            self.show()
        except OSError as error:
            raise OutputLost(f"its output is lost, {self.path} cannot be made: {error.strerror}") from None

    def settle(self) -> int:
        """Nobody writes any more: an empty file goes. How large it is. Raises OutputLost, OSError."""
        if self._blank < 0:
            return output.remove_empty(self.path)
        found = os.fstat(self._blank)
        try:
            if found.st_size:
                self._show_or_lose()
            elif self._own and _untouched(found) and self._keeper.take_back(self._blank):
                self._blank = -1
        finally:
            if self._blank >= 0:
                os.close(self._blank)
                self._blank = -1
        return found.st_size


def _untouched(found: os.stat_result) -> bool:
    """Whether an empty file is as it was made: nobody gave it a name, room on the disk, or others rights."""
    as_made = found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == _MODE
    return as_made and found.st_nlink == 0 and found.st_blocks == 0


def _open_named(path: str) -> int:
    try:
        return os.open(path, _APPEND | os.O_CREAT, _MODE)
    except FileNotFoundError:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, _APPEND | os.O_CREAT, _MODE)

"""The log of a process on standard error, which does not grow for ever.

What `rota up` starts has a file in HOME/log for it, and so have its children, which all write to the one
open file. So it is not renamed when it is full: it is copied to NAME.log.1, in the place of an earlier one,
and emptied (as logrotate's `copytruncate` does). Any other standard error, a terminal, a pipe to systemd's
journal or a file of somebody's own, is left alone.
"""

import fcntl
import logging
import os
import sys
from pathlib import Path

LOG_BYTES_MAX = 10 * 1024 * 1024


def log_to_stderr(directory: Path) -> None:
    """Sends this process's log there; `directory` is the home's, whose files are held to LOG_BYTES_MAX."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[_Handler(_log_file(directory))],
    )


def _log_file(directory: Path) -> Path | None:
    """The file that standard error is, if it is one of the home's logs."""
    try:
        path = Path("/proc/self/fd/2").readlink()
        return path if path.parent == directory.resolve() else None
    except OSError:
        return None


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    def __init__(self, path: Path | None) -> None:
        super().__init__(sys.stderr)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line, and makes room where the file is full."""
        super().emit(record)
        try:
            if self._path is not None and os.fstat(2).st_size > LOG_BYTES_MAX:
                _make_room(self._path)
        except OSError:
            # A full disk: later, then.
            return


def _make_room(path: Path) -> None:
    """Unless another process is about to. Raises OSError."""
    with path.open("r+b") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        size = os.fstat(log.fileno()).st_size
        if size <= LOG_BYTES_MAX:
            return
        with path.with_name(path.name + ".1").open("wb") as copy:
            while (done := copy.seek(0, os.SEEK_END)) < size:
                if not os.sendfile(copy.fileno(), log.fileno(), done, size - done):
                    break
        log.truncate(0)

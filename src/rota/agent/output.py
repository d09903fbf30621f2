"""What tasks write: where it is kept, how it is kept small, and how it is read while it grows.

`out/JOB/ALLOC/INDEX÷1000/INDEX.ATTEMPT.out` and `.err` in the agent's home, written by the task itself.
Of what goes beyond the limit the middle is given back to the file system: offsets stay, and a reader
is told how many bytes are missing.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rota.agent.watches import CREATED, MODIFIED, MOVED_HERE, Watch

# Of both streams of an attempt together; each may have half of it, and what the other does not use.
ATTEMPT_BYTES_MAX = 100_000_000
STREAM_BYTES_MIN = ATTEMPT_BYTES_MAX // 2
# So much beyond the limit is waited for while an attempt runs, so that holes are punched in large pieces.
SLACK_BYTES = 4 * 1024 * 1024
TAIL_BYTES_MAX = 16 * 1024 * 1024
# A file that the system has no watch for is looked at so often.
LOOK_AGAIN_S = 0.1

SUFFIXES = {1: "out", 2: "err"}
_BLOCK_BYTES = 4096
_FOLDER_COUNT = 1000

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def job_folder(home: Path, job: int) -> Path:
    """Where the files of a job are."""
    return home / "out" / str(job)


def jobs(home: Path) -> list[int]:
    """The jobs that have files, ascending."""
    try:
        return sorted(int(entry.name) for entry in (home / "out").iterdir() if entry.name.isdecimal())
    except OSError:
        # Told again in the next session.
        return []


def folder(home: Path, job: int, allocation: int, index: int) -> Path:
    """Where the files of an index are."""
    return job_folder(home, job) / str(allocation) / str(index // _FOLDER_COUNT)


def path(home: Path, job: int, allocation: int, index: int, attempt: int, stream: int) -> Path:
    """The file of one stream (1 standard output, 2 standard error) of one attempt, as people number them."""
    return folder(home, job, allocation, index) / f"{index}.{attempt}.{SUFFIXES[stream]}"


def input_path(home: Path, job: int, allocation: int, index: int) -> Path:
    """Where the standard input of a task is kept until it has read it."""
    return folder(home, job, allocation, index) / f"{index}.in"


# ---------------------------------------------------------------- keeping


def hold_to_limit(paths: Iterable[str], slack_bytes: int = SLACK_BYTES) -> int:
    """Punches what is too much out of the middle of an attempt's files; how much was ever written to them.

    Raises OSError.
    """
    kept = {}
    written = 0
    for name in paths:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(name)  # noqa: PTH116 - called for each task again and again
            kept[name] = found.st_blocks * 512
            written += found.st_size
    total = sum(kept.values())
    if total > ATTEMPT_BYTES_MAX + slack_bytes:
        for name, size in kept.items():
            limit = max(STREAM_BYTES_MIN, ATTEMPT_BYTES_MAX - (total - size))
            if size > limit:
                _punch(name, limit)
    return written


def remove_empty(name: str) -> int:
    """Of an attempt that has ended: an empty file goes. How large it is. Raises OSError."""
    try:
        size = os.stat(name).st_size  # noqa: PTH116 - once for each attempt
    except FileNotFoundError:
        return 0
    if size == 0:
        Path(name).unlink()
    return size


def _punch(name: str, limit: int) -> None:
    """Leaves the first and the last half of `limit` bytes."""
    descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC)
    try:
        first = _down(limit // 2)
        last = _down(os.fstat(descriptor).st_size - limit // 2)
        if last > first and _libc.fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, first, last - first):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), name)
    finally:
        os.close(descriptor)


def _down(offset: int) -> int:
    return offset - offset % _BLOCK_BYTES


def can_punch(home: Path) -> bool:
    """Whether the file system of the agent's home can give back the middle of a file."""
    probe = home / ".punch"
    try:
        probe.write_bytes(bytes(3 * _BLOCK_BYTES))
        _punch(str(probe), 2 * _BLOCK_BYTES)
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True


# ---------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes at an offset; `gap_bytes` before it are not kept any more."""

    offset: int
    data: bytes
    gap_bytes: int = 0


class Reader:
    """Reads one file from its offset on; it may not be there yet.

    With a `watch`, that is told when there may be more: call `read` until it gives None, then wait. Where
    the watch does not work, read again every `LOOK_AGAIN_S`. That no more will come is not seen in the
    file; whoever knows the attempt knows.
    """

    def __init__(self, file: Path, offset: int = 0, tail_lines: int = 0, watch: Watch | None = None) -> None:
        """Raises OSError where the file cannot be read."""
        self._path = file
        self._offset = offset
        self._tail_lines = tail_lines
        self._file = -1
        self._watch = watch
        if not self._open() and watch is not None:
            # It is not there: its folder tells when it comes.
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            watch.look_at(file.parent, CREATED | MOVED_HERE)

    def _open(self) -> bool:
        if self._file >= 0:
            return True
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        if self._watch is not None:
            self._watch.look_at(self._path, MODIFIED)
        if self._tail_lines:
            self._offset = max(self._offset, _tail(self._file, self._tail_lines))
        return True

    def read(self, count_max: int) -> Piece | None:
        """What comes next, at most so many bytes; None where there is no more for now."""
        if not self._open():
            return None
        at = self._offset
        while True:
            try:
                start = os.lseek(self._file, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return None
            data = os.pread(self._file, min(count_max, self._run(start)), start)
            # What was punched out meanwhile reads as zeros.
            if self._run(start) >= len(data):
                break
        if not data:
            return None
        self._offset = start + len(data)
        return Piece(start, data, start - at)

    def _run(self, start: int) -> int:
        """How many bytes follow until the next hole."""
        return os.lseek(self._file, start, os.SEEK_HOLE) - start

    def close(self) -> None:
        """Gives the file back; the watch looks at nothing any more."""
        if self._watch is not None:
            self._watch.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _tail(file: int, lines: int) -> int:
    """Where the last lines begin, a last one without an end included."""
    size = os.fstat(file).st_size
    at, block = size, 64 * 1024
    found = 0
    while at > 0 and size - at < TAIL_BYTES_MAX:
        start = max(at - block, 0)
        data = os.pread(file, at - start, start)
        end = len(data) - 1 if at == size and data.endswith(b"\n") else len(data)
        while (newline := data.rfind(b"\n", 0, end)) >= 0:
            found += 1
            if found == lines:
                return start + newline + 1
            end = newline
        at = start
    return at

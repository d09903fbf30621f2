"""The supervisor's journal: entries in a file, which a process crash cannot lose.

`HOME/journal/` holds one segment, a file that begins with a snapshot, and grows; above 16 MiB the
next one is begun and takes its place. An entry is its payload's length (u32), a CRC-32 of type and
payload (u32), its type (u8), and the payload; what one step writes goes into one `write()`. There is
no fsync: a power cut means another boot, and then nothing that was held runs any more.
"""

import contextlib
import fcntl
import os
import struct
import time
import typing
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rota.agent import files
from rota.agent.codec import Codec, Malformed
from rota.core.node.entries import Begin, Entry

SEGMENT_BYTES_MAX = 16 * 1024 * 1024
LOCK_WAIT_S = 0.3

_HEAD = struct.Struct("<IIB")
# The number of a kind is its place here, for ever: new kinds of entries are added at the end.
_KINDS: tuple[type[Any], ...] = typing.get_args(Entry)
_CODECS: tuple[Codec[Any], ...] = tuple(Codec(kind) for kind in _KINDS)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}


class JournalError(Exception):
    """The journal cannot be used; the message says why and what to do."""


class JournalFull(Exception):
    """Nothing can be written now; what was to be written was not, and may be tried again."""


def encode(entry: Entry) -> bytes:
    """An entry as it stands in the file."""
    number = _NUMBERS[type(entry)]
    payload = _CODECS[number].encode(entry)
    return _HEAD.pack(len(payload), _checksum(number, payload), number) + payload


def _checksum(number: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(bytes((number,))))


class Journal:
    """The journal of one agent. Held by one process at a time."""

    def __init__(self, home: Path) -> None:
        """Takes the journal in `home`, made where there is none. Raises JournalError where it is in use."""
        self._folder = home / "journal"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _take_lock(self._folder / "lock", home)
        self._number = 0
        self._segment = -1
        self._size = 0
        self._snapshot_size = 0

    def load(self, boot_id: str) -> Iterator[Entry]:
        """Its entries; a torn tail is cut off. Raises JournalError where the middle is damaged.

        In another boot than `boot_id` damage ends it like a torn tail: a power cut does that, and
        nothing of what was held runs any more.
        """
        paths = _segments(self._folder)
        if not paths:
            return
        self._number = int(paths[-1].stem)
        entries, size, damage = _read(paths[-1])
        if damage and entries and isinstance(entries[0], Begin) and entries[0].boot_id == boot_id:
            raise JournalError(
                f"{paths[-1]} is damaged at byte {size}: {damage}; what this node ran is not known any more. "
                f"Remove {self._folder} to begin anew: the controller then treats its tasks as lost"
            )
        self._segment = os.open(paths[-1], os.O_WRONLY | os.O_APPEND)
        os.ftruncate(self._segment, size)
        self._size = size
        self._clean(keep=paths[-1])
        yield from entries

    def append(self, entries: Iterable[Entry]) -> None:
        """Writes entries, all or none. Raises JournalFull."""
        data = b"".join(map(encode, entries))
        try:
            written = os.write(self._segment, data)
        except OSError as error:
            self._cut()
            raise JournalFull(error.strerror) from None
        if written < len(data):
            self._cut()
            raise JournalFull("no space left for the whole of it")
        self._size += written

    def _cut(self) -> None:
        """Takes back what a failed write left."""
        try:
            os.ftruncate(self._segment, self._size)
        except OSError as error:
            raise JournalFull(error.strerror) from None

    def removed(self) -> bool:
        """Whether it was removed under this process, or another has come to its place."""
        return files.replaced(self._lock, self._folder / "lock")

    def wants_snapshot(self) -> bool:
        """Whether the segment has grown enough for `begin`."""
        return self._size > self._snapshot_size + SEGMENT_BYTES_MAX

    def begin(self, entries: Iterable[Entry]) -> None:
        """Writes a segment in the place of all before it. Raises JournalFull, and nothing has changed."""
        fresh = self._folder / f"{self._number + 1:016d}.new"
        data = b"".join(map(encode, entries))
        try:
            segment = os.open(fresh, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                if os.write(segment, data) < len(data):
                    raise OSError(0, "no space left for the whole of it")
                path = fresh.with_suffix(".log")
                fresh.rename(path)
            except OSError:
                os.close(segment)
                fresh.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise JournalFull(error.strerror) from None
        if self._segment >= 0:
            os.close(self._segment)
        self._segment = segment
        self._number += 1
        self._size = self._snapshot_size = len(data)
        self._clean(keep=path)

    def _clean(self, keep: Path) -> None:
        # What cannot be removed is not read either, and goes with the next one.
        with contextlib.suppress(OSError):
            for path in [*_segments(self._folder), *self._folder.glob("*.new")]:
                if path != keep:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Gives the journal up."""
        if self._segment >= 0:
            os.close(self._segment)
        os.close(self._lock)


def read(home: Path) -> list[Entry]:
    """What stands in the journal of `home`, as far as it can be read; nothing is changed."""
    paths = _segments(home / "journal")
    return _read(paths[-1])[0] if paths else []


def in_use(home: Path) -> bool:
    """Whether some process holds the journal of `home`."""
    try:
        lock = os.open(home / "journal" / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def _take_lock(path: Path, home: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            # Whoever only looks (`in_use`) has it for a moment.
            if time.monotonic() < deadline_s:
                time.sleep(0.01)
                continue
            holder = os.read(lock, 32).decode(errors="replace").strip() or "?"
            os.close(lock)
            raise JournalError(
                f"another agent (pid {holder}) uses {home}; stop it, or give this one a home of its own"
            ) from None
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _read(path: Path) -> tuple[list[Entry], int, str]:
    """A segment's entries, up to which byte it is whole, and what is wrong there if it is no torn tail."""
    data = path.read_bytes()
    entries: list[Entry] = []
    at = 0
    while at < len(data):
        try:
            entry, end = _entry(data, at)
        except Malformed as error:
            return entries, at, str(error)
        if entry is None:
            return entries, at, _whole_after(data, at)
        entries.append(entry)
        at = end
    return entries, at, ""


def _entry(data: bytes, at: int) -> tuple[Entry | None, int]:
    """The entry at a byte, None where the data ends before it does. Raises Malformed."""
    start = at + _HEAD.size
    if start > len(data):
        return None, at
    length, checksum, number = _HEAD.unpack_from(data, at)
    end = start + length
    if end > len(data):
        return None, at
    payload = data[start:end]
    if checksum != _checksum(number, payload):
        raise Malformed("an entry's checksum is wrong")
    if number >= len(_CODECS):
        raise Malformed(f"entries of kind {number} are unknown to this version")
    entry: Entry = _CODECS[number].decode(payload)
    return entry, end


def _whole_after(data: bytes, at: int) -> str:
    """What is wrong where entries follow one that seems to be cut off; nothing where none does."""
    for later in range(at + 1, len(data) - _HEAD.size + 1):
        length, checksum, number = _HEAD.unpack_from(data, later)
        end = later + _HEAD.size + length
        if not length or number >= len(_CODECS) or end > len(data):
            continue
        if checksum == _checksum(number, data[later + _HEAD.size : end]):
            return f"an entry of impossible length, and a whole one at byte {later}"
    return ""

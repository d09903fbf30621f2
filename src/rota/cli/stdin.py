"""Standard input: whether somebody means it to be read. Nothing here waits for it."""

import fcntl
import os
import stat
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

from rota.client.feeding import PIECE_BYTES_MAX


def is_given() -> bool:
    """Whether it is a pipe, a file, a socket or a device, and not a terminal or /dev/null."""
    mode = _mode()
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode) or _is_device(mode)


def is_file() -> bool:
    """Whether it is a file, whose end is the end of what is in it."""
    return stat.S_ISREG(_mode())


def has_data() -> bool:
    """Whether a pipe has something to read now, or a file is there from its beginning on, or a device.

    A file that something was read of already is the input of the script that calls us.
    """
    mode = _mode()
    if stat.S_ISREG(mode):
        return os.lseek(0, 0, os.SEEK_CUR) == 0 and os.fstat(0).st_size > 0
    if stat.S_ISFIFO(mode):
        count: int = struct.unpack("i", fcntl.ioctl(0, termios.FIONREAD, bytes(4)))[0]
        return count > 0
    return _is_device(mode)


def pieces() -> Iterator[bytes]:
    """What comes, to its end."""
    # Past Python's buffer, whose lock a thread that is left behind would hold for ever.
    while data := os.read(0, PIECE_BYTES_MAX):
        yield data


def _is_device(mode: int) -> bool:
    """Whether it is one with something to read: /dev/urandom, a disk."""
    if stat.S_ISCHR(mode):
        return not os.isatty(0) and os.fstat(0).st_rdev != Path(os.devnull).stat().st_rdev
    return stat.S_ISBLK(mode)


def _mode() -> int:
    try:
        return os.fstat(0).st_mode
    except OSError:
        return 0

"""A file system that hangs, as one on a dead server does: whoever opens a file of it waits in the kernel, in
state D, and not even SIGKILL ends it. Needs root and FUSE.
"""

import ctypes
import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.files import WAIT_S_MAX

_DEVICE = Path("/dev/fuse")
_REQUEST_BYTES_MAX = 128 * 1024
_UNMOUNT_NOW = 2
_libc = ctypes.CDLL(None, use_errno=True)


def can_hang() -> bool:
    """Whether this machine lets the test have one."""
    return os.geteuid() == 0 and os.access(_DEVICE, os.R_OK | os.W_OK)


class Hung:
    """The file system, mounted. What waits for it goes on when it is released."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0".encode()
        if _libc.mount(b"hung", os.fsencode(folder), b"fuse", 0, options):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(folder))
        # FUSE_INIT is answered, in protocol 7.31, and nothing after it.
        request = os.read(self._device, _REQUEST_BYTES_MAX)
        (unique,) = struct.unpack_from("<Q", request, 8)
        body = struct.pack("<IIIIHHIIHHI", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0) + bytes(28)
        os.write(self._device, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)

    def until_somebody_waits(self) -> None:
        """Takes the next request; from then on whoever made it cannot be killed."""
        ready, _, _ = select.select([self._device], [], [], WAIT_S_MAX)
        assert ready, "nobody uses it"
        os.read(self._device, _REQUEST_BYTES_MAX)

    def release(self) -> None:
        """Everyone who waits gets an error; may be called again."""
        if self._device >= 0:
            os.close(self._device)
            self._device = -1
            _libc.umount2(os.fsencode(self.folder), _UNMOUNT_NOW)


@contextmanager
def hung(folder: Path) -> Iterator[Hung]:
    """One in this folder, which is made."""
    folder.mkdir()
    made = Hung(folder)
    try:
        yield made
    finally:
        made.release()

"""One process a home: a lock that ends with the process, however it ends."""

import fcntl
import os
from pathlib import Path

from rota.store.port import StoreError


class HomeLock:
    """Held from the moment it is made until `release`. Raises StoreError where another process has it."""

    def __init__(self, path: Path, home: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            raise StoreError(
                f"the home '{home}' is in use by process {holder or '(unknown)'}: "
                "stop that one first, or use another home"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Lets the next process in. The file stays: to remove it would let two in at once."""
        os.close(self._file)

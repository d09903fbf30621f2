"""The audit log: one line of JSON in HOME/audit.log for every change that was asked for.

`at` is the wall clock in UTC; `who` asked, from `address`; `what` is the RPC; `of` what it was about;
`outcome` is `done` or the refusal's status, with the problem. A log that is full becomes `audit.log.1`, that
one `audit.log.2`, and so on; the oldest goes.
"""

import itertools
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

FILE_BYTES_MAX = 10 * 1024 * 1024
FILES_COUNT_MAX = 10

_log = logging.getLogger(__name__)
_json = json.JSONEncoder(ensure_ascii=True, check_circular=False).encode


class Audit:
    """Appends to the log; whoever holds the home's store is the only one who does."""

    def __init__(self, path: Path, wall_ms: Callable[[], int]) -> None:
        self._path = path
        self._descriptor = self._open()
        self._wall_ms = wall_ms

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, *, who: str, address: str, what: str, of: str, outcome: str, problem: str = "") -> None:
        """One line. Where the log cannot be written (a full disk), the controller's own log says so."""
        at = datetime.fromtimestamp(self._wall_ms() / 1000, UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "who": who, "address": address, "what": what, "of": of, "outcome": outcome}
        if problem:
            line["problem"] = problem
        text = _json(line)
        try:
            os.write(self._descriptor, text.encode() + b"\n")
            if os.fstat(self._descriptor).st_size >= FILE_BYTES_MAX:
                self._begin_anew()
        except OSError as failed:
            _log.error("the audit log cannot be written (%s): %s", failed.strerror, text)

    def _begin_anew(self) -> None:
        """Raises OSError."""
        files = [self._path, *(Path(f"{self._path}.{number}") for number in range(1, FILES_COUNT_MAX))]
        for newer, older in reversed(list(itertools.pairwise(files))):
            with suppress(FileNotFoundError):
                newer.rename(older)
        fresh = self._open()
        os.close(self._descriptor)
        self._descriptor = fresh

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

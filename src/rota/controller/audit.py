"""The audit log: one line of JSON in HOME/audit.log for every change that was asked for.

`at` is the wall clock in UTC; `who` asked, from `address`; `what` is the RPC; `of` what it was about;
`outcome` is `done` or the refusal's status, with the problem.
"""

import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

_log = logging.getLogger(__name__)


class Audit:
    """Appends to the log; lines are whole also where several processes write."""

    def __init__(self, path: Path, wall_ms: Callable[[], int]) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._wall_ms = wall_ms

    def write(self, *, who: str, address: str, what: str, of: str, outcome: str, problem: str = "") -> None:
        """One line. Where the log cannot be written (a full disk), the controller's own log says so."""
        at = datetime.fromtimestamp(self._wall_ms() / 1000, UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "who": who, "address": address, "what": what, "of": of, "outcome": outcome}
        if problem:
            line["problem"] = problem
        text = json.dumps(line, ensure_ascii=True)
        try:
            os.write(self._descriptor, text.encode() + b"\n")
        except OSError as failed:
            _log.error("the audit log cannot be written (%s): %s", failed.strerror, text)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

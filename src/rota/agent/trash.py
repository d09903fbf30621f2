"""Deletes the output of jobs: out of the way at once, and from the disk by a process of its own."""

import itertools
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rota.agent import files, output

_REMOVE = "/bin/rm"
_log = logging.getLogger(__name__)


class Trash:
    """What is on its way out."""

    def __init__(self, home: Path) -> None:
        """What an earlier agent did not get done is done now."""
        self._home = home
        self._folder = home / "trash"
        self._numbers = itertools.count()
        self.pids: set[int] = set()
        if self._folder.exists():
            self._delete([self._folder / name.name for name in self._folder.iterdir()])

    def throw_away(self, jobs: Iterable[int]) -> None:
        """Deletes what these jobs have left here."""
        moved: list[Path] = []
        for job in jobs:
            try:
                self._move(job, moved)
            except OSError as error:
                _log.warning("cannot delete what job %d left: %s", job, error)
        self._delete(moved)

    def _move(self, job: int, moved: list[Path]) -> None:
        """Raises OSError."""
        for left in (output.job_folder(self._home, job), *files.script_folders(self._home, str(job))):
            target = self._folder / f"{os.getpid()}.{time.time_ns()}.{next(self._numbers)}"
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                left.rename(target)
                moved.append(target)

    def _delete(self, paths: list[Path]) -> None:
        if not paths:
            return
        try:
            self.pids.add(os.posix_spawn(_REMOVE, ["rm", "-rf", "--", *map(str, paths)], {}))
        except OSError as error:
            _log.warning("cannot delete %s: %s", self._folder, error.strerror)

    def reaped(self, pid: int) -> None:
        """A child has ended."""
        self.pids.discard(pid)

"""Ctrl-C where nothing is under way that could be ended in good order: in imports, and behind the command.

Imports nothing that takes time.
"""

import os
import signal
from types import FrameType, TracebackType

EXIT_INTERRUPTED = 130


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)


def end_quietly() -> None:
    """From now on Ctrl-C ends the process at once."""
    signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Quiet:
    """A block in which Ctrl-C ends the process at once."""

    def __enter__(self) -> None:
        """Begins; in another thread than the main one, which alone is interrupted, it does nothing."""
        try:
            self._before = signal.signal(signal.SIGINT, _end)
        except ValueError:
            self._before = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As it was."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

"""Prints what tasks write: as it is for one task, line by line with the index in front for several."""

import os
import sys
import threading
from collections.abc import Callable
from typing import TextIO

from pyroaring import BitMap

from rota.cli import app
from rota.cli.formats import safe
from rota.client.messages import OutputStream, ReadOutputResponse

STDOUT = OutputStream.OUTPUT_STREAM_STDOUT
STDERR = OutputStream.OUTPUT_STREAM_STDERR

# So much of a line is kept until it ends; a longer one is printed as it comes, and all others wait for its
# end, but no longer than this: then it is ended here, and goes on as a line of its own.
LINE_BYTES_MAX = 65_536
LINE_S_MAX = 2.0
# How often is said that a task starts again.
AGAIN_SAID_MAX = 10

Key = tuple[int, int]


class Printer:
    """Writes each of a task's streams to the stream of the same name, or `one_stream` to standard output.

    May be called by several threads, each task's output by one at a time. `again`: what is said, for people,
    where an attempt (of a task, by number) prints after an earlier one has, the first AGAIN_SAID_MAX times.
    """

    def __init__(
        self, *, prefixed: bool, one_stream: bool = False, again: Callable[[int, int], str] | None = None
    ) -> None:
        self._prefixed = prefixed
        self._one_stream = one_stream
        self._changed = threading.Condition()
        # The beginnings of lines that have not ended, by task and stream.
        self._begun: dict[Key, bytes] = {}
        # Of one task: the streams whose last line has not ended.
        self._inside: set[int] = set()
        # The long line that is being printed.
        self._open: Key | None = None
        self._progress = False
        # The streams of which not all was kept.
        self.cut: set[int] = set()
        self._again = again
        # The tasks that have printed, and which attempt did last where it was not the first.
        self._printed = BitMap()
        self._attempts: dict[int, int] = {}
        # How many times an attempt printed after an earlier one.
        self.again_count = 0

    def take(self, index: int, answer: ReadOutputResponse) -> None:
        """Prints a piece of output, and what is to be said of it."""
        again = self._says_again(index, answer.attempt) if answer.data else ""
        with self._changed:
            if again:
                self._wait_for_turn((index, answer.stream))
                self._say_beside(again)
            if answer.gap_bytes:
                self._mark((index, answer.stream), answer.gap_bytes)
            if answer.data:
                self._write((index, answer.stream), answer.data)
            if answer.end:
                self._flush((index, answer.stream))
            if answer.unavailable and (self._one_stream or answer.stream == STDOUT):
                self._say(answer.unavailable, str(index))

    def unread(self, indices: str, why: str) -> None:
        """Says that there is more which could not be read."""
        with self._changed:
            self._say(why, indices)

    def progress(self, text: str) -> None:
        """On a terminal, a line that the next one takes the place of."""
        with self._changed:
            if sys.stderr.isatty() and self._open is None:
                self._progress = True
                os.write(sys.stderr.fileno(), f"\r{text}\x1b[K".encode())

    def end_progress(self) -> None:
        """Removes it."""
        if self._progress:
            self._progress = False
            os.write(sys.stderr.fileno(), b"\r\x1b[K")

    def _says_again(self, index: int, attempt: int) -> str:
        """What is to be said before this output; takes note of it."""
        if self._again is None:
            return ""
        with self._changed:
            before = self._attempts.get(index, 1) if index in self._printed else 0
            self._printed.add(index)
            if attempt > 1:
                self._attempts[index] = attempt
            if not 0 < before < attempt:
                return ""
            self.again_count += 1
            said = self.again_count <= AGAIN_SAID_MAX
        # Not under the lock: to find out why takes time.
        return self._again(index, attempt) if said else ""

    def _say_beside(self, text: str) -> None:
        """A line of its own on standard error, whatever has been printed."""
        # To an eye the line that has not ended is on the same terminal.
        inside = (
            bool(self._inside) if sys.stderr.isatty() else STDERR in self._inside and not self._one_stream
        )
        self.end_progress()
        _write_all(sys.stderr, ("\n" if inside else "").encode() + f"{text}\n".encode())

    def _write(self, key: Key, data: bytes) -> None:
        """As it is; of several tasks whole lines, and the beginning of one that has become long."""
        if not self._prefixed:
            self._put(key[1], data)
            (self._inside.discard if data.endswith(b"\n") else self._inside.add)(key[1])
            return
        if self._open == key:
            rest, newline, data = data.partition(b"\n")
            self._put(key[1], rest + newline)
            if newline:
                self._close()
        *whole, begun = (self._begun.pop(key, b"") + data).split(b"\n")
        mark = b"[%d] " % key[0]
        lines = b"".join(mark + line + b"\n" for line in whole)
        if len(begun) > LINE_BYTES_MAX:
            self._wait_for_turn(key)
            self._put(key[1], lines + mark + begun)
            self._open = key
            return
        if lines:
            self._wait_for_turn(key)
            self._put(key[1], lines)
        if begun:
            self._begun[key] = begun

    def _mark(self, key: Key, gap_bytes: int) -> None:
        """Where the node kept no more: on standard error, and never in what is read as the task's data."""
        self._flush(key)
        self.cut.add(key[1])
        if self._open is not None:
            self._wait_for_turn(key)
        self._say_beside(
            f"{f'[{key[0]}] ' if self._prefixed else ''}[rota: {gap_bytes:,} bytes are not kept]"
        )

    def _wait_for_turn(self, key: Key) -> None:
        """Until no line of another's is open."""
        if self._open is not None and self._open[0] != key[0]:
            self._changed.wait_for(lambda: self._open is None, LINE_S_MAX)
        if self._open is not None and self._open != key:
            self._put(self._open[1], b"\n")
            self._close()

    def _close(self) -> None:
        self._open = None
        self._changed.notify_all()

    def _flush(self, key: Key) -> None:
        begun = self._begun.pop(key, b"")
        if self._open == key:
            self._put(key[1], b"\n")
            self._close()
        elif begun:
            self._wait_for_turn(key)
            self._put(key[1], b"[%d] %s\n" % (key[0], begun))

    def _say(self, text: str, indices: str) -> None:
        self.end_progress()
        if not self._prefixed or not indices:
            app.say(safe(text))
        else:
            app.say(f"{'task' if indices.isdecimal() else 'tasks'} {indices}: {safe(text)}")

    def _put(self, stream: int, data: bytes) -> None:
        """Writes all at once, past Python's buffers, so that nothing is held back."""
        self.end_progress()
        _write_all(sys.stdout if self._one_stream or stream == STDOUT else sys.stderr, data)


def _write_all(to: TextIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(to.fileno(), left) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            name = "standard output" if to is sys.stdout else "standard error"
            raise app.CannotWrite(name, error) from error

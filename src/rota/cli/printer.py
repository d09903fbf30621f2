"""Prints what tasks write: as it is for one task, line by line with the index in front for several."""

import os
import sys
import threading

from rota.cli import app
from rota.client.errors import RotaError
from rota.client.messages import OutputStream, ReadOutputResponse

STDOUT = OutputStream.OUTPUT_STREAM_STDOUT
STDERR = OutputStream.OUTPUT_STREAM_STDERR

# A line that grows longer is printed in pieces.
LINE_BYTES_MAX = 65_536


class Printer:
    """Writes each of a task's streams to the stream of the same name, or `one_stream` to standard output.

    May be called by several threads.
    """

    def __init__(self, *, prefixed: bool, one_stream: bool = False) -> None:
        self._prefixed = prefixed
        self._one_stream = one_stream
        self._lock = threading.Lock()
        # The beginnings of lines that have not ended, by task and stream.
        self._begun: dict[tuple[int, int], bytes] = {}
        # Of one task: the streams whose last line has not ended.
        self._inside: set[int] = set()

    def take(self, index: int, answer: ReadOutputResponse) -> None:
        """Prints a piece of output, and what is to be said of it."""
        with self._lock:
            if answer.gap_bytes:
                self._mark(index, answer.stream, answer.gap_bytes)
            if answer.data:
                self._write(index, answer.stream, answer.data)
            if answer.end:
                self._flush(index, answer.stream)
            if answer.unavailable and (self._one_stream or answer.stream == STDOUT):
                self._say(index, answer.unavailable)

    def unread(self, index: int, error: RotaError) -> None:
        """Says that there is more which could not be read."""
        with self._lock:
            self._say(index, f"its output could not be read to the end: {error}")

    def _write(self, index: int, stream: int, data: bytes) -> None:
        if not self._prefixed:
            self._put(stream, data)
            (self._inside.discard if data.endswith(b"\n") else self._inside.add)(stream)
            return
        *whole, begun = (self._begun.pop((index, stream), b"") + data).split(b"\n")
        if len(begun) > LINE_BYTES_MAX:
            whole.append(begun)
            begun = b""
        mark = b"[%d] " % index
        if whole:
            self._put(stream, b"".join(mark + line + b"\n" for line in whole))
        if begun:
            self._begun[index, stream] = begun

    def _mark(self, index: int, stream: int, gap_bytes: int) -> None:
        """Where the node kept no more: a line of its own, in its place, so that it is in a saved log too."""
        self._flush(index, stream)
        newline = b"\n" if stream in self._inside and not self._prefixed else b""
        self._write(index, stream, newline + b"[rota: %s bytes are not kept]\n" % f"{gap_bytes:,}".encode())

    def _flush(self, index: int, stream: int) -> None:
        begun = self._begun.pop((index, stream), b"")
        if begun:
            self._put(stream, b"[%d] %s\n" % (index, begun))

    def _say(self, index: int, text: str) -> None:
        app.say(f"task {index}: {text}" if self._prefixed else text)

    def _put(self, stream: int, data: bytes) -> None:
        """Writes all at once, past Python's buffers, so that nothing is held back."""
        to = sys.stdout if self._one_stream or stream == STDOUT else sys.stderr
        left = memoryview(data)
        while left:
            left = left[os.write(to.fileno(), left) :]

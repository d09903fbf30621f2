"""A job's standard input on its way, so that what may have been lost with a connection is sent again.

The node knows the position of every piece and drops what it has already; how much it has is told at the end
alone. So the last KEPT_BYTES are kept, more than can be under way.
"""

import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from rota.wire.gen.v1 import job_service_pb2

PIECE_BYTES_MAX = 65_536
KEPT_BYTES = 8 * 1024 * 1024
AHEAD_COUNT_MAX = 16

Request = job_service_pb2.WriteInputRequest


class Feed:
    """One input. A thread reads `pieces`, each of at most PIECE_BYTES_MAX, while the block runs."""

    def __init__(self, number: int, pieces: Iterable[bytes]) -> None:
        self._number = number
        self._pieces = pieces
        self._changed = threading.Condition()
        self._kept: list[Request] = []
        self._kept_bytes = 0
        # How many requests were dropped from the front of `_kept`, and how many have been sent.
        self._dropped = 0
        self._sent = 0
        self._closed = False

    def __enter__(self) -> Self:
        """Begins to read."""
        threading.Thread(target=self._read, name=f"input of job {self._number}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Reads no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def requests(self) -> Iterator[Request]:
        """What is kept, then what comes; to be asked again when a connection was lost.

        An empty piece goes first: who has nothing to say for long is not to be taken for one who is gone.
        """
        yield Request(job=self._number)
        position = self._dropped
        while (request := self._at(position)) is not None:
            yield request
            if request.end:
                return
            position += 1

    def _at(self, position: int) -> Request | None:
        """A request, once it is there; None where it is no longer wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or position < self._dropped + len(self._kept))
            if self._closed or position < self._dropped:
                return None
            self._sent = max(self._sent, position + 1)
            self._drop()
            self._changed.notify_all()
            return self._kept[position - self._dropped]

    def _drop(self) -> None:
        """Forgets what was sent long ago."""
        while self._kept_bytes > KEPT_BYTES and self._dropped + 1 < self._sent:
            self._kept_bytes -= len(self._kept.pop(0).data)
            self._dropped += 1

    def _read(self) -> None:
        offset = 0
        for data in self._pieces:
            assert 0 < len(data) <= PIECE_BYTES_MAX, len(data)
            if not self._put(Request(job=self._number, offset=offset, data=data)):
                return
            offset += len(data)
        self._put(Request(job=self._number, offset=offset, end=True))

    def _put(self, request: Request) -> bool:
        """Appends a request once there is room; False where none is wanted any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._dropped + len(self._kept) < self._sent + AHEAD_COUNT_MAX
            )
            self._kept.append(request)
            self._kept_bytes += len(request.data)
            self._changed.notify_all()
            return not self._closed

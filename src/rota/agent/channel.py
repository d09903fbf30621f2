"""The supervisor's end of a socket to one of its processes: frames in and out, never blocking."""

import socket
from collections.abc import Iterator
from typing import Generic, TypeVar

from rota.agent.codec import Codec, Frames, frame

In = TypeVar("In")
Out = TypeVar("Out")

RECEIVE_BYTES = 256 * 1024
# What a process has not read after this much has been said to it, it will not read.
UNREAD_BYTES_MAX = 128 * 1024 * 1024


class Channel(Generic[In, Out]):
    """One socket, which it owns."""

    def __init__(self, end: socket.socket, incoming: Codec[In], outgoing: Codec[Out]) -> None:
        end.setblocking(False)
        self.end = end
        self._incoming = incoming
        self._outgoing = outgoing
        self._frames = Frames()
        self._unsent = bytearray()

    def fileno(self) -> int:
        """For a selector."""
        return self.end.fileno()

    def put(self, message: Out) -> None:
        """Says something with the next `flush`."""
        self._unsent += frame(self._outgoing.encode(message))

    def flush(self) -> bool:
        """Sends what can be sent; whether something is left. What nobody reads any more is dropped."""
        while self._unsent:
            try:
                sent = self.end.send(self._unsent[:RECEIVE_BYTES])
            except BlockingIOError:
                break
            except OSError:
                # The other side is gone: reading tells.
                self._unsent.clear()
                break
            del self._unsent[:sent]
        return bool(self._unsent)

    @property
    def stuck(self) -> bool:
        """Whether the other side has not read for too long."""
        return len(self._unsent) > UNREAD_BYTES_MAX

    def receive(self) -> Iterator[In] | None:
        """What has come; None at the end. Raises Malformed."""
        try:
            data = self.end.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return iter(())
        except OSError:
            return None
        return map(self._incoming.decode, self._frames.feed(data)) if data else None

    def close(self) -> None:
        """Ends it."""
        self.end.close()

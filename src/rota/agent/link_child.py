"""The supervisor's side of the link: starts it, starts it again when it dies, and passes on what it says."""

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Protocol

from rota.agent import files, tree
from rota.agent.channel import Channel
from rota.agent.codec import Codec, Malformed
from rota.agent.link_frames import (
    Alive,
    AttemptEnded,
    Came,
    Closed,
    End,
    FromLink,
    Opened,
    Say,
    SendOutput,
    ToLink,
)
from rota.core.model.protocol import ReadOutput, Up
from rota.core.node.inputs import CloseStream, Received

RETRY_MS_MIN = 100
RETRY_MS_MAX = 5_000
# A link that has lived so long did not die of its start.
LIVED_MS_MIN = 10_000
# How long the last words may take.
GOODBYE_S_MAX = 2.0

_log = logging.getLogger(__name__)
_FROM_LINK: Codec[FromLink] = Codec(FromLink)
_TO_LINK: Codec[ToLink] = Codec(ToLink)


class Listener(Protocol):
    """Who is told."""

    def stream_opened(self, stream: int) -> None:
        """A stream to the controller stands."""

    def stream_closed(self) -> None:
        """It is gone, or the link is."""

    def received(self, received: Received) -> None:
        """A message from the controller."""


class LinkChild:
    """One link at a time. Times are boot-clock milliseconds."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        command: tuple[str, ...],
        pid_file: Path | None,
        listener: Listener,
    ) -> None:
        self._selector = selector
        self._command = command
        self._pid_file = pid_file
        self._listener = listener
        self._channel: Channel[FromLink, ToLink] | None = None
        self._stream = 0
        self._retry_ms = RETRY_MS_MIN
        self._started_at_ms = 0
        self.pid = 0
        # When to start it, while it does not run.
        self.wake_at_ms: int | None = 0

    # ------------------------------------------------------------ its life

    def tend(self, now_ms: int) -> None:
        """Starts it where it is due."""
        if self.wake_at_ms is None or now_ms < self.wake_at_ms:
            return
        self.wake_at_ms = None
        self._started_at_ms = now_ms
        try:
            self._start()
        except OSError as error:
            _log.error("cannot start the link, %s: %s", self._command[0], error.strerror)
            self._died(now_ms)
            return
        try:
            files.write_pid(self._pid_file, self.pid)
        except OSError as error:
            # It works all the same; only who looks for it by the file does not find it.
            _log.error("cannot write %s: %s", self._pid_file, error.strerror)

    def _start(self) -> None:
        """Raises OSError, and there is none."""
        ours, theirs = socket.socketpair()
        channel: Channel[FromLink, ToLink] = Channel(ours, _FROM_LINK, _TO_LINK)
        with theirs:
            theirs.set_inheritable(True)
            try:
                self._selector.register(channel, selectors.EVENT_READ, self._ready)
                self.pid = os.posix_spawn(
                    self._command[0], [*self._command, "--fd", str(theirs.fileno())], os.environ
                )
            except OSError:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(channel)
                channel.close()
                raise
        self._channel = channel

    def reaped(self, pid: int, now_ms: int) -> None:
        """A child has ended."""
        if pid == self.pid:
            _log.warning("the link (pid %d) died", pid)
            self.pid = 0
            self._hang_up()
            self._died(now_ms)

    def _died(self, now_ms: int) -> None:
        """It is started again: later each time, if it dies at once."""
        if now_ms >= self._started_at_ms + LIVED_MS_MIN:
            self._retry_ms = RETRY_MS_MIN
        self.wake_at_ms = now_ms + self._retry_ms
        self._retry_ms = min(2 * self._retry_ms, RETRY_MS_MAX)

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._selector.unregister(self._channel)
            self._channel.close()
            self._channel = None
        if self._stream:
            self._stream = 0
            self._listener.stream_closed()

    def _kill(self) -> None:
        """What it says makes no sense, or it does not listen: it is started again when it is gone."""
        self._hang_up()
        if self.pid:
            tree.send(self.pid, signal.SIGKILL)

    # ------------------------------------------------------------ what it says

    def _ready(self, mask: int) -> None:
        channel = self._channel
        if channel is None:
            return
        if mask & selectors.EVENT_WRITE and not channel.flush():
            self._selector.modify(channel, selectors.EVENT_READ, self._ready)
        if mask & selectors.EVENT_READ:
            try:
                messages = channel.receive()
                for message in messages or ():
                    self._hear(message)
            except Malformed as error:
                _log.error("the link makes no sense: %s", error)
                messages = None
            if messages is None:
                self._kill()

    def _hear(self, message: FromLink) -> None:
        match message:
            case Came():
                if message.stream == self._stream:
                    self._listener.received(Received(message.down))
            case Opened():
                self._stream = message.stream
                self._listener.stream_opened(message.stream)
            case Closed():
                if message.stream == self._stream:
                    self._stream = 0
                    self._listener.stream_closed()
                _log.info("no stream to the controller: %s", message.reason)

    # ------------------------------------------------------------ what it is told

    def say(self, stream: int, message: Up) -> None:
        """A message for the controller."""
        self._put(Say(stream, message))

    def end_stream(self, close: CloseStream) -> None:
        """Ends a stream."""
        self._put(End(close.stream, close.reason, close.retry_ms, close.final))

    def send_output(self, read: ReadOutput, *, live: bool) -> None:
        """Somebody reads."""
        self._put(SendOutput(read, live))

    def attempt_ended(self, allocation: int, index: int, attempt: int) -> None:
        """There is no more to read."""
        self._put(AttemptEnded(allocation, index, attempt))

    def alive(self, left_ms: int, slack_ms: int) -> None:
        """The supervisor runs; see `link_frames.Alive`."""
        self._put(Alive(left_ms, slack_ms))

    def _put(self, message: ToLink) -> None:
        if self._channel is not None:
            self._channel.put(message)

    def flush(self) -> None:
        """Sends what was said."""
        if self._channel is None or not self._channel.flush():
            return
        if self._channel.stuck:
            _log.error("the link does not read any more")
            self._kill()
        else:
            self._selector.modify(self._channel, selectors.EVENT_READ | selectors.EVENT_WRITE, self._ready)

    def close(self) -> None:
        """Lets it send what was said, and end."""
        self.wake_at_ms = None
        pid = self.pid
        deadline_s = time.monotonic() + GOODBYE_S_MAX
        if self._stream:
            self._put(End(self._stream, "the agent ends", 0, final=True))
        while self._channel is not None and time.monotonic() < deadline_s:
            self._channel.flush()
            if not self._stream:
                break
            for key, mask in self._selector.select(deadline_s - time.monotonic()):
                if key.fileobj is self._channel:
                    self._ready(mask)
        self._hang_up()
        while self.pid and time.monotonic() < deadline_s:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    self.pid = 0
                    break
            time.sleep(0.01)
        if self.pid:
            tree.send(self.pid, signal.SIGKILL)
        files.remove_pid(self._pid_file, pid)

"""One Connect stream: what the supervisor says goes up, what the leader says comes down."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Protocol

import grpc

from rota.agent.link_frames import Came, Closed, End, FromLink, Opened
from rota.core.model.protocol import Up
from rota.wire.convert import ConvertError
from rota.wire.gen.v1 import link_pb2, link_pb2_grpc
from rota.wire.link import DownReader, apart, up_to_message

CONNECT_S_MAX = 10.0
# How long the controller may take to answer that nothing more comes.
FAREWELL_S_MAX = 2.0
# The supervisor has a bounded number of reports in flight, so this is never reached by one that works.
WAITING_BYTES_MAX = 16 * 1024 * 1024

_log = logging.getLogger(__name__)

Call = grpc.aio.StreamStreamCall[link_pb2.ConnectRequest, link_pb2.ConnectResponse]


class Tell(Protocol):
    """Says something to the supervisor."""

    def __call__(self, *messages: FromLink) -> Awaitable[None]:
        """All at once."""
        ...


class Stream:
    """A stream, from dialling to its end. `number` is never used twice by one link."""

    def __init__(self, number: int, channel: grpc.aio.Channel, tell: Tell) -> None:
        self.number = number
        self.channel = channel
        # The leader has said something: it is no use to dial more slowly.
        self.heard = False
        self.end: End | None = None
        self._tell = tell
        self._waiting: list[link_pb2.ConnectRequest] = []
        self._waiting_bytes = 0
        self._changed = asyncio.Event()

    def say(self, message: Up) -> None:
        """Queues a message; dropped once the end has been asked for."""
        if self.end is not None:
            return
        encoded = up_to_message(message)
        self._waiting.append(encoded)
        self._waiting_bytes += encoded.ByteSize()
        if self._waiting_bytes > WAITING_BYTES_MAX:
            self._waiting.clear()
            self.finish(End(self.number, "the controller does not read what it is sent"))
        self._changed.set()

    def finish(self, end: End) -> None:
        """Ends the stream once what was said is sent."""
        self.end = self.end or end
        self._changed.set()

    async def run(self) -> str:
        """Dials, and lives as long as the stream; why it ended."""
        call: Call = link_pb2_grpc.LinkServiceStub(self.channel).Connect()
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                await call.wait_for_connection()
        except TimeoutError:
            call.cancel()
            return "the controller did not answer"
        except grpc.aio.AioRpcError as failed:
            return failed.details() or failed.code().name
        _log.info("stream %d: the controller answers", self.number)
        await self._tell(Opened(self.number))
        reason = "the link ended"
        try:
            reason = await self._live(call)
        finally:
            call.cancel()
            await self._tell(Closed(self.number, reason))
        return reason

    async def _live(self, call: Call) -> str:
        sender = asyncio.create_task(self._send(call), name=f"stream {self.number} up")
        receiver = asyncio.create_task(self._receive(call), name=f"stream {self.number} down")
        try:
            await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done() and not receiver.done():
                await asyncio.wait({receiver}, timeout=FAREWELL_S_MAX)
            for task in (receiver, sender):
                if task.done():
                    return task.result()
            return "the controller did not end the stream"
        except grpc.aio.AioRpcError as failed:
            return failed.details() or failed.code().name
        finally:
            sender.cancel()
            receiver.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)

    async def _send(self, call: Call) -> str:
        while True:
            while not self._waiting and self.end is None:
                self._changed.clear()
                await self._changed.wait()
            if not self._waiting:
                assert self.end is not None
                await call.done_writing()
                return self.end.reason
            batch, self._waiting = self._waiting, []
            for message in batch:
                try:
                    await call.write(message)
                except asyncio.InvalidStateError:
                    return "the stream has ended"  # the receiver knows why
                self._waiting_bytes -= message.ByteSize()

    async def _receive(self, call: Call) -> str:
        reader = DownReader()
        async for message in call:
            self.heard = True
            try:
                read = [reader.read(one) for one in apart(message)]
            except ConvertError as wrong:
                _log.warning("the controller sent what is no message: %s", wrong)
                return f"the controller sent what is no message: {wrong}"
            came = [Came(self.number, down) for down in read if down is not None]
            if came:
                await self._tell(*came)
        return await call.details() or "the controller ended the stream"

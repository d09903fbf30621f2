"""The node protocol over gRPC: what nodes say goes into the loop, what the leader orders goes out to them.

A stream is one Connect call of one node. Its reader hands over one message at a time and waits while the
loop's inbox is full, so a node that floods is slowed by TCP; its writer has a bounded queue, and a node
that does not read is cut off when that is full: its next Hello says what it holds, so nothing is lost by
that.

Messages are taken as bytes, so that one over the protocol's limit is refused before it is parsed.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from rota.controller.calls import next_message, send
from rota.controller.output import Outputs
from rota.controller.pace import Rounds
from rota.controller.peers import peer_of
from rota.core.cluster import rows
from rota.core.cluster.inputs import Close, FromNode, Order, Send, StreamClosed
from rota.core.model.protocol import MESSAGE_BYTES_MAX, Hello, InputTaken, Refused, Report, Up
from rota.wire.convert import ConvertError
from rota.wire.gen.v1 import link_pb2
from rota.wire.link import down_to_messages, joined, up_from_message
from rota.wire.validate import validate

# A node that takes nothing of what waits for so long is cut off, once this much waits. One turn may well
# have more than that for a node, so the amount alone says nothing; beyond QUEUE_BYTES_MAX it does.
STALLED_S_MAX = 10.0
STALLED_BYTES_MIN = 16 * 1024 * 1024
QUEUE_BYTES_MAX = 256 * 1024 * 1024
# Whoever has much to send that can wait lets the queue fall to this first: heartbeats stand in it too.
ROOM_BYTES = 128 * 1024
# A stream says within this whose it is.
HELLO_S_MAX = 10.0
# For so long a node may not connect that said, or should be told, what cannot be dealt with.
KEPT_OFF_S = 60.0
# And one that was refused for good, which costs a commit each time. One that shall try again is kept off for
# half of the time: what a copy of its home is told must not keep the node itself off until the copy's turn.
REFUSED_S = 10.0
# A node may open so many streams within such a time, for each Hello is a commit; one that loses one after the
# other comes back when it is over.
OPENED_MAX = 50
OPENED_S = 10.0
# The protocol's limit is on the message's content; the envelope adds a little.
SLACK_BYTES = 4 * 1024

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]


class Inbox(Protocol):
    """Where a node's messages go; the loop is one."""

    @property
    def leading(self) -> bool:
        """Whether nodes may connect."""
        ...

    async def tell(self, message: FromNode) -> None:
        """Hands over a message; waits while there is no room."""
        ...

    def closed(self, stream: StreamClosed) -> None:
        """Says that a stream has ended; there is always room for that."""
        ...


@dataclass(slots=True)
class _End:
    """How a stream ends: the status that its node sees."""

    code: grpc.StatusCode
    details: str


@dataclass(slots=True, eq=False)
class _Stream:
    number: int
    node: str
    address: str
    waiting: list[bytes] = field(default_factory=list)
    waiting_bytes: int = 0
    writing_since_s: float | None = None
    end: _End | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    # Nothing that waits is worth waiting for.
    given_up: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, data: bytes) -> None:
        if self.end is not None:
            return
        self.waiting.append(data)
        self.waiting_bytes += len(data)
        if self.waiting_bytes > ROOM_BYTES:
            self.room.clear()
        stalled = self.waiting_bytes > STALLED_BYTES_MIN and self._stalled_s() > STALLED_S_MAX
        if stalled or self.waiting_bytes > QUEUE_BYTES_MAX:
            self.waiting.clear()
            self.given_up.set()
            self.finish(_End(grpc.StatusCode.RESOURCE_EXHAUSTED, "the node does not read what it is sent"))
        self.changed.set()

    def _stalled_s(self) -> float:
        """For how long the message that is being sent has not been taken."""
        return 0.0 if self.writing_since_s is None else time.monotonic() - self.writing_since_s

    def finish(self, end: _End) -> None:
        """The stream ends once what waits is sent."""
        self.end = self.end or end
        self.changed.set()
        self.ending.set()
        self.room.set()

    async def overdue(self) -> None:
        """Until its end has been wanted for as long as it takes a node that reads to see it."""
        await self.ending.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(STALLED_S_MAX):
                await self.given_up.wait()


class Links:
    """All streams of nodes."""

    def __init__(
        self, inbox: Inbox, outputs: Outputs, input_taken: Callable[[str, InputTaken], bool], rounds: Rounds
    ) -> None:
        """`input_taken` is whether somebody waited to hear that."""
        self._inbox = inbox
        self._rounds = rounds
        self._input_taken = input_taken
        self._outputs = outputs
        self._streams: dict[int, _Stream] = {}
        # Those of each node that have said Hello, the latest last: that one counts.
        self._greeted: dict[str, list[_Stream]] = {}
        self._numbers = count(1)
        # How many streams each node has opened, and since when, by the monotonic clock.
        self._opened: dict[str, tuple[float, int]] = {}
        # Until when a node may not connect, by the monotonic clock, and why.
        self._kept_off: dict[str, tuple[float, str]] = {}

    def handlers(self) -> grpc.GenericRpcHandler:
        """LinkService for a server with mutual TLS."""
        return grpc.method_handlers_generic_handler(
            link_pb2.DESCRIPTOR.services_by_name["LinkService"].full_name,
            {
                "Connect": grpc.stream_stream_rpc_method_handler(_for_nodes(self._connect)),
                "PushOutput": grpc.stream_stream_rpc_method_handler(_for_nodes(self._outputs.push)),
            },
        )

    def carry_out(self, order: Order) -> None:
        """Sends a message or ends a stream; a stream that is gone has been reported as closed."""
        stream = self._streams.get(order.stream)
        if stream is None:
            return
        match order:
            case Send(message=message):
                try:
                    pieces = [piece.SerializeToString() for piece in down_to_messages(message)]
                except Exception:  # noqa: BLE001 (one node's, whatever it is)
                    _log.exception("a bug: node %s cannot be told %r", stream.node, message)
                    self.keep_off(stream.node)
                    stream.finish(_End(grpc.StatusCode.INTERNAL, "what there is to say cannot be said"))
                    return
                for piece in pieces:
                    stream.put(piece)
                if isinstance(message.body, Refused) and not message.session:
                    # A Hello.
                    retry_ms = message.body.retry_ms
                    until_s = time.monotonic() + (retry_ms / 2000 if retry_ms else REFUSED_S)
                    self._kept_off[stream.node] = until_s, f"refused just now: {message.body.message}"
            case Close(reason=reason):
                stream.finish(_End(grpc.StatusCode.ABORTED, reason))

    def close_all(self, reason: str) -> None:
        """Ends every stream: the nodes come back and say what they hold."""
        for stream in self._streams.values():
            stream.finish(_End(grpc.StatusCode.UNAVAILABLE, reason))

    def keep_off(self, node: str) -> None:
        """Lets the node connect only after KEPT_OFF_S: what it says, or would be told, cannot be taken."""
        why = "the controller failed over this node; the controller's log says more"
        self._kept_off[node] = time.monotonic() + KEPT_OFF_S, why

    def address(self, node: str) -> str:
        """Where a node connects from, as gRPC writes it; empty where it does not."""
        streams = self._greeted.get(node)
        return streams[-1].address if streams else ""

    async def room(self, node: str) -> None:
        """Waits until little is queued for a node, or it has gone."""
        streams = self._greeted.get(node)
        if streams:
            await streams[-1].room.wait()

    async def _connect(self, node: str, context: Context) -> None:
        if not self._inbox.leading:
            context.set_code(grpc.StatusCode.UNAVAILABLE)
            context.set_details("the controller does not lead now; try again")
            return
        why = self._why_not_now(node)
        if why:
            context.set_code(grpc.StatusCode.UNAVAILABLE)
            context.set_details(why)
            return
        stream = _Stream(next(self._numbers), node, context.peer())
        stream.room.set()
        self._streams[stream.number] = stream
        reader = asyncio.create_task(self._receive(stream, context), name=f"stream {stream.number} up")
        writer = asyncio.create_task(self._send(stream, context), name=f"stream {stream.number} down")
        overdue = asyncio.create_task(stream.overdue(), name=f"stream {stream.number} overdue")
        try:
            done, _ = await asyncio.wait({reader, writer, overdue}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if done == {reader} and stream.end is not None:
                # What is wrong with the node's message is said by the status; what was queued before it
                # still goes.
                await asyncio.wait({writer, overdue}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            try:
                # The streams of thousands of nodes may end at once.
                await self._rounds.turn()
            finally:
                await self._close(stream, reader, writer, overdue)
        if stream.end is not None:
            context.set_code(stream.end.code)
            context.set_details(stream.end.details)

    async def _close(self, stream: _Stream, *tasks: asyncio.Task[None]) -> None:
        stream.room.set()
        del self._streams[stream.number]
        self._forget(stream)
        for task in tasks:
            task.cancel()
        self._inbox.closed(StreamClosed(stream.node, stream.number))
        await asyncio.gather(*tasks, return_exceptions=True)

    def _why_not_now(self, node: str) -> str:
        """Why a node may not open a stream, if it may not; else the stream is counted."""
        now_s = time.monotonic()
        until_s, why = self._kept_off.get(node, (0.0, ""))
        if now_s < until_s:
            return why
        self._kept_off.pop(node, None)
        began_s, opened = self._opened.get(node, (now_s, 0))
        if now_s >= began_s + OPENED_S:
            began_s, opened = now_s, 0
        if opened >= OPENED_MAX:
            return f"the node has opened {OPENED_MAX} streams within {OPENED_S:g} s; let it try again later"
        self._opened[node] = began_s, opened + 1
        return ""

    def _greet(self, stream: _Stream) -> None:
        """A stream has said Hello, once more perhaps."""
        self._forget(stream)
        self._greeted.setdefault(stream.node, []).append(stream)

    def _forget(self, stream: _Stream) -> None:
        streams = self._greeted.get(stream.node, [])
        if stream in streams:
            streams.remove(stream)
            if not streams:
                del self._greeted[stream.node]

    async def _receive(self, stream: _Stream, context: Context) -> None:
        try:
            async with asyncio.timeout(HELLO_S_MAX) as until_hello:
                await self._listen(stream, context, until_hello)
        except TimeoutError:
            says = f"no Hello came within {HELLO_S_MAX:g} s"
            stream.finish(_End(grpc.StatusCode.DEADLINE_EXCEEDED, says))
        except asyncio.CancelledError:
            # The stream's end has been decided. Were it told, this task would keep it, and by its traceback
            # itself: a cycle that is too old to be found.
            return

    async def _listen(self, stream: _Stream, context: Context, until_hello: asyncio.Timeout) -> None:
        while (data := await next_message(context)) is not None:
            await self._rounds.turn()
            try:
                message = parse_up(data)
            except ConvertError as error:
                _log.warning("node %s sent what is no message: %s", stream.node, error)
                stream.finish(_End(grpc.StatusCode.INVALID_ARGUMENT, str(error)))
                return
            if isinstance(message, Hello):
                until_hello.reschedule(None)
                self._greet(stream)
            if isinstance(message, InputTaken) and self._input_taken(stream.node, message):
                continue
            await self._inbox.tell(FromNode(stream.node, stream.number, message))

    async def _send(self, stream: _Stream, context: Context) -> None:
        while True:
            while not stream.waiting and stream.end is None:
                stream.changed.clear()
                await stream.changed.wait()
            if not stream.waiting:
                return
            await self._rounds.turn()
            batch, stream.waiting = stream.waiting, []
            sent = 0
            for data, messages in joined(batch):
                stream.writing_since_s = time.monotonic()
                await send(context, data)
                stream.writing_since_s = None
                stream.waiting_bytes -= sum(map(len, batch[sent : sent + messages]))
                sent += messages
                if stream.waiting_bytes <= ROOM_BYTES:
                    stream.room.set()


def parse_up(data: bytes) -> Up:
    """A message of a node, checked. Raises ConvertError, which says in one line what is wrong."""
    if len(data) > MESSAGE_BYTES_MAX + SLACK_BYTES:
        raise ConvertError(f"the message has {len(data)} bytes; at most {MESSAGE_BYTES_MAX} are allowed")
    try:
        message = link_pb2.ConnectRequest.FromString(data)
    except DecodeError as error:
        raise ConvertError("the bytes are no message of the node protocol") from error
    problems = validate(message)
    if problems:
        raise ConvertError(str(problems[0]))
    up = up_from_message(message)
    if isinstance(up, Report):
        for place, allocation in enumerate(up.allocations):
            says = rows.problem(allocation.exits)
            if says:
                raise ConvertError(f"report.allocations[{place}].exits.{says}")
    return up


def _for_nodes(handler: Callable[[str, Context], Any]) -> Callable[[Any, Context], Any]:
    """Lets the handler be called by the holders of nodes' certificates alone, with the node's UUID."""

    async def handle(_: Any, context: Context) -> None:
        peer = peer_of(context.auth_context(), context.peer())
        if peer is None or peer.kind != "node":
            context.set_code(grpc.StatusCode.PERMISSION_DENIED)
            context.set_details("this service is for nodes: connect with a node's certificate")
            return
        await handler(peer.name, context)

    return handle

"""Many edges over the network: a connection and a stream for each, one event loop for all.

All are in one process, so what one learns of the controller's being away holds for the others too: while
nobody listens at an address, one of them asks there, and the rest wait for it.
"""

import asyncio
import gc
import heapq
import itertools
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from rota.agent.link import pause_s
from rota.agent.link_identity import Identity
from rota.core.model.protocol import Inventory, ReadOutput, Up
from rota.core.model.states import Cause
from rota.core.node.entries import End
from rota.core.node.inputs import (
    CloseStream,
    Leave,
    Received,
    SendOutput,
    Shutdown,
    StreamClosed,
    StreamOpened,
)
from rota.sim.edges.edge import Edge
from rota.sim.edges.memory import Begun, Ends, Memory
from rota.sim.edges.tasks import Tasks
from rota.wire.convert import ConvertError
from rota.wire.gen.v1 import link_pb2, link_pb2_grpc
from rota.wire.link import DownReader, apart, up_to_message

CONNECT_S_MAX = 10.0
# How long the controller may take to answer the greeting, and that nothing more comes.
WELCOME_S_MAX = 10.0
# How long a busy controller may take to hear of thousands who leave.
FAREWELL_S_MAX = 10.0
# So many are on their way between dialling and the session at once.
DIALLING_MAX = 64
ASK_AGAIN_S = 0.2
# How often somebody who follows a task's output is looked after: there is none, but it ends.
LOOK_AGAIN_S = 0.2

_CONNECT = f"/{link_pb2.DESCRIPTOR.services_by_name['LinkService'].full_name}/Connect"
_log = logging.getLogger(__name__)

# Of bytes, both ways.
Call = Any


@dataclass(slots=True)
class Counts:
    """What has become of the nodes and their tasks so far."""

    nodes: int = 0
    connected: int = 0
    begun: int = 0
    ended: int = 0
    failed: int = 0


@dataclass(slots=True, eq=False)
class _Member:
    """An edge and its connection."""

    identity: Identity
    edge: Edge
    channel: grpc.aio.Channel | None = None
    call: Call | None = None
    waiting: list[bytes] = field(default_factory=list)
    writer: asyncio.Task[None] | None = None
    end: CloseStream | None = None
    counted: bool = False
    left: bool = False
    wake_at_ms: int = 0
    outputs: set[asyncio.Task[None]] = field(default_factory=set)


class Fleet:
    """Edges with these identities.

    `refused` is told of each node that is not wanted, once; `put_off` of each that is to come again later,
    each time: both with the node's name and why.
    """

    def __init__(
        self,
        cluster: str,
        identities: Iterable[Identity],
        inventory: Inventory,
        tasks: Tasks,
        refused: Callable[[str, str], None],
        put_off: Callable[[str, str], None],
    ) -> None:
        self._inventory = inventory
        self._refused = refused
        self._put_off = put_off
        self._members = [
            _Member(identity, Edge(Memory(str(uuid.uuid4()), str(uuid.uuid4())), cluster, tasks))
            for identity in identities
        ]
        self.counts = Counts(nodes=len(self._members))
        self._dialling = asyncio.Semaphore(DIALLING_MAX)
        self._listens: dict[str, asyncio.Task[None]] = {}
        self._timers: list[tuple[int, int, _Member]] = []
        self._timer_count = itertools.count()
        self._sooner = asyncio.Event()
        self._living: list[asyncio.Task[None]] = []
        self._leaving = False

    async def run(self) -> None:
        """Lives until every node has left, or is not wanted."""
        ticking = asyncio.create_task(self._tick(), name="timers")
        self._living = [asyncio.create_task(self._live(member)) for member in self._members]
        lives = asyncio.ensure_future(asyncio.wait(self._living, return_when=asyncio.FIRST_EXCEPTION))
        try:
            await asyncio.wait({ticking, lives}, return_when=asyncio.FIRST_COMPLETED)
            for task in (ticking, *self._living):
                if task.done() and not task.cancelled():
                    task.result()
        finally:
            lives.cancel()
            for task in (ticking, *self._living):
                task.cancel()
            await asyncio.gather(lives, ticking, *self._living, return_exceptions=True)

    async def leave(self) -> None:
        """Stops what runs, and says goodbye for all that are connected; then `run` returns."""
        self._leaving = True
        for member, living in zip(self._members, self._living, strict=True):
            self._step(member, [Shutdown(0)])
            if not member.edge.talk.open:
                # It comes to no session any more.
                living.cancel()
            # Thousands of them must not keep the loop from what comes.
            await asyncio.sleep(0)

    # ------------------------------------------------------------ a node's steps

    def _step(
        self, member: _Member, inputs: Sequence[StreamOpened | StreamClosed | Received | Shutdown]
    ) -> None:
        edge = member.edge
        outcome = edge.step(inputs, _boot_ms(), time.time_ns() // 1_000_000)
        for happened in edge.happened:
            self._count(happened)
        for command in outcome.commands:
            match command:
                case CloseStream():
                    member.end = command
                    self._flush(member)
                case SendOutput(read, live):
                    self._send_output(member, read, live=live)
                case Leave():
                    member.left = True
                    member.end = CloseStream(0, "it left", final=True)
                    self._flush(member)
                case _:
                    raise AssertionError(command)
        self._say(member, outcome.messages)
        if member.edge.talk.open is not member.counted:
            member.counted = not member.counted
            self.counts.connected += 1 if member.counted else -1
            if self.counts.connected == self.counts.nodes:
                # What there is now stays: the collector need not look at it again and again.
                gc.freeze()
        self._wake(member, outcome.wake_at_ms)

    def _count(self, happened: Begun | Ends | End) -> None:
        counts = self.counts
        match happened:
            case Begun():
                counts.begun += len(happened.indices)
            case Ends():
                counts.ended += len(happened.index)
                counts.failed += int(np.count_nonzero(happened.code))
                counts.begun += 0 if happened.slot is None else len(happened.index)
            case End():
                counts.ended += 1
                # To be cut short is no failure of the task.
                counts.failed += happened.ended.cause is Cause.TIME_LIMIT

    def _wake(self, member: _Member, at_ms: int | None) -> None:
        if at_ms is None or at_ms == member.wake_at_ms:
            member.wake_at_ms = at_ms or 0
            return
        member.wake_at_ms = at_ms
        heapq.heappush(self._timers, (at_ms, next(self._timer_count), member))
        if self._timers[0][2] is member:
            self._sooner.set()

    async def _tick(self) -> None:
        """Steps each node when it wants to be."""
        while True:
            now_ms = _boot_ms()
            while self._timers and self._timers[0][0] <= now_ms:
                at_ms, _, member = heapq.heappop(self._timers)
                if member.wake_at_ms == at_ms:
                    member.wake_at_ms = 0
                    self._step(member, [])
            late_s = max(self._timers[0][0] - _boot_ms(), 0) / 1000 if self._timers else None
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(late_s):
                    await self._sooner.wait()

    # ------------------------------------------------------------ a node's stream

    async def _live(self, member: _Member) -> None:
        """One stream after the other; each pause is longer than the one before."""
        failures = 0
        for number in itertools.count(1):
            address = member.identity.addresses[number % len(member.identity.addresses)]
            await self._until_listened(address)
            call = None
            try:
                async with self._dialling:
                    call = await self._dial(member, address, number)
                if call is not None:
                    await self._receive(member, call)
            finally:
                await self._hang_up(member)
            failures = 0 if call is not None else failures + 1
            end = member.end
            if member.left or (self._leaving and not member.edge.talk.open):
                return
            if end is not None and end.final:
                self._refused(member.identity.name, end.reason)
                return
            if end is not None:
                self._put_off(member.identity.name, end.reason)
            await asyncio.sleep(pause_s(failures))
            if end is not None:
                await asyncio.sleep(end.retry_ms / 1000 * random.uniform(1.0, 1.2))

    async def _until_listened(self, address: str) -> None:
        """Waits while nobody listens there."""
        asking = self._listens.get(address)
        if asking is None or asking.done():
            asking = self._listens[address] = asyncio.create_task(_until_listened(address))
        await asyncio.shield(asking)

    async def _dial(self, member: _Member, address: str, number: int) -> Call | None:
        """A stream on which the controller has answered the greeting; None where it has not."""
        member.end = None
        channel = member.channel = member.identity.channel(address)
        call: Call = channel.stream_stream(_CONNECT)()
        with _until_gone(member):
            async with asyncio.timeout(CONNECT_S_MAX):
                await call.wait_for_connection()
            member.call = call
            self._step(member, [StreamOpened(number, self._inventory)])
            async with asyncio.timeout(WELCOME_S_MAX):
                first = await call.read()
            if isinstance(first, bytes) and self._take(member, first, DownReader()):
                return call
        return None

    async def _receive(self, member: _Member, call: Call) -> None:
        reader = DownReader()
        with _until_gone(member):
            while isinstance(data := await call.read(), bytes):
                if not self._take(member, data, reader):
                    return

    def _take(self, member: _Member, data: bytes, reader: DownReader) -> bool:
        """Messages from the controller; False for what is none."""
        try:
            read = [reader.read(one) for one in apart(link_pb2.ConnectResponse.FromString(data))]
        except (ConvertError, ValueError) as wrong:
            _log.warning("%s: the controller sent what is no message: %s", member.identity.name, wrong)
            return False
        received = [Received(down) for down in read if down is not None]
        if received:
            self._step(member, received)
        return True

    async def _hang_up(self, member: _Member) -> None:
        call, member.call, member.channel = member.call, None, None
        tasks = [task for task in (member.writer, *member.outputs) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # One that was cancelled before it began could not say so.
        member.writer = None
        member.waiting.clear()
        if call is not None:
            call.cancel()
            self._step(member, [StreamClosed()])
        # The channel closes when nothing refers to it. Its `close` would look at each task of this loop for
        # calls that are still under way, and there are thousands.

    # ------------------------------------------------------------ what is said

    def _say(self, member: _Member, messages: Iterable[Up]) -> None:
        member.waiting.extend(up_to_message(message).SerializeToString() for message in messages)
        self._flush(member)

    def _flush(self, member: _Member) -> None:
        if member.call is not None and member.writer is None and (member.waiting or member.end is not None):
            member.writer = asyncio.create_task(self._write(member, member.call))

    async def _write(self, member: _Member, call: Call) -> None:
        """Sends what waits; after the last word, ends the stream."""
        try:
            while member.waiting:
                batch, member.waiting = member.waiting, []
                for data in batch:
                    await call.write(data)
            if member.end is not None:
                await call.done_writing()
                await asyncio.sleep(FAREWELL_S_MAX)
                call.cancel()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            # The stream has ended; whoever receives knows why.
            return
        finally:
            member.writer = None

    def _send_output(self, member: _Member, read: ReadOutput, *, live: bool) -> None:
        assert member.channel is not None
        task = asyncio.create_task(_send_nothing(member.channel, member.edge, read, live=live))
        member.outputs.add(task)
        task.add_done_callback(member.outputs.discard)


@contextmanager
def _until_gone(member: _Member) -> Iterator[None]:
    """What is done with a stream, which may end at any time."""
    try:
        yield
    except TimeoutError:
        _log.info("%s: the controller did not answer", member.identity.name)
    except grpc.aio.AioRpcError as failed:
        _log.info("%s: the stream ended: %s", member.identity.name, failed.details())
    except asyncio.CancelledError:
        # The call was cancelled at the farewell's end; or this task, from outside.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise


async def _send_nothing(channel: grpc.aio.Channel, edge: Edge, read: ReadOutput, *, live: bool) -> None:
    """The output of a simulated task: none, at once; to who follows, when the task has ended."""
    piece = link_pb2.PushOutputRequest
    call = link_pb2_grpc.LinkServiceStub(channel).PushOutput()
    try:
        await call.write(piece(request=read.request))
        while read.follow and live:
            await asyncio.sleep(LOOK_AGAIN_S)
            held = edge.held.allocations.get(read.allocation)
            live = held is not None and (read.index in held.waiting or read.index in held.running)
        if read.many or not live:
            await call.write(piece(offset=0 if read.many else read.offset, end=True))
        await call.done_writing()
        async for _ in call:
            pass
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as gone:
        _log.info("output %d is not wanted any more: %s", read.request, gone)
    finally:
        call.cancel()


async def _until_listened(address: str) -> None:
    host, _, port = address.rpartition(":")
    while True:
        try:
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            await asyncio.sleep(ASK_AGAIN_S)
        else:
            writer.close()
            return


def _boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

"""Output on its way from a node to a reader: between ReadOutput's answers and PushOutput's streams.

A reading is opened under a request number, which a ReadOutput message takes to the node; the node opens a
PushOutput stream and names the number. It may send as many bytes as it has credit for: a window at first,
then what the reader has taken. So a reading holds at most WINDOW_BYTES here, however fast the node and slow
the reader; small pieces are joined, and one that says nothing, or much that costs no credit, ends the
stream.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import count

import grpc
from google.protobuf.message import DecodeError

from rota.controller.calls import next_message, send
from rota.wire.gen.v1 import link_pb2

WINDOW_BYTES = 512 * 1024
CREDIT_BYTES_MIN = WINDOW_BYTES // 4
ANSWER_S_MAX = 15.0
# The node's stream says within this which reading it answers.
FIRST_S_MAX = 10.0
# One `rota run` of a wide array takes up to 128.
READINGS_MAX = 5000
READINGS_OF_ONE_MAX = READINGS_MAX // 10
# Pieces that wait for the reader: joined they are fewer, but for gaps between them.
PIECES_MAX = 1024
JOINED_BYTES_MAX = 4096
# What a piece has besides its data: numbers.
OVERHEAD_BYTES_MAX = 128

Context = grpc.aio.ServicerContext[bytes, bytes]
Piece = link_pb2.PushOutputRequest


class OutputLost(Exception):
    """The node stopped answering; another reading may go on at the offset reached."""


class TooManyReadings(Exception):
    """READINGS_MAX readings are open, or READINGS_OF_ONE_MAX of one reader."""


class Reading:
    """One attempt's standard output or error, on its way to one reader."""

    def __init__(self, request: int, node: str) -> None:
        self.request = request
        self.node = node
        self._pieces: deque[Piece] = deque()
        self._changed = asyncio.Event()
        self._answered = asyncio.Event()
        self._lost = ""
        self._finished = False
        self._outstanding = 0
        self._taken = 0
        self._credit_wanted = asyncio.Event()
        self.closed = False
        self.all_received = False
        # The node has said that the attempt has ended and all has been sent.
        self.ended = False

    async def pieces(self) -> AsyncIterator[Piece]:
        """What the node sends, until it has no more, or says why it has none. Raises OutputLost."""
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await self._answered.wait()
        except TimeoutError as late:
            raise OutputLost("the node did not answer") from late
        while True:
            while not self._pieces:
                if self._finished:
                    return
                if self._lost:
                    raise OutputLost(self._lost)
                self._changed.clear()
                await self._changed.wait()
            piece = self._pieces.popleft()
            self.ended = piece.end or bool(piece.error)
            yield piece
            if self.ended:
                return
            self._taken += _cost(piece)
            if self._taken >= CREDIT_BYTES_MIN:
                self._credit_wanted.set()

    def answer(self) -> bool:
        """A stream of the node begins to answer; False where one already has."""
        if self._answered.is_set():
            return False
        self._answered.set()
        self._outstanding = WINDOW_BYTES
        return True

    def offer(self, piece: Piece) -> bool:
        """A piece from the node; False where it had no credit for it, or none would have been enough."""
        self._outstanding -= _cost(piece)
        if self._outstanding < 0 or not _sound(piece):
            return False
        if self._pieces and _follows(piece, self._pieces[-1]):
            self._pieces[-1].data += piece.data
        elif len(self._pieces) < PIECES_MAX:
            self._pieces.append(piece)
        else:
            return False
        self._changed.set()
        return True

    def finish(self) -> None:
        """The node has sent what there is."""
        self._finished = True
        self._changed.set()

    def lose(self, why: str) -> None:
        """No more comes from the node; what is here is still given out."""
        self._lost = self._lost or why
        self._answered.set()
        self._changed.set()

    def stop_crediting(self) -> None:
        """Nothing more is to come, or to be allowed."""
        self.all_received = True
        self._credit_wanted.set()

    def close(self) -> None:
        """The reader has gone."""
        self.closed = True
        self._pieces.clear()
        self._credit_wanted.set()

    async def credit(self) -> int | None:
        """Bytes that the node may send more, once it is worth a message; 0 when the reader has gone, None
        when the node has sent all.
        """
        await self._credit_wanted.wait()
        self._credit_wanted.clear()
        if self.all_received:
            return None
        if self.closed:
            return 0
        taken, self._taken = self._taken, 0
        self._outstanding += taken
        return taken


class Outputs:
    """All readings."""

    def __init__(self) -> None:
        self._readings: dict[int, Reading] = {}
        # How many each reader has.
        self._of: Counter[str] = Counter()
        self._numbers = count(1)

    @contextmanager
    def reading(self, node: str, reader: str) -> Iterator[Reading]:
        """A reading of a node's for a user, for as long as the block runs. Raises TooManyReadings."""
        if self._of[reader] >= READINGS_OF_ONE_MAX:
            raise TooManyReadings(f"'{reader}' reads {READINGS_OF_ONE_MAX} outputs already; end some of them")
        if len(self._readings) >= READINGS_MAX:
            raise TooManyReadings(f"{READINGS_MAX} outputs are being read already; try again later")
        reading = Reading(next(self._numbers), node)
        self._readings[reading.request] = reading
        self._of[reader] += 1
        try:
            yield reading
        finally:
            self._of[reader] -= 1
            if not self._of[reader]:
                del self._of[reader]
            del self._readings[reading.request]
            reading.close()

    def close_all(self, why: str) -> None:
        """Ends all readings."""
        for reading in self._readings.values():
            reading.lose(why)

    async def push(self, node: str, context: Context) -> None:
        """PushOutput, called by `node`."""
        try:
            async with asyncio.timeout(FIRST_S_MAX):
                first = await _read(context)
        except TimeoutError:
            context.set_code(grpc.StatusCode.DEADLINE_EXCEEDED)
            context.set_details(f"what is answered was not said within {FIRST_S_MAX:g} s")
            return
        reading = self._readings.get(first.request) if first is not None else None
        if first is None or reading is None or reading.node != node or not reading.answer():
            # The reader has gone meanwhile, or never was: the node stops.
            await send(context, link_pb2.PushOutputResponse(stop=True).SerializeToString())
            return
        why = "the node's connection was lost"
        receiver = asyncio.create_task(_receive(reading, first, context), name=f"output {reading.request} in")
        creditor = asyncio.create_task(_credit(reading, context), name=f"output {reading.request} credit")
        try:
            done, _ = await asyncio.wait({receiver, creditor}, return_when=asyncio.FIRST_COMPLETED)
            if receiver in done:
                # Not cancelled: a call must not end while a write is on its way.
                reading.stop_crediting()
                done.add(await _finished(creditor))
            if all(task.result() for task in done):
                reading.finish()
            else:
                why = "the node sent more than it may"
                context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
                context.set_details(why)
        finally:
            receiver.cancel()
            creditor.cancel()
            reading.lose(why)
            await asyncio.gather(receiver, creditor, return_exceptions=True)


def _cost(piece: Piece) -> int:
    """What a piece takes of the credit."""
    return piece.ByteSize() if piece.many else len(piece.data)


def _sound(piece: Piece) -> bool:
    """Whether a piece says something, and at the cost of its data."""
    if piece.many or piece.error:
        return True
    return bool(piece.data or piece.end) and piece.ByteSize() - len(piece.data) <= OVERHEAD_BYTES_MAX


def _follows(piece: Piece, last: Piece) -> bool:
    """Whether a piece is to be joined to the one before it."""
    if piece.many or piece.error or piece.end or piece.gap_bytes or last.many or last.error or last.end:
        return False
    joined = len(last.data) + len(piece.data)
    return piece.offset == last.offset + len(last.data) and joined <= JOINED_BYTES_MAX


async def _receive(reading: Reading, first: Piece, context: Context) -> bool:
    """Hands the node's pieces over, up to the end of its stream; False where it broke a rule."""
    # The first may only name the request.
    said = first.data or first.many or first.end or first.error
    piece = first if said else await _read(context)
    while piece is not None:
        if not reading.offer(piece):
            return False
        if piece.end or piece.error:
            return True
        piece = await _read(context)
    return True


async def _credit(reading: Reading, context: Context) -> bool:
    await send(context, link_pb2.PushOutputResponse(credit_bytes=WINDOW_BYTES).SerializeToString())
    while credit := await reading.credit():
        await send(context, link_pb2.PushOutputResponse(credit_bytes=credit).SerializeToString())
    if credit is not None:
        await send(context, link_pb2.PushOutputResponse(stop=True).SerializeToString())
    return True


async def _finished(task: asyncio.Task[bool]) -> asyncio.Task[bool]:
    await asyncio.wait({task})
    return task


async def _read(context: Context) -> Piece | None:
    data = await next_message(context)
    try:
        return None if data is None else Piece.FromString(data)
    except DecodeError:
        return None

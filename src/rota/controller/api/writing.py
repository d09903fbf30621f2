"""WriteInput: hands a client's bytes to the task that reads them.

A piece is kept until the node has said that it has it. What a stream that broke may have lost is sent again
when the node says, at the beginning of its next session, how much it has; so nothing of an input is lost, as
long as the task and this controller live. When the controller does not, the client sends again what it kept.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import grpc

from rota.controller.api.desk import Call, Desk, find_job
from rota.controller.api.errors import ApiError, error
from rota.controller.api.views import holder
from rota.core.cluster.inputs import Done, Fed, ToNode
from rota.core.cluster.step import Machine
from rota.core.model.protocol import Input, InputTaken
from rota.first import first_of
from rota.wire.gen.v1 import job_service_pb2

KEPT_BYTES_MAX = 1024 * 1024
# The leader takes a job that is not said to be fed for six times as long for one that nobody feeds.
FED_S = 15.0

Request = job_service_pb2.WriteInputRequest

Target = tuple[str, int, int]
"""Node, allocation and index."""


@dataclass(eq=False, slots=True)
class _Writing:
    """One input on its way: the pieces that its node has not said to have."""

    target: Target
    kept: deque[Input] = field(default_factory=deque)
    kept_bytes: int = 0
    sent_bytes: int = 0
    # Pieces go in their order, also while earlier ones are sent again.
    order: asyncio.Lock = field(default_factory=asyncio.Lock)
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    def keep(self, piece: Input) -> None:
        self.kept.append(piece)
        self.kept_bytes += len(piece.data)
        self.sent_bytes += len(piece.data)

    def take(self, message: InputTaken) -> None:
        while self.kept:
            first = self.kept[0]
            if first.offset + len(first.data) > message.bytes or (first.end and not message.end):
                break
            self.kept_bytes -= len(self.kept.popleft().data)
        self.moved.set()
        if message.again:
            self.lost.set()

    async def shrink_to(self, size: int) -> None:
        while self.kept_bytes > size or (self.kept and not size):
            self.moved.clear()
            await self.moved.wait()


class Inputs:
    """The inputs on their way, by the task that reads."""

    def __init__(self) -> None:
        self._writings: dict[Target, list[_Writing]] = {}

    def taken(self, node: str, message: InputTaken) -> bool:
        """A node says how much it has; whether somebody writes there."""
        writings = self._writings.get((node, message.allocation, message.index), ())
        for writing in writings:
            writing.take(message)
        return bool(writings)

    @contextmanager
    def open(self, target: Target) -> Iterator[_Writing]:
        """One more who writes to a task."""
        writing = _Writing(target)
        self._writings.setdefault(target, []).append(writing)
        try:
            yield writing
        finally:
            self._writings[target].remove(writing)
            if not self._writings[target]:
                del self._writings[target]


class InputWriter:
    """Writes to the standard input of jobs with one task."""

    def __init__(self, desk: Desk, inputs: Inputs, room: Callable[[str], Awaitable[None]]) -> None:
        """`room` waits until a node takes more."""
        self._desk = desk
        self._inputs = inputs
        self._room = room

    async def write(self, requests: AsyncIterator[Request], call: Call) -> job_service_pb2.WriteInputResponse:
        """Until the node has what the client sent to the end, or the task reads no more."""
        request = await anext(requests, None)
        if request is None:
            return job_service_pb2.WriteInputResponse()
        number = request.job
        call.about = f"job {number}"
        await self._desk.own_job(call.caller, number)
        answer = job_service_pb2.WriteInputResponse()
        await first_of(self._write(request, requests, answer), self._say_that_it_is_fed(number))
        return answer

    async def _write(
        self, request: Request, requests: AsyncIterator[Request], answer: job_service_pb2.WriteInputResponse
    ) -> None:
        target = await self._target(request.job)
        with self._inputs.open(target) as writing:
            await first_of(
                self._pass_on(writing, request, requests),
                self._send_again(writing),
                self._until_it_ends(request.job, target),
            )
        answer.accepted_bytes = writing.sent_bytes - writing.kept_bytes

    async def _say_that_it_is_fed(self, number: int) -> None:
        while True:
            await self._desk.change(lambda ticket: Fed(ticket, number), Done)
            await asyncio.sleep(FED_S)

    async def _pass_on(
        self, writing: _Writing, request: Request | None, requests: AsyncIterator[Request]
    ) -> None:
        _, allocation, index = writing.target
        while request is not None:
            piece = Input(allocation, index, request.offset, request.data, request.end)
            async with writing.order:
                writing.keep(piece)
                await self._give(writing, piece)
            await writing.shrink_to(KEPT_BYTES_MAX)
            request = None if request.end else await anext(requests, None)
        await writing.shrink_to(0)

    async def _send_again(self, writing: _Writing) -> None:
        while True:
            await writing.lost.wait()
            writing.lost.clear()
            async with writing.order:
                for piece in tuple(writing.kept):
                    await self._give(writing, piece)

    async def _give(self, writing: _Writing, piece: Input) -> None:
        node = writing.target[0]
        await self._room(node)
        # Refused: the node is away. It says what it has when it is back, and then this is sent again.
        with suppress(ApiError):
            await self._desk.change(lambda ticket: ToNode(ticket, node, piece), Done)

    async def _target(self, number: int) -> Target:
        """The running task, once it runs."""
        with self._desk.loop.watch_job(number) as news:
            while True:
                news.clear()
                target = await self._desk.read(lambda machine: _running(machine, number))
                if target is not None:
                    return target
                await news.wait()

    async def _until_it_ends(self, number: int, target: Target) -> None:
        with self._desk.loop.watch_job(number) as news:
            while await self._desk.read(lambda machine: _reads(machine, number, target)):
                await news.wait()
                news.clear()


def _running(machine: Machine, number: int) -> Target | None:
    job = find_job(machine.cluster, number)
    if not job.spec.stdin:
        raise error(
            grpc.StatusCode.FAILED_PRECONDITION, f"job {number} does not read input: submit it with stdin"
        )
    if job.ended:
        raise error(grpc.StatusCode.FAILED_PRECONDITION, f"job {number} has ended")
    index = job.all.min()
    allocation = holder(job, index)
    if allocation is None or index not in allocation.running:
        return None
    return allocation.node.id, allocation.id, index


def _reads(machine: Machine, number: int, target: Target) -> bool:
    """Whether the task still runs there."""
    job = machine.cluster.jobs.get(number)
    return job is not None and not job.ended and _running(machine, number) == target

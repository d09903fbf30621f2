"""ReadOutput: finds where an attempt's output is, asks its node for it, and passes it on."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from rota.controller.api import views
from rota.controller.api.desk import Desk, find_job
from rota.controller.api.errors import ApiError, error
from rota.controller.output import OutputLost, Outputs, TooManyReadings
from rota.core.cluster.inputs import Done, ToNode
from rota.core.cluster.records import ResultBlock
from rota.core.cluster.step import Machine
from rota.core.model.protocol import ReadOutput
from rota.core.model.spec import JobSpec
from rota.core.model.states import TASK_ENDS, NodeState
from rota.store.port import Archive
from rota.wire.gen.v1 import job_service_pb2

STDOUT, STDERR = job_service_pb2.OUTPUT_STREAM_STDOUT, job_service_pb2.OUTPUT_STREAM_STDERR

Response = job_service_pb2.ReadOutputResponse
Stream: TypeAlias = "job_service_pb2.OutputStream.ValueType"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an attempt is, or was."""

    node: str
    allocation: int
    attempt: int


@dataclass(frozen=True, slots=True)
class _Nowhere:
    """There is nothing to read; `wait` where there may be later."""

    why: str
    wait: bool = False


class OutputReader:
    """Reads attempts' output from the nodes that keep it."""

    def __init__(self, desk: Desk, archive: Archive, outputs: Outputs) -> None:
        self._desk = desk
        self._archive = archive
        self._outputs = outputs

    async def read(self, request: job_service_pb2.ReadOutputRequest) -> AsyncGenerator[Response]:
        """Both streams or one, each to its end."""
        place = await self._find(request)
        streams = [request.stream] if request.stream else [STDOUT, STDERR]
        if isinstance(place, _Nowhere):
            for stream in streams:
                yield Response(stream=stream, end=True, unavailable=place.why)
            return
        answers = [self._one(request, place, stream) for stream in streams]
        async with aclosing(_merged(answers) if len(answers) > 1 else answers[0]) as merged:
            async for response in merged:
                yield response

    async def _find(self, request: job_service_pb2.ReadOutputRequest) -> _Place | _Nowhere:
        """Where the attempt is; with `follow`, once it is there."""
        with self._desk.loop.watch_job(request.job) as news:
            while True:
                news.clear()
                # An attempt that ends between the two looks is in the archive by then.
                place = await self._desk.read(lambda machine: _live(machine, request))
                if isinstance(place, _Nowhere):
                    blocks = await self._archive.results(request.job, request.index, request.index)
                    place = _ended(blocks, request) or place
                if isinstance(place, _Place) or not (place.wait and request.follow):
                    return place
                await news.wait()

    async def _one(
        self, request: job_service_pb2.ReadOutputRequest, place: _Place, stream: Stream
    ) -> AsyncGenerator[Response]:
        elsewhere = await self._desk.read(lambda machine: _elsewhere(machine, request, place, stream))
        if elsewhere:
            yield Response(stream=stream, attempt=place.attempt, end=True, unavailable=elsewhere)
            return
        try:
            with self._outputs.reading(place.node) as reading:
                ask = ReadOutput(
                    request=reading.request,
                    job=request.job,
                    allocation=place.allocation,
                    index=request.index,
                    attempt=place.attempt,
                    stream=int(stream),
                    offset=request.offset,
                    tail_lines=request.tail_lines,
                    follow=request.follow,
                )
                await self._desk.change(lambda ticket: ToNode(ticket, place.node, ask), Done)
                async for piece in reading.pieces():
                    if not (piece.data or piece.gap_bytes or piece.end or piece.error):
                        continue
                    yield Response(
                        stream=stream,
                        attempt=place.attempt,
                        offset=piece.offset,
                        data=piece.data,
                        gap_bytes=piece.gap_bytes,
                        end=piece.end or bool(piece.error),
                        unavailable=piece.error,
                    )
                if request.follow and not reading.ended:
                    raise error(
                        grpc.StatusCode.UNAVAILABLE, "the node stopped answering; read on at the last offset"
                    )
        except TooManyReadings as many:
            raise error(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{many}; try again later") from many
        except OutputLost as lost:
            raise error(grpc.StatusCode.UNAVAILABLE, f"{lost}; read on at the last offset") from lost
        except ApiError as refused:
            # The node is away; it may be back.
            if refused.code is grpc.StatusCode.FAILED_PRECONDITION:
                raise ApiError(grpc.StatusCode.UNAVAILABLE, refused.problems) from refused
            raise


def _live(machine: Machine, request: job_service_pb2.ReadOutputRequest) -> _Place | _Nowhere:
    """Where the attempt is if it is on a node and has started."""
    job, index = find_job(machine.cluster, request.job), request.index
    if index not in job.all:
        raise error(grpc.StatusCode.NOT_FOUND, f"job {job.id} has no task {index}")
    task = f"{job.id}/{index}"
    allocation = views.holder(job, index)
    if allocation is None:
        over = views.task_state(job, index) in TASK_ENDS
        if request.attempt:
            return _Nowhere(f"task {task} has no attempt {request.attempt}", wait=not over)
        return _Nowhere(f"task {task} has not run" if over else f"task {task} has not started", wait=not over)
    attempt = views.attempt_number(allocation, index)
    if request.attempt not in (0, attempt):
        later = request.attempt > attempt and index in allocation.remaining
        return _Nowhere(f"task {task} has no attempt {request.attempt}", wait=later)
    if index not in allocation.status.started:
        return _Nowhere(f"task {task} has not started", wait=True)
    return _Place(allocation.node.id, allocation.id, attempt)


def _ended(blocks: list[ResultBlock], request: job_service_pb2.ReadOutputRequest) -> _Place | None:
    """The attempt among those that ended; the last one where none is named."""
    found = [
        _Place(block.node_id, block.allocation, attempt)
        for block in blocks
        for index, attempt in zip(block.index, block.attempt, strict=True)
        if index == request.index and request.attempt in (0, attempt)
    ]
    return max(found, key=lambda place: place.attempt, default=None)


def _elsewhere(
    machine: Machine,
    request: job_service_pb2.ReadOutputRequest,
    place: _Place,
    stream: Stream,
) -> str:
    """Why the node need not be asked, if it need not."""
    job = machine.cluster.jobs.get(request.job)
    spec = job.spec if job is not None else JobSpec()
    node = machine.cluster.nodes.get(place.node)
    name = node.config.name if node is not None else place.node
    which, path = ("standard output", spec.stdout) if stream == STDOUT else ("standard error", spec.stderr)
    if path == "none":
        return f"{which} of this job is not kept"
    if path:
        return f"{which} went to {path} on node {name}"
    if node is None or node.config.removed or node.status.state in (NodeState.LOST, NodeState.GONE):
        return f"node {name}, which kept the output, is gone"
    return ""


async def _merged(sources: list[AsyncGenerator[Response]]) -> AsyncGenerator[Response]:
    """What any of the sources gives, as it comes; one that fails ends all."""
    ready: asyncio.Queue[Response | ApiError | None] = asyncio.Queue(maxsize=1)

    async def pump(source: AsyncGenerator[Response]) -> None:
        last: ApiError | None = None
        try:
            async with aclosing(source):
                async for response in source:
                    await ready.put(response)
        except ApiError as failed:
            last = failed
        await ready.put(last)

    tasks = [asyncio.create_task(pump(source)) for source in sources]
    left = len(tasks)
    try:
        while left:
            match await ready.get():
                case None:
                    left -= 1
                case ApiError() as failed:
                    raise failed
                case response:
                    yield response
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""ReadOutput and ReadOutputs: find where attempts' output is, ask the nodes for it, and pass it on."""

import asyncio
import heapq
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import grpc
from pyroaring import BitMap

from rota.controller.api import views
from rota.controller.api.auth import Caller
from rota.controller.api.desk import Desk, find_job
from rota.controller.api.errors import ApiError, error
from rota.controller.output import OutputLost, Outputs, Piece, Reading, TooManyReadings
from rota.core.cluster.inputs import Done, ToNode
from rota.core.cluster.records import ResultBlock
from rota.core.cluster.rows import results
from rota.core.cluster.step import Machine
from rota.core.model import indexset
from rota.core.model.protocol import OutputAttempts, ReadOutput
from rota.core.model.spec import JobSpec
from rota.core.model.states import TASK_ENDS, Cause, NodeState
from rota.store.port import Archive
from rota.wire.gen.v1 import job_service_pb2, link_pb2

STDOUT, STDERR = job_service_pb2.OUTPUT_STREAM_STDOUT, job_service_pb2.OUTPUT_STREAM_STDERR

_BOTH = job_service_pb2.OUTPUT_STREAM_UNSPECIFIED

# So many tasks, and of these so many attempts, are asked for at once: a node is asked in one message.
TASKS_ASKED_MAX = 4_096
ATTEMPTS_ASKED_MAX = 8_192
NODES_ASKED_MAX = 100
# For so long in all a reader of many outputs waits for nodes that were there just now, as all were that
# a new leader waits for.
RETURN_S_MAX = 10.0
# Small outputs are passed on together.
ANSWER_BYTES_MAX = 64 * 1024

NO_RECORD = "no record of the attempts is kept any more"

Response = job_service_pb2.ReadOutputResponse
Responses = job_service_pb2.ReadOutputsResponse
Stream: TypeAlias = "job_service_pb2.OutputStream.ValueType"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an attempt is, or was."""

    node: str
    allocation: int
    attempt: int
    index: int
    started: bool = True


@dataclass(frozen=True, slots=True)
class _Nowhere:
    """There is nothing to read; `wait` where there may be later, `attempt` if there was one."""

    why: str
    wait: bool = False
    attempt: int = 0


class OutputReader:
    """Reads attempts' output from the nodes that keep it."""

    def __init__(self, desk: Desk, archive: Archive, outputs: Outputs) -> None:
        self._desk = desk
        self._archive = archive
        self._outputs = outputs

    async def read(
        self, request: job_service_pb2.ReadOutputRequest, caller: Caller
    ) -> AsyncGenerator[Response]:
        """Both streams or one, each to its end."""
        place = await self._find(request)
        streams = [request.stream] if request.stream else [STDOUT, STDERR]
        if isinstance(place, _Nowhere):
            for stream in streams:
                yield Response(stream=stream, attempt=place.attempt, end=True, unavailable=place.why)
            return
        answers = [self._one(request, caller, place, stream) for stream in streams]
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
                    blocks = await self._archive.results(request.job, BitMap([request.index]))
                    place = _ended(blocks, request) or place
                if isinstance(place, _Place) or not (place.wait and request.follow):
                    return place
                await news.wait()

    async def _one(
        self, request: job_service_pb2.ReadOutputRequest, caller: Caller, place: _Place, stream: Stream
    ) -> AsyncGenerator[Response]:
        if not place.started:
            # What it would have written went nowhere; its outcome says why.
            yield Response(stream=stream, attempt=place.attempt, end=True)
            return
        elsewhere = await self._desk.read(
            lambda machine: _not_kept(machine, request.job, stream, place) or _gone(machine, place.node)
        )
        if elsewhere:
            yield Response(stream=stream, attempt=place.attempt, end=True, unavailable=elsewhere)
            return
        with _reading_may_fail(), self._outputs.reading(place.node, caller.name) as reading:
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
                if piece.data or piece.gap_bytes or piece.end or piece.error:
                    yield _response(piece, request.index, place.attempt, stream)
            if request.follow and not reading.ended:
                raise OutputLost("the node stopped answering")

    # ------------------------------------------------------------ many tasks

    async def read_many(
        self, request: job_service_pb2.ReadOutputsRequest, caller: Caller
    ) -> AsyncGenerator[Responses]:
        """What the tasks have written so far, window after window of indices.

        Of what is on a node that is away it is said that it could not be read.
        """
        wanted = await self._desk.read(lambda machine: _wanted(machine, request))
        streams, unread = await self._desk.read(lambda machine: _kept_streams(machine, request))
        if unread:
            yield Responses(unread=[job_service_pb2.UnreadOutput(why=why) for why in unread])
        if not streams:
            return
        stream = streams[0] if len(streams) == 1 else _BOTH
        patience_at_s = asyncio.get_running_loop().time() + RETURN_S_MAX
        while wanted:
            window = indexset.take_first(wanted, TASKS_ASKED_MAX)
            places, unknown = await self._places(request, window)
            while _too_many(places) and len(window) > 1:
                window = indexset.take_first(window, len(window) // 2)
                places = [place for place in places if place.index in window]
            away = await self._away(places, patience_at_s)
            there = [place for place in places if place.node not in away]
            with _reading_may_fail(), ExitStack() as readings:
                async with aclosing(self._window(request, caller, stream, there, readings)) as answers:
                    async for answer in answers:
                        yield answer
            missed = _unread(places, away)
            if lost := unknown & window:
                missed.append(_unread_of(lost, NO_RECORD))
            yield Responses(sent_below=window.max() + 1, attempt_count=len(places), unread=missed)
            wanted -= window

    async def _places(
        self, request: job_service_pb2.ReadOutputsRequest, window: BitMap
    ) -> tuple[list[_Place], BitMap]:
        """The attempts to be read: all, those of one number, or the latest of each task.

        And the tasks that had such attempts, of which none is on record any more.
        """
        # In this order: an attempt that ends between the two looks is in the archive by then.
        live, tried = await self._desk.read(
            lambda machine: (
                _live_places(machine, request.job, window),
                views.attempts_ended(find_job(machine.cluster, request.job), window, request.attempt or 1),
            )
        )
        blocks = await self._archive.results(request.job, window)
        found = {
            (place.index, place.attempt): place
            for place in [*live, *_places_of(blocks, window)]
            if request.attempt in (0, place.attempt)
        }
        unknown = tried - BitMap(index for index, _ in found)
        if request.all_attempts or request.attempt:
            return list(found.values()), unknown
        latest: dict[int, _Place] = {}
        for place in found.values():
            if place.index not in latest or latest[place.index].attempt < place.attempt:
                latest[place.index] = place
        return list(latest.values()), unknown

    async def _away(self, places: Sequence[_Place], patience_at_s: float) -> dict[str, str]:
        """The nodes that cannot be asked, and why. One that was there just now is waited for."""
        with self._desk.loop.watch_events() as news:
            while True:
                news.clear()
                gone, suspect = await self._desk.read(lambda machine: _nodes_away(machine, places))
                try:
                    async with asyncio.timeout_at(patience_at_s):
                        if not suspect:
                            return gone
                        await news.wait()
                except TimeoutError:
                    return gone | suspect

    async def _window(
        self,
        request: job_service_pb2.ReadOutputsRequest,
        caller: Caller,
        stream: Stream,
        places: Iterable[_Place],
        readings: ExitStack,
    ) -> AsyncGenerator[Responses]:
        """All nodes are asked at once; what they send is merged in the order of the indices."""
        by_node: dict[str, list[_Place]] = defaultdict(list)
        for place in places:
            by_node[place.node].append(place)
        sources = []
        for node, asked in by_node.items():
            reading = readings.enter_context(self._outputs.reading(node, caller.name))
            ask = ReadOutput(
                request=reading.request,
                job=request.job,
                allocation=0,
                index=0,
                attempt=0,
                stream=int(stream),
                offset=0,
                tail_lines=request.tail_lines,
                follow=False,
                many=_attempts(asked),
            )
            await self._desk.change(lambda ticket, node=node, ask=ask: ToNode(ticket, node, ask), Done)  # type: ignore[misc]
            sources.append(_asked_for(reading, asked))
        answer = Responses()
        async for piece in _in_order(sources):
            of: Stream = piece.stream  # type: ignore[assignment]
            answer.outputs.append(_response(piece, piece.index, piece.attempt, of))
            if answer.ByteSize() >= ANSWER_BYTES_MAX:
                yield answer
                answer = Responses()
        if answer.outputs:
            yield answer


@contextmanager
def _reading_may_fail() -> Iterator[None]:
    """What goes wrong with nodes and their streams, as the reader is told of it. Raises ApiError."""
    try:
        yield
    except TooManyReadings as many:
        raise error(grpc.StatusCode.RESOURCE_EXHAUSTED, str(many)) from many
    except OutputLost as lost:
        raise error(grpc.StatusCode.UNAVAILABLE, f"{lost}; read on where it was") from lost
    except ApiError as refused:
        # The node is away; it may be back.
        if refused.code is grpc.StatusCode.FAILED_PRECONDITION:
            raise ApiError(grpc.StatusCode.UNAVAILABLE, refused.problems) from refused
        raise


def _response(piece: Piece | link_pb2.OutputPiece, index: int, attempt: int, stream: Stream) -> Response:
    return Response(
        index=index,
        stream=stream,
        attempt=attempt,
        offset=piece.offset,
        data=piece.data,
        gap_bytes=piece.gap_bytes,
        end=piece.end or bool(piece.error),
        unavailable=piece.error,
    )


def _live(machine: Machine, request: job_service_pb2.ReadOutputRequest) -> _Place | _Nowhere:
    """Where the attempt is if it is on a node and has started."""
    job, index = find_job(machine.cluster, request.job), request.index
    if index not in job.all:
        raise error(grpc.StatusCode.NOT_FOUND, f"job {job.id} has no task {index}")
    task = f"{job.id}/{index}"
    allocation = views.holder(job, index)
    has_ended = bool(views.attempts_ended(job, BitMap([index]), request.attempt or 1))
    if request.attempt and has_ended:
        return _Nowhere(
            f"no record of attempt {request.attempt} of task {task} is kept any more", attempt=request.attempt
        )
    if allocation is None:
        over = views.task_state(job, index) in TASK_ENDS
        if request.attempt:
            return _Nowhere(f"task {task} has no attempt {request.attempt}", wait=not over)
        if over and has_ended:
            return _Nowhere(f"task {task} has run, but {NO_RECORD}", attempt=views.attempt_count(job, index))
        return _Nowhere(f"task {task} has not run" if over else f"task {task} has not started", wait=not over)
    attempt = views.attempt_number(allocation, index)
    if request.attempt not in (0, attempt):
        later = request.attempt > attempt and index in allocation.remaining
        return _Nowhere(f"task {task} has no attempt {request.attempt}", wait=later)
    if index not in allocation.status.started:
        return _Nowhere(f"task {task} has not started", wait=True)
    return _Place(allocation.node.id, allocation.id, attempt, index)


def _ended(blocks: list[ResultBlock], request: job_service_pb2.ReadOutputRequest) -> _Place | None:
    """The attempt among those that ended; the last one where none is named."""
    found = [
        place
        for place in _places_of(blocks, BitMap([request.index]))
        if request.attempt in (0, place.attempt)
    ]
    return max(found, key=lambda place: place.attempt, default=None)


def _places_of(blocks: Iterable[ResultBlock], indices: BitMap) -> list[_Place]:
    """The attempts of these tasks that ended."""
    return [
        _Place(block.node_id, block.allocation, one.attempt, one.index, one.cause is not Cause.START_FAILED)
        for block in blocks
        for one in results(block, indices)
    ]


def _not_kept(machine: Machine, number: int, stream: Stream, place: _Place | None = None) -> str:
    """Why a stream of a job's, or of one attempt of it, is on no node, if it is so."""
    job = machine.cluster.jobs.get(number)
    spec = job.spec if job is not None else JobSpec()
    which, path = ("standard output", spec.stdout) if stream == STDOUT else ("standard error", spec.stderr)
    if path == "none":
        return f"{which} of this job is not kept"
    if path and place is None:
        return f"{which} of this job is written to {path} on the nodes"
    if path and place is not None:
        here = path.replace("{index}", str(place.index))
        if job is not None and spec.lines:
            here = here.replace("{line}", spec.lines[job.all.rank(place.index) - 1])
        return f"{which} went to {here} on node {views.node_name(machine.cluster, place.node)}"
    return ""


def _gone(machine: Machine, number: str) -> str:
    """Why a node need not be asked, if it need not."""
    node = machine.cluster.nodes.get(number)
    if node is None or node.config.removed or node.status.state in (NodeState.LOST, NodeState.GONE):
        return f"node {views.node_name(machine.cluster, number)}, which kept the output, is gone"
    return ""


# ---------------------------------------------------------------- many tasks


def _wanted(machine: Machine, request: job_service_pb2.ReadOutputsRequest) -> BitMap:
    """The tasks to be read. Raises ApiError."""
    job = find_job(machine.cluster, request.job)
    chosen = job.all
    if request.indices:
        chosen = chosen & indexset.parse(request.indices, indexset.TASK_COUNT_MAX)
        if not chosen:
            raise error(grpc.StatusCode.NOT_FOUND, f"job {job.id} has no task {request.indices}")
    return chosen - BitMap(range(request.first_index))


def _kept_streams(
    machine: Machine, request: job_service_pb2.ReadOutputsRequest
) -> tuple[list[Stream], list[str]]:
    """Which streams can be read, and why the others cannot."""
    asked = [request.stream] if request.stream else [STDOUT, STDERR]
    why = {stream: _not_kept(machine, request.job, stream) for stream in asked}
    # Said once, and not again to a reader that goes on.
    unread = [each for each in why.values() if each and not request.first_index]
    return [stream for stream in asked if not why[stream]], unread


def _live_places(machine: Machine, number: int, window: BitMap) -> list[_Place]:
    """The attempts that have started and not ended."""
    return [
        _Place(allocation.node.id, allocation.id, views.attempt_number(allocation, index), index)
        for allocation in find_job(machine.cluster, number).allocations.values()
        for index in allocation.running & window
    ]


def _too_many(places: Sequence[_Place]) -> bool:
    """Whether these are more than is asked for at once."""
    return len(places) > ATTEMPTS_ASKED_MAX or len({place.node for place in places}) > NODES_ASKED_MAX


def _nodes_away(machine: Machine, places: Iterable[_Place]) -> tuple[dict[str, str], dict[str, str]]:
    """The nodes that need not be asked, and those that may be back at any moment; why."""
    gone: dict[str, str] = {}
    suspect: dict[str, str] = {}
    for number in {place.node for place in places}:
        why = _gone(machine, number)
        if why:
            gone[number] = why
        elif number not in machine.soft.sessions:
            node = machine.cluster.nodes[number]
            away = suspect if node.status.state is NodeState.SUSPECT else gone
            name = node.config.name
            away[number] = f"node {name}, which keeps the output, is not connected; try again when it is back"
    return gone, suspect


def _unread(places: Sequence[_Place], gone: dict[str, str]) -> list[job_service_pb2.UnreadOutput]:
    latest: dict[int, int] = defaultdict(int)
    for place in places:
        latest[place.index] = max(latest[place.index], place.attempt)
    # By node, and whether there is a later attempt.
    lost: dict[tuple[str, bool], BitMap] = defaultdict(BitMap)
    for place in places:
        if place.node in gone:
            lost[place.node, place.attempt < latest[place.index]].add(place.index)
    return [_unread_of(indices, gone[node], superseded) for (node, superseded), indices in lost.items()]


def _unread_of(indices: BitMap, why: str, superseded: bool = False) -> job_service_pb2.UnreadOutput:
    return job_service_pb2.UnreadOutput(
        why=why, indices=indexset.text(indices), task_count=len(indices), superseded=superseded
    )


def _attempts(places: Iterable[_Place]) -> tuple[OutputAttempts, ...]:
    """As a node is asked for them."""
    groups: dict[tuple[int, int], BitMap] = defaultdict(BitMap)
    for place in places:
        groups[place.allocation, place.attempt].add(place.index)
    return tuple(
        OutputAttempts(allocation, attempt, indexset.to_ranges(indices))
        for (allocation, attempt), indices in groups.items()
    )


async def _asked_for(reading: Reading, asked: Iterable[_Place]) -> AsyncIterator[link_pb2.OutputPiece]:
    """What a node sends of these attempts, to the end. Raises OutputLost."""
    wanted = {(place.index, place.attempt) for place in asked}
    async for message in reading.pieces():
        if message.error:
            # Of all of them: another try may find it otherwise.
            raise OutputLost(message.error)
        for piece in message.many:
            if (piece.index, piece.attempt) in wanted:
                yield piece
    if not reading.ended:
        raise OutputLost("the node stopped answering")


async def _in_order(
    sources: Sequence[AsyncIterator[link_pb2.OutputPiece]],
) -> AsyncIterator[link_pb2.OutputPiece]:
    """The pieces of all the sources, each ascending, in ascending order of index, attempt and stream."""
    heads: list[tuple[tuple[int, int, int], int, link_pb2.OutputPiece]] = []

    async def next_of(number: int) -> None:
        piece = await anext(sources[number], None)
        if piece is not None:
            heapq.heappush(heads, ((piece.index, piece.attempt, piece.stream), number, piece))

    for number in range(len(sources)):
        await next_of(number)
    while heads:
        _, number, piece = heapq.heappop(heads)
        yield piece
        await next_of(number)


async def _merged(sources: list[AsyncGenerator[Response]]) -> AsyncGenerator[Response]:
    """What any of the sources gives, as it comes; one that fails ends all."""
    ready: asyncio.Queue[Response | Exception | None] = asyncio.Queue(maxsize=1)

    async def pump(source: AsyncGenerator[Response]) -> None:
        last: Exception | None = None
        try:
            async with aclosing(source):
                async for response in source:
                    await ready.put(response)
        except Exception as failed:  # noqa: BLE001 (whatever it is, it is the reader's)
            last = failed
        await ready.put(last)

    tasks = [asyncio.create_task(pump(source)) for source in sources]
    left = len(tasks)
    try:
        while left:
            match await ready.get():
                case None:
                    left -= 1
                case Exception() as failed:
                    raise failed
                case response:
                    yield response
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

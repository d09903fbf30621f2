"""JobService."""

import asyncio
import hashlib
from bisect import bisect_left
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import lru_cache, partial
from typing import TypeVar

import grpc
from pyroaring import BitMap

from rota.controller.api import views
from rota.controller.api.desk import PIECE_NODES, Call, Desk, find_job
from rota.controller.api.errors import ApiError, aside, error
from rota.controller.api.reading import OutputReader
from rota.controller.api.writing import InputWriter
from rota.core.cluster.inputs import CancelJob, Done, HoldJob, Input, ReleaseJob, RetryJob, Submit, Submitted
from rota.core.cluster.state import Job
from rota.core.cluster.step import Machine
from rota.core.cluster.waiting import Reasons
from rota.core.model import indexset
from rota.core.model.spec import JobSpec
from rota.core.model.states import JobState, TaskState
from rota.store.port import Archive
from rota.wire.convert import ConvertError, codec
from rota.wire.gen.v1 import job_pb2, job_service_pb2

PAGE_SIZE_DEFAULT = 100
# So many jobs of a listing are looked at, and shown, before others are served.
PIECE_LOOKED_MAX = 2_048
PIECE_FOUND_MAX = 128
WATCH_INTERVAL_S_MIN = 0.2
# So many templates, none of them larger, are known again when they are submitted again.
SPECS_KNOWN_MAX = 256
SPEC_KNOWN_BYTES_MAX = 4 * 1024

T = TypeVar("T")

_SPEC = codec(JobSpec, job_pb2.JobSpec)


class Jobs:
    """What users submit, and what becomes of it."""

    CONTRACT = job_service_pb2.DESCRIPTOR.services_by_name["JobService"]

    def __init__(self, desk: Desk, archive: Archive, reader: OutputReader, writer: InputWriter) -> None:
        self._desk = desk
        self._archive = archive
        self._reader = reader
        self._writer = writer

    # ------------------------------------------------------------ changes

    async def submit_jobs(
        self, request: job_service_pb2.SubmitJobsRequest, call: Call
    ) -> job_service_pb2.SubmitJobsResponse:
        """Accepts all jobs or none."""
        key, caller = request.idempotency_key, call.caller
        specs, digest = await aside(request, lambda: _read(request))
        answer = await self._desk.change(
            lambda ticket: Submit(ticket, caller.name, specs, caller.account, key, digest), Submitted
        )
        call.about = "jobs " + indexset.text(answer.jobs)
        return job_service_pb2.SubmitJobsResponse(ids=answer.jobs, repeated_request=answer.repeated)

    async def cancel_job(
        self, request: job_service_pb2.CancelJobRequest, call: Call
    ) -> job_service_pb2.CancelJobResponse:
        """Ends what runs and drops what waits."""
        indices = _indices(request.indices)
        grace_ms = request.grace if request.HasField("grace") else None
        by = call.caller.name
        view, done = await self._change(
            request.id, call, lambda ticket: CancelJob(ticket, by, request.id, indices, grace_ms)
        )
        return job_service_pb2.CancelJobResponse(job=view, changed=done.changed)

    async def hold_job(
        self, request: job_service_pb2.HoldJobRequest, call: Call
    ) -> job_service_pb2.HoldJobResponse:
        """Nothing new of the job starts."""
        by = call.caller.name
        view, done = await self._change(request.id, call, lambda ticket: HoldJob(ticket, by, request.id))
        return job_service_pb2.HoldJobResponse(job=view, changed=done.changed)

    async def release_job(
        self, request: job_service_pb2.ReleaseJobRequest, call: Call
    ) -> job_service_pb2.ReleaseJobResponse:
        """Ends a hold."""
        by = call.caller.name
        view, done = await self._change(request.id, call, lambda ticket: ReleaseJob(ticket, by, request.id))
        return job_service_pb2.ReleaseJobResponse(job=view, changed=done.changed)

    async def retry_job(
        self, request: job_service_pb2.RetryJobRequest, call: Call
    ) -> job_service_pb2.RetryJobResponse:
        """Puts failed and cancelled tasks back."""
        indices = _indices(request.indices)
        by = call.caller.name
        view, done = await self._change(
            request.id,
            call,
            lambda ticket: RetryJob(ticket, by, request.id, indices, request.ignore_dependencies),
        )
        dependents = await self._look(
            request.id, lambda machine, job: views.cancelled_dependents(machine.cluster, job)
        )
        return job_service_pb2.RetryJobResponse(
            job=view, task_count=done.count, cancelled_dependents=dependents
        )

    async def _change(
        self, number: int, call: Call, make: Callable[[int], Input]
    ) -> tuple[job_pb2.Job, Done]:
        call.about = f"job {number}"
        await self._desk.own_job(call.caller, number)
        done = await self._desk.change(make, Done)
        return await self._look(number, self._view), done

    # ------------------------------------------------------------ reads

    async def list_jobs(
        self, request: job_service_pb2.ListJobsRequest, _: Call
    ) -> job_service_pb2.ListJobsResponse:
        """Jobs, the newest first."""
        before = _page(request.page_token)
        size = request.page_size or PAGE_SIZE_DEFAULT
        states = {JobState(state) for state in request.states}
        labels = request.labels.items()

        def wanted(job: Job) -> bool:
            return (
                (not states or job.status.state in states)
                and (not request.queue or job.spec.queue == request.queue)
                and (not request.owner or job.config.owner == request.owner)
                and (not request.name or job.spec.name == request.name)
                and (not labels or labels <= set(job.spec.labels))
            )

        response = job_service_pb2.ListJobsResponse()
        # They are counted up, and kept in that order.
        rest = await self._desk.read(lambda machine: list(machine.cluster.jobs))
        if before is not None:
            del rest[bisect_left(rest, before) :]

        def look(machine: Machine) -> bool:
            """Looks at some more jobs; whether that was all."""
            reasons, clock = self._reasons(machine), self._clock()
            found_max = len(response.jobs) + PIECE_FOUND_MAX
            left = max(len(rest) - PIECE_LOOKED_MAX, 0)
            while len(rest) > left and len(response.jobs) < found_max:
                job = machine.cluster.jobs.get(rest.pop())
                if job is None or not wanted(job):
                    continue
                if len(response.jobs) == size:
                    response.next_page_token = str(response.jobs[-1].id)
                    return True
                response.jobs.append(views.job_brief(machine.cluster, job, reasons, clock))
            return not rest

        done = False
        while not done:
            done = await self._desk.read(look)
            await asyncio.sleep(0)
        return response

    async def get_job(
        self, request: job_service_pb2.GetJobRequest, _: Call
    ) -> job_service_pb2.GetJobResponse:
        """One job, and what its nodes do for it: they may be thousands, so others are served in between."""
        view = await self._look(request.id, self._view)
        await asyncio.sleep(0)
        nodes = await self._look(request.id, lambda _, job: views.job_nodes(job))
        for start in range(0, len(nodes), PIECE_NODES):
            some = nodes[start : start + PIECE_NODES]
            view.nodes.extend(await self._look(request.id, partial(_job_nodes, nodes=some)))
            await asyncio.sleep(0)
        return job_service_pb2.GetJobResponse(job=view)

    async def watch_job(
        self, request: job_service_pb2.WatchJobRequest, _: Call
    ) -> AsyncGenerator[job_service_pb2.WatchJobResponse]:
        """The job now and at each change, at most one in WATCH_INTERVAL_S_MIN and its end at once."""
        clock = asyncio.get_running_loop().time
        sent, sent_s = None, -WATCH_INTERVAL_S_MIN
        with self._desk.loop.watch_job(request.id) as news:
            while True:
                news.clear()
                wait_s = max(0, sent_s + WATCH_INTERVAL_S_MIN - clock())
                view, ended = await self._look(request.id, partial(self._watched, soon=wait_s > 0))
                if view is not None:
                    # That time passes is no change.
                    answer = job_service_pb2.WatchJobResponse(job=view)
                    view.elapsed_ms = view.retry_in_ms = 0
                    if view != sent:
                        sent, sent_s = view, clock()
                        yield answer
                    if ended:
                        return
                await _wait(news, wait_s)

    def _watched(self, machine: Machine, job: Job, *, soon: bool) -> tuple[job_pb2.Job | None, bool]:
        """What is said of a job that is watched, unless it is said soon enough; whether it has ended."""
        if soon and not job.ended:
            return None, False
        return self._view(machine, job), job.ended

    async def list_tasks(
        self, request: job_service_pb2.ListTasksRequest, _: Call
    ) -> job_service_pb2.ListTasksResponse:
        """Tasks by index, each with the attempt that is on a node; ended attempts are GetTask's."""
        after = _page(request.page_token)
        size = request.page_size or PAGE_SIZE_DEFAULT
        indices = _indices(request.indices)

        def look(machine: Machine, job: Job) -> job_service_pb2.ListTasksResponse:
            found = job.all if indices is None else job.all & indices
            if request.states:
                found = found & views.tasks_in(job, map(TaskState, request.states))
            if after is not None:
                found = found - BitMap(range(after + 1))
            page = indexset.take_first(found, size)
            reasons, clock = self._reasons(machine), self._clock()
            return job_service_pb2.ListTasksResponse(
                tasks=[views.task(machine.cluster, job, index, reasons, clock) for index in page],
                next_page_token=str(page.max()) if len(found) > len(page) else "",
            )

        return await self._look(request.job, look)

    async def get_task(
        self, request: job_service_pb2.GetTaskRequest, _: Call
    ) -> job_service_pb2.GetTaskResponse:
        """One task with all its attempts."""

        def look(machine: Machine, job: Job) -> job_pb2.Task:
            if request.index not in job.all:
                raise error(
                    grpc.StatusCode.NOT_FOUND,
                    f"job {job.id} has no task {request.index}; it has {indexset.text(job.all)}",
                )
            reasons, clock = self._reasons(machine), self._clock()
            return views.task(machine.cluster, job, request.index, reasons, clock)

        # In this order: an attempt that ends between the two looks is in the archive by then.
        task = await self._look(request.job, look)
        blocks = await self._archive.results(request.job, BitMap([request.index]))
        ended = await self._desk.read(
            lambda machine: views.ended_attempts(machine.cluster, request.index, blocks)
        )
        attempts = {each.number: each for each in (*ended, *task.attempts)}
        task.ClearField("attempts")
        task.attempts.extend(attempts[number] for number in sorted(attempts))
        return job_service_pb2.GetTaskResponse(task=task)

    async def list_failures(
        self, request: job_service_pb2.ListFailuresRequest, _: Call
    ) -> job_service_pb2.ListFailuresResponse:
        """Failed tasks by cause and code."""
        groups = await self._look(request.job, lambda _, job: views.failures(job))
        return job_service_pb2.ListFailuresResponse(groups=groups)

    async def _look(self, number: int, look: Callable[[Machine, Job], T]) -> T:
        return await self._desk.read(lambda machine: look(machine, find_job(machine.cluster, number)))

    def _view(self, machine: Machine, job: Job) -> job_pb2.Job:
        return views.job(machine.cluster, job, self._reasons(machine), self._clock())

    @staticmethod
    def _reasons(machine: Machine) -> Reasons:
        return Reasons(machine.cluster, machine.soft, machine.placing.index)

    def _clock(self) -> views.Now:
        return views.Now(self._desk.loop.now_ms(), self._desk.loop.wall_ms())

    # ------------------------------------------------------------ output and input

    def read_output(
        self, request: job_service_pb2.ReadOutputRequest, call: Call
    ) -> AsyncGenerator[job_service_pb2.ReadOutputResponse]:
        """What an attempt has written, and writes."""
        return self._reader.read(request, call.caller)

    def read_outputs(
        self, request: job_service_pb2.ReadOutputsRequest, call: Call
    ) -> AsyncGenerator[job_service_pb2.ReadOutputsResponse]:
        """What many tasks have written so far."""
        return self._reader.read_many(request, call.caller)

    async def write_input(
        self, requests: AsyncIterator[job_service_pb2.WriteInputRequest], call: Call
    ) -> job_service_pb2.WriteInputResponse:
        """Standard input."""
        return await self._writer.write(requests, call)


def _read(request: job_service_pb2.SubmitJobsRequest) -> tuple[tuple[JobSpec, ...], bytes]:
    """The jobs, equal ones as one object, and the digest of all of them. Raises ApiError.

    The key is taken out of the request: it is not part of what is submitted.
    """
    request.ClearField("idempotency_key")
    body = request.SerializeToString(deterministic=True)
    known: dict[bytes, JobSpec] = {}
    specs = []
    for number, message in enumerate(request.jobs):
        data = message.SerializeToString(deterministic=True)
        spec = known.get(data)
        if spec is None:
            spec = known[data] = _spec(f"jobs[{number}]", data)
        specs.append(spec)
    return tuple(specs), hashlib.sha256(body).digest()


def _spec(path: str, data: bytes) -> JobSpec:
    # Who submits equal jobs one by one has them kept once too; large ones are not held on to for that.
    of = _spec_of if len(data) <= SPEC_KNOWN_BYTES_MAX else _spec_of.__wrapped__
    try:
        return of(data)
    except ConvertError as wrong:
        at = f"{path}.{wrong.path}" if wrong.path else path
        raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, [(at, wrong.says)]) from wrong


@lru_cache(maxsize=SPECS_KNOWN_MAX)
def _spec_of(data: bytes) -> JobSpec:
    return _SPEC.from_message(job_pb2.JobSpec.FromString(data))


def _job_nodes(machine: Machine, job: Job, nodes: list[str]) -> list[job_pb2.JobNode]:
    return [views.job_node(machine.cluster, job, node) for node in nodes]


def _indices(text: str) -> BitMap | None:
    return indexset.parse(text, indexset.TASK_COUNT_MAX) if text else None


def _page(token: str) -> int | None:
    if not token:
        return None
    if not token.isdecimal():
        raise error(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"'{token}' is not a next_page_token of this listing",
            "page_token",
        )
    return int(token)


async def _wait(news: asyncio.Event, timeout_s: float) -> None:
    """Until there is news, or for so long where the time is not 0."""
    try:
        async with asyncio.timeout(timeout_s or None):
            await news.wait()
    except TimeoutError:
        return

"""The client of a cluster's API: what the command line, scripts and programs use."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from rota.client import methods
from rota.client.connection import Connection
from rota.client.context import Context, load_context
from rota.client.feeding import Feed
from rota.client.messages import (
    CancelJobResponse,
    CordonNodeResponse,
    CreateTokenResponse,
    DrainNodeResponse,
    Event,
    EventKind,
    FailureGroup,
    GetClusterResponse,
    HoldJobResponse,
    Job,
    JobSpec,
    JobState,
    Node,
    OutputStream,
    Queue,
    ReadOutputResponse,
    ReadOutputsResponse,
    ReleaseJobResponse,
    ResumeNodeResponse,
    RetryJobResponse,
    SubmitJobsResponse,
    Task,
    TaskState,
    Token,
    TokenKind,
)
from rota.client.reading import Reading, ReadingMany
from rota.wire.gen.v1 import cluster_pb2, job_service_pb2, node_pb2

PATIENCE_S = 10.0
PATIENCE_OF_WAITING_S = 60.0
PAGE_SIZE = 1000

JOB_ENDS = frozenset({JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED})


class Client:
    """One user's connection to one cluster; every method raises RotaError and may be called from any thread.

    `context`: nothing means that of the home (ROTA_HOME, else `~/.rota`). `patience_s`: how long an
    unreachable controller is tried again. `notice`: told, for people, when that has taken `notice_s`.
    """

    def __init__(
        self,
        context: Context | None = None,
        *,
        patience_s: float = PATIENCE_S,
        notice: Callable[[str], None] | None = None,
        notice_s: float = 0.0,
    ) -> None:
        self.context = context or load_context()
        self._connection = Connection(self.context, patience_s, notice, notice_s)

    def __enter__(self) -> Self:
        """Closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connection."""
        self.close()

    def close(self) -> None:
        """Ends everything that is under way."""
        self._connection.close()

    # ------------------------------------------------------------ jobs

    def submit(self, jobs: Sequence[JobSpec], idempotency_key: str = "") -> SubmitJobsResponse:
        """Submits all the jobs or none; accepted once it returns. Without a key one is made for this call."""
        key = idempotency_key or str(uuid.uuid4())
        request = job_service_pb2.SubmitJobsRequest(jobs=jobs, idempotency_key=key)
        return self._connection.ask(methods.SUBMIT_JOBS, request)

    def jobs(
        self,
        *,
        states: Iterable[JobState.ValueType] = (),
        queue: str = "",
        owner: str = "",
        name: str = "",
        labels: Mapping[str, str] | None = None,
        limit: int = 0,
    ) -> Iterator[Job]:
        """Jobs, the newest first, at most `limit` unless it is 0; of their specs only what names them."""
        request = job_service_pb2.ListJobsRequest(
            states=states, queue=queue, owner=owner, name=name, labels=labels, page_size=PAGE_SIZE
        )
        left = limit
        while True:
            if limit:
                request.page_size = min(left, PAGE_SIZE)
            answer = self._connection.ask(methods.LIST_JOBS, request)
            yield from answer.jobs
            left -= len(answer.jobs)
            request.page_token = answer.next_page_token
            if not request.page_token or (limit and left <= 0):
                return

    def job(self, number: int) -> Job:
        """One job."""
        return self._connection.ask(methods.GET_JOB, job_service_pb2.GetJobRequest(id=number)).job

    def watch(self, number: int) -> Iterator[Job]:
        """A job now and at each change, until it has ended."""
        request = job_service_pb2.WatchJobRequest(id=number)
        for answer in self._connection.stream(methods.WATCH_JOB, lambda: request):
            yield answer.job
            if answer.job.state in JOB_ENDS:
                return

    def tasks(
        self, number: int, *, states: Iterable[TaskState.ValueType] = (), indices: str = ""
    ) -> Iterator[Task]:
        """Tasks of a job by index, `indices` like `0-9,20`; of their attempts only those on a node."""
        request = job_service_pb2.ListTasksRequest(
            job=number, states=states, indices=indices, page_size=PAGE_SIZE
        )
        while True:
            answer = self._connection.ask(methods.LIST_TASKS, request)
            yield from answer.tasks
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    def task(self, number: int, index: int) -> Task:
        """One task with all its attempts."""
        request = job_service_pb2.GetTaskRequest(job=number, index=index)
        return self._connection.ask(methods.GET_TASK, request).task

    def failures(self, number: int) -> Sequence[FailureGroup]:
        """Failed tasks of a job by cause and code, the largest group first."""
        request = job_service_pb2.ListFailuresRequest(job=number)
        return self._connection.ask(methods.LIST_FAILURES, request).groups

    def cancel(self, number: int, *, indices: str = "", grace_ms: int | None = None) -> CancelJobResponse:
        """Ends a job, or these tasks of it; one that has ended stays as it is."""
        request = job_service_pb2.CancelJobRequest(id=number, indices=indices, grace=grace_ms)
        return self._connection.ask(methods.CANCEL_JOB, request)

    def hold(self, number: int) -> HoldJobResponse:
        """Starts nothing new of a job until it is released."""
        return self._connection.ask(methods.HOLD_JOB, job_service_pb2.HoldJobRequest(id=number))

    def release(self, number: int) -> ReleaseJobResponse:
        """Ends a hold."""
        return self._connection.ask(methods.RELEASE_JOB, job_service_pb2.ReleaseJobRequest(id=number))

    def retry(self, number: int, *, indices: str = "", ignore_dependencies: bool = False) -> RetryJobResponse:
        """Puts failed and cancelled tasks back, and reopens the job."""
        request = job_service_pb2.RetryJobRequest(
            id=number, indices=indices, ignore_dependencies=ignore_dependencies
        )
        return self._connection.ask(methods.RETRY_JOB, request)

    # ------------------------------------------------------------ output and input

    def output(
        self,
        number: int,
        index: int,
        *,
        attempt: int = 0,
        stream: OutputStream.ValueType = OutputStream.OUTPUT_STREAM_UNSPECIFIED,
        tail_lines: int = 0,
        follow: bool = False,
        hopeful: Callable[[], bool] = lambda: False,
    ) -> Iterator[ReadOutputResponse]:
        """What an attempt (0: the latest) has written, both streams or one; on as it is written if `follow`.

        Goes on where it was when the connection is lost, and waits for a node that is away as long as it is
        `hopeful`. `tail_lines` is for one stream.
        """
        reading = Reading(
            job_service_pb2.ReadOutputRequest(
                job=number, index=index, attempt=attempt, stream=stream, tail_lines=tail_lines, follow=follow
            )
        )
        for answer in self._connection.stream(methods.READ_OUTPUT, reading.request, hopeful):
            if reading.take(answer):
                yield answer

    def outputs(
        self,
        number: int,
        *,
        indices: str = "",
        attempt: int = 0,
        all_attempts: bool = False,
        stream: OutputStream.ValueType = OutputStream.OUTPUT_STREAM_UNSPECIFIED,
        tail_lines: int = 0,
        hopeful: Callable[[], bool] = lambda: False,
    ) -> Iterator[ReadOutputsResponse]:
        """What tasks (`indices` like `0-9,20`, or all) have written so far, by index, attempt and stream.

        Of each task the latest attempt, the one of a number, or all. Goes on where it was when the connection
        is lost, and waits for a node that is away as long as it is `hopeful`.
        """
        reading = ReadingMany(
            job_service_pb2.ReadOutputsRequest(
                job=number,
                indices=indices,
                attempt=attempt,
                all_attempts=all_attempts,
                stream=stream,
                tail_lines=tail_lines,
            )
        )
        for answer in self._connection.stream(methods.READ_OUTPUTS, lambda: reading.request, hopeful):
            reading.take(answer)
            yield answer

    def write_input(self, number: int, pieces: Iterable[bytes]) -> int:
        """Feeds a job's standard input to its end, once it runs; how many bytes the task took."""
        with Feed(number, pieces) as feed:
            return self._connection.send(methods.WRITE_INPUT, feed.requests).accepted_bytes

    # ------------------------------------------------------------ nodes

    def nodes(self) -> Iterator[Node]:
        """All nodes by name."""
        request = node_pb2.ListNodesRequest(page_size=PAGE_SIZE)
        while True:
            answer = self._connection.ask(methods.LIST_NODES, request)
            yield from answer.nodes
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    def node(self, node: str) -> Node:
        """One node, by name or id."""
        return self._connection.ask(methods.GET_NODE, node_pb2.GetNodeRequest(node=node)).node

    def cordon_node(self, node: str) -> CordonNodeResponse:
        """Places nothing new on a node."""
        return self._connection.ask(methods.CORDON_NODE, node_pb2.CordonNodeRequest(node=node))

    def drain_node(self, node: str, *, deadline_ms: int | None = None) -> DrainNodeResponse:
        """Cordons a node, and stops what still runs there after `deadline_ms`."""
        request = node_pb2.DrainNodeRequest(node=node, deadline=deadline_ms)
        return self._connection.ask(methods.DRAIN_NODE, request)

    def resume_node(self, node: str) -> ResumeNodeResponse:
        """Ends cordon and drain."""
        return self._connection.ask(methods.RESUME_NODE, node_pb2.ResumeNodeRequest(node=node))

    def label_node(self, node: str, labels: Mapping[str, str], remove: Iterable[str] = ()) -> Node:
        """Sets and removes labels."""
        request = node_pb2.LabelNodeRequest(node=node, labels=labels, remove=remove)
        return self._connection.ask(methods.LABEL_NODE, request).node

    def remove_node(self, node: str, *, force: bool = False) -> None:
        """Forgets a node; `force`: also while it is connected or holds work."""
        self._connection.ask(methods.REMOVE_NODE, node_pb2.RemoveNodeRequest(node=node, force=force))

    # ------------------------------------------------------------ queues, tokens, events, the cluster

    def create_queue(self, queue: Queue, *, update: bool = False) -> Queue:
        """Makes a queue, or changes it if it exists and `update` is set."""
        request = cluster_pb2.CreateQueueRequest(queue=queue, update=update)
        return self._connection.ask(methods.CREATE_QUEUE, request).queue

    def queues(self) -> Sequence[Queue]:
        """All queues by name."""
        return self._connection.ask(methods.LIST_QUEUES, cluster_pb2.ListQueuesRequest()).queues

    def delete_queue(self, name: str) -> None:
        """Removes a queue that has no jobs."""
        self._connection.ask(methods.DELETE_QUEUE, cluster_pb2.DeleteQueueRequest(name=name))

    def create_token(
        self, kind: TokenKind.ValueType = TokenKind.TOKEN_KIND_NODE, *, ttl_ms: int = 0, uses: int = 0
    ) -> CreateTokenResponse:
        """Makes a join token; 0 means 15 minutes and one use. Its secret is in this answer alone."""
        request = cluster_pb2.CreateTokenRequest(kind=kind, ttl=ttl_ms, uses=uses)
        return self._connection.ask(methods.CREATE_TOKEN, request)

    def tokens(self) -> Sequence[Token]:
        """All join tokens, the oldest first."""
        return self._connection.ask(methods.LIST_TOKENS, cluster_pb2.ListTokensRequest()).tokens

    def revoke_token(self, token: str) -> Token:
        """Ends a token, by its id; who joined with it stays."""
        return self._connection.ask(methods.REVOKE_TOKEN, cluster_pb2.RevokeTokenRequest(id=token)).token

    def events(
        self,
        *,
        after: int = 0,
        limit: int = 0,
        follow: bool = False,
        job: int = 0,
        node: str = "",
        kinds: Iterable[EventKind.ValueType] = (),
    ) -> Iterator[Event]:
        """Events behind `after`, or the last `limit` (0 means 100); on as they come if `follow`."""
        request = cluster_pb2.ListEventsRequest(
            after_seq=after, limit=limit, follow=follow, job=job, node=node, kinds=kinds
        )
        for answer in self._connection.stream(methods.LIST_EVENTS, lambda: request):
            for event in answer.events:
                request.after_seq = event.seq
                yield event

    def cluster(self) -> GetClusterResponse:
        """The cluster in numbers, and who asks."""
        return self._connection.ask(methods.GET_CLUSTER, cluster_pb2.GetClusterRequest())

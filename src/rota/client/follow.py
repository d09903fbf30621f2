"""The output of a job's tasks as it is written, many at once.

Up to READERS_MAX tasks are read at the same time, each attempt after attempt until the task has ended;
further tasks are read when one of these is through. Nothing is lost by that: output stays on the nodes.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pyroaring import BitMap

from rota.client.client import JOB_ENDS, Client
from rota.client.errors import InvalidRequest, RotaError
from rota.client.messages import Job, OutputStream, ReadOutputResponse, TaskState
from rota.core.model import indexset
from rota.core.model.spec import TASK_COUNT_MAX

READERS_MAX = 64
RANGES_ASKED_MAX = 3_000

_TASK_ENDS = (
    TaskState.TASK_STATE_SUCCEEDED,
    TaskState.TASK_STATE_FAILED,
    TaskState.TASK_STATE_CANCELLED,
)
_STARTED = (TaskState.TASK_STATE_RUNNING, *_TASK_ENDS)


class Sink(Protocol):
    """Takes output; called by several threads."""

    def take(self, index: int, answer: ReadOutputResponse) -> None:
        """A piece of a task's output, the pieces of one stream of an attempt in their order."""
        ...

    def unread(self, index: int, error: RotaError) -> None:
        """A task's output could not be read to its end."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a task's output: a stream or both; from which attempt on (0: the latest), or that one alone."""

    stream: OutputStream.ValueType = OutputStream.OUTPUT_STREAM_UNSPECIFIED
    attempt: int = 1
    alone: bool = False
    tail_lines: int = 0


class Follower:
    """Reads a job's output into a sink: of these tasks, or of all.

    `update` is called with what the job has become, from one thread; after the ended job, `finish` waits
    until all is read. An error of the sink (a closed pipe) ends the reading and is handed to `failed`.
    """

    def __init__(
        self,
        client: Client,
        job: Job,
        sink: Sink,
        failed: Callable[[BaseException], None],
        *,
        indices: BitMap | None = None,
        choice: Choice = Choice(),
    ) -> None:
        self._client = client
        self._job = job.id
        self._sink = sink
        self._failed = failed
        self._choice = choice
        self._ended = threading.Event()
        self._waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._readers: list[threading.Thread] = []
        # Tasks that no reader has been given yet.
        self._unread = task_indices(job) if indices is None else indices
        if len(self._unread) <= READERS_MAX:
            # Each has a reader at once, which waits for its task.
            for index in self._unread:
                self._read_soon(index)
            self._unread = BitMap()

    def update(self, job: Job) -> None:
        """Begins to read the tasks that have started. Raises RotaError."""
        if self._unread:
            self._read_started()
        if job.state in JOB_ENDS:
            self._ended.set()

    def finish(self) -> None:
        """Returns when all output has been read; the job has ended."""
        assert self._ended.is_set()
        for _ in self._readers:
            self._waiting.put(None)
        for reader in self._readers:
            reader.join()

    def _read_started(self) -> None:
        tasks = self._client.tasks(self._job, states=_STARTED, indices=_text(self._unread))
        for task in tasks:
            self._unread.discard(task.index)
            if task.attempt_count:
                self._read_soon(task.index)

    def _read_soon(self, index: int) -> None:
        self._waiting.put(index)
        if len(self._readers) < READERS_MAX:
            reader = threading.Thread(target=self._run, name=f"output {len(self._readers)}", daemon=True)
            self._readers.append(reader)
            reader.start()

    def _run(self) -> None:
        while (index := self._waiting.get()) is not None:
            try:
                self._read(index)
            except RotaError as error:
                self._sink.unread(index, error)
            except BaseException as error:  # noqa: BLE001 (this thread's end must not go unnoticed)
                self._failed(error)
                return

    def _read(self, index: int) -> None:
        """Attempt after attempt, until there is none."""
        choice, attempt, tail_lines = self._choice, self._choice.attempt, self._choice.tail_lines
        while True:
            answers = self._client.output(
                self._job,
                index,
                attempt=attempt,
                stream=choice.stream,
                tail_lines=tail_lines,
                follow=True,
                # A node that is away for a while is no reason to give up while the job goes on.
                hopeful=lambda: not self._ended.is_set(),
            )
            for answer in answers:
                if not answer.attempt and answer.unavailable:
                    return
                attempt = answer.attempt
                self._sink.take(index, answer)
            if choice.alone:
                return
            attempt += 1
            tail_lines = 0


def task_indices(job: Job) -> BitMap:
    """The indices of a job's tasks; the job must have been read whole."""
    if job.spec.array:
        return indexset.parse(job.spec.array, TASK_COUNT_MAX)
    return indexset.full(max(1, len(job.spec.lines)))


def indices_of(text: str) -> BitMap:
    """`0-9,20` as a set. Raises InvalidRequest."""
    try:
        return indexset.parse(text, TASK_COUNT_MAX)
    except indexset.NotIndices as error:
        raise InvalidRequest(str(error)) from error


def _text(indices: BitMap) -> str:
    """As many of the lowest as a request may name."""
    ranges = indexset.to_ranges(indices)[:RANGES_ASKED_MAX]
    return ",".join(f"{first}-{last}" for first, last in ranges)

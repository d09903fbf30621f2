"""The output of a job's tasks as it is written, many at once.

Up to READERS_MAX tasks that run are read as they write, each attempt after attempt until the task has ended.
What more there are is read when they have ended, all together. Nothing is lost by that: output stays on the
nodes.
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

READERS_MAX = 64
RANGES_ASKED_MAX = 3_000

_RUNNING = TaskState.TASK_STATE_RUNNING
_STARTED = (
    _RUNNING,
    TaskState.TASK_STATE_SUCCEEDED,
    TaskState.TASK_STATE_FAILED,
    TaskState.TASK_STATE_CANCELLED,
)


class Sink(Protocol):
    """Takes output; called by several threads."""

    def take(self, index: int, answer: ReadOutputResponse) -> None:
        """A piece of a task's output, the pieces of one stream of an attempt in their order."""
        ...

    def unread(self, indices: str, why: str) -> None:
        """The output of these tasks, `0-9,20`, or of all (nothing) cannot be read, or not to its end."""
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
    until all is read. What ends the reading early (a closed pipe) is handed to `failed`.
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
        # What goes to a file of the user's, or nowhere, is missed by nobody.
        self._elsewhere = {OutputStream.OUTPUT_STREAM_STDOUT} if job.spec.stdout else set()
        if job.spec.stderr:
            self._elsewhere.add(OutputStream.OUTPUT_STREAM_STDERR)
        self._sink = sink
        self._failed = failed
        self._choice = choice
        self._ended = threading.Event()
        # How many attempts there were to read.
        self.attempt_count = 0
        # Of a task's last attempt there is, or may be, more than could be read.
        self.missed = False
        self._counting = threading.Lock()
        self._waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._readers: list[threading.Thread] = []
        self._busy = 0
        # Tasks that nobody reads yet, and those to be read together.
        self._unread = task_indices(job) if indices is None else indices
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._together: queue.SimpleQueue[BitMap | None] = queue.SimpleQueue()
        self._others: list[threading.Thread] = []
        if len(self._unread) <= READERS_MAX:
            # Each has a reader at once, which waits for its task.
            for index in self._unread:
                self._read_soon(index)
            self._unread = BitMap()
        else:
            for work in (self._find, self._read_together):
                self._others.append(threading.Thread(target=self._guarded, args=(work,), daemon=True))
                self._others[-1].start()

    def update(self, job: Job) -> None:
        """Begins to read what has started."""
        if job.state in JOB_ENDS:
            self._ended.set()
        self._news.put(None)

    def finish(self) -> None:
        """Returns when all output has been read; the job has ended."""
        assert self._ended.is_set()
        for other in self._others:
            other.join()
        for _ in self._readers:
            self._waiting.put(None)
        for reader in self._readers:
            reader.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (this thread's end must not go unnoticed)
            self._failed(error)
            self._together.put(None)

    # ------------------------------------------------------------ many tasks

    def _find(self) -> None:
        """Hands out the tasks that have started, at each change of the job."""
        ended = False
        while self._unread and not ended:
            self._news.get()
            # Looked at before the tasks are: then all of them have ended.
            ended = self._ended.is_set()
            self._hand_out()
        self._together.put(None)

    def _hand_out(self) -> None:
        for indices in _portions(self._unread):
            over = BitMap()
            for task in self._client.tasks(self._job, states=_STARTED, indices=indices):
                if task.state != _RUNNING:
                    over.add(task.index)
                elif self._busy < READERS_MAX:
                    self._unread.discard(task.index)
                    self._read_soon(task.index)
            self._unread -= over
            if over:
                self._together.put(over)

    def _read_together(self) -> None:
        """Reads what has ended, as much at a time as there is."""
        while (indices := self._together.get()) is not None:
            for portion in _portions(indices):
                try:
                    self._read_portion(portion)
                except RotaError as error:
                    self.missed = True
                    self._sink.unread(portion, f"not read to the end: {error}")

    def _read_portion(self, indices: str) -> None:
        choice = self._choice
        answers = self._client.outputs(
            self._job,
            indices=indices,
            attempt=choice.attempt if choice.alone else 0,
            all_attempts=choice.attempt == 1 and not choice.alone,
            stream=choice.stream,
            tail_lines=choice.tail_lines,
            hopeful=self._hopeful,
        )
        for answer in answers:
            for output in answer.outputs:
                self.missed = self.missed or bool(output.unavailable)
                self._sink.take(output.index, output)
            for unread in answer.unread:
                # What is elsewhere is said of all tasks.
                self.missed = self.missed or bool(unread.indices and not unread.superseded)
                self._sink.unread(unread.indices, unread.why)
            self._count(answer.attempt_count)

    # ------------------------------------------------------------ one task

    def _read_soon(self, index: int) -> None:
        with self._counting:
            self._busy += 1
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
                self.missed = True
                self._sink.unread(str(index), f"not read to the end: {error}")
            except BaseException as error:  # noqa: BLE001 (this thread's end must not go unnoticed)
                self._failed(error)
                return
            with self._counting:
                self._busy -= 1

    def _read(self, index: int) -> None:
        """Attempt after attempt, until there is none."""
        choice, attempt, tail_lines = self._choice, self._choice.attempt, self._choice.tail_lines
        missed = False
        while True:
            missed_before, missed = missed, False
            answers = self._client.output(
                self._job,
                index,
                attempt=attempt,
                stream=choice.stream,
                tail_lines=tail_lines,
                follow=True,
                hopeful=self._hopeful,
            )
            for answer in answers:
                if not answer.attempt and answer.unavailable:
                    self.missed = self.missed or missed_before
                    return
                attempt = answer.attempt
                missed = missed or bool(answer.unavailable and answer.stream not in self._elsewhere)
                self._sink.take(index, answer)
            self._count(1)
            if choice.alone:
                self.missed = self.missed or missed
                return
            attempt += 1
            tail_lines = 0

    def _hopeful(self) -> bool:
        """A node that is away for a while is no reason to give up while the job goes on."""
        return not self._ended.is_set()

    def _count(self, attempts: int) -> None:
        with self._counting:
            self.attempt_count += attempts


def task_indices(job: Job) -> BitMap:
    """The indices of a job's tasks; the job must have been read whole."""
    if job.spec.array:
        return indexset.parse(job.spec.array, indexset.TASK_COUNT_MAX)
    return indexset.full(max(1, len(job.spec.lines)))


def indices_of(text: str) -> BitMap:
    """`0-9,20` as a set. Raises InvalidRequest."""
    try:
        return indexset.parse(text, indexset.TASK_COUNT_MAX)
    except indexset.NotIndices as error:
        raise InvalidRequest(str(error)) from error


def text_of(indices: BitMap) -> str:
    """A set as `0-9,20`."""
    return indexset.text(indices)


def _portions(indices: BitMap) -> list[str]:
    """A set as texts, each as long as a request may name."""
    ranges = indexset.to_ranges(indices)
    return [
        ",".join(f"{first}-{last}" for first, last in ranges[start : start + RANGES_ASKED_MAX])
        for start in range(0, len(ranges), RANGES_ASKED_MAX)
    ]

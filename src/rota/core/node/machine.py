"""The node's machine: everything that can happen to a node, and what follows.

The law of whoever runs it: write an outcome's entries to the journal, then do its commands, then
send its messages. `recover` makes the machine that goes on after whatever was written.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import assert_never

from rota.core.model.protocol import (
    Ack,
    Body,
    Down,
    Drain,
    Forget,
    Grant,
    HeartbeatAck,
    Input,
    Lease,
    ReadOutput,
    Recall,
    Refused,
    Resize,
    Slot,
    Stop,
    Template,
    Welcome,
)
from rota.core.model.states import Cause
from rota.core.node.book import Book
from rota.core.node.entries import Entry, TemplateKept
from rota.core.node.granting import Granting
from rota.core.node.held import Held
from rota.core.node.inputs import (
    DeleteOutput,
    Exited,
    InputLost,
    Leave,
    NodeInput,
    Outcome,
    Ran,
    Received,
    Returned,
    SendOutput,
    Shutdown,
    Spawned,
    SpawnFailed,
    Storage,
    StreamClosed,
    StreamOpened,
    TellInput,
    TellOutput,
    WriteInput,
)
from rota.core.node.reporting import holding, report
from rota.core.node.running import Attempts
from rota.core.node.talking import Talk

# How long a node that leaves waits for its last reports to be acknowledged.
GOODBYE_MS_MAX = 5_000


class Machine:
    """A node. `held` is its memory; `cluster` the one that it enrolled with, empty for any."""

    def __init__(self, held: Held, cluster: str = "") -> None:
        self.held = held
        self.book = Book(held)
        self.attempts = Attempts(self.book)
        self.granting = Granting(self.book, self.attempts)
        self.talk = Talk(self.book, cluster, partial(holding, held), partial(report, held))
        self._writable = True
        self._left = False
        self._idle_since_ms: int | None = None
        # Jobs of which something could not be started in this step, by the death of who was to do it.
        self._blamed: set[int] = set()

    def step(self, inputs: Iterable[NodeInput], now_ms: int, wall_ms: int) -> Outcome:
        """Takes what happened, in order, and the time: boot-clock and wall-clock milliseconds.

        `now_ms` never goes back. Without inputs, time alone has passed.
        """
        self.book.open(now_ms, wall_ms)
        self._blamed.clear()
        # Before anything renews the contact: what ran out has run out.
        self._mind_fence()
        for news in inputs:
            self._take(news)
        self.attempts.on_time()
        self._mind_fence()
        self.granting.settle()
        self.talk.more = bool(self.attempts.running) and not self.granting.leaving
        self.talk.say()
        self._leave()
        return self.book.close(self._wake_at_ms())

    def snapshot(self) -> Iterator[Entry]:
        """Entries that make the memory again, for the head of a new piece of the journal."""
        return self.held.snapshot()

    # ------------------------------------------------------------ what the shell looks up

    def template(self, job: int, version: int) -> Template:
        """The template that a Spawn speaks of."""
        return self.held.templates[job, version]

    def slot(self, lease: int, slot: int) -> Slot:
        """The slot that a Spawn speaks of, with its devices and ports."""
        return self.held.leases[lease].slots[slot]

    @property
    def node_id(self) -> str:
        """The UUID that the leader knows this node by; empty before the first Welcome."""
        return self.held.session.node_id

    @property
    def node_name(self) -> str:
        """What the leader calls this node; empty before the first Welcome."""
        return self.held.session.node_name

    @property
    def fence_patience_ms(self) -> int:
        """The silence after which fenced attempts must end; 0 where none runs."""
        return self.talk.lost_after_ms if self.attempts.any_fenced else 0

    @property
    def fence_at_ms(self) -> int:
        """When they do, if nothing is heard of the leader until then; boot-clock milliseconds."""
        return self.attempts.fence_ms or 0

    @property
    def stream(self) -> int:
        """The stream that the last outcome's messages are for; 0 for none."""
        return self.talk.stream

    # ------------------------------------------------------------ inputs

    def _take(self, news: NodeInput) -> None:
        match news:
            case Received():
                self._received(news.down)
            case Spawned():
                self.attempts.spawned(news)
            case SpawnFailed() | Exited():
                self._ended(news)
            case Ran():
                self._ran(news)
            case Returned():
                self.granting.returned(news)
            case InputLost():
                self.attempts.input_lost(news)
            case StreamOpened():
                if self._writable:
                    self.talk.opened(news.stream, news.inventory)
                else:
                    self.talk.stream = news.stream
                    self.talk.hang_up("the journal cannot be written")
            case StreamClosed():
                self.talk.closed()
            case Storage():
                self._storage(news)
            case Shutdown():
                if not self.granting.leaving:
                    self.granting.leave()
                    self.talk.leave()
                    self._rest()
                self.attempts.stop_all(Cause.PREEMPTED, news.grace_ms)
            case _:
                assert_never(news)

    def _ended(self, news: SpawnFailed | Exited) -> None:
        allocation = self.held.allocations[news.attempt[0]]
        slot_count = len(self.held.leases[allocation.lease].slots)
        if isinstance(news, Exited):
            ended = self.attempts.exited(news)
            # With who watched it all died that it was to start: that is one failure, however many these are.
            unstarted = ended.cause == Cause.AGENT_ERROR and not ended.started
            if not unstarted or allocation.job not in self._blamed:
                self.granting.judge(allocation, slot_count, ended.cause, ended.code, unstarted=unstarted)
            if unstarted:
                self._blamed.add(allocation.job)
        else:
            ended = self.attempts.spawn_failed(news)
            # What the time of contact forbids is nobody's fault.
            unstarted = ended.cause in (Cause.START_FAILED, Cause.AGENT_ERROR)
            self.granting.judge(allocation, slot_count, ended.cause, 0, unstarted=unstarted)

    def _ran(self, news: Ran) -> None:
        allocation = self.held.allocations[news.allocation]
        slot_count = len(self.held.leases[allocation.lease].slots)
        self.attempts.ran(news)
        for code in news.code if any(news.code) else news.code[-1:]:
            self.granting.judge(allocation, slot_count, Cause.EXIT, code)

    def _storage(self, news: Storage) -> None:
        self._writable = news.writable
        self._rest()
        if not news.writable:
            self.talk.hang_up(f"the journal cannot be written: {news.message}")

    def _mind_fence(self) -> None:
        if self.attempts.contact_ran_out():
            self.attempts.stop_fenced()
            self.granting.drop_fenced()

    def _rest(self) -> None:
        """Whether new attempts may start."""
        self.attempts.resting = self.granting.draining or self.granting.leaving or not self._writable
        if not self.attempts.resting:
            self.attempts.changed.update(dict.fromkeys(self.attempts.places))

    def _received(self, down: Down) -> None:
        body = self.talk.accept(down)
        # After Goodbye what comes is not for this node any more: the leader has given it to others.
        if body is not None and not self._left:
            self._obey(body)

    def _obey(self, body: Body) -> None:  # noqa: C901 - a table
        match body:
            case Welcome():
                # Said again in each session, where it holds.
                self._drain(draining=False)
                self.granting.acknowledged(body.acknowledged)
                self._meet_fence()
                self.book.command(TellOutput())
                self._tell_inputs()
            case HeartbeatAck():
                self.talk.heard(body.sent_ms)
                self._meet_fence()
            case Ack():
                self.talk.acknowledge(body.sequence)
                self.granting.acknowledged(body.sequence)
            case Template():
                self.book.write(TemplateKept(body))
            case Lease():
                self.granting.lease(body)
            case Resize():
                self.granting.resize(body)
            case Grant():
                trouble = self.granting.grant(body)
                if trouble:
                    self.talk.hang_up(trouble)
            case Recall():
                self.granting.recall(body)
            case Stop():
                self.granting.stop(body)
            case Drain():
                self._drain(draining=body.draining)
            case Forget():
                self.book.command(DeleteOutput(body.jobs))
            case ReadOutput():
                held = self.held.allocations.get(body.allocation)
                live = held is not None and (
                    body.index in held.live or body.index in held.waiting or body.index in held.intended
                )
                self.book.command(SendOutput(body, live))
            case Input():
                self.book.command(WriteInput(body))
            case Refused():
                raise AssertionError(body)
            case _:
                assert_never(body)

    def _meet_fence(self) -> None:
        if self.talk.fence_ms is not None:
            self.attempts.meet_fence(self.talk.fence_ms)

    def _tell_inputs(self) -> None:
        for of_allocation in self.attempts.running.values():
            for running in of_allocation.values():
                if running.spec.stdin:
                    allocation, index, _ = running.attempt
                    self.book.command(TellInput(allocation, index))

    def _drain(self, *, draining: bool) -> None:
        self.granting.draining = draining
        self._rest()
        if draining:
            self.granting.drop_all()

    # ------------------------------------------------------------ the end of a step

    def _leave(self) -> None:
        """Says goodbye once nothing runs and everything is told, or nobody listens."""
        if not self.granting.leaving or self.attempts.running or self._left:
            return
        if self._idle_since_ms is None:
            self._idle_since_ms = self.book.now_ms
        if self.talk.settled or self.book.now_ms >= self._idle_since_ms + GOODBYE_MS_MAX:
            self._left = True
            self.talk.say_goodbye("the agent was asked to end")
            self.book.command(Leave())

    def _wake_at_ms(self) -> int | None:
        times = [self.attempts.next_ms(), self.talk.next_ms()]
        if self._idle_since_ms is not None and not self._left:
            times.append(self._idle_since_ms + GOODBYE_MS_MAX)
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

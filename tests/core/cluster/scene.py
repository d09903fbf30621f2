"""A leader's machine, and nodes played by hand: what goes in, and what comes out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rota.core.cluster.check import check_cluster, check_room
from rota.core.cluster.inputs import (
    Enrol,
    Found,
    FromNode,
    Input,
    Lead,
    Outcome,
    PutToken,
    Send,
    StreamClosed,
    Submit,
    Submitted,
)
from rota.core.cluster.records import Block, ResultBlock, TokenConfig
from rota.core.cluster.recount import check_index
from rota.core.cluster.rows import results
from rota.core.cluster.state import Job
from rota.core.cluster.step import Machine
from rota.core.cluster.waiting import Reasons
from rota.core.model.columns import columns_of
from rota.core.model.protocol import (
    AllocationReport,
    Columns,
    Ended,
    Hello,
    Holding,
    HoldingEnd,
    Inventory,
    Pool,
    Report,
    Resized,
    Up,
)
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, TokenKind

WALL_MS = 1_700_000_000_000
Message = TypeVar("Message")


def exits(*indices: int, **fields: Any) -> Columns:
    """These tasks exited with code 0, or as the fields of `Ended` say."""
    return columns_of([Ended(index, Cause.EXIT, **fields) for index in indices])


@dataclass
class Scene:
    """One leader. Nodes are named, and their ids are their names with a prefix."""

    machine: Machine = field(default_factory=Machine)
    now_ms: int = 0
    last: Outcome = field(default_factory=Outcome)
    blocks: list[Block] = field(default_factory=list)
    _tickets: int = 0
    _streams: int = 0
    _stream_of: dict[str, int] = field(default_factory=dict)
    _sequence_of: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.step(Found("cluster"), Lead())
        self.ask(PutToken(0, "admin", "t", TokenConfig(TokenKind.NODE, b"s", 0, 2**60, 1_000_000)))

    def step(self, *inputs: Input, after_ms: int = 0) -> Outcome:
        """Time passes, and this happens; every invariant is checked."""
        self.now_ms += after_ms
        self.last = self.machine.step(inputs, self.now_ms, WALL_MS + self.now_ms)
        self.blocks += self.last.blocks
        check_cluster(self.machine.cluster)
        check_index(self.machine.placing.index, self.machine.cluster, self.machine.soft)
        for node in self.machine.cluster.nodes.values():
            check_room(node)
        return self.last

    def ask(self, item: Any) -> Any:
        """A user's input, and its answer."""
        self._tickets += 1
        item.ticket = self._tickets
        return next(reply.answer for reply in self.step(item).replies if reply.ticket == self._tickets)

    def submit(self, **spec: Any) -> int:
        """The number of a job, which must be accepted."""
        answer = self.ask(Submit(0, "user", (JobSpec(**{"command": ("x",), **spec}),)))
        assert isinstance(answer, Submitted), answer
        return answer.jobs[0]

    def job(self, number: int) -> Job:
        return self.machine.cluster.jobs[number]

    def node(self, name: str, cpu: int, *pools: Pool) -> str:
        """Enrols a node with so many cores, or these pools, and connects it."""
        node = f"id-{name}"
        self.ask(Enrol(0, "t", b"s", TokenKind.NODE, node, name, name))
        self._sequence_of[node] = 0
        self.hello(node, cpu, pools=pools)
        return node

    def hello(self, node: str, cpu: int, *pages: Holding, **more: Any) -> Outcome:
        """The node connects and says what it holds, and has these reports still to make."""
        return self.step(*self.greeting(node, cpu, *pages, **more))

    def greeting(
        self,
        node: str,
        cpu: int,
        *pages: Holding,
        journal: str = "j",
        boot: str = "b",
        pools: tuple[Pool, ...] = (),
        reports: Sequence[AllocationReport] = (),
    ) -> list[FromNode]:
        """What a node says when it connects: see `hello`."""
        self._streams += 1
        self._stream_of[node] = self._streams
        inventory = Inventory(pools=pools or (Pool(resources=Resources(cpu=cpu * 1000)),))
        sequence = self._sequence_of[node]
        last = sequence + len(reports)
        hello = Hello(1, "", 1, boot, journal, last, 0, inventory, self.now_ms, sequence)
        messages: list[Up] = [hello, *pages, HoldingEnd(len(pages))]
        for report in reports:
            sequence += 1
            messages.append(Report(journal, sequence, sequence, (report,), ()))
        self._sequence_of[node] = last
        return [self.said(node, message) for message in messages]

    def said(self, node: str, message: Up) -> FromNode:
        return FromNode(node, self._stream_of[node], message)

    def report(self, node: str, *allocations: AllocationReport, resized: tuple[Resized, ...] = ()) -> Outcome:
        """The node's next report."""
        self._sequence_of[node] += 1
        sequence = self._sequence_of[node]
        return self.step(self.said(node, Report("j", sequence, sequence, allocations, resized)))

    def silence(self, node: str, after_ms: int) -> None:
        """Its stream ends, and time passes in steps, as timers would have it."""
        self.step(StreamClosed(node, self._stream_of[node]))
        self.wait(after_ms)

    def wait(self, after_ms: int) -> None:
        """Time passes in steps, as timers would have it."""
        until_ms = self.now_ms + after_ms
        while self.now_ms < until_ms:
            wake_ms = self.last.wake_at_ms
            next_ms = until_ms if wake_ms is None else min(max(wake_ms, self.now_ms + 1), until_ms)
            self.step(after_ms=next_ms - self.now_ms)

    def sent(self, kind: type[Message]) -> list[Message]:
        """Messages of a kind in the last outcome."""
        orders = [order for order in self.last.orders if isinstance(order, Send)]
        return [order.message.body for order in orders if isinstance(order.message.body, kind)]

    def outcomes(self, job: int) -> list[tuple[int, int]]:
        """(index, attempt) of all that is recorded of a job."""
        return [
            (one.index, one.attempt)
            for block in self.blocks
            if isinstance(block, ResultBlock) and block.job == job
            for one in results(block)
        ]


def reasons(scene: Scene) -> Reasons:
    """Why tasks wait, as the leader sees it."""
    machine = scene.machine
    return Reasons(machine.cluster, machine.soft, machine.placing.index)

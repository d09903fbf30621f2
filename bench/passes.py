"""Passes of placing alone: shapes, a million equal tasks, a full cluster, many small jobs.

Nodes register and jobs are submitted by the same inputs as ever; what is timed are the passes, with all that
they do: choosing, leases, allocations, grants, messages. Seconds are of CPU, for the core waits for nothing.
"""

import gc
import statistics
import time
from collections.abc import Iterator

from bench.harness import Bar, Point, Row, Size
from rota.core.cluster.inputs import Enrol, Found, FromNode, Input, Lead, Outcome, PutToken, Send, Submit
from rota.core.cluster.records import TokenConfig
from rota.core.cluster.step import Machine
from rota.core.cluster.work import Work
from rota.core.model.columns import columns_of
from rota.core.model.protocol import (
    PROTOCOL_VERSION,
    AllocationReport,
    Ended,
    Grant,
    Hello,
    HoldingEnd,
    Inventory,
    Pool,
    Report,
)
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, TokenKind
from rota.core.placement import choose

BENCH = "passes"
CHOICE_S_MAX = 0.3
TURN_MS_MAX = 20

_NOW_MS = 1_000
_WALL_MS = 1_700_000_000_000
_MIB = 2**20


class _Core:
    """A leader's machine of equal nodes, and how long its passes took."""

    def __init__(self, nodes: int, cpu: int, memory: int = 0) -> None:
        self.machine = Machine()
        self.last = Outcome()
        self.passes_s: list[float] = []
        self.placing_waits = False
        self.running: list[tuple[str, Grant]] = []
        self._sequences: dict[str, int] = {}
        token = TokenConfig(TokenKind.NODE, b"s", 0, 2**60, 10 * nodes)
        self.step(Found("cluster"), Lead(), PutToken(0, "admin", "t", token))
        inventory = Inventory(pools=(Pool(resources=Resources(cpu=cpu * 1000, memory=memory)),))
        for number in range(nodes):
            node, stream = f"{number:08x}", number + 1
            hello = Hello(PROTOCOL_VERSION, "", 1, "boot", "journal", 0, 0, inventory, 0)
            self.step(
                Enrol(0, "t", b"s", TokenKind.NODE, node, f"node-{number}", f"node-{number}"),
                FromNode(node, stream, hello),
                FromNode(node, stream, HoldingEnd(0)),
            )
        place = self.machine.placing.place

        def timed(work: Work) -> Iterator[None]:
            if self.placing_waits:
                return
            before = time.process_time()
            yield from place(work)
            self.passes_s.append(time.process_time() - before)

        self.machine.placing.place = timed  # type: ignore[method-assign]
        # What is there stays there: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        # When it looks at what is new is for the controller to say.
        gc.disable()

    def step(self, *inputs: Input) -> None:
        self.last = self.machine.step(inputs, _NOW_MS, _WALL_MS)
        for order in self.last.orders:
            if isinstance(order, Send) and isinstance(order.message.body, Grant):
                self.running.append((order.node, order.message.body))

    def submit(self, *specs: JobSpec) -> None:
        """Jobs, and as many steps as their placing takes."""
        self.passes_s.clear()
        for spec in specs[:-1]:
            # Nothing is placed before all are there.
            self.placing_waits = True
            self.step(Submit(0, "user", (spec,)))
            self.placing_waits = False
        self.step(Submit(0, "user", specs[-1:]))
        self.go_on()

    def go_on(self) -> None:
        """Steps, while a pass is not over."""
        while self.last.wake_at_ms is not None and self.last.wake_at_ms <= _NOW_MS:
            self.step()

    def end_one(self) -> None:
        """All tasks of the oldest grant end well."""
        node, grant = self.running.pop(0)
        sequence = self._sequences[node] = self._sequences.get(node, 0) + 1
        rows = [
            Ended(index, Cause.EXIT, 0, started_at_ms=_WALL_MS, duration_ms=60_000)
            for first, last in grant.indices
            for index in range(first, last + 1)
        ]
        report = AllocationReport(grant.allocation, exits=columns_of(rows))
        stream = int(node, 16) + 1
        self.step(FromNode(node, stream, Report("journal", sequence, sequence, (report,), ())))
        self.go_on()

    @property
    def placed(self) -> int:
        return sum(len(job.owned) for job in self.machine.cluster.jobs.values())

    @property
    def spent_s(self) -> float:
        return sum(self.passes_s)


def _spec(count: int, **more: object) -> JobSpec:
    return JobSpec(command=("true",), array=f"0-{count - 1}", **more)  # type: ignore[arg-type]


def _shapes(nodes: int, tasks: int, shapes: int) -> _Core:
    """So many tasks of so many shapes, a job each."""
    core = _Core(nodes, 16, 64 * 1024 * _MIB)
    core.submit(
        *(
            _spec(tasks // shapes, resources=Resources(cpu=500, memory=(number + 1) * _MIB // 16))
            for number in range(shapes)
        )
    )
    assert core.placed == tasks, core.placed
    return core


def _one_pass(nodes: int, tasks: int) -> tuple[_Core, float]:
    """Equal tasks that fill half of the slots, and how long the choice alone takes."""
    core = _Core(nodes, 2 * tasks // nodes)
    shape = Resources(cpu=1000)
    before = time.process_time()
    choose.spread(core.machine.placing.index.room, shape, tasks)
    choice_s = time.process_time() - before
    core.submit(_spec(tasks, resources=shape))
    assert core.placed == tasks, core.placed
    return core, choice_s


def _full(nodes: int, kinds: int, rounds: int) -> list[float]:
    """The passes after one task has ended in a full cluster, where so many kinds of tasks wait for room."""
    core = _Core(nodes, 4, 64 * 1024 * _MIB)
    core.submit(_spec(10 * nodes, resources=Resources(cpu=1000)))
    core.submit(
        *(_spec(1000, resources=Resources(cpu=2000, memory=(kind + 1) * _MIB)) for kind in range(kinds))
    )
    core.passes_s.clear()
    for _ in range(rounds):
        core.end_one()
    return core.passes_s


def _small_jobs(jobs: int, rounds: int) -> list[float]:
    """The passes after one of many jobs of one task has ended on a node of two slots."""
    core = _Core(1, 2)
    core.submit(*(JobSpec(command=("true",)) for _ in range(jobs)))
    core.passes_s.clear()
    for _ in range(rounds):
        core.end_one()
    return core.passes_s


def rows(size: Size) -> Iterator[Row]:
    """The figures."""
    nodes, tasks = size.of(5_000, 500), size.of(10_000, 1_000)
    for shapes in (1, tasks):
        rates = [tasks / _shapes(nodes, tasks, shapes).spent_s for _ in range(size.of(size.rounds, 1))]
        what = f"passes alone, {nodes} nodes, {tasks} tasks, {shapes} shapes"
        yield Row(BENCH, what, statistics.median(rates), "/s")
    nodes, tasks = size.of(10_000, 1_000), size.of(1_000_000, 100_000)
    core, choice_s = _one_pass(nodes, tasks)
    what = f"{nodes} nodes, {tasks} equal tasks"
    yield Row(BENCH, f"{what}: which node gets how many", choice_s, "s", bar=Bar(at_most=CHOICE_S_MAX))
    yield Row(BENCH, f"{what}: with leases, grants, messages", core.spent_s, "s")
    longest_ms = max(core.passes_s) * 1000
    yield Row(BENCH, f"{what}: longest turn", longest_ms, "ms", bar=Bar(at_most=TURN_MS_MAX))
    for nodes in (size.of(1_000, 100), size.of(10_000, 500)):
        for kinds in (1, 16):
            passes = _full(nodes, kinds, 100)
            what = f"a task ends, {nodes} full nodes, {kinds} kinds wait"
            median_ms, longest_ms = statistics.median(passes) * 1000, max(passes) * 1000
            point = Point(f"a task ends in a full cluster, {kinds} kinds wait", nodes, median_ms)
            yield Row(BENCH, what, median_ms, "ms", point=point)
            yield Row(BENCH, f"{what}: longest turn", longest_ms, "ms", bar=Bar(at_most=TURN_MS_MAX))
    for jobs in (size.of(1_000, 100), size.of(10_000, 1_000)):
        median_ms = statistics.median(_small_jobs(jobs, 100)) * 1000
        point = Point("a task ends, jobs of one task wait", jobs, median_ms)
        yield Row(BENCH, f"a task ends, {jobs} jobs of one task wait", median_ms, "ms", point=point)

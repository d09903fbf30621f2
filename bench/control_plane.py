"""Completions per second, counted and committed: tasks of no work that end in random order, 1 % failing.

Over the real protocol: `rota sim edges` with gRPC, TLS and an identity a node, which shares the machine with
the controller. And the controller's part alone, in one process: the bytes of nodes' messages, their checks,
the loop and its turns, SQLite with full durability, and the bytes of what goes back. There the nodes are
played: all tasks of a grant end at once. What it costs to play them is measured, and taken off where the
controller's CPU is told.
"""

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from bench.harness import ROTA, Bar, Cluster, Point, Row, Size, cluster, pause_row
from rota.client import messages
from rota.client.client import Client
from rota.controller.links import parse_up
from rota.controller.loop import Clock, Loop
from rota.core.cluster.inputs import Close, Enrol, FromNode, Order, PutToken, Submit, Submitted
from rota.core.cluster.records import TokenConfig
from rota.core.cluster.rows import pack, results
from rota.core.cluster.soft import Settings
from rota.core.model.protocol import (
    PROTOCOL_VERSION,
    AllocationReport,
    Columns,
    Grant,
    Heartbeat,
    Hello,
    HoldingEnd,
    Inventory,
    Pool,
    Report,
    Up,
    Welcome,
)
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import JOB_ENDS, Cause, TokenKind
from rota.store.sqlite import SqliteStore
from rota.wire.link import down_to_messages, up_to_message

TASKS = 1_000_000
NODES = (10, 1, 1_000, 10_000)
FAILED_PART = 0.01
FAILED_CODE = 3
REPORT_ROWS_MAX = 8_192
SLOTS = 4
PER_SECOND_MIN = 500_000


@dataclass(slots=True)
class _Node:
    id: str
    stream: int
    sequence: int = 0


@dataclass
class _Played:
    """Nodes of which each task that is granted has ended at once; orders come from the loop."""

    loop: Loop
    chance: np.random.Generator
    nodes: dict[str, _Node] = field(default_factory=dict)
    waiting: deque[tuple[str, Grant]] = field(default_factory=deque)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    # The codes of tasks that have failed; how long it took to play all this, in seconds of CPU.
    failed: dict[int, int] = field(default_factory=dict)
    playing_s: float = 0.0
    reports: int = 0

    def carry_out(self, order: Order) -> None:
        """As the links do, to the bytes."""
        assert not isinstance(order, Close), order
        for message in down_to_messages(order.message):
            message.SerializeToString()
        if isinstance(order.message.body, Grant | Welcome):
            if isinstance(order.message.body, Grant):
                self.waiting.append((order.node, order.message.body))
            self.came.set()

    def close_all(self, reason: str) -> None:
        """There is nothing to close."""

    def keep_off(self, node: str) -> None:
        """Must not be."""
        raise AssertionError(node)

    async def say(self, node: _Node, message: Up) -> None:
        """To the loop, as bytes."""
        began_s = time.thread_time()
        data = up_to_message(message).SerializeToString()
        self.playing_s += time.thread_time() - began_s
        await self.loop.tell(FromNode(node.id, node.stream, parse_up(data)))

    async def play(self) -> None:
        """Ends what is granted, for ever."""
        beat_s = time.monotonic()
        while True:
            await self.came.wait()
            self.came.clear()
            while self.waiting:
                node, grant = self.waiting.popleft()
                await self._end(self.nodes[node], grant)
            if time.monotonic() > beat_s + 3:
                beat_s = time.monotonic()
                for one in self.nodes.values():
                    await self.say(one, Heartbeat(1, one.sequence))

    async def _end(self, node: _Node, grant: Grant) -> None:
        began_s = time.thread_time()
        order = np.concatenate([np.arange(first, last + 1) for first, last in grant.indices])
        self.chance.shuffle(order)
        self.playing_s += time.thread_time() - began_s
        for start in range(0, len(order), REPORT_ROWS_MAX):
            began_s = time.thread_time()
            report = self._report(node, grant, np.sort(order[start : start + REPORT_ROWS_MAX]))
            self.playing_s += time.thread_time() - began_s
            await self.say(node, report)

    def _report(self, node: _Node, grant: Grant, indices: npt.NDArray[np.int64]) -> Report:
        count = len(indices)
        codes = np.where(self.chance.random(count) < FAILED_PART, FAILED_CODE, 0)
        self.failed |= dict.fromkeys(indices[codes != 0].tolist(), FAILED_CODE)
        exits = Columns(
            indices.astype("<u4").tobytes(),
            pack(codes),
            1_700_000_000_000,
            pack(self.chance.integers(0, 1_000, count)),
            pack(self.chance.integers(0, 2, count)),
            pack(self.chance.integers(0, 2, count)),
            pack(self.chance.integers(0, 2, count)),
            pack(self.chance.integers(1_000, 9_000, count)),
        )
        first = node.sequence + 1
        node.sequence += count
        self.reports += 1
        return Report("j", first, node.sequence, (AllocationReport(grant.allocation, exits=exits),))


@dataclass(frozen=True, slots=True)
class Found:
    """Of one run: completions a second by the clock and by the controller's own CPU time."""

    per_s: float
    per_cpu_s: float
    reports: int


async def complete(home: Path, node_count: int, task_count: int) -> Found:
    """Runs an array of so many tasks over so many nodes to its end, and looks at some outcomes."""
    store = await SqliteStore.open(home, _wall_ms)
    loop = Loop(store, Clock(lambda: int(time.monotonic() * 1000), _wall_ms), Settings(), "cluster")
    played = _Played(loop, np.random.default_rng(1))
    loop.connect(played)
    ready = asyncio.Event()
    running = asyncio.create_task(loop.run(ready.set))
    playing = asyncio.create_task(played.play())
    await ready.wait()
    await _join(loop, played, node_count)
    spec = JobSpec(command=("true",), array=f"0-{task_count - 1}")
    with loop.watch_job(1) as news:
        began_s, cpu_s, played_s = time.monotonic(), time.process_time(), played.playing_s
        answer = await loop.ask(lambda ticket: Submit(ticket, "user", (spec,)))
        assert isinstance(answer, Submitted), answer
        while not await loop.read(lambda machine: machine.cluster.jobs[1].status.state in JOB_ENDS):
            assert not playing.done(), playing.result()
            await asyncio.wait(
                {asyncio.create_task(news.wait()), playing}, return_when=asyncio.FIRST_COMPLETED
            )
            news.clear()
    took_s = time.monotonic() - began_s
    played_s = played.playing_s - played_s
    cpu_s = time.process_time() - cpu_s - played_s
    job = await loop.read(lambda machine: machine.cluster.jobs[1])
    assert (job.count_succeeded, job.count_failed) == (task_count - len(played.failed), len(played.failed))
    for index in [*range(0, task_count, task_count // 7), next(iter(played.failed), 0)]:
        (block,) = await store.results(1, BitMap([index]))
        (one,) = results(block, BitMap([index]))
        assert (one.index, one.cause, one.code) == (index, Cause.EXIT, played.failed.get(index, 0)), one
    loop.stop()
    await running
    playing.cancel()
    await store.close()
    return Found(task_count / took_s, task_count / cpu_s, played.reports)


async def _join(loop: Loop, played: _Played, count: int) -> None:
    secret = b"s" * 32
    token = TokenConfig(TokenKind.NODE, secret, 0, 2**60, count)
    await loop.ask(lambda ticket: PutToken(ticket, "admin", "t", token))
    inventory = Inventory(pools=(Pool(resources=Resources(cpu=SLOTS * 1000, memory=2**33)),))
    played.nodes |= {f"n{number}": _Node(f"n{number}", number + 1) for number in range(count)}
    enrol = partial(Enrol, token="t", secret_sha256=secret, kind=TokenKind.NODE)
    await asyncio.gather(*(loop.ask(partial(enrol, node=name, name=name, key=name)) for name in played.nodes))
    for node in played.nodes.values():
        await played.say(node, Hello(PROTOCOL_VERSION, "", 1, "b", "j", 0, 0, inventory, 1))
        await played.say(node, HoldingEnd())
    with loop.watch_events() as news:
        while not await loop.read(lambda machine: all(map(machine.soft.connected, played.nodes))):
            await news.wait()
            news.clear()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _run(node_count: int, task_count: int) -> Found:
    home = Path(tempfile.mkdtemp(prefix="rota-bench-"))
    try:
        return asyncio.run(complete(home, node_count, task_count))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def in_process(size: Size) -> Iterator[Row]:
    """The controller's part alone: two rows for each number of nodes."""
    task_count = size.of(TASKS, 100_000)
    for node_count in NODES[: size.of(len(NODES) - 1, 1)]:
        found = [_run(node_count, task_count) for _ in range(size.rounds)]
        what = f"{task_count} tasks, {node_count} nodes, core and store alone"
        yield Row("control_plane", what, median(one.per_s for one in found), "1/s")
        per_cpu_s = median(one.per_cpu_s for one in found)
        yield Row("control_plane", f"{what}: a second of the controller's CPU", per_cpu_s, "1/s")


# ---------------------------------------------------------------- over the real protocol


def over_protocol(size: Size, node_count: int) -> Iterator[Row]:
    """Real controller, simulated nodes in a process of their own."""
    with cluster("--nodes", "0") as rota, _edges(rota, node_count), rota.client() as client:
        while sum(node.silent_ms >= 0 for node in client.nodes()) < node_count:
            time.sleep(0.2)
        took_s, cpu_s = [], []
        for _ in range(size.rounds):
            before_s, began_s = rota.cpu_s("controller"), time.perf_counter()
            job = _complete(client)
            took_s.append(time.perf_counter() - began_s)
            cpu_s.append(rota.cpu_s("controller") - before_s)
            _look_at_some(rota, client, job)
        pause = pause_row("control_plane", rota, f"{TASKS} tasks over {node_count} nodes")
    what = f"{TASKS} tasks, {node_count} nodes over the real protocol"
    bar = Bar(at_least=PER_SECOND_MIN) if node_count == 10 else None
    point = Point("completions", node_count * TASKS, median(took_s))
    yield Row("control_plane", what, TASKS / median(took_s), "1/s", bar=bar, point=point)
    yield Row("control_plane", f"{what}: the controller's CPU", median(cpu_s), "s")
    yield pause


@contextmanager
def _edges(rota: Cluster, count: int) -> Iterator[None]:
    failing = ("--fail", f"{FAILED_PART:%}", "--exit-code", str(FAILED_CODE), "--seed", "1")
    process = subprocess.Popen(
        [ROTA, "sim", "edges", "--count", str(count), *failing],
        env=rota.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _complete(client: Client) -> messages.Job:
    """Submits, and waits until every task is told as ended."""
    number = client.submit([messages.JobSpec(command=["true"], array=f"0-{TASKS - 1}")]).ids[0]
    *_, job = client.watch(number)
    assert job.tasks.succeeded + job.tasks.failed == TASKS, job.tasks
    assert 0 < job.tasks.failed < 2 * TASKS * FAILED_PART, job.tasks
    return job


def _look_at_some(rota: Cluster, client: Client, job: messages.Job) -> None:
    """Every outcome can be asked for; those that failed are the ones that are counted."""
    failed = client.failures(job.id)
    assert [(group.code, group.count) for group in failed] == [(FAILED_CODE, job.tasks.failed)], failed
    for index in range(0, TASKS, TASKS // 5):
        (attempt,) = client.task(job.id, index).attempts
        assert f"EXIT {attempt.code}" in rota("show", f"{job.id}/{index}")


def rows(size: Size) -> Iterator[Row]:
    """Over the real protocol with each number of nodes, and the controller's part alone."""
    for node_count in (10,) if size.small else NODES:
        yield from over_protocol(size, node_count)
    yield from in_process(size)

"""Placements per second of the core alone, by how many distinct shapes are asked for; and one pass over all.

No clock, no socket, no store: what is timed is the machine's step with a submission and the steps that it
asks for at once, until each task has its place. Nodes have room for everything, so every task is placed. One
thread that waits for nothing: its CPU time is told, which is what it takes on a machine of its own.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from bench.harness import Bar, Point, Row, Size
from rota.controller.pace import Garbage, keep
from rota.core.cluster.inputs import Enrol, Found, FromNode, Input, Lead, Outcome, PutToken, Send, Submit
from rota.core.cluster.records import TokenConfig
from rota.core.cluster.step import Machine
from rota.core.model.protocol import PROTOCOL_VERSION, Grant, Hello, HoldingEnd, Inventory, Pool
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import TokenKind

WALL_MS = 1_700_000_000_000
MIB = 2**20
# kube-scheduler's own floor is 680 a second with as many nodes.
PER_SECOND_MIN = 10_000
ONE_PASS_S_MAX = 0.3
STEP_MS_MAX = 20


@dataclass(frozen=True, slots=True)
class Placed:
    """How long it took, whole and the longest step, in seconds."""

    took_s: float
    step_s_max: float


def machine_of(garbage: Garbage, node_count: int, cpu: int) -> Machine:
    """A leader with so many connected nodes of so many cores."""
    machine = Machine()
    secret = b"s" * 32
    token = TokenConfig(TokenKind.NODE, secret, 0, 2**60, node_count)
    inventory = Inventory(pools=(Pool(resources=Resources(cpu=cpu * 1000, memory=2**40)),))
    inputs: list[Input] = [Found("cluster"), Lead(), PutToken(1, "admin", "t", token)]
    for number in range(node_count):
        node = f"node-{number}"
        hello = Hello(PROTOCOL_VERSION, "", 1, "b", "j", 0, 0, inventory, 0)
        inputs += [
            Enrol(2, "t", secret, TokenKind.NODE, node, node, node),
            FromNode(node, number + 1, hello),
            FromNode(node, number + 1, HoldingEnd(0)),
        ]
    until_quiet(machine, garbage, machine.step(inputs, 0, WALL_MS), [])
    keep()
    return machine


def until_quiet(machine: Machine, garbage: Garbage, outcome: Outcome, steps_s: list[float]) -> list[Outcome]:
    """The steps that are due now, as the loop takes them; how long each took is added to `steps_s`."""
    outcomes = [outcome]
    while outcome.wake_at_ms is not None and outcome.wake_at_ms <= 0:
        began_s = time.thread_time()
        outcome = machine.step((), 0, WALL_MS)
        garbage.look(time.thread_time_ns())
        steps_s.append(time.thread_time() - began_s)
        outcomes.append(outcome)
    return outcomes


def granted(outcomes: list[Outcome]) -> int:
    """How many tasks were sent to nodes."""
    bodies = (order.message.body for one in outcomes for order in one.orders if isinstance(order, Send))
    ranges = (pair for body in bodies if isinstance(body, Grant) for pair in body.indices)
    return sum(last - first + 1 for first, last in ranges)


def place(garbage: Garbage, node_count: int, cpu: int, task_count: int, shape_count: int) -> Placed:
    """Places so many tasks of so many shapes: for each shape an array, all submitted at once."""
    machine = machine_of(garbage, node_count, cpu)
    each = task_count // shape_count
    specs = tuple(
        JobSpec(command=("true",), array=f"0-{each - 1}", resources=Resources(cpu=1000, memory=shape * MIB))
        for shape in range(shape_count)
    )
    began_s = time.thread_time()
    first = machine.step([Submit(3, "user", specs)], 0, WALL_MS)
    steps_s = [time.thread_time() - began_s]
    outcomes = until_quiet(machine, garbage, first, steps_s)
    placed = granted(outcomes)
    assert placed == each * shape_count, f"{placed} of {each * shape_count} were placed"
    return Placed(sum(steps_s), max(steps_s[1:], default=0.0))


def rows(size: Size) -> Iterator[Row]:
    """By shapes, by nodes, and one pass. Garbage is collected as a controller has it."""
    garbage = Garbage()
    node_count, task_count = size.of(5_000, 1_000), size.of(10_000, 2_000)
    for shape_count in (1, 10, 1_000, task_count):
        found = [place(garbage, node_count, 4, task_count, shape_count) for _ in range(size.rounds)]
        per_s = median(task_count / one.took_s for one in found)
        what = f"placements, {node_count} nodes, {task_count} tasks, {shape_count} shapes"
        yield Row("placement", what, per_s, "/s", bar=Bar(at_least=PER_SECOND_MIN))
    for nodes in (100, 1_000, 10_000)[: size.of(3, 2)]:
        tasks = 100 * nodes
        found = [place(garbage, nodes, 100, tasks, 1) for _ in range(size.rounds)]
        took_s = median(one.took_s for one in found)
        point = Point("one pass: 100 tasks a node", tasks, took_s)
        bar = Bar(at_most=ONE_PASS_S_MAX) if tasks == 1_000_000 else None
        what = f"one pass, {nodes} nodes, {tasks} equal tasks"
        yield Row("placement", what, took_s, "s", bar=bar, point=point)
        longest_ms = 1000 * median(one.step_s_max for one in found)
        yield Row("placement", f"{what}, longest step", longest_ms, "ms", bar=Bar(at_most=STEP_MS_MAX))

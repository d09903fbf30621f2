"""What a run is about, its random jobs, and how their tasks behave.

Not everything happens in every run: each seed draws a `Mix`, and a run of few kinds goes deeper into
each of them (Groce et al., "Swarm Testing", ISSTA 2012).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from rota.core.cluster.records import QueueConfig
from rota.core.model.protocol import Device, Pool
from rota.core.model.resources import Resources
from rota.core.model.spec import RETENTION_MS_DEFAULT, Dependency, JobSpec
from rota.core.model.states import DependencyWhen, OnNodeLoss
from rota.sim.node import Behaviour

TASKS_MAX = 24
NODES_MAX = 4
# Thrice as many indices as ranges fit into one Grant, over a border of segments.
WIDE_ARRAY = "20000-119998:2"
WIDE_QUICK_COUNT = 120
# A few of these are more than one Grant has room for.
LINE_CHARS_MAX = 40_000
RETENTION_MS_SHORT = 3_000
# Of jobs of one task, those with this grace read standard input.
GRACE_MS_FED = 100

_PLAIN = (
    Resources(cpu=1000),
    Resources(cpu=500),
    Resources(cpu=2000),
    Resources(cpu=1000, memory=2**30),
    Resources(named=(("power", 5_000),)),
    Resources(cpu=500, named=(("licences", 1_000), ("power", 2_000))),
)
_WITH_GPUS = (
    Resources(gpu=1000),
    Resources(cpu=500, gpu=500),
    Resources(gpu=2000),
    Resources(cpu=1000, gpu=300),
)
_NAMED = (("licences", 2_000), ("power", 20_000))
_MACHINE = (Pool(resources=Resources(cpu=4000, memory=4 * 2**30, named=_NAMED)),)
_GPUS = (Device("gpu", "gpu-0"), Device("gpu", "gpu-1"))
_MANY = (
    Pool("small", resources=Resources(cpu=1000, memory=2**30), units=3),
    Pool("large", resources=Resources(cpu=3000, memory=2 * 2**30, gpu=2000, named=_NAMED), devices=_GPUS),
)
_PAIR = (
    Pool("box", resources=Resources(cpu=2000, memory=2**30, gpu=2000, named=_NAMED), units=2, devices=_GPUS),
)
EXTRA_POOL = Pool("extra", resources=Resources(cpu=1000))
# Each shape of a job fits into each of these, so that a quota delays and never forbids.
_QUOTAS = (
    None,
    Resources(cpu=2000, memory=2**30, gpu=2000, named=(("licences", 1_000), ("power", 5_000))),
    Resources(cpu=3000),
)


@dataclass(frozen=True, slots=True)
class Mix:
    """What may happen in one run."""

    nodes: int
    pools: tuple[Pool, ...]
    shapes: tuple[Resources, ...]
    policies: tuple[OnNodeLoss, ...]
    durations_ms_max: tuple[int, ...]
    # A job of very many tasks that do not follow one another.
    wide: bool
    lines: bool
    quotas: bool
    retention_ms: int
    # At most so long between two deeds of users; between two faults.
    user_ms_max: int
    fault_ms_max: int
    faults: tuple[str, ...]
    # How likely small mishaps are: messages, commits, lives of agents and controllers.
    noise: float


# (longest durations of tasks, `user_ms_max`, `fault_ms_max`): in as many events, the slow runs are long
# enough for nodes to be lost and to come back.
_PACES = (
    ((1, 20, 300), 300, 1_000),
    ((1, 20, 300, 3_000, 30_000), 2_500, 4_000),
    ((3_000, 30_000), 4_000, 4_000),
    ((30_000,), 4_000, 8_000),
)


FAULTS = (
    "cut",
    "cut",
    "kill",
    "power",
    "shutdown",
    "clone",
    "leader killed",
    "leader frozen",
    "leader stopped",
)
# Those after which a node says what it holds, all of it.
_WIDE_FAULTS = ("cut", "kill", "leader killed")


def random_mix(chance: Random) -> Mix:
    """What a run is about."""
    wide = chance.random() < 0.04
    pools = _MANY if wide else chance.choice((_MACHINE, _MACHINE, _MANY, _PAIR))
    policies = list(OnNodeLoss)
    some = [fault for fault in dict.fromkeys(FAULTS) if chance.random() < 0.5]
    durations_ms_max, user_ms_max, fault_ms_max = _PACES[0] if wide else chance.choice(_PACES)
    mix = Mix(
        nodes=chance.randint(1, 2 if wide else NODES_MAX),
        pools=pools,
        shapes=_PLAIN if pools is _MACHINE else _PLAIN + _WITH_GPUS,
        policies=tuple(policies if chance.random() < 0.5 else chance.sample(policies, 1)),
        durations_ms_max=durations_ms_max,
        wide=wide,
        lines=chance.random() < 0.15,
        quotas=chance.random() < 0.3,
        retention_ms=chance.choice((RETENTION_MS_DEFAULT, RETENTION_MS_DEFAULT, RETENTION_MS_SHORT)),
        user_ms_max=user_ms_max,
        fault_ms_max=fault_ms_max,
        faults=_WIDE_FAULTS if wide else tuple(some) if some and chance.random() < 0.5 else FAULTS,
        noise=chance.choice((0.1, 1.0, 1.0, 2.0)),
    )
    if not wide and chance.random() < 0.2:
        # Nodes are lost and come back, and nothing else happens in between.
        mix = replace(mix, nodes=chance.randint(2, 3), durations_ms_max=(30_000,), faults=("cut",), noise=0.1)
        mix = replace(mix, user_ms_max=2_000, fault_ms_max=8_000, policies=tuple(chance.sample(policies, 1)))
    return mix


def random_job(
    chance: Random, mix: Mix, known: Sequence[int], nodes: Sequence[str], named: Sequence[str]
) -> JobSpec:
    """A job, perhaps after one of those that are known, or of the `named` ones of its submission."""
    count = 1 if chance.random() < 0.3 else chance.randint(1, TASKS_MAX)
    array = f"0-{count - 1}" if count > 1 else ""
    if count > 4 and chance.random() < 0.2:
        array = f"1-{count * 3}:3"
    lines: tuple[str, ...] = ()
    if mix.lines and chance.random() < 0.5:
        filling = "." * chance.choice((0, 0, LINE_CHARS_MAX))
        array, lines = "", tuple(f"line {number}{filling}" for number in range(count))
    spec = JobSpec(
        name=f"job-{len(named)}",
        command=("task", "{index}"),
        array=array,
        lines=lines,
        max_running=chance.choice((0, 0, 0, 1, 3)),
        max_failures=chance.choice((None, None, None, 0, 3)),
        resources=chance.choice(mix.shapes),
        time_limit=chance.choice((0, 0, 0, 200)),
        grace=chance.choice((0, GRACE_MS_FED, 500)),
        retries=chance.choice((0, 0, 1, 3)),
        backoff=chance.choice((0, 0, 50)),
        on_node_loss=chance.choice(mix.policies),
        rerun_after=chance.choice((0, 0, 3_000)),
        after=_random_after(chance, known, named),
        queue=chance.choice(("default", "default", "batch")),
        priority=chance.choice((0, 0, 0, 10, -5)),
        node=chance.choice(nodes) if nodes and chance.random() < 0.1 else "",
        retention=mix.retention_ms if chance.random() < 0.5 else RETENTION_MS_DEFAULT,
    )
    if count == 1 and not lines and spec.grace == GRACE_MS_FED:
        # What its one attempt reads is gone.
        spec = replace(spec, stdin=True, retries=0)
    return spec


def wide_job(chance: Random) -> JobSpec:
    """One that is granted thousands of tasks at once, no two of which follow one another."""
    return JobSpec(
        command=("task", "{index}"),
        array=WIDE_ARRAY,
        resources=Resources(cpu=500),
        grace=100,
        on_node_loss=chance.choice((OnNodeLoss.RERUN, OnNodeLoss.CANCEL)),
    )


def _random_after(chance: Random, known: Sequence[int], named: Sequence[str]) -> tuple[Dependency, ...]:
    draw = chance.random()
    when = chance.choice(
        (DependencyWhen.SUCCEEDED, DependencyWhen.FINISHED, DependencyWhen.FINISHED, DependencyWhen.FAILED)
    )
    if named and draw < 0.3:
        return (Dependency(named[-1], when),)
    if known and draw < 0.18:
        return (Dependency(str(chance.choice(known)), when),)
    if draw < 0.2:
        # One that is not there: to be refused, or it would wait for itself.
        return (Dependency(str(max(known, default=0) + 1), when),)
    return ()


def less_of(chance: Random, pool: Pool) -> tuple[Pool, ...]:
    """A pool of which a unit, a device or part of its resources has gone or been exchanged; or nothing."""
    whole = pool.resources
    half = replace(whole, cpu=whole.cpu // 2, memory=whole.memory // 2)
    ways: list[tuple[Pool, ...]] = [(), (replace(pool, resources=half),)]
    if pool.units > 1:
        ways.append((replace(pool, units=pool.units - 1),))
    if pool.devices:
        gone = replace(whole, gpu=whole.gpu - 1000)
        ways.append((replace(pool, resources=gone, devices=pool.devices[1:]),))
        ways.append((replace(pool, devices=(Device("gpu", "gpu-new"), *pool.devices[1:])),))
    return chance.choice(ways)


def random_queue(chance: Random, mix: Mix) -> QueueConfig:
    """What may become of a queue."""
    return QueueConfig(
        weight=chance.randint(1, 3),
        quota=chance.choice(_QUOTAS) if mix.quotas else None,
        priority_max=chance.choice((None, None, 5)),
    )


def random_behaviour(chance: Random, mix: Mix, spec: JobSpec) -> Behaviour:
    """How a job's tasks behave."""
    if spec.array == WIDE_ARRAY:
        return Behaviour(duration_ms_max=1, quick_count=WIDE_QUICK_COUNT)
    return Behaviour(
        duration_ms_max=chance.choice(mix.durations_ms_max),
        failing=chance.choice((0.0, 0.0, 0.1, 1.0)),
        unstartable=chance.choice((0.0, 0.0, 0.0, 0.1, 1.0)),
        stubborn=chance.choice((0.0, 0.0, 1.0)),
    )

"""Random jobs and what users do with them."""

from random import Random

from rota.core.model.resources import Resources
from rota.core.model.spec import Dependency, JobSpec
from rota.core.model.states import DependencyWhen, OnNodeLoss
from rota.sim.node import Behaviour

TASKS_MAX = 24
_SHAPES = (
    Resources(cpu=1000),
    Resources(cpu=500),
    Resources(cpu=2000),
    Resources(cpu=1000, memory=2**30),
    Resources(cpu=0, named=(("power", 5000),)),
)


def random_job(chance: Random, known: list[int], nodes: list[str]) -> JobSpec:
    """A job, perhaps after one of those that are known."""
    count = 1 if chance.random() < 0.3 else chance.randint(1, TASKS_MAX)
    after: tuple[Dependency, ...] = ()
    if known and chance.random() < 0.15:
        when = chance.choice((DependencyWhen.SUCCEEDED, DependencyWhen.FINISHED, DependencyWhen.FINISHED))
        after = (Dependency(str(chance.choice(known)), when),)
    return JobSpec(
        command=("task", "{index}"),
        array=f"0-{count - 1}" if count > 1 else "",
        max_running=chance.choice((0, 0, 0, 1, 3)),
        max_failures=chance.choice((None, None, None, 0, 3)),
        resources=chance.choice(_SHAPES),
        time_limit=chance.choice((0, 0, 0, 200)),
        grace=chance.choice((0, 100, 500)),
        retries=chance.choice((0, 0, 1, 3)),
        backoff=chance.choice((0, 0, 50)),
        on_node_loss=chance.choice(list(OnNodeLoss)),
        rerun_after=chance.choice((0, 0, 3_000)),
        after=after,
        queue=chance.choice(("default", "default", "batch")),
        priority=chance.choice((0, 0, 0, 10, -5)),
        node=chance.choice(nodes) if chance.random() < 0.1 else "",
    )


def random_behaviour(chance: Random) -> Behaviour:
    """How its tasks behave."""
    return Behaviour(
        duration_ms_max=chance.choice((1, 20, 300, 3_000, 30_000)),
        failing=chance.choice((0.0, 0.0, 0.1, 1.0)),
        unstartable=chance.choice((0.0, 0.0, 0.0, 0.1, 1.0)),
        stubborn=chance.choice((0.0, 0.0, 1.0)),
    )

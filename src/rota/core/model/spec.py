"""A job as users write it, and the defaults of what they leave out.

The fields are those of `rota.v1.JobSpec`; `rota.wire.convert` maps one to the other by name, and a
test compares them. Here every optional value has been given its default.
"""

from dataclasses import dataclass, field

from rota.core.model.resources import Resources
from rota.core.model.states import DependencyWhen, JobKind, OnNodeLoss

CPU_DEFAULT = 1000
GRACE_MS_DEFAULT = 10_000
RETENTION_MS_DEFAULT = 7 * 86_400_000
QUEUE_DEFAULT = "default"
BACKOFF_DOUBLINGS_FACTOR_MAX = 100


@dataclass(frozen=True, slots=True)
class Dependency:
    """`job` is a number, or the name of a job in the same submission."""

    job: str
    when: DependencyWhen = DependencyWhen.SUCCEEDED


@dataclass(frozen=True, slots=True)
class JobSpec:
    name: str = ""
    kind: JobKind = JobKind.BATCH
    command: tuple[str, ...] = ()
    script: str = ""
    path: str = ""
    array: str = ""
    lines: tuple[str, ...] = ()
    max_running: int = 0
    max_failures: int | None = None
    resources: Resources = field(default=Resources(cpu=CPU_DEFAULT))
    env: tuple[tuple[str, str], ...] = ()
    cwd: str = ""
    time_limit: int = 0
    signal: str = ""
    grace: int = GRACE_MS_DEFAULT
    retries: int = 0
    on_node_loss: OnNodeLoss = OnNodeLoss.RERUN
    rerun_after: int = 0
    after: tuple[Dependency, ...] = ()
    queue: str = QUEUE_DEFAULT
    priority: int = 0
    node: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    stdout: str = ""
    stderr: str = ""
    retention: int = RETENTION_MS_DEFAULT
    stdin: bool = False
    replicas: int = 0
    backoff: int = 0

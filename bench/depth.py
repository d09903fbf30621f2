"""A deep queue: how long calls take with 10,000 jobs of 1,000 tasks each waiting, its weight, a restart.

All of them ask for the one thing of its kind on the node, which a task has that does not end; so they wait,
parked, while the node takes what asks for something else. A restart is timed from the start of a new
controller until a job that is submitted then has run.
"""

import os
import select
import signal
from collections.abc import Callable, Iterator
from itertools import cycle

from bench.harness import Bar, Cluster, Point, Row, Size, cluster, memory_kib, pause_row, quantile, seconds
from rota.client.client import Client
from rota.client.messages import JobSpec

CALL_MS_MAX = 100
MEMORY_MIB_MAX = 1024
RESTART_S_MAX = 5
TASKS_A_JOB = 1_000
JOBS_A_CALL = 1_000


def rows(size: Size) -> Iterator[Row]:
    """At a tenth of the depth, and at all of it."""
    depth = size.of(10_000, 1_000)
    with cluster("--cpu", "2", "--resource", "token=1") as rota:
        with rota.client() as client:
            client.submit([waiting("sleep", "100000")])
        before = 0
        for jobs in (depth // 10, depth):
            with rota.client() as client:
                fill(client, jobs - before)
                before = jobs
                run(client)
                yield from _calls(client, jobs, size)
            yield from _weight(rota, jobs)
            yield pause_row("depth", rota, f"{jobs} jobs waiting")
            yield from _restart(rota, jobs)


def waiting(*command: str, array: str = "") -> JobSpec:
    """A job that asks for the token."""
    spec = JobSpec(command=command, array=array)
    spec.resources.cpu = 100
    spec.resources.named["token"] = 1_000
    return spec


def fill(client: Client, jobs: int) -> None:
    """So many jobs that wait."""
    spec = waiting("true", array=f"0-{TASKS_A_JOB - 1}")
    for start in range(0, jobs, JOBS_A_CALL):
        client.submit([spec] * min(JOBS_A_CALL, jobs - start))


def run(client: Client) -> None:
    """A job that gets its place at once, to its end."""
    *_, last = client.watch(client.submit([JobSpec(command=["true"])]).ids[0])
    assert last.tasks.succeeded == 1, last


def _calls(client: Client, jobs: int, size: Size) -> Iterator[Row]:
    """Calls one after the other, each of another job where it is of one."""
    newest = next(client.jobs(limit=1)).id
    # The first one has the token.
    some, cancelled = cycle(range(2, newest)), iter(range(2, newest))
    kinds: dict[str, Callable[[], object]] = {
        "submit": lambda: client.submit([waiting("true", array=f"0-{TASKS_A_JOB - 1}")]),
        "list 100": lambda: list(client.jobs(limit=100)),
        "show": lambda: client.job(next(some)),
        "show a task": lambda: client.task(next(some), 0),
        "cancel": lambda: client.cancel(next(cancelled)),
    }
    for kind, call in kinds.items():
        took_ms = [1000 * seconds(call) for _ in range(size.of(200, 50))]
        what = f"{kind}, {jobs} jobs waiting"
        half, most = quantile(took_ms, 0.5), quantile(took_ms, 0.99)
        yield Row("depth", f"{what}, p50", half, "ms", point=_point(kind, jobs, half))
        yield Row("depth", f"{what}, p99", most, "ms", bar=Bar(at_most=CALL_MS_MAX))


def _weight(rota: Cluster, jobs: int) -> Iterator[Row]:
    resident, _ = memory_kib(rota.pid("controller"))
    what = f"controller, resident memory, {jobs} jobs waiting"
    mib = resident / 1024
    yield Row("depth", what, mib, "MiB", bar=Bar(at_most=MEMORY_MIB_MAX), point=_point("memory", jobs, mib))


def _restart(rota: Cluster, jobs: int) -> Iterator[Row]:
    """The old controller has ended before the clock is started."""
    ended = os.pidfd_open(rota.pid("controller"))
    try:
        signal.pidfd_send_signal(ended, signal.SIGTERM)
        select.select([ended], [], [])
    finally:
        os.close(ended)

    def restart() -> None:
        rota("up", "--detach")
        with rota.client() as client:
            run(client)

    took_s = seconds(restart)
    what = f"restart to a job that has run, {jobs} jobs waiting"
    yield Row(
        "depth", what, took_s, "s", bar=Bar(at_most=RESTART_S_MAX), point=_point("restart", jobs, took_s)
    )


def _point(kind: str, jobs: int, cost: float) -> Point:
    return Point(f"deep queue: {kind}", jobs * TASKS_A_JOB, cost)

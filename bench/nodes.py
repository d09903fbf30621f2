"""Many nodes: what they cost a controller that has nothing to do, and how soon they are back after a restart.

The nodes are those of `rota sim edges`, two processes of them, over the real protocol. While the controller
is started again, tasks of some seconds each run on all of them; every one must end as a success.
"""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from bench.harness import ROTA, Bar, Cluster, Row, Size, cluster, cpu_s, memory_kib, pause_row
from rota.client.errors import Unreachable
from rota.client.messages import Job, JobSpec, JobState

CPU_PERCENT_MAX = 25
MEMORY_MIB_MAX = 1536
BACK_S_MAX = 30
PROCESSES = 2
CORES = 4
LOOK_S = 0.25
END_S_MAX = 300


def rows(size: Size) -> Iterator[Row]:
    """Joining, idle, and a restart under work."""
    count = size.of(10_000, 200)
    idle_s = size.of(30, 3)
    with cluster("--nodes", "0") as rota:
        began_s = time.monotonic()
        with edges(rota, count) as processes:
            until(lambda: ready(rota) == count)
            yield Row("nodes", f"joined and ready, {count} nodes", time.monotonic() - began_s, "s")
            yield from _idle(rota, count, idle_s, processes)
            yield pause_row("nodes", rota, f"{count} nodes join")
            yield from _restart(rota, count)
            yield pause_row("nodes", rota, f"{count} nodes come back under work")


@contextmanager
def edges(rota: Cluster, count: int) -> Iterator[Sequence["subprocess.Popen[bytes]"]]:
    """So many nodes, ended without a goodbye."""
    each = count // PROCESSES
    begun = [
        subprocess.Popen(
            [ROTA, "sim", "edges", "--count", str(each), "--first", str(each * number), "--cpu", str(CORES)],
            env=rota.environment,
            cwd=rota.place,
            stderr=subprocess.DEVNULL,
        )
        for number in range(PROCESSES)
    ]
    try:
        yield begun
    finally:
        for process in begun:
            process.kill()
            process.wait()


def until(true: Callable[[], bool]) -> None:
    """Looks now and then. Raises TimeoutError."""
    last_s = time.monotonic() + END_S_MAX
    while not true():
        if time.monotonic() > last_s:
            raise TimeoutError(f"it was not so after {END_S_MAX} s")
        time.sleep(LOOK_S)


def ready(rota: Cluster) -> int:
    """How many nodes can take work; 0 where the controller, which thousands call at once, does not answer."""
    with suppress(Unreachable), rota.client() as client:
        return client.cluster().nodes_ready
    return 0


def _idle(
    rota: Cluster, count: int, idle_s: int, processes: Sequence["subprocess.Popen[bytes]"]
) -> Iterator[Row]:
    controller = rota.pid("controller")
    time.sleep(LOOK_S)
    before_s = cpu_s(controller)
    time.sleep(idle_s)
    percent = (cpu_s(controller) - before_s) * 100 / idle_s
    yield Row("nodes", f"controller idle, {count} nodes", percent, "%", bar=Bar(at_most=CPU_PERCENT_MAX))
    resident_mib = memory_kib(controller)[0] / 1024
    bar = Bar(at_most=MEMORY_MIB_MAX)
    yield Row("nodes", f"controller resident, {count} nodes", resident_mib, "MiB", bar=bar)
    of_edges_kib = sum(memory_kib(process.pid)[0] for process in processes)
    yield Row("nodes", "resident, a simulated node", of_edges_kib / count, "KiB")


def _restart(rota: Cluster, count: int) -> Iterator[Row]:
    """With twice as many tasks as there are slots, of which the first half runs."""
    tasks = count * CORES * 2
    spec = JobSpec(command=["sleep", "20" if count > 1_000 else "2"], array=f"0-{tasks - 1}")
    with rota.client() as client:
        job = client.submit([spec]).ids[0]
        until(lambda: client.job(job).tasks.running > 0)
    rota("down", "--timeout", "5s")
    began_s = time.monotonic()
    rota("up", "--detach", "--nodes", "0")
    up_s = time.monotonic() - began_s
    until(lambda: ready(rota) == count)
    back_s = time.monotonic() - began_s
    yield Row("nodes", f"controller up again, {count} nodes", up_s, "s")
    yield Row("nodes", f"all back after a restart, {count} nodes", back_s, "s", bar=Bar(at_most=BACK_S_MAX))
    last = _ended(rota, job)
    assert last.state == JobState.JOB_STATE_SUCCEEDED, last
    again = last.tasks.total - last.tasks.succeeded
    yield Row("nodes", f"tasks lost by the restart, {count} nodes", again, "tasks", bar=Bar(at_most=0))


def _ended(rota: Cluster, job: int) -> Job:
    with rota.client() as client:
        *_, last = client.watch(job)
        return last

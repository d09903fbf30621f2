"""Processes per second: arrays of /bin/true with output files off and on, and as many jobs of one task.

One node with two cores. Each is measured in turn with the bare loop that is the most this machine can do:
`posix_spawn` and reap on both cores. CPU time is told too: of everything, the programs included. What cgroups
cost is told apart: an array on a node that has none, in turn with one on the node that has.
"""

from collections.abc import Callable, Iterator
from statistics import median

from bench.harness import (
    WITHOUT_CGROUPS,
    Bar,
    Cluster,
    Row,
    Size,
    cluster,
    hides_cgroups,
    in_turn,
    medians,
    pause_row,
    ratios,
    seconds,
)
from bench.limits import spawns
from rota.client.client import Client
from rota.client.messages import EventKind, JobSpec

COMMAND = ["/bin/true"]
BARE, BARE_FILES = "bare loop", "bare loop with files"


def rows(size: Size) -> Iterator[Row]:
    """Rates and CPU, each with its ratio to the bare loop of the same rounds."""
    count = size.of(10_000, 2_000)
    with cluster("--cpu", "2") as rota, rota.client() as client:
        run_array(client, 10)
        off = {"stdout": "none", "stderr": "none"}
        tries = {
            "array, output files off": (lambda: run_array(client, count, **off), Bar(at_least=0.75, of=BARE)),
            "array, output files on": (lambda: run_array(client, count), Bar(at_least=0.65, of=BARE)),
            "jobs of one task": (lambda: run_jobs(client, count), Bar(at_least=0.5, of=BARE)),
        }
        for what, (work, bar) in tries.items():
            yield from beside_bare_loops(rota, size, what, work, count, bar)
        yield pause_row("processes", rota, "processes")
        if not size.small and hides_cgroups():
            yield without_cgroups(client, size, count)


def without_cgroups(beside: Client, size: Size, count: int) -> Row:
    """The array on a node without cgroups, in turn with the one that has them: what they cost."""
    off = {"stdout": "none", "stderr": "none"}
    with cluster("--cpu", "2", prefix=WITHOUT_CGROUPS) as rota, rota.client() as client:
        run_array(client, 10)
        found = in_turn(
            size.rounds,
            without=lambda: count / seconds(lambda: run_array(client, count, **off)),
            **{"with cgroups": lambda: count / seconds(lambda: run_array(beside, count, **off))},
        )
    what = "array, output files off, no cgroups"
    return Row("processes", what, medians(found)["without"], "/s", ratios(found, "without"))


def beside_bare_loops(
    rota: Cluster, size: Size, what: str, work: Callable[[], object], count: int, bar: Bar
) -> Iterator[Row]:
    """Work of so many processes, and the bare loops in turn with it."""
    ours_us, bare_us = [], []

    def ours() -> float:
        before_s = rota.cpu_s()
        took_s = seconds(work)
        ours_us.append(1e6 * (rota.cpu_s() - before_s) / count)
        return count / took_s

    def bare() -> float:
        per_s, each_s = spawns(count)
        bare_us.append(1e6 * each_s)
        return per_s

    found = in_turn(
        size.rounds, **{"ours": ours, BARE: bare, BARE_FILES: lambda: spawns(count, files=True)[0]}
    )
    yield Row("processes", what, medians(found)["ours"], "/s", ratios(found, "ours"), bar)
    cpu_us = median(ours_us)
    yield Row("processes", f"{what}, CPU of one", cpu_us, "µs", {BARE: cpu_us / median(bare_us)})


def run_array(client: Client, count: int, **more: str) -> None:
    """An array of so many, from its submission to its end, which must be a success."""
    spec = JobSpec(command=COMMAND, array=f"0-{count - 1}", **more)  # type: ignore[arg-type]
    *_, last = client.watch(client.submit([spec]).ids[0])
    assert last.tasks.succeeded == count, last


def run_jobs(client: Client, count: int) -> None:
    """So many jobs of one task in one call, until the last has ended."""
    after = max((event.seq for event in client.events(limit=1)), default=0)
    spec = JobSpec(command=COMMAND, stdout="none", stderr="none")
    left = set(client.submit([spec] * count).ids)
    for event in client.events(after=after, follow=True, kinds=[EventKind.EVENT_KIND_JOB_ENDED]):
        left.discard(event.job)
        if not left:
            return

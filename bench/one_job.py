"""One job at a time, warm: how long it takes on the server, and how long commands take whole.

On the server: a connection that stands submits a job of `/bin/true`, and hears of its end, which is told once
it is committed, on a stream that was open before. So the time has one way over loopback to the controller and
one back in it; nothing is subtracted. Back to back, and with pauses, as people type.

Commands: each whole, from its start to its end, in turn with what Python takes to import click and grpc.aio.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

from bench.harness import ROTA, Bar, Cluster, Row, Size, cluster, in_turn, medians, quantile, ratios
from bench.limits import command_ms, python_ms
from rota.client.client import Client
from rota.client.messages import EventKind, JobSpec

PAUSE_S = 0.25
# The first ones warm caches and connections.
UNCOUNTED = 10
IMPORTS = "imports"

JOB_FILE = "name: bench\ncommand: ['true']\n"


def rows(size: Size) -> Iterator[Row]:
    """The server's part, then whole commands."""
    with cluster() as rota:
        yield from server_side(rota, size)
        yield from commands(rota, size)


def server_side(rota: Cluster, size: Size) -> Iterator[Row]:
    """From before the submission is sent until its end is heard of."""
    with rota.client() as client:
        trip_ms = jobs_ms(client)
        found = [trip_ms() for _ in range(size.of(500, 100) + UNCOUNTED)][UNCOUNTED:]
        yield Row("one_job", "server side, p50", quantile(found, 0.5), "ms", bar=Bar(at_most=5))
        yield Row("one_job", "server side, p99", quantile(found, 0.99), "ms", bar=Bar(at_most=20))
        asked = [empty_ms(client) for _ in range(size.of(200, 50))]
        yield Row("one_job", "of it the way there and back", quantile(asked, 0.5), "ms")
        paused = []
        for _ in range(size.of(100, 10)):
            time.sleep(PAUSE_S)
            paused.append(trip_ms())
        what = f"server side after pauses of {PAUSE_S} s"
        yield Row("one_job", f"{what}, p50", quantile(paused, 0.5), "ms")
        yield Row("one_job", f"{what}, p90", quantile(paused, 0.9), "ms")


def jobs_ms(client: Client) -> Callable[[], float]:
    """A function that runs a job and says how long that took, in milliseconds."""
    spec = JobSpec(command=["true"], cwd="/")
    last = max((event.seq for event in client.events(limit=1)), default=0)
    ends = client.events(after=last, follow=True, kinds=[EventKind.EVENT_KIND_JOB_ENDED])

    def run() -> float:
        began_s = time.perf_counter()
        number = client.submit([spec]).ids[0]
        event = next(ends)
        took_ms = 1000 * (time.perf_counter() - began_s)
        assert event.job == number, (event, number)
        return took_ms

    return run


def empty_ms(client: Client) -> float:
    """A question that the controller answers from what it has in memory."""
    began_s = time.perf_counter()
    client.queues()
    return 1000 * (time.perf_counter() - began_s)


def commands(rota: Cluster, size: Size) -> Iterator[Row]:
    """Whole commands, in turn."""
    (rota.place / "job.yaml").write_text(JOB_FILE)
    # There are jobs by now; that of number 1 has ended.
    home = rota.environment
    asked = {
        "rota run -- true": ("run", "--", "true"),
        "rota --help": ("--help",),
        "rota ls": ("ls",),
        "rota show": ("show", "1"),
        "rota logs": ("logs", "1"),
        "rota wait": ("wait", "1"),
        "rota submit FILE": ("submit", str(rota.place / "job.yaml")),
    }
    tries: dict[str, Callable[[], float]] = {
        what: partial(command_ms, ROTA, *arguments, environment=home) for what, arguments in asked.items()
    }
    tries["completion of 'rota show '"] = partial(
        complete_ms, home | {"_ROTA_COMPLETE": "bash_complete", "COMP_WORDS": "rota show ", "COMP_CWORD": "2"}
    )
    if size.small:
        tries = {what: tries[what] for what in ("rota run -- true", "rota --help")}
    tries[IMPORTS] = python_ms
    tries["python -c pass"] = partial(python_ms, "pass")
    for warm in tries.values():
        warm()
    found = in_turn(size.of(8 * size.rounds, 5), **tries)
    middle = medians(found)
    bars = {
        "rota run -- true": Bar(at_most=2.0, of=IMPORTS),
        "rota --help": Bar(at_most=80),
    }
    for what, values in found.items():
        beside = (
            {}
            if what == IMPORTS
            else {IMPORTS: ratios({what: values, IMPORTS: found[IMPORTS]}, what)[IMPORTS]}
        )
        yield Row("one_job", what, middle[what], "ms", beside, bars.get(what))


def complete_ms(environment: dict[str, str]) -> float:
    """As a shell completes."""
    return command_ms(ROTA, environment=environment)

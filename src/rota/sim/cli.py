"""`rota sim check`: the simulator for people."""

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import click

from rota.sim.check import STEPS_DEFAULT, Found, run_seed
from rota.sim.runs import run_seeds

SEEDS_MAX = 10_000_000
SHOWN_MAX = 10
PROGRESS_S = 2.0


class Seeds(click.ParamType[range]):
    """`7` or `1..2000`."""

    name = "A..B"

    def convert(self, value: str | range, param: click.Parameter | None, ctx: click.Context | None) -> range:
        """The seeds as a range, both ends included."""
        if isinstance(value, range):
            return value
        first, dots, last = value.partition("..")
        try:
            low = int(first)
            high = int(last) if dots else low
        except ValueError:
            self.fail(f"'{value}' are no seeds; try 7 or 1..2000", param, ctx)
        if low < 0 or high < low:
            self.fail(f"'{value}' is upside down or below 0; try 1..2000", param, ctx)
        if high - low >= SEEDS_MAX:
            self.fail(f"'{value}' are more than {SEEDS_MAX:,} seeds", param, ctx)
        return range(low, high + 1)


@click.command("check")
@click.option("--seeds", type=Seeds(), default="1..100", show_default=True, help="Which seeds to run.")
@click.option(
    "--steps",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=STEPS_DEFAULT,
    show_default=True,
    help="Events with faults in each run; then the faults stop and everything must finish.",
)
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the history of the run here (one seed alone).",
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 256),
    metavar="N",
    default=None,
    help="Processes; as many as cores if not given.",
)
@click.option("-x", "--first", is_flag=True, help="Stop at the first seed that breaks something.")
@click.option("--edges", is_flag=True, help="The nodes are those of 'rota sim edges'.")
def check(seeds: range, steps: int, trace: Path | None, jobs: int | None, first: bool, edges: bool) -> int:
    """Run random clusters with random faults, and check every promise after every event.

    The same seed gives the same history, to the byte.

    Where something breaks: which seed and event, which promise, what happened last; the exit code is 1.

    \b
    Examples:
      rota sim check                                   100 clusters, on every core
      rota sim check --seeds 1..2000 --first           until one breaks something
      rota sim check --seeds 17 --trace history.txt    one, and all that happens in it
      rota sim check --seeds 17 --steps 5000           the same one, with faults for longer
    """  # noqa: D301 - click reads the control character
    began_s = time.monotonic()
    more = ("" if steps == STEPS_DEFAULT else f" --steps {steps}") + (" --edges" if edges else "")
    if trace is not None:
        if len(seeds) > 1:
            raise click.UsageError("--trace takes one seed alone, as in: --seeds 17 --trace history.txt")
        try:
            with trace.open("w", encoding="utf-8") as file:
                history = [run_seed(seeds[0], steps, lambda line: print(line, file=file), edges=edges)]
        except OSError as error:
            raise click.UsageError(f"--trace: {trace} cannot be written: {error.strerror}") from error
        found = _report(history, len(seeds), more, began_s)
    else:
        results = run_seeds(seeds, steps, jobs or os.cpu_count() or 1, edges=edges)
        found = _report(_until_broken(results) if first else results, len(seeds), more, began_s)
    return 1 if found else 0


def _until_broken(results: Iterable[Found]) -> Iterable[Found]:
    for found in results:
        yield found
        if found.invariant:
            return


def _show(found: Found, more: str) -> None:
    """What broke, how it came to that, and how to see it again."""
    click.echo(f"seed {found.seed}, event {found.events}: {found.message}")
    click.echo("  last happened:")
    for line in found.last:
        click.echo(f"  {line}")
    click.echo(f"  all of it: rota sim check --seeds {found.seed}{more} --trace history.txt")


def _report(results: Iterable[Found], seed_count: int, more: str, began_s: float) -> int:
    """Prints what breaks as it is found, and the sum; how many seeds broke something."""
    events = broken = done = 0
    said_s = began_s
    for done, found in enumerate(results, 1):
        events += found.events
        if found.invariant:
            broken += 1
            if broken <= SHOWN_MAX:
                _show(found, more)
        now_s = time.monotonic()
        if sys.stderr.isatty() and now_s - said_s > PROGRESS_S:
            said_s = now_s
            click.echo(f"\r{done} of {seed_count} seeds, {broken} broken", nl=False, err=True)
    if sys.stderr.isatty() and said_s > began_s:
        click.echo("\r\033[K", nl=False, err=True)
    time_s = time.monotonic() - began_s
    seeds = "1 seed" if done == 1 else f"{done:,} seeds"
    click.echo(f"{seeds}, {events:,} events, {time_s:.1f} s: {broken or 'none'} broken")
    return broken

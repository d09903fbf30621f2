"""`rota events`."""

from collections.abc import Sequence
from contextlib import suppress

import click

from rota.cli import app, formats
from rota.cli.listing import Column, Listing, output_option, plain, print_json, print_yaml, state
from rota.cli.session import JobNumber, NodeName, client, not_empty
from rota.cli.states import choices, short, value
from rota.client.client import PATIENCE_OF_WAITING_S, PATIENCE_S, Client
from rota.client.errors import NotFound, Refused
from rota.client.messages import Event, EventKind

# So many ends of a job's attempts become events, as the contract says.
ENDS_OF_JOB_MAX = 100

_LEASES = (EventKind.EVENT_KIND_LEASE_OPENED, EventKind.EVENT_KIND_LEASE_CLOSED)


def _about(event: Event) -> str:
    if event.job:
        task = f"/{event.index}" if event.HasField("index") else ""
        return f"{event.job}{task}" + (f".{event.attempt}" if event.attempt else "")
    return event.node


def _says(event: Event) -> str:
    parts = [
        formats.outcome(event.cause, event.code) if event.cause else "",
        f"on {event.node}" if event.job and event.node else "",
        f"by {event.by}" if event.by else "",
        event.message,
    ]
    return " ".join(filter(None, parts))


EVENTS = Listing[Event](
    "events",
    lambda event: str(event.seq),
    [
        Column("SEQ", lambda event: str(event.seq), wide=True, right=True),
        Column("TIME", lambda event: formats.clock(event.at_ms)),
        Column("EVENT", lambda event: short(EventKind, event.kind)),
        Column("ABOUT", _about),
        Column("WHAT", _says),
    ],
)


@click.command(
    epilog="""\b
Examples:
  rota events                   the last hundred
  rota events -f --job 42       those of a job, as they come
  rota events --kind job_ended  the ends of jobs alone
  rota events -o json --node a  those of a node, for programs
"""
)
@click.option("-f", "--follow", is_flag=True, help="Go on as they come; JSON is one event a line then.")
@click.option(
    "--job",
    type=JobNumber(),
    default=0,
    metavar="ID",
    help=f"Only those of this job: of its tasks' failures the first {ENDS_OF_JOB_MAX}.",
)
@click.option(
    "--node",
    default="",
    metavar="NAME",
    type=NodeName(),
    callback=not_empty,
    help="Only those of this node.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    type=click.Choice(choices(EventKind), case_sensitive=False),
    help="Only these, as job_ended; may be given several times.",
)
@click.option("--all", "every", is_flag=True, help="Also leases, of which there are many.")
@click.option(
    "--limit",
    default=100,
    show_default=True,
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="At most so many, the last.",
)
@output_option
def events(
    follow: bool, job: int, node: str, kinds: Sequence[str], every: bool, limit: int, output: str
) -> None:
    """Print what happened: to jobs, nodes, queues and tokens; of tasks what did not simply succeed."""
    chosen = [value(EventKind, kind) for kind in kinds]
    if not chosen and not every:
        chosen = [kind for kind in EventKind.values() if kind and kind not in _LEASES]
    with client(PATIENCE_OF_WAITING_S if follow else PATIENCE_S) as rota:
        found = rota.events(limit=limit, follow=follow, job=job, node=node, kinds=chosen)
        if follow:
            if output in ("table", "wide"):
                click.echo(_line("SEQ", "TIME", "EVENT", "ABOUT", "WHAT", wide=output == "wide"))
            for event in found:
                _print(event, output)
        else:
            EVENTS.print(found, output, "no such events" if job or node or kinds else "no events yet")
            if job and (not chosen or EventKind.EVENT_KIND_ATTEMPT_ENDED in chosen):
                _say_what_is_missing(rota, job)


def _say_what_is_missing(rota: Client, job: int) -> None:
    # The job may have been forgotten, or be another user's: its events are there all the same.
    with suppress(NotFound, Refused):
        failed = rota.job(job).tasks.failed
        if failed > ENDS_OF_JOB_MAX:
            app.say(
                f"of a job's failed attempts the first {ENDS_OF_JOB_MAX} are events, and {failed:,} tasks "
                f"failed; 'rota show {job} --failed' has them all"
            )


def _print(event: Event, output: str) -> None:
    if output == "json":
        print_json(plain(event), line=True)
    elif output == "yaml":
        print_yaml([plain(event)])
    elif output == "name":
        click.echo(str(event.seq))
    else:
        kind = short(EventKind, event.kind)
        about, says = formats.safe(_about(event)) or "-", formats.safe(_says(event)) or "-"
        when = formats.clock(event.at_ms)
        click.echo(_line(str(event.seq), when, kind, about, says, wide=output == "wide"))


def _line(number: str, when: str, kind: str, about: str, says: str, *, wide: bool) -> str:
    """A line of a table that has no end, so that its columns' widths are chosen ahead."""
    begins = f"{number:>8}  " if wide else ""
    return f"{begins}{when:<19}  {state(kind)}{' ' * (20 - len(kind))}  {about:<12}  {says}".rstrip()

"""`rota events`."""

import click

from rota.cli import formats
from rota.cli.listing import Column, Listing, output_option, plain, print_json, print_yaml, state
from rota.cli.session import JobNumber, client
from rota.cli.states import short
from rota.client.client import PATIENCE_OF_WAITING_S, PATIENCE_S
from rota.client.messages import Event, EventKind


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
  rota events -o json --node a  those of a node, for programs
"""
)
@click.option("-f", "--follow", is_flag=True, help="Go on as they come; JSON is one event a line then.")
@click.option("--job", type=JobNumber(), default=0, metavar="ID", help="Only those of this job.")
@click.option("--node", default="", metavar="NAME", help="Only those of this node.")
@click.option(
    "--limit",
    default=100,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="At most so many, the last.",
)
@output_option
def events(follow: bool, job: int, node: str, limit: int, output: str) -> None:
    """Print what happened: to jobs, nodes, queues and tokens; of tasks what did not simply succeed."""
    with client(PATIENCE_OF_WAITING_S if follow else PATIENCE_S) as rota:
        found = rota.events(limit=limit, follow=follow, job=job, node=node)
        if follow:
            for event in found:
                _print(event, output)
        else:
            EVENTS.print(found, output, "no events yet")


def _print(event: Event, output: str) -> None:
    if output == "json":
        print_json(plain(event), line=True)
    elif output == "yaml":
        print_yaml([plain(event)])
    elif output == "name":
        click.echo(str(event.seq))
    else:
        number = f"{event.seq:>8}  " if output == "wide" else ""
        kind = short(EventKind, event.kind)
        line = f"{number}{formats.clock(event.at_ms)}  {state(kind)}{' ' * (21 - len(kind))}"
        click.echo(f"{line}  {formats.safe(_about(event)):<12}  {formats.safe(_says(event))}".rstrip())

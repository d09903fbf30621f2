"""`rota queue`."""

from collections.abc import Sequence

import click

from rota.cli import formats
from rota.cli.group import Entry, LazyGroup
from rota.cli.listing import Column, Listing, output_option
from rota.cli.session import client, each, pairs
from rota.client.messages import Queue
from rota.client.texts import resources_from_texts


def _priorities(queue: Queue) -> str:
    low = str(queue.priority_min) if queue.HasField("priority_min") else ""
    high = str(queue.priority_max) if queue.HasField("priority_max") else ""
    return f"{low}..{high}" if low or high else "any"


QUEUES = Listing[Queue](
    "queues",
    lambda queue: queue.name,
    [
        Column("NAME", lambda queue: queue.name),
        Column("WEIGHT", lambda queue: str(queue.weight or 1), right=True),
        Column("PENDING", lambda queue: f"{queue.jobs_pending:,}", right=True),
        Column("RUNNING", lambda queue: f"{queue.jobs_running:,}", right=True),
        Column("CHARGED", lambda queue: formats.resources(queue.charged)),
        Column("QUOTA", lambda queue: formats.resources(queue.quota)),
        Column("PRIORITIES", _priorities, wide=True),
    ],
)

queue = LazyGroup(
    "queue",
    {
        "create": Entry("rota.cli.queue:create", "make or change a queue"),
        "ls": Entry("rota.cli.queue:ls", "list queues"),
        "rm": Entry("rota.cli.queue:rm", "remove queues that have no jobs"),
    },
    "Queues: whose work it is.",
)


@click.command(
    epilog="""\b
Examples:
  rota queue create video --weight 3 --quota cpu=64 --quota memory=256GiB
  rota queue create video --weight 5 --update
"""
)
@click.argument("name", metavar="NAME")
@click.option("--weight", type=click.IntRange(1, 1_000_000), default=1, help="Its share beside other queues.")
@click.option("--quota", multiple=True, metavar="RESOURCE=N", help="Most its work may hold together.")
@click.option("--priority-min", type=click.IntRange(-1000, 1000), help="Least priority of its jobs.")
@click.option("--priority-max", type=click.IntRange(-1000, 1000), help="Highest priority of its jobs.")
@click.option("--update", is_flag=True, help="Change the queue if it exists.")
@output_option
def create(
    name: str,
    weight: int,
    quota: Sequence[str],
    priority_min: int | None,
    priority_max: int | None,
    update: bool,
    output: str,
) -> None:
    """Make a queue, or change one."""
    wanted = Queue(name=name, weight=weight, priority_min=priority_min, priority_max=priority_max)
    if quota:
        wanted.quota.CopyFrom(resources_from_texts(pairs(quota, "quota", "--quota cpu=64"), "--quota"))
    with client() as rota:
        made = rota.create_queue(wanted, update=update)
    QUEUES.print_one(made, output)


@click.command(epilog="Example: rota queue ls")
@output_option
def ls(output: str) -> None:
    """List queues."""
    with client() as rota:
        QUEUES.print(rota.queues(), output, "no queues")


@click.command(epilog="Example: rota queue rm video")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def rm(names: Sequence[str]) -> int:
    """Remove queues that have no jobs."""
    with client() as rota:

        def act(name: str) -> None:
            rota.delete_queue(name)
            click.echo(f"queue {formats.safe(name)} is removed")

        return each(names, act)

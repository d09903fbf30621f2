"""`rota queue`."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from rota.cli import formats
from rota.cli.group import Entry, LazyGroup
from rota.cli.listing import Column, Listing, output_option
from rota.cli.session import QueueName, client, each, not_empty, pairs
from rota.client.errors import NotFound
from rota.client.messages import Queue, Resources
from rota.client.texts import RESOURCES, resources_from_texts

F = TypeVar("F", bound=Callable[..., Any])
NO_LIMIT = "-"


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
        "create": Entry("rota.cli.queue:create", "make a queue"),
        "update": Entry("rota.cli.queue:update", "change a queue"),
        "ls": Entry("rota.cli.queue:ls", "list queues"),
        "rm": Entry("rota.cli.queue:rm", "remove queues whose jobs have all ended"),
    },
    "Queues: whose work it is. `default` is always there.",
)


ANY = "any"


class _Bound(click.ParamType[int | str]):
    """The least or highest priority of a queue's jobs, or `any`."""

    name = "N|any"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """A number as it is, `any` as a text."""
        return ANY if value == ANY else _PRIORITY.convert(value, param, ctx)


_PRIORITY = click.IntRange(-1000, 1000)


def _options(function: F) -> F:
    function = output_option(function)
    for option in reversed(
        (
            click.option(
                "--weight",
                type=click.IntRange(1, 1_000_000),
                metavar="N",
                help="Its share beside other queues (default: 1).",
            ),
            click.option(
                "--quota",
                multiple=True,
                metavar="RESOURCE=N",
                help="Most its work may hold together; RESOURCE=- for no limit.",
            ),
            click.option(
                "--priority-min", type=_Bound(), metavar="N|any", help="Least priority of its jobs."
            ),
            click.option(
                "--priority-max", type=_Bound(), metavar="N|any", help="Highest priority of its jobs."
            ),
        )
    ):
        function = option(function)
    return function


@click.command(
    epilog="""\b
Examples:
  rota queue create video --weight 3
  rota queue create night --quota cpu=64 --quota memory=256GiB --priority-max 0
"""
)
@click.argument("name", metavar="NAME", callback=not_empty)
@_options
def create(name: str, output: str, **options: Any) -> None:
    """Make a queue."""
    wanted = _changed(Queue(name=name, weight=1), **options)
    with client() as rota:
        QUEUES.print_one(rota.create_queue(wanted), output)


@click.command(
    epilog="""\b
Examples:
  rota queue update video --weight 5
  rota queue update video --quota cpu=- --priority-max any  without these limits
"""
)
@click.argument("name", metavar="NAME", type=QueueName(), callback=not_empty)
@_options
def update(name: str, output: str, **options: Any) -> None:
    """Change a queue: what is named; the rest stays."""
    if not any(given not in (None, ()) for given in options.values()):
        says = "what shall change? give --weight, --quota, --priority-min or --priority-max"
        raise click.UsageError(says, click.get_current_context())
    _changed(Queue(), **options)  # what is wrong is said before anybody is asked
    with client() as rota:
        found = next((queue for queue in rota.queues() if queue.name == name), None)
        if found is None:
            raise NotFound(f"there is no queue '{name}'; 'rota queue ls' lists queues")
        QUEUES.print_one(rota.create_queue(_changed(found, **options), update=True), output)


def _changed(
    queue: Queue,
    weight: int | None,
    quota: Sequence[str],
    priority_min: int | str | None,
    priority_max: int | str | None,
) -> Queue:
    """The queue with what options say of it."""
    changed = Queue(name=queue.name, weight=weight or queue.weight)
    bounds: list[tuple[Any, int | str | None]] = [
        ("priority_min", priority_min),
        ("priority_max", priority_max),
    ]
    for field, given in bounds:
        if isinstance(given, int):
            setattr(changed, field, given)
        elif given is None and queue.HasField(field):
            setattr(changed, field, getattr(queue, field))
    limits = _limits(quota)
    kept = Resources()
    kept.CopyFrom(queue.quota)
    name: Any
    for name in limits:
        if name in RESOURCES:
            kept.ClearField(name)
        else:
            kept.named.pop(name, None)
    texts = {name: text for name, text in limits.items() if text != NO_LIMIT}
    kept.MergeFrom(resources_from_texts(texts, "--quota"))
    if kept.ByteSize():
        changed.quota.CopyFrom(kept)
    return changed


def _limits(quota: Sequence[str]) -> dict[str, str]:
    limits = pairs(quota, "quota", "--quota cpu=64")
    for name, text in limits.items():
        if text == "0":
            says = f"--quota {name}=0 would be no limit: say {name}={NO_LIMIT}, or at least 1"
            raise click.UsageError(says, click.get_current_context())
    return limits


@click.command(epilog="Example: rota queue ls")
@output_option
def ls(output: str) -> None:
    """List queues."""
    with client() as rota:
        QUEUES.print(rota.queues(), output, "no queues")


@click.command(epilog="Example: rota queue rm video")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", type=QueueName(), callback=not_empty)
def rm(names: Sequence[str]) -> int:
    """Remove queues whose jobs have all ended."""
    with client() as rota:

        def act(name: str) -> None:
            rota.delete_queue(name)
            click.echo(f"queue {formats.safe(name)} is removed")

        return each(names, act)

"""`rota node`."""

from collections.abc import Sequence

import click

from rota.cli import formats
from rota.cli.group import Entry, LazyGroup
from rota.cli.listing import Column, Listing, output_option, state
from rota.cli.session import NodeName, client, each, not_empty, pairs
from rota.cli.states import short
from rota.cli.units import Duration
from rota.client.messages import (
    CordonNodeResponse,
    DrainNodeResponse,
    Node,
    NodeState,
    ResumeNodeResponse,
)


def _state(node: Node) -> str:
    flags = [*(["cordoned"] if node.cordoned else []), *(["draining"] if node.draining else [])]
    return ", ".join([short(NodeState, node.state), *flags])


def _labels(node: Node) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(node.labels.items()))


def _heard(node: Node) -> str:
    return (
        "never"
        if node.silent_ms < 0
        else f"{formats.duration(node.silent_ms)} ago"
        if node.silent_ms
        else "now"
    )


NODES = Listing[Node](
    "nodes",
    lambda node: node.name,
    [
        Column("NAME", lambda node: node.name),
        Column("STATE", _state),
        Column("RUNNING", lambda node: f"{node.running:,}", right=True),
        Column("CAPACITY", lambda node: formats.resources(node.capacity)),
        Column("CHARGED", lambda node: formats.resources(node.charged)),
        Column("HEARD", _heard, right=True),
        Column("LABELS", _labels, wide=True),
        Column("ADDRESS", lambda node: node.address, wide=True),
        Column("VERSION", lambda node: node.inventory.agent_version, wide=True),
        Column("ID", lambda node: node.id, wide=True),
    ],
)

node = LazyGroup(
    "node",
    {
        "ls": Entry("rota.cli.node:ls", "list nodes"),
        "show": Entry("rota.cli.node:show", "show one node"),
        "cordon": Entry("rota.cli.node:cordon", "place nothing new there"),
        "drain": Entry("rota.cli.node:drain", "cordon, and stop what still runs at a deadline"),
        "resume": Entry("rota.cli.node:resume", "end cordon and drain"),
        "label": Entry("rota.cli.node:label", "set and remove labels"),
        "rm": Entry("rota.cli.node:rm", "forget a node"),
    },
    "Machines that run work.",
)

_NAMES = click.argument(
    "nodes", nargs=-1, required=True, metavar="NAME...", type=NodeName(), callback=not_empty
)


@click.command(epilog="Example: rota node ls -o wide")
@output_option
def ls(output: str) -> None:
    """List nodes."""
    with client() as rota:
        NODES.print(
            rota.nodes(), output, "no nodes yet; 'rota up' starts one here, 'rota agent --join' elsewhere"
        )


@click.command(epilog="Example: rota node show a")
@click.argument("name", metavar="NAME", type=NodeName(), callback=not_empty)
@output_option
def show(name: str, output: str) -> None:
    """Show one node: state, capacity, facts, and what its agent cannot enforce."""
    with client() as rota:
        NODES.print_one(rota.node(name), output, _node)


@click.command(epilog="Example: rota node cordon a b")
@_NAMES
@output_option
def cordon(nodes: Sequence[str], output: str) -> int:
    """Place nothing new on nodes; what runs there goes on."""
    with client() as rota:

        def act(name: str) -> None:
            answer = rota.cordon_node(name)
            _say(answer, output, f"node {name} is {_already(answer.changed)}cordoned")

        return each(nodes, act)


@click.command(epilog="Example: rota node drain a --deadline 30m")
@_NAMES
@click.option("--deadline", type=Duration(), help="Stop what still runs after so long (default: never).")
@output_option
def drain(nodes: Sequence[str], deadline: int | None, output: str) -> int:
    """Cordon nodes, and stop what still runs there at the deadline."""
    with client() as rota:

        def act(name: str) -> None:
            answer = rota.drain_node(name, deadline_ms=deadline)
            _say(answer, output, f"node {name} is {_already(answer.changed)}draining")

        return each(nodes, act)


@click.command(epilog="Example: rota node resume a")
@_NAMES
@output_option
def resume(nodes: Sequence[str], output: str) -> int:
    """End cordon and drain."""
    with client() as rota:

        def act(name: str) -> None:
            answer = rota.resume_node(name)
            says = "takes work again" if answer.changed else "is not cordoned: nothing to resume"
            _say(answer, output, f"node {name} {says}")

        return each(nodes, act)


@click.command(epilog="Example: rota node label a disk=ssd rack=-")
@click.argument("name", metavar="NAME", type=NodeName(), callback=not_empty)
@click.argument("labels", nargs=-1, required=True, metavar="K=V...")
@output_option
def label(name: str, labels: Sequence[str], output: str) -> None:
    """Set labels of a node; K=- removes one."""
    given = pairs(labels, "label", "disk=ssd, or disk=- to remove it")
    kept = {key: value for key, value in given.items() if value != "-"}
    with client() as rota:
        changed = rota.label_node(name, kept, [key for key in given if key not in kept])
    says = formats.safe(f"node {name}: {_labels(changed) or 'no labels'}")
    NODES.print_changed(changed, output, says, changed=True)


@click.command(epilog="Example: rota node rm a")
@_NAMES
@click.option("--force", is_flag=True, help="Also while it is connected or holds work.")
def rm(nodes: Sequence[str], force: bool) -> int:
    """Forget nodes for good: what they hold is lost, and a machine can only join again, as a new node."""
    with client() as rota:

        def act(name: str) -> None:
            rota.remove_node(name, force=force)
            click.echo(f"node {formats.safe(name)} is removed")

        return each(nodes, act)


def _already(changed: bool) -> str:
    return "" if changed else "already "


def _say(answer: CordonNodeResponse | DrainNodeResponse | ResumeNodeResponse, output: str, text: str) -> None:
    NODES.print_changed(answer.node, output, formats.safe(text), changed=answer.changed)


def _deadline(node: Node) -> str:
    return (
        f"what runs is stopped in {formats.duration(node.drain_deadline_ms)}"
        if node.drain_deadline_ms
        else ""
    )


# For programs, which find them in `-o json`.
_LONG_FACTS = ("cpu.flags",)


def _node(node: Node) -> str:
    facts = [
        ("id", node.id),
        ("reason", node.reason),
        ("deadline", _deadline(node)),
        ("heard", _heard(node)),
        ("address", node.address),
        ("capacity", formats.resources(node.capacity)),
        ("charged", formats.resources(node.charged)),
        ("tasks", f"{node.running:,} running, {node.allocated:,} allocated"),
        ("labels", _labels(node)),
        ("agent", node.inventory.agent_version),
        *sorted(fact for fact in node.inventory.facts.items() if fact[0] not in _LONG_FACTS),
        *(("cannot", warning) for warning in node.inventory.warnings),
    ]
    width = max(len(name) for name, _ in facts) + 2
    lines = [f"node {formats.safe(node.name)}  {state(_state(node))}"]
    lines += [f"  {formats.safe(name):<{width}}{formats.safe(text)}" for name, text in facts if text]
    return "\n".join(lines)

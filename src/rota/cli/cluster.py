"""`rota cluster`."""

import click

from rota.cli import formats
from rota.cli.group import Entry, LazyGroup
from rota.cli.listing import Listing, output_option
from rota.cli.session import client
from rota.client.messages import GetClusterResponse

CLUSTERS = Listing[GetClusterResponse]("clusters", lambda cluster: cluster.uuid, [])

cluster = LazyGroup(
    "cluster",
    {"info": Entry("rota.cli.cluster:info", "the cluster in numbers")},
    "The cluster itself.",
)


@click.command(epilog="Example: rota cluster info -o json")
@output_option
def info(output: str) -> None:
    """Print the cluster in numbers: nodes, jobs, resources, and who you are to it."""
    with client() as rota:
        CLUSTERS.print_one(rota.cluster(), output, lambda found: _info(found, rota.context.address))


def _info(found: GetClusterResponse, address: str) -> str:
    facts = [
        ("uuid", found.uuid),
        ("controller", f"{address}, version {found.version}"),
        ("nodes", f"{found.nodes_ready:,} ready of {found.nodes:,}"),
        ("jobs", f"{found.jobs_running:,} running, {found.jobs_pending:,} pending"),
        ("capacity", formats.resources(found.capacity)),
        ("charged", formats.resources(found.charged)),
        ("you are", found.principal),
        ("pauses", f"{found.pace.pause_us_max / 1000:.0f}ms at most, {found.pace.pauses_long:,} over 20ms"),
        ("term", str(found.term)),
        ("incarnation", str(found.incarnation)),
    ]
    return "\n".join(f"{name:<13}{formats.safe(text)}" for name, text in facts)

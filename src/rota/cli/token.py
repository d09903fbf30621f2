"""`rota token`."""

import time
from collections.abc import Sequence

import click

from rota.cli import formats
from rota.cli.group import Entry, LazyGroup
from rota.cli.listing import Column, Listing, output_option, plain, print_json, print_yaml
from rota.cli.session import TokenId, client, each, not_empty
from rota.cli.states import short
from rota.cli.units import Duration
from rota.client.context import join_address
from rota.client.messages import Token, TokenKind

USABLE = "usable"


def _state(token: Token) -> str:
    if token.revoked:
        return "revoked"
    if not token.uses_left:
        return "used up"
    return USABLE if token.expires_at_ms > time.time() * 1000 else "expired"


TOKENS = Listing[Token](
    "tokens",
    lambda token: token.id,
    [
        Column("ID", lambda token: token.id),
        Column("KIND", lambda token: short(TokenKind, token.kind)),
        Column("USES LEFT", lambda token: str(token.uses_left), right=True),
        Column("EXPIRES", lambda token: formats.clock(token.expires_at_ms)),
        Column("STATE", _state),
        Column("MADE", lambda token: formats.clock(token.created_at_ms), wide=True),
        Column("BY", lambda token: token.created_by, wide=True),
    ],
)

token = LazyGroup(
    "token",
    {
        "create": Entry("rota.cli.token:create", "make a join token"),
        "ls": Entry("rota.cli.token:ls", "list join tokens"),
        "revoke": Entry("rota.cli.token:revoke", "end join tokens"),
    },
    "Join tokens: what a machine needs to become a node.",
)


def _not_zero(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """A callback: the contract's 0 is the default, which nobody means who says 0s."""
    if value == 0:
        raise click.BadParameter("a token that is good for no time lets nobody join; try 15m", ctx, param)
    return value


@click.command(
    epilog="""\b
Examples:
  rota token create                    for one node, for 15 minutes
  rota token create --ttl 1h --uses 8  for eight nodes
"""
)
@click.option("--ttl", type=Duration(), callback=_not_zero, help="How long it is good for (default: 15m).")
@click.option(
    "--uses",
    type=click.IntRange(1, 1_000_000),
    default=1,
    metavar="N",
    help="For how many nodes (default: 1).",
)
@output_option
def create(ttl: int | None, uses: int, output: str) -> None:
    """Make a join token. It is printed this once; whoever has it can join."""
    with client() as rota:
        made = rota.create_token(ttl_ms=ttl or 0, uses=uses)
    if output == "json":
        print_json(plain(made))
    elif output == "yaml":
        print_yaml(plain(made))
    else:
        # For 'name' too: the id alone is worth nothing, and the secret is told this once.
        click.echo(made.secret)
    if output in ("table", "wide"):
        until = f"until {formats.clock(made.token.expires_at_ms)}"
        click.echo(f"good for {made.token.uses_left} {until}; on the new machine:", err=True)
        where = join_address(rota.context) or "HOST:PORT"
        click.echo(f"  rota agent --join {where} --token TOKEN --name NAME", err=True)


@click.command(epilog="Example: rota token ls --all")
@click.option("--all", "every", is_flag=True, help="Also those that are used up, expired or revoked.")
@output_option
def ls(every: bool, output: str) -> None:
    """List the join tokens that can be used, without their secrets."""
    with client() as rota:
        found = [token for token in rota.tokens() if every or _state(token) == USABLE]
    which = "no join tokens" if every else "no join token can be used"
    TOKENS.print(found, output, f"{which}; 'rota token create' makes one")


@click.command(epilog="Example: rota token revoke 5kq2c7ab")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", type=TokenId(), callback=not_empty)
@output_option
def revoke(ids: Sequence[str], output: str) -> int:
    """End join tokens; nodes that joined with them stay."""
    with client() as rota:
        return each(ids, lambda each_id: TOKENS.print_one(rota.revoke_token(each_id), output))

"""Options that several of the program's own commands take."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from rota.cli.units import Duration
from rota.client.context import expanded, home_directory
from rota.client.units import milliseconds_text
from rota.main.home import Home

# A node is then suspect after 250 ms: less than that passes on a busy machine that is well.
LOST_AFTER_MS_MIN = 5_000

F = TypeVar("F", bound=Callable[..., Any])


class _HomePath(click.ParamType[Home]):
    name = "DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Home:
        if isinstance(value, Home):
            return value
        if not value.strip():
            raise click.UsageError("--home is empty; give a value, or leave the option out", ctx)
        return Home(expanded(value))


def home_option(function: F) -> F:
    """`--home`; what is called later in this process uses the same home."""
    return click.option(
        "--home",
        type=_HomePath(),
        callback=_use,
        show_default=False,
        help="The home (default: ROTA_HOME, else ~/.rota).",
    )(function)


def _use(ctx: click.Context, param: click.Parameter, given: Home | None) -> Home:
    home = given or Home(home_directory())
    os.environ["ROTA_HOME"] = str(home.path)
    return home


def ready_option(function: F) -> F:
    """`--ready-fd`: for whoever starts the command in the background."""
    return click.option("--ready-fd", type=int, hidden=True)(function)


def lost_after_option(default: int | None) -> Callable[[F], F]:
    """`--lost-after`, in milliseconds."""
    return click.option(
        "--lost-after",
        type=Duration(),
        default=default,
        callback=_not_too_short,
        show_default=False,
        help="Silence after which a node is lost, 5s or more (default: 5m); "
        "the other limits of silence scale with it.",
    )


def _not_too_short(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    if value is not None and value < LOST_AFTER_MS_MIN:
        least = milliseconds_text(LOST_AFTER_MS_MIN)
        raise click.BadParameter(f"at least {least} is needed: healthy nodes would seem silent", ctx, param)
    return value

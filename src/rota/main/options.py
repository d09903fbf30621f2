"""Options that several of the program's own commands take."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from rota.client.context import home_directory
from rota.main.home import Home

F = TypeVar("F", bound=Callable[..., Any])


class _HomePath(click.ParamType[Home]):
    name = "DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Home:
        if isinstance(value, Home):
            return value
        return Home(Path(value).expanduser().absolute()) if value else Home(home_directory())


def home_option(function: F) -> F:
    """`--home`; what is called later in this process uses the same home."""
    return click.option(
        "--home",
        type=_HomePath(),
        default="",
        callback=_use,
        show_default=False,
        help="The home (default: ROTA_HOME, else ~/.rota).",
    )(function)


def _use(ctx: click.Context, param: click.Parameter, home: Home) -> Home:
    os.environ["ROTA_HOME"] = str(home.path)
    return home


def ready_option(function: F) -> F:
    """`--ready-fd`: for whoever starts the command in the background."""
    return click.option("--ready-fd", type=int, hidden=True)(function)

"""Options with amounts: durations, sizes, thousandths."""

from collections.abc import Callable
from typing import Any

import click

from rota.client import units


class _Amount(click.ParamType[int]):
    """An amount as people write it, as the contract's integer."""

    parse: Callable[[str], int]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The integer; fails with what would be right."""
        try:
            return value if isinstance(value, int) else type(self).parse(value)
        except units.UnitError as error:
            self.fail(str(error), param, ctx)


class Duration(_Amount):
    """`90s`, `1h30m`: milliseconds."""

    name = "DURATION"
    parse = staticmethod(units.parse_milliseconds)

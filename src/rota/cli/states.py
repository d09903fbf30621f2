"""Short names of the contract's enums: `RUNNING` for JOB_STATE_RUNNING, and options that take them."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def short(kind: Any, value: int) -> str:
    """A value's short name; the number where a later version has more of them than this one."""
    found = kind.DESCRIPTOR.values_by_number.get(value)
    return found.name.removeprefix(_prefix(kind)) if found is not None else str(value)


def choices(kind: Any) -> list[str]:
    """All short names in small letters, without the one that means nothing."""
    return [each.name.removeprefix(_prefix(kind)).lower() for each in kind.DESCRIPTOR.values if each.number]


def value(kind: Any, name: str) -> Any:
    """The value of a short name."""
    return kind.Value(_prefix(kind) + name.upper())


def _prefix(kind: Any) -> str:
    zero: str = kind.DESCRIPTOR.values_by_number[0].name
    return zero.removesuffix("UNSPECIFIED")


def state_option(kind: Any) -> Callable[[F], F]:
    """`--state`, several times."""
    return click.option(
        "--state",
        "states",
        multiple=True,
        type=click.Choice(choices(kind), case_sensitive=False),
        help="Only these; may be given several times.",
    )

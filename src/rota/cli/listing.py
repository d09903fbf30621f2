"""`-o table|wide|json|yaml|name`: one way to print a list, one for a single thing.

JSON and YAML are the contract's messages as protobuf writes them: the contract's field names, enums by name,
64-bit numbers as texts, what is zero or empty printed too, in the contract's order. Names are ids alone, one
a line, for scripts.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import click
from google.protobuf import json_format
from google.protobuf.message import Message

from rota.cli.app import say
from rota.cli.formats import safe

M = TypeVar("M", bound=Message)

_COLOURS = {
    "RUNNING": "cyan",
    "SUCCEEDED": "green",
    "READY": "green",
    "FAILED": "red",
    "LOST": "red",
    "SUSPECT": "yellow",
    "DISCONNECTED": "yellow",
    "CANCELLED": "yellow",
}


@dataclass(frozen=True)
class Column(Generic[M]):
    """One column of a table. `wide`: shown by `-o wide` alone."""

    title: str
    text: Callable[[M], str]
    wide: bool = False
    right: bool = False


@dataclass(frozen=True)
class Listing(Generic[M]):
    """How things of one kind are printed. `key`: what JSON calls the list. `name`: what names one."""

    key: str
    name: Callable[[M], str]
    columns: Sequence[Column[M]]

    def print(self, items: Iterable[M], output: str, empty: str) -> None:
        """Prints a list; `empty` is said, on standard error, where a table would have no rows."""
        if output == "json":
            print_json({self.key: [plain(item) for item in items]})
        elif output == "yaml":
            print_yaml({self.key: [plain(item) for item in items]})
        elif output == "name":
            for item in items:
                click.echo(safe(self.name(item)))
        else:
            rows = list(items)
            if rows:
                click.echo(self.table(rows, wide=output == "wide"))
            else:
                click.echo(empty, err=True)

    def print_one(self, item: M, output: str, human: Callable[[M], str] | None = None) -> None:
        """Prints a single thing: by `human`, or as a table of one row."""
        if output == "json":
            print_json(plain(item))
        elif output == "yaml":
            print_yaml(plain(item))
        elif output == "name":
            click.echo(safe(self.name(item)))
        else:
            click.echo(human(item) if human else self.table([item], wide=output == "wide"))

    def print_changed(self, item: M, output: str, says: str, *, changed: bool) -> None:
        """Prints what has been changed, for people as a sentence; where nothing was, on standard error."""
        if output == "table" and not changed:
            say(says)
        else:
            self.print_one(item, output, (lambda _: says) if output == "table" else None)

    def table(self, items: Sequence[M], *, wide: bool = False) -> str:
        """Aligned columns under their titles."""
        columns = [column for column in self.columns if wide or not column.wide]
        rows = [[safe(column.text(item)) or "-" for column in columns] for item in items]
        return table([column.title for column in columns], rows, [column.right for column in columns])


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """Aligned columns; states are coloured on a terminal. The texts must be safe."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    coloured = colours()
    lines = []
    for number, row in enumerate([titles, *rows]):
        cells = [
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(row, widths, right, strict=True)
        ]
        cells[-1] = cells[-1].rstrip()
        if coloured:
            cells = [_paint(cell, title=number == 0) for cell in cells]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _paint(cell: str, *, title: bool) -> str:
    if title:
        return click.style(cell, bold=True)
    colour = _COLOURS.get(cell.strip())
    return click.style(cell, fg=colour) if colour else cell


def state(name: str) -> str:
    """A state, coloured on a terminal."""
    return click.style(name, fg=_COLOURS.get(name)) if colours() else name


def colours() -> bool:
    """Whether standard output is a terminal that shall have colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON has it."""
    made: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _in_order(made, message.DESCRIPTOR)


def _in_order(made: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    """The fields as the contract has them, not those that are empty at the end."""
    result = {}
    for field in descriptor.fields:
        if field.name not in made:
            continue
        value, of = made[field.name], field.message_type
        if of is not None and not of.GetOptions().map_entry:
            value = [_in_order(each, of) for each in value] if field.is_repeated else _in_order(value, of)
        result[field.name] = value
    return result


def print_json(value: object, *, line: bool = False) -> None:
    """As JSON, indented or on one line."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=None if line else 2))


def print_yaml(value: object) -> None:
    """As YAML."""
    import yaml

    click.echo(yaml.safe_dump(value, allow_unicode=True, sort_keys=False), nl=False)


F = TypeVar("F", bound=Callable[..., Any])


def output_option(function: F) -> F:
    """The option `-o`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "wide", "json", "yaml", "name"]),
        default="table",
        show_default=True,
        help="How to print it; 'name' is ids alone.",
    )(function)

"""How rows are shown: a table for people, lines of JSON for everything else."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from bench.harness import Bar, Point, Row


def lines(rows: Iterable[Row]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)


def number(value: float) -> str:
    """As people read it: `1,234`, `12.3`, `0.81`."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def bar_text(row: Row) -> str:
    """What has to be reached, and how much of it is: `≥ 0.75 × bare loop: 64 %`."""
    if row.bar is None or row.reached is None:
        return ""
    sign, limit = ("≥", row.bar.at_least) if row.bar.at_least is not None else ("≤", row.bar.at_most)
    assert limit is not None
    of = f" × {row.bar.of}" if row.bar.of else ""
    verdict = "reached" if row.reached >= 1 else f"{100 * row.reached:.0f} % of it"
    return f"{sign} {number(limit)}{of}: {verdict}"


def cells(row: Row) -> list[str]:
    """A row of a table."""
    beside = ", ".join(f"{number(value)} × {of}" for of, value in row.ratio.items())
    return [row.bench, row.what, f"{number(row.value)} {row.unit}", beside, bar_text(row)]


HEAD = ["bench", "what", "value", "beside", "bar"]


def table(rows: Sequence[Row]) -> str:
    """Columns for a terminal."""
    body = [HEAD, *map(cells, rows)]
    widths = [max(len(line[column]) for line in body) for column in range(len(HEAD))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in body
    )


def markdown(rows: Sequence[Row]) -> str:
    """The same for a page."""
    body = [HEAD, ["---"] * len(HEAD), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in body)


def from_json(line: dict[str, Any]) -> Row:
    """What `to_json` wrote. Raises KeyError and TypeError."""
    bar = Bar(**line["bar"]) if "bar" in line else None
    point = Point(**line["point"]) if "point" in line else None
    return Row(line["bench"], line["what"], line["value"], line["unit"], line["ratio"], bar, point)

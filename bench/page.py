"""Makes docs/performance/results.md and growth.svg of the lines of JSON beside them: `make bench-report`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import growth, report
from bench.harness import Row

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "performance"
RESULTS = PAGES / "results"
BEFORE = "before"
HEAD = """# Results

Made by `make bench-report` of the lines in `docs/performance/results`. Only ratios of one run count: other
people used the machine at the same time, two cores of a shared one, and absolute figures drift by half.
"""


def read(file: Path) -> list[Row]:
    """The rows of one file."""
    return [report.from_json(json.loads(line)) for line in file.read_text().splitlines()]


def results(folder: Path = RESULTS) -> dict[str, list[Row]]:
    """The rows of each benchmark, by its name."""
    return {file.stem: read(file) for file in sorted(folder.glob("*.jsonl"))}


def page(found: Mapping[str, Sequence[Row]]) -> str:
    """The page, whole."""
    barred = [row for name, rows in found.items() if name != BEFORE for row in rows if row.bar]
    parts = [HEAD, "## What had to be reached\n", report.markdown(barred)]
    for name, rows in found.items():
        if name != BEFORE:
            parts += [f"## {name}\n", report.markdown(rows)]
    parts += ["## growth\n", "![What more nodes and tasks cost](growth.svg)\n"]
    parts.append(_growth_table(growth.curves(row for rows in found.values() for row in rows)))
    if BEFORE in found:
        parts += ["## before\n", "The same machine before any of it was made faster.\n"]
        parts.append(report.markdown(found[BEFORE]))
    return "\n".join(parts)


def plot(found: Mapping[str, Sequence[Row]]) -> str:
    """The picture of growth."""
    return growth.svg(growth.curves(row for rows in found.values() for row in rows))


def _growth_table(curves: growth.Curves) -> str:
    head = "| curve | from | to | exponent (1 is linear) |\n| --- | --- | --- | --- |\n"
    return head + "".join(
        f"| {name} | {points[0].size:,.0f} | {points[-1].size:,.0f} | {growth.exponent(points):.2f} |\n"
        for name, points in curves.items()
    )


def main() -> None:
    found = results()
    (PAGES / "results.md").write_text(page(found))
    (PAGES / "growth.svg").write_text(
        growth.svg(growth.curves(row for rows in found.values() for row in rows))
    )


if __name__ == "__main__":
    main()

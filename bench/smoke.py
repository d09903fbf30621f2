"""The guard, `make bench-smoke`: every benchmark at its small size, and no figure below half of its bar.

Under a minute. Half, because a shared machine disturbs; what is slower than that is no disturbance.
"""

import importlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bench import report
from bench.__main__ import benchmarks
from bench.harness import Bar, Row, Size

SHARE_MIN = 0.5
# Minutes, and other people's programs.
LEFT_OUT = {"peers"}

# What stands in place of a target that is not reached yet: benchmark, what, and the bar, with the target
# beside it. A figure that reaches half of its target needs no line here.
STANDING: Mapping[tuple[str, str], Bar] = {
    ("agent", "CPU, idle, over 5 s"): Bar(at_most=1),  # 0.5, over five minutes
    ("processes", "array, output files on"): Bar(at_least=0.5, of="bare loop"),  # 0.65, and disks differ
    ("processes", "jobs of one task"): Bar(at_least=0.3, of="bare loop"),  # 0.5
    ("processes", "longest pause of the controller, processes"): Bar(at_most=50),  # 20
    ("placement", "placements, 1000 nodes, 2000 tasks, 1000 shapes"): Bar(at_least=5_000),  # 10,000
    ("placement", "placements, 1000 nodes, 2000 tasks, 2000 shapes"): Bar(at_least=4_000),  # 10,000
    ("submission", "separate jobs, 8 clients"): Bar(at_least=1_000),  # 2,000
    ("submission", "separate jobs, 32 clients"): Bar(at_least=1_000),  # 2,000
    ("submission", "jobs in one call"): Bar(at_least=10_000),  # 20,000
    ("submission", "longest pause of the controller, jobs in one call"): Bar(at_most=40),  # 20
    ("one_job", "server side, p50"): Bar(at_most=10),  # 5
    ("one_job", "server side, p99"): Bar(at_most=30),  # 20
}


def judged(rows: Iterable[Row], standing: Mapping[tuple[str, str], Bar] = STANDING) -> list[Row]:
    """The rows with the bars that they have to keep here."""
    return [replace(row, bar=standing.get((row.bench, row.what), row.bar)) for row in rows]


def failures(rows: Sequence[Row]) -> list[str]:
    """A line for each row below half of its bar."""
    return [
        f"{row.bench}: {row.what}: {report.number(row.value)} {row.unit}, {report.bar_text(row)}"
        for row in rows
        if row.reached is not None and row.reached < SHARE_MIN
    ]


def main() -> int:
    """Runs them; 1 where a figure fails."""
    rows: list[Row] = []
    for name in benchmarks():
        if name not in LEFT_OUT:
            began_s = time.monotonic()
            rows += importlib.import_module(f"bench.{name}").rows(Size(rounds=1, small=True))
            print(f"bench-smoke: {name}: {time.monotonic() - began_s:.1f} s", file=sys.stderr, flush=True)
    rows = judged(rows)
    print(report.table(rows), end="")
    failed = failures(rows)
    for line in failed:
        print(f"bench-smoke: below half of its bar: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

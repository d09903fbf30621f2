"""What one command costs, and what the processes weigh: to know, no bars.

Starts a cluster in a temporary home, prints one JSON line, stops what it started.
Run it with: .venv/bin/python bench/first_figures.py
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROTA = [sys.executable, "-m", "rota.main"]
COMMANDS = 100
TASKS = 10_000


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as place:
        home = Path(place) / "h"
        environment = {**os.environ, "ROTA_HOME": str(home)}
        call(environment, "up", "--detach")
        try:
            print(json.dumps(measure(environment, home)))
        finally:
            call(environment, "down")


def call(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [*ROTA, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def measure(environment: dict[str, str], home: Path) -> dict[str, Any]:
    idle = {name: memory_kib(home, name) for name in ("controller", "agent-0", "link-0")}
    rows = [one_command(environment) for _ in range(COMMANDS)]
    began_s = time.monotonic()
    call(environment, "submit", "--wait", "--array", f"0-{TASKS - 1}", "--", "true")
    array_s = time.monotonic() - began_s
    began_s = time.monotonic()
    call(
        environment,
        "submit",
        "--wait",
        "--stdout",
        "none",
        "--stderr",
        "none",
        "--array",
        f"0-{TASKS - 1}",
        "--",
        "true",
    )
    silent_s = time.monotonic() - began_s
    return {
        "rota run -- true, ms (p50, p99)": {
            part: [round(at(rows, part, 0.5), 1), round(at(rows, part, 0.99), 1)] for part in rows[0]
        },
        "true per second, output files on": round(TASKS / array_s),
        "true per second, output files off": round(TASKS / silent_s),
        "bare posix_spawn and wait, per second, one process": round(bare_spawns()),
        "KiB resident and proportional, idle": idle,
        "KiB after all that": {name: memory_kib(home, name) for name in idle},
    }


def one_command(environment: dict[str, str]) -> dict[str, float]:
    """The parts of one `rota run -- true`, by wall clocks of one machine, in milliseconds."""
    began_ms = time.time() * 1000
    call(environment, "run", "--", "true")
    ended_ms = time.time() * 1000
    job = json.loads(call(environment, "ls", "--limit", "1", "-o", "json"))["jobs"][0]
    shown = json.loads(call(environment, "show", f"{job['id']}/0", "-o", "json"))["attempts"][0]
    submitted, done = int(job["submitted_at_ms"]), int(job["ended_at_ms"])
    started, ran = int(shown["started_at_ms"]), int(shown["duration_ms"])
    return {
        "whole": ended_ms - began_ms,
        "client start and submit": submitted - began_ms,
        "place and spawn": started - submitted,
        "run": ran,
        "report and commit": done - started - ran,
        "answer and exit": ended_ms - done,
    }


def at(rows: list[dict[str, float]], part: str, share: float) -> float:
    values = sorted(row[part] for row in rows)
    return (
        statistics.median(values) if share == 0.5 else values[min(int(len(values) * share), len(values) - 1)]
    )


def bare_spawns(count: int = 2_000) -> float:
    began_s = time.monotonic()
    for _ in range(count):
        os.waitpid(os.posix_spawn("/bin/true", ["/bin/true"], {}), 0)
    return count / (time.monotonic() - began_s)


def memory_kib(home: Path, name: str) -> list[int]:
    pid = (home / "run" / f"{name}.pid").read_text().strip()
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return [found["Rss"], found["Pss"]]


if __name__ == "__main__":
    main()

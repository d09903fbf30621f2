"""What every benchmark needs: rows and bars, rounds in turn, a cluster of its own, and what processes cost.

A benchmark is a module of this package with a function `rows(size)` that yields a `Row` for each figure; its
docstring's first line says what it measures. `python -m bench NAME` runs it. Absolute times drift on shared
machines, so a row carries ratios to what was measured in turn with it: `in_turn` and `bench.limits`.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rota.client.client import Client
from rota.client.context import load_context

ROTA = str(Path(sys.executable).parent / "rota")
# What anybody may have to wait because the controller is at something else.
PAUSE_MS_MAX = 20
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Size:
    """How much a benchmark does: rounds in turn, and counts small enough for a first look where `small`."""

    rounds: int = 3
    small: bool = False

    def of(self, full: int, small: int) -> int:
        """A count, of two."""
        return small if self.small else full


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure has to reach: at least or at most so much.

    `of` names the ratio that is meant; where it is empty, it is the value itself.
    """

    at_least: float | None = None
    at_most: float | None = None
    of: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it stands in a line of output."""
        limits = {"at_least": self.at_least, "at_most": self.at_most, "of": self.of or None}
        return {name: value for name, value in limits.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a curve in the plot of growth: what so much work cost, in seconds, milliseconds or bytes.

    `size` is nodes times tasks where there are both, else whichever there is; all points of a curve count
    alike.
    """

    curve: str
    size: float
    cost: float

    def to_json(self) -> dict[str, Any]:
        """As it stands in a line of output."""
        return {"curve": self.curve, "size": significant(self.size), "cost": significant(self.cost)}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ratio` is the value divided by each of what was measured in turn with it."""

    bench: str
    what: str
    value: float
    unit: str
    ratio: Mapping[str, float] = field(default_factory=dict)
    bar: Bar | None = None
    point: Point | None = None

    @property
    def reached(self) -> float | None:
        """How much of its bar: 1 is just so, 0.5 half as fast or twice as much as it should be."""
        if self.bar is None:
            return None
        got = self.ratio[self.bar.of] if self.bar.of else self.value
        if self.bar.at_least is not None:
            return got / self.bar.at_least
        assert self.bar.at_most is not None, "a bar is a floor or a ceiling"
        return self.bar.at_most / got if got else float("inf")

    def to_json(self) -> dict[str, Any]:
        """One line of output."""
        line: dict[str, Any] = {
            "bench": self.bench,
            "what": self.what,
            "value": significant(self.value),
            "unit": self.unit,
            "ratio": {of: significant(value) for of, value in self.ratio.items()},
        }
        more = {"bar": self.bar, "point": self.point}
        return line | {name: part.to_json() for name, part in more.items() if part is not None}


def significant(value: float) -> float:
    """Four digits: more is noise."""
    return float(f"{value:.4g}")


# ---------------------------------------------------------------- measuring


def in_turn(rounds: int, **tries: Callable[[], float]) -> dict[str, list[float]]:
    """Each of `tries` once a round, beginning with another each round, so that drift meets all alike."""
    found: dict[str, list[float]] = {name: [] for name in tries}
    names = list(tries)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(tries[name]())
    return found


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in found.items()}


def ratios(found: Mapping[str, Sequence[float]], of: str) -> dict[str, float]:
    """`of` divided by each of the others: the median of the rounds' own ratios."""
    return {
        name: statistics.median(ours / other for ours, other in zip(found[of], values, strict=True))
        for name, values in found.items()
        if name != of
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies: 0.5, 0.99."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def seconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    began_s = time.perf_counter()
    run()
    return time.perf_counter() - began_s


# ---------------------------------------------------------------- processes


def cpu_s(pid: int) -> float:
    """User and system time of a process and of all its children that have ended; 0 where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    return sum(map(int, stat[stat.rindex(")") + 2 :].split()[11:15])) / TICKS_A_SECOND


def memory_kib(pid: int) -> tuple[int, int]:
    """Resident and proportional (what is shared, shared out) memory of a process. Raises OSError."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return found["Rss"], found["Pss"]


def descendants(pid: int) -> list[int]:
    """Its children, theirs, and so on."""
    found = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


# ---------------------------------------------------------------- a cluster


@dataclass(frozen=True)
class Cluster:
    """A cluster of this machine in a temporary home. Calls of `rota` work in `place`."""

    home: Path
    place: Path
    # What stands in front of each command.
    prefix: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """What a call of `rota` needs to find it, and nothing of whoever runs the benchmark."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ROTA_")}
        return inherited | {"ROTA_HOME": str(self.home)}

    def __call__(self, *arguments: str | Path, stdin: str = "") -> str:
        """Runs `rota` to its end; what it prints. Raises CalledProcessError, having shown what it said."""
        done = subprocess.run(
            [*self.prefix, ROTA, *map(str, arguments)],
            env=self.environment,
            cwd=self.place,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            print(f"rota {' '.join(map(str, arguments))}: {done.stderr}", file=sys.stderr)
            done.check_returncode()
        return done.stdout

    def client(self) -> Client:
        """A connection, for what is measured without the start of a command."""
        return Client(load_context(self.home))

    def pid(self, name: str) -> int:
        """The process of a pid file: `controller`, `agent-0` (the supervisor), `link-0`."""
        return int((self.home / "run" / f"{name}.pid").read_text())

    def processes(self, *names: str) -> list[int]:
        """The processes of these pid files, or of all, with their descendants."""
        files = [self.home / "run" / f"{name}.pid" for name in names] or (self.home / "run").glob("*.pid")
        found = {int(file.read_text()) for file in files}
        return sorted(found | {child for pid in found for child in descendants(pid)})

    def cpu_s(self, *names: str) -> float:
        """User and system time so far of these parts (or of all) and everything they started and reaped."""
        return sum(map(cpu_s, self.processes(*names)))

    def pss_mib(self, *names: str) -> float:
        """Proportional memory of these parts, or of all."""
        return sum(memory_kib(pid)[1] for pid in self.processes(*names)) / 1024


def pause_row(bench: str, rota: Cluster, under: str) -> Row:
    """The longest that the controller computed without looking at what else waits, since it leads, in ms.

    By its own CPU time: on a machine that others use too, the clock on the wall tells of them.
    """
    with rota.client() as client:
        longest_us = client.cluster().pace.busy_us_max
    what = f"longest pause of the controller, {under}"
    return Row(bench, what, longest_us / 1000, "ms", bar=Bar(at_most=PAUSE_MS_MAX))


# Runs a command where no cgroup2 is mounted.
WITHOUT_CGROUPS = (
    "unshare",
    "-m" if os.geteuid() == 0 else "-rm",
    "sh",
    "-c",
    'for at in $(findmnt -rno TARGET -t cgroup2); do mount -t tmpfs -o ro n $at || exit; done; exec "$@"',
    "sh",
)


def hides_cgroups() -> bool:
    """Whether this account may run something without cgroups."""
    return subprocess.run([*WITHOUT_CGROUPS, "true"], capture_output=True, check=False).returncode == 0


@contextmanager
def cluster(*options: str, prefix: tuple[str, ...] = ()) -> Iterator[Cluster]:
    """A cluster that `rota up` starts with these options, its ports its own; stopped in any case.

    `prefix` stands in front of each of its commands, as WITHOUT_CGROUPS does.
    Its home lies in TMPDIR, else /tmp, and is removed: what needs a disk is measured with the one there.
    """
    base = Path(tempfile.mkdtemp(prefix="rb-"))
    made = Cluster(base / "h", base / "w", prefix)
    made.place.mkdir()
    try:
        made("up", "--detach", *options)
        yield made
    finally:
        with suppress(subprocess.CalledProcessError):
            made("down", "--timeout", "5s")
        _kill_what_names(made.home)
        shutil.rmtree(base, ignore_errors=True)


def _kill_what_names(home: Path) -> None:
    """Whatever still runs with this home on its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if str(home).encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)

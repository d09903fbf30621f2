"""How simulated tasks behave: how long each takes, how it ends, and in which order they do."""

import re
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rota.core.cluster.rows import Numbers
from rota.core.model.spec import JobSpec

_SLEEP = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
# A year: what is longer is as long.
TIME_MS_MAX = 31_622_400_000


class Tasks(Protocol):
    """What an edge asks about the tasks of a job."""

    def at_once(self, job: int, spec: JobSpec) -> bool:
        """Whether none of them takes any time."""
        ...

    def times_ms(self, job: int, spec: JobSpec, count: int) -> list[int]:
        """How long each of `count` of them takes."""
        ...

    def codes(self, job: int, count: int) -> Numbers:
        """What each of `count` of them exits with."""
        ...

    def shuffled(self, indices: Numbers) -> Numbers:
        """In the order in which tasks that take no time end."""
        ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tasks as a seed draws them. `time_ms`: the shortest and the longest; None: as the command says.

    A command `sleep 2` says two seconds, any other says nothing and takes no time. `failing` is the share
    that exits with `code`.
    """

    time_ms: tuple[int, int] | None = None
    failing: float = 0.0
    code: int = 1
    seed: int = 0
    _chance: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_chance", np.random.default_rng(self.seed))

    def _span_ms(self, spec: JobSpec) -> tuple[int, int]:
        if self.time_ms is not None:
            return self.time_ms
        said = said_ms(spec)
        return said, said

    def at_once(self, job: int, spec: JobSpec) -> bool:
        """Whether none of them takes any time."""
        return self._span_ms(spec)[1] == 0

    def times_ms(self, job: int, spec: JobSpec, count: int) -> list[int]:
        """Evenly between the shortest and the longest."""
        shortest, longest = self._span_ms(spec)
        if shortest == longest:
            return [shortest] * count
        drawn: list[int] = self._chance.integers(shortest, longest, count, endpoint=True).tolist()
        return drawn

    def codes(self, job: int, count: int) -> Numbers:
        """0, and `code` for the share that fails."""
        if not self.failing:
            return np.zeros(count, np.int64)
        return (self._chance.random(count) < self.failing) * np.int64(self.code)

    def shuffled(self, indices: Numbers) -> Numbers:
        """Any order is as likely as any other."""
        return self._chance.permutation(indices)


def said_ms(spec: JobSpec) -> int:
    """How long a job's command says that it takes: `sleep 2`, `sleep 0.5m`; 0 for any other."""
    match spec.command:
        case ("sleep" | "/bin/sleep" | "/usr/bin/sleep", *spans) if spans:
            found = [_SLEEP.fullmatch(span) for span in spans]
            if None in found:
                return 0
            matches: list[Any] = found
            seconds = sum(float(match[1]) * _SECONDS[match[2]] for match in matches)
            return min(round(seconds * 1000), TIME_MS_MAX)
    return 0

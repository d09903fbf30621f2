"""What is wrong with somebody's input: where, what, and what would be right, in one line each."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from rota.wire.units import TEXT_LENGTH_MAX, printable, quoted

LINES_MAX = 10
"""Problems that people are shown; the others are counted."""

PROBLEMS_MAX = 1_000
"""Problems that are looked for: whoever has so many will look at the first."""

Path = tuple[str | int, ...]
"""The way from a message to a field of it: field names, places in lists, keys of maps."""

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def path_text(path: Path) -> str:
    """As people write it: `jobs[0].resources.memory`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif len(step) <= TEXT_LENGTH_MAX and _PLAIN.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{quoted(step)}]"
    return text


def path_of(text: str) -> Path:
    """The path that a text says; of a key that the text has shortened it has what is left of it."""
    steps = re.findall(r"\[(\d+)\]|\['(.*?)'\]|\.?([^.\[]+)", text)
    return tuple(int(number) if number else quoted_key or name for number, quoted_key, name in steps)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `place` is where it stands in a file, `job.yaml:7:13`; `beside` are the other
    fields that it follows from.
    """

    path: Path
    says: str
    place: str = ""
    beside: tuple[Path, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        start = f"{path_text(self.path)}: " if self.path else ""
        line = f"{start}{self.says}" + (f" ({self.place})" if self.place else "")
        return printable(line)


def follows(problem: Problem, unread: Collection[Path]) -> bool:
    """Whether it may be wrong only because something else could not be read, which has been said of that."""
    paths = (problem.path, *problem.beside)
    return any(path[:length] in unread for path in paths for length in range(1, len(path) + 1))


def report(problems: Sequence[Problem]) -> str:
    """The lines that people are shown: the first LINES_MAX, then how many more there are."""
    lines = [str(problem) for problem in problems[:LINES_MAX]]
    if len(problems) > LINES_MAX:
        lines.append(f"and {len(problems) - LINES_MAX} more")
    return "\n".join(lines)


class BadInput(ValueError):
    """Input that was refused, whole; the text is the report of all that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(report(problems))
        self.problems = tuple(problems)

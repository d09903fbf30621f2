"""The pages of the documentation, and the commands on them.

A ```` ```console ```` block is a session: lines that begin with `$ ` are commands, lines that begin with `> `
go on with the command above, and what stands between is what the command prints. A block that has a file's
name behind its language (```` ```yaml words.yaml ````) is that file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Elsewhere commands would not be run, or not be checked.
LANGUAGES = {"console", "yaml", "sh", "mermaid", "text", "ini", "python", "proto"}

_FENCE = re.compile(r"^```(\S*) *(.*)$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: `line` is that of its fence, `name` what stands behind its language."""

    line: int
    language: str
    name: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(line + "\n" for line in self.lines)


@dataclass(slots=True)
class Command:
    """A command of a page, and what it prints there."""

    line: int
    text: str
    printed: list[str] = field(default_factory=list)


def pages() -> list[Path]:
    """All pages, but for the decisions, which are history and not guidance."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(path for path in found if not path.is_relative_to(ROOT / "docs/design"))


def name_of(page: Path) -> str:
    """Its path in the checkout."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    opened: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None and fence is not None:
            opened, lines = (number, fence[1], fence[2]), []
        elif opened is not None and line == "```":
            found.append(Block(*opened, tuple(lines)))
            opened = None
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{page}: the block has no end: {opened}"
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    for number, line in enumerate(block.lines, block.line + 1):
        if line.startswith("$ "):
            found.append(Command(number, line[2:]))
        elif line.startswith("> ") and found and not found[-1].printed:
            found[-1].text += "\n" + line[2:]
        else:
            assert found, f"line {number}: a console block begins with a command"
            found[-1].printed.append(line)
    return found


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """The lines outside of fenced blocks, with their numbers."""
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line

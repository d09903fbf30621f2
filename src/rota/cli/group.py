"""Groups of commands that are imported when they are called, so that `rota --help` imports click alone."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass

import click

from rota.cli import interrupts

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


# What is less alike than this is not likely to be meant: `--each-line` by `--exclusive`.
ALIKE_MIN = 0.75
WORD_LENGTH_MAX = 64

# What commands of a group are called by other programs.
_INSTEAD = {
    "list": "ls",
    "get": "ls",
    "describe": "show",
    "info": "show",
    "remove": "rm",
    "delete": "rm",
    "add": "create",
    "new": "create",
    "set": "update",
    "uncordon": "resume",
    "undrain": "resume",
    "taint": "label",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: where it is (`module:attribute`), what its help line says, under which heading it stands."""

    place: str
    says: str
    heading: str = "Commands"


class LazyGroup(click.Group):
    """A group whose commands are named by entries."""

    def __init__(self, name: str, entries: dict[str, Entry], says: str, epilog: str = "") -> None:
        epilog = epilog or f"'rota {name} COMMAND --help' shows a command's options and examples."
        super().__init__(name=name, help=says, epilog=epilog, context_settings=CONTEXT_SETTINGS)
        self.entries = dict(entries)
        # What other programs call something: its name here.
        self.instead = {word: f"{name} {ours}" for word, ours in _INSTEAD.items() if ours in entries}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order of the entries."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        with interrupts.Quiet():
            command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), entry
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; a mistyped name is answered with the nearest one."""
        name = args[0]
        if name not in self.entries and not name.startswith("-") and not ctx.resilient_parsing:
            said = self.instead.get(name)
            hint = f"; try: rota {said}" if said else nearest(name, self.entries)
            raise click.UsageError(f"there is no command '{shortened(name)}'{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands under their headings; imports none of them."""
        width = max(map(len, self.entries)) + 2
        for heading in dict.fromkeys(entry.heading for entry in self.entries.values()):
            rows = [
                (name.ljust(width), entry.says)
                for name, entry in self.entries.items()
                if entry.heading == heading
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)


def shortened(word: str) -> str:
    """A word that somebody gave, for an error message."""
    return word if len(word) <= WORD_LENGTH_MAX else f"{word[: WORD_LENGTH_MAX - 3]}..."


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    import difflib

    # Dashes are alike in all options.
    known = {each.lstrip("-"): each for each in words}
    found = difflib.get_close_matches(word.lstrip("-"), known, n=1, cutoff=ALIKE_MIN)
    return f"; did you mean '{known[found[0]]}'?" if found else ""

"""The guide for those who come from Slurm names the options that there are."""

import re

import click

from rota.cli import slurm
from rota.main.cli import root
from tests.docs.pages import ROOT

PAGE = ROOT / slurm.GUIDE


def options_of(*path: str) -> set[str]:
    command: click.Command | None = root
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command is not None
    return {name for parameter in command.params for name in parameter.opts}


def test_the_table_shows_what_the_program_answers() -> None:
    section = PAGE.read_text().split("## Options")[1].split("## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    shown = {}
    for theirs, ours in rows:
        long, *short = re.findall(r"`(.+?)`", theirs)
        shown[long] = ("".join(short), " or ".join(re.findall(r"`(.+?)`", ours)))
    assert shown == slurm.OPTIONS


def test_the_options_are_there() -> None:
    there = options_of("submit") & options_of("run")
    for _, ours in slurm.OPTIONS.values():
        assert set(ours.split(" or ")) <= there


def test_the_commands_and_options_of_the_page_are_there() -> None:
    commands = re.findall(r"`rota ([a-z]+)((?: [^`]*)?)`", PAGE.read_text())
    assert commands
    for name, rest in commands:
        assert name in root.entries
        if name in ("run", "submit"):
            assert set(re.findall(r"(?<![\w-])--[a-z-]+", rest.split(" -- ")[0])) <= options_of(name)

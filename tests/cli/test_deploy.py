"""The systemd units call the program as it is."""

import shlex
from pathlib import Path

import click
import pytest

from rota.main.cli import root

UNITS = sorted((Path(__file__).parents[2] / "deploy").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_a_unit_calls_a_command_with_options_that_it_has(
    unit: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ROTA_HOME", str(tmp_path))
    (line,) = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    program, name, *arguments = shlex.split(line.removeprefix("ExecStart="))
    assert program.endswith("/bin/rota")
    command = root.get_command(click.Context(root), name)
    assert command is not None
    command.make_context(name, arguments)


def test_there_is_a_unit_for_each_part() -> None:
    assert [unit.name for unit in UNITS] == ["rota-agent.service", "rota-controller.service"]

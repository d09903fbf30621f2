"""Running the command line in this process, with a home of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rota.cli.app import run
from rota.main.cli import root


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What was said on standard error."""
        return self.err.splitlines()


Rota = Callable[..., Answer]


@pytest.fixture
def rota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rota:
    """Runs a command line where there is no cluster."""
    monkeypatch.setenv("ROTA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Answer:
        code = run(root, list(arguments))
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call

"""The simulator finds bugs that are planted, and names the invariant that broke."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BUGS = sorted((Path(__file__).parent / "bugs").glob("*.patch"))
SOURCES = Path(__file__).parents[2] / "src"
SEEDS_MAX = 2_000


def test_there_are_at_least_ten() -> None:
    assert len(BUGS) >= 10


@pytest.mark.ci
@pytest.mark.parametrize("patch", BUGS, ids=lambda patch: patch.stem)
def test_a_planted_bug_is_found_and_named(patch: Path, tmp_path: Path) -> None:
    shutil.copytree(SOURCES / "rota", tmp_path / "src" / "rota", ignore=shutil.ignore_patterns("__pycache__"))
    applied = subprocess.run(
        ["git", "apply", "--verbose", str(patch)],
        cwd=tmp_path,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert applied.returncode == 0, f"{patch.name} does not fit the sources any more: {applied.stderr}"
    command = "from rota.sim.cli import sim; sim()"
    run = subprocess.run(
        [sys.executable, "-c", command, "check", "-x", "-j", "1", "--seeds", f"1..{SEEDS_MAX}"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 1, f"not found in {SEEDS_MAX} seeds: {run.stdout}{run.stderr}"
    named = re.search(r"seed (\d+): ([a-z-]+): ", run.stdout)
    assert named is not None, run.stdout + run.stderr
    _, expected, *_ = patch.read_text().splitlines()
    assert named[2] in expected.split(), run.stdout

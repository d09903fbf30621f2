"""The simulator itself: the same seed is the same history, and many seeds break nothing."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rota.sim.check import LINES_KEPT, run_seed
from rota.sim.runs import run_seeds
from rota.sim.words import CHARS_MAX
from tools.bugs import bugs, hunt


def history(seed: int) -> tuple[str, int]:
    digest = hashlib.sha256()
    found = run_seed(seed, trace=lambda line: digest.update(line.encode() + b"\n"))
    return digest.hexdigest(), found.events


def test_the_same_seed_is_the_same_history_to_the_byte() -> None:
    assert history(7) == history(7)
    assert history(7) != history(8)


def test_the_history_does_not_hang_on_the_hash_seed() -> None:
    code = "from tests.sim.test_check import history; print(history(11))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for hash_seed in ("1", "2", "3")
    }
    assert len(said) == 1


@pytest.mark.timeout(240)
def test_a_failure_says_what_broke_after_what_and_how_to_see_it_again(tmp_path: Path) -> None:
    (bug,) = bugs(["forget-a-release"])
    lines = hunt(bug, tmp_path).printed.splitlines()
    first = re.fullmatch(r"seed (\d+), event (\d+): counters: .+", lines[0])
    assert first is not None, lines
    assert lines[1] == "  last happened:"
    history, (replay, total) = lines[2:-2], lines[-2:]
    assert len(history) == LINES_KEPT
    numbers = [int(line.split()[0]) for line in history if re.match(r" +\d+ +\d+\.\d{3} s  ", line)]
    assert numbers[-1] == int(first[2])
    assert replay == f"  all of it: rota sim check --seeds {first[1]} --trace history.txt"
    assert total.endswith(": 1 broken")


def test_a_history_says_what_was_asked_sent_and_answered() -> None:
    lines: list[str] = []
    run_seed(1, trace=lines.append)
    assert lines[0].lstrip().startswith("seed 1: Mix(")
    history = "\n".join(lines)
    for said in ("asked: Submit(", "answered: Reply(", ": Hello(", ": Grant(allocation=", "the faults stop"):
        assert said in history, said
    assert max(map(len, lines)) < CHARS_MAX * 2


@pytest.mark.timeout(240)
def test_a_hundred_seeds_break_nothing() -> None:
    broken = [found for found in run_seeds(range(1, 101)) if found.invariant]
    assert broken == []


@pytest.mark.ci
@pytest.mark.parametrize("block", range(10))
def test_many_seeds_break_nothing(block: int) -> None:
    """2,000 seeds of 500 events and their last phase."""
    broken = [found for found in run_seeds(range(block * 200, block * 200 + 200)) if found.invariant]
    assert broken == []


@pytest.mark.nightly
@pytest.mark.parametrize("block", range(100))
def test_very_many_seeds_break_nothing(block: int) -> None:
    """100,000 seeds, every tenth block longer."""
    start = 1_000_000 + block * 1_000
    steps = 3_000 if block % 10 == 0 else 500
    broken = [found for found in run_seeds(range(start, start + 1_000), steps) if found.invariant]
    assert broken == []

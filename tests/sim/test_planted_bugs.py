"""The simulator finds bugs that are planted, and names the invariant that broke."""

import subprocess
from pathlib import Path

import pytest

from tools.bugs import ROOT, Bug, BugsError, bugs, fits, hunt, refreshed

BUGS = bugs()


def name_of(bug: Bug) -> str:
    return bug.name


def test_there_are_at_least_ten() -> None:
    assert len(BUGS) >= 10


@pytest.mark.parametrize("bug", BUGS, ids=name_of)
def test_a_planted_bug_fits_the_sources(bug: Bug) -> None:
    fits(bug)


def test_a_bug_that_does_not_fit_is_named_with_what_to_do() -> None:
    bug = BUGS[0]
    elsewhere = Bug(bug.name, bug.description, bug.invariants, bug.file, bug.diff.replace("\n-", "\n-not "))
    with pytest.raises(BugsError, match=f"{bug.name} does not fit .*tools.bugs refresh"):
        fits(elsewhere)


def test_a_bug_outlives_a_change_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = next(bug for bug in BUGS if bug.name == "fence-too-short")
    source = tmp_path / bug.file
    source.parent.mkdir(parents=True)
    source.write_text((ROOT / bug.file).read_text())
    for command in (["init", "-q"], ["hash-object", "-w", bug.file]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr("tools.bugs.ROOT", tmp_path)
    bug = refreshed(bug)
    fits(bug)
    beside = "        longest_ms = max(self.lost_after_ms, told_ms)\n"
    assert beside in source.read_text()
    source.write_text(
        "# more\n" * 5 + source.read_text().replace(beside, beside.replace("\n", "  # changed\n"))
    )
    with pytest.raises(BugsError, match="does not fit"):
        fits(bug)
    renewed = refreshed(bug)
    fits(renewed)
    assert renewed.diff.count("\n-") == bug.diff.count("\n-")
    # Where the line itself is another one, nobody can say what the bug would be.
    source.write_text(source.read_text().replace("longest_ms // 20 +", "longest_ms // 19 +"))
    with pytest.raises(BugsError, match="make it anew"):
        refreshed(renewed)


@pytest.mark.ci
@pytest.mark.parametrize("bug", BUGS, ids=name_of)
def test_a_planted_bug_is_found_and_named(bug: Bug, tmp_path: Path) -> None:
    found = hunt(bug, tmp_path)
    assert found.seed is not None, f"not found: {found.printed}"
    assert found.invariant in bug.invariants, found.printed

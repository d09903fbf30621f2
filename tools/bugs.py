"""Keeps the planted bugs in `tests/sim/bugs/`: patches that break production code, for the simulator to find.

`python -m tools.bugs check`: does each still fit the sources? `refresh`: renews those that do not, where
only their surroundings have changed. `find [NAME…]`: which seed finds each, what it names, and how long
that takes. `add NAME DESCRIPTION INVARIANTS`: makes one of what is changed in `src/` and not committed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUGS = ROOT / "tests" / "sim" / "bugs"
SEEDS_MAX = 2_000
CONTEXT_LINES = 2

_INDEX = re.compile(r"^index ([0-9a-f]+)\.\.", re.MULTILINE)
_FILE = re.compile(r"^\+\+\+ b/(\S+)", re.MULTILINE)
_NAMED = re.compile(r"seed (\d+), event (\d+): ([a-z-]+): ")


class BugsError(Exception):
    """A patch that does not do what it should; the text says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Bug:
    """A patch: what it breaks, the invariants of which one must be named, the file, and the diff."""

    name: str
    description: str
    invariants: tuple[str, ...]
    file: str
    diff: str

    @classmethod
    def read(cls, path: Path) -> "Bug":
        """Takes a patch file apart. Raises BugsError where it is not of the form that README.md gives."""
        text = path.read_text()
        description, invariants, empty, *_ = [*text.splitlines(), "", "", ""]
        files = _FILE.findall(text)
        if not description or not invariants or empty or len(files) != 1:
            raise BugsError(
                f"{path.name}: a line that says what is broken, one that names invariants, an empty one, "
                "and a diff of one file are wanted"
            )
        diff = text.split("\n\n", 1)[1]
        return cls(path.stem, description, tuple(invariants.split()), files[0], diff)

    def write(self, folder: Path) -> None:
        """Makes the file."""
        text = f"{self.description}\n{' '.join(self.invariants)}\n\n{self.diff}"
        (folder / f"{self.name}.patch").write_text(text)

    def apply(self, folder: Path) -> None:
        """Plants it in a copy of the sources. Raises BugsError where it does not fit."""
        done = _git("apply", "-", cwd=folder, text=self.diff)
        if done.returncode:
            raise BugsError(
                f"{self.name} does not fit the sources any more ({done.stderr.strip()}); "
                "renew it with: python -m tools.bugs refresh"
            )


@dataclass(frozen=True, slots=True)
class Hunted:
    """What the simulator said of a planted bug. `seed` is None where it found nothing."""

    seed: int | None
    invariant: str
    printed: str
    time_s: float


def bugs(names: Sequence[str] = ()) -> list[Bug]:
    """All of them, or those named."""
    found = [Bug.read(path) for path in sorted(BUGS.glob("*.patch"))]
    strange = set(names) - {bug.name for bug in found}
    if strange:
        raise BugsError(f"there is no {', '.join(sorted(strange))} in {BUGS.relative_to(ROOT)}")
    return [bug for bug in found if not names or bug.name in names]


def fits(bug: Bug) -> None:
    """Raises BugsError unless the patch can be applied to the sources as they are."""
    with tempfile.TemporaryDirectory() as folder:
        _copy(ROOT / bug.file, Path(folder) / bug.file)
        bug.apply(Path(folder))


def hunt(bug: Bug, folder: Path, seeds_max: int = SEEDS_MAX) -> Hunted:
    """Plants a bug in a copy of the sources in `folder`, and lets the simulator look for it."""
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "rota", folder / "src" / "rota", ignore=skipped)
    bug.apply(folder)
    began_s = time.monotonic()
    command = "from rota.sim.cli import check; check()"
    run = subprocess.run(
        [sys.executable, "-c", command, "-x", "-j", "1", "--seeds", f"1..{seeds_max}"],
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    named = _NAMED.search(run.stdout)
    if named is None and run.returncode:
        raise BugsError(f"{bug.name}: the simulator failed otherwise: {run.stdout}{run.stderr}")
    time_s = time.monotonic() - began_s
    return Hunted(int(named[1]) if named else None, named[3] if named else "", run.stdout, time_s)


# ---------------------------------------------------------------- renewing


def refreshed(bug: Bug) -> Bug:
    """The same bug in the sources as they are, by a three-way merge with what it was made of."""
    current = ROOT / bug.file
    known = _INDEX.search(bug.diff)
    base = _git("cat-file", "blob", known[1], cwd=ROOT) if known else None
    bad = None
    if base is not None and not base.returncode:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / bug.file).parent.mkdir(parents=True)
            (folder / bug.file).write_text(base.stdout)
            (folder / "before.py").write_text(base.stdout)
            bug.apply(folder)
            merged = _git("merge-file", "-p", str(current), "before.py", bug.file, cwd=folder)
            bad = merged.stdout if merged.returncode == 0 else None
    return _with_diff(bug, current.read_text(), bad or _replaced(bug, current.read_text()))


def _replaced(bug: Bug, good: str) -> str:
    """The file with the bug, where its lines stand unchanged and in one place."""
    lines = bug.diff[bug.diff.index("\n@@") :].splitlines(keepends=True)[2:]
    broken = "".join(line[1:] for line in lines if line.startswith("-"))
    if not broken or good.count(broken) != 1:
        raise BugsError(f"{bug.name}: the very lines that it breaks have changed; make it anew")
    return good.replace(broken, "".join(line[1:] for line in lines if line.startswith("+")))


def _with_diff(bug: Bug, good: str, bad: str) -> Bug:
    with tempfile.TemporaryDirectory() as name:
        for side, text in (("a", good), ("b", bad)):
            file = Path(name) / side / bug.file
            file.parent.mkdir(parents=True)
            file.write_text(text)
        made = _git(
            "diff", "--no-index", "--no-prefix", f"-U{CONTEXT_LINES}", "--abbrev=12", "a", "b", cwd=Path(name)
        )
    # That the merge can be made again, also before the sources are committed.
    _git("hash-object", "-w", bug.file, cwd=ROOT)
    if not made.stdout:
        raise BugsError(f"{bug.name}: it changes nothing any more")
    return Bug(bug.name, bug.description, bug.invariants, bug.file, made.stdout)


def _added(name: str, description: str, invariants: str) -> Bug:
    """A new bug, out of what is changed in `src/` and not committed."""
    changed = _git("diff", "--name-only", "--", "src", cwd=ROOT).stdout.split()
    if len(changed) != 1:
        raise BugsError(f"one file of src/ is to be changed, not {len(changed)}: {' '.join(changed)}")
    good = _git("show", f"HEAD:{changed[0]}", cwd=ROOT).stdout
    bug = Bug(name, description, tuple(invariants.split()), changed[0], "")
    return _with_diff(bug, good, (ROOT / changed[0]).read_text())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True)
    shutil.copyfile(source, target)


def _git(*arguments: str, cwd: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    # A folder inside of a checkout is to be taken for itself.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(cwd.parent)}
    return subprocess.run(
        ["git", *arguments], cwd=cwd, env=environment, input=text, capture_output=True, text=True, check=False
    )


# ---------------------------------------------------------------- commands


def _each(what: str, names: Sequence[str]) -> int:
    """Does something with each bug; how many it could not be done with."""
    failed = 0
    for bug in bugs(names):
        try:
            if what == "check":
                fits(bug)
            elif what == "refresh":
                _refresh(bug)
            else:
                failed += _find(bug)
        except BugsError as error:
            failed += 1
            print(f"bugs: {error}", file=sys.stderr)
    return failed


def _refresh(bug: Bug) -> None:
    try:
        fits(bug)
    except BugsError:
        refreshed(bug).write(BUGS)
        print(f"{bug.name}: renewed")


def _find(bug: Bug) -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = hunt(bug, Path(folder))
    right = found.invariant in bug.invariants
    said = "not found" if found.seed is None else f"seed {found.seed}, {found.invariant}"
    print(f"{bug.name}: {said}, {found.time_s:.0f} s{'' if right else ': WRONG'}", flush=True)
    return not right


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    try:
        match arguments:
            case ["add", name, description, invariants]:
                _added(name, description, invariants).write(BUGS)
                print(f"{name}: written; take the change in src/ back with: git restore src")
                return 0
            case ["check" | "refresh" | "find" as what, *names]:
                return 1 if _each(what, names) else 0
    except BugsError as error:
        print(f"bugs: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

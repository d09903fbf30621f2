"""Checks the contract in `proto/`: buf's lint, and whether a change would break those who use it.

`python -m tools.contract check` does both; `baseline` makes today's contract the measure of later changes.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.generate import googleapis_folder

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "proto" / "baseline.binpb"
IMPORTED = ("google/api/annotations.proto", "google/api/http.proto")


def check() -> int:
    """Lints, and compares with the baseline. Returns buf's exit status."""
    if status := _buf("lint", "proto"):
        return status
    if not BASELINE.is_file():
        print("contract: lint passed; no baseline yet, so nothing can break ('make baseline' makes one)")
        return 0
    status = _buf("breaking", "proto", "--against", str(BASELINE), "--exclude-imports")
    if status:
        print("contract: this breaks the baseline; a decision record and 'make baseline' would move it")
    else:
        print("contract: lint passed, nothing broken")
    return status


def baseline() -> int:
    """Writes `proto/baseline.binpb`. Returns buf's exit status."""
    return _buf("build", "proto", "--exclude-source-info", "--output", str(BASELINE))


def _buf(*arguments: str) -> int:
    build = ROOT / ".build"
    for name in IMPORTED:
        target = build / "googleapis" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(googleapis_folder() / name, target)
    command = [str(Path(sys.executable).parent / "buf"), *arguments]
    environment = os.environ | {"BUF_CACHE_DIR": str(build / "buf")}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    """Entry point of `python -m tools.contract check|baseline`."""
    actions = {"check": check, "baseline": baseline}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        print(f"usage: python -m tools.contract {'|'.join(actions)}", file=sys.stderr)
        return 2
    return actions[sys.argv[1]]()


if __name__ == "__main__":
    sys.exit(main())

"""Looking again until something has happened, for a limited time."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

STEP_S_MAX = 60.0


def wait_until(happened: Callable[[], object], what: str) -> None:
    """Looks again and again; fails after STEP_S_MAX."""
    pause = threading.Event()
    until_s = time.monotonic() + STEP_S_MAX
    while not happened():
        assert time.monotonic() < until_s, f"waited {STEP_S_MAX} s for {what}"
        pause.wait(0.005)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def words(path: Path) -> list[str]:
    """What has been written to a file so far."""
    return path.read_text().split() if path.exists() else []

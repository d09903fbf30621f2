"""Processes by their pid files: which one it is, whether it lives, and its end, without waiting in vain."""

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# The kernel counts starts in ticks, and files have their times from a clock that runs a little behind.
_SLACK_S = 1.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process that lived when it was found; the descriptor stands for it, whatever becomes of its pid."""

    pid: int
    descriptor: int

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; nothing where it has ended."""
        try:
            signal.pidfd_send_signal(self.descriptor, number)
        except ProcessLookupError:
            return

    def ended(self, seconds: float | None) -> bool:
        """Whether it has ended, at the latest after so long; None waits for ever."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(None if seconds is None else max(0.0, seconds) * 1000))


@contextmanager
def living(pid_file: Path) -> Iterator[Process | None]:
    """The process that wrote a pid file, if it lives, for as long as the block runs.

    A process that has the pid by now but began after the file was written is another one.
    """
    try:
        pid = _pid(pid_file.read_text())
        written_s = pid_file.stat().st_mtime
        descriptor = os.pidfd_open(pid)
    except (FileNotFoundError, NotADirectoryError, ValueError, ProcessLookupError):
        yield None
        return
    try:
        found = Process(pid, descriptor)
        started_s = _started_s(pid)
        same = started_s is not None and started_s <= written_s + _SLACK_S
        yield found if same and not found.ended(0) else None
    finally:
        os.close(descriptor)


def _pid(text: str) -> int:
    """Raises ValueError."""
    pid = int(text)
    if not 0 < pid < 2**31:
        raise ValueError(f"{pid} is no pid")
    return pid


def lives(pid_file: Path) -> bool:
    """Whether the process that wrote a pid file lives."""
    with living(pid_file) as process:
        return process is not None


def _started_s(pid: int) -> float | None:
    """When a process began, in seconds since 1970; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Behind the name in brackets, which may hold anything; the start is field 22.
    ticks = int(stat[stat.rindex(")") + 2 :].split()[19])
    boot_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot_s + ticks / os.sysconf("SC_CLK_TCK")


def arguments_of(pid: int) -> list[str]:
    """The command line of a process, word by word; nothing where it has ended."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [os.fsdecode(word) for word in data.split(b"\0")[:-1]]

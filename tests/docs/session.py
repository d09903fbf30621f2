"""A bash session with a home and a directory of its own, and how its output is compared with a page's."""

import getpass
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes import still_there

BIN = Path(sys.executable).parent
COMMAND_S_MAX = 60.0
END_S_MAX = 10.0
# What was just told to end may still be on its way.
GOING_S_MAX = 3.0

# Sources each command, in this shell but with nothing to read, and says how it ended. `$?` is the exit code
# of the command before, as in any shell.
_LOOP = """
code=0
while read -r -u TELL file; do
    (exit $code)
    . "$file" < /dev/null > "$file.out" 2>&1 TELL<&- SAY>&-
    code=$?
    echo $code >&SAY
done
"""

# What differs from one run, and from one machine, to the next: a page shows how it looked once.
_VARIES = [
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "<time>"),
    (re.compile(r"(127\.0\.0\.1|localhost):\d+"), "<address>"),
    (re.compile(r"\b[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}\b"), "<uuid>"),
    (re.compile(r"rota1_\w+"), "<token>"),
    # A duration, a size, and what stands where there is none of it.
    (re.compile(r"(?<!\S)(\d+(\.\d+)?(ms|s|m|h|d))+(?!\S)"), "<amount>"),
    (re.compile(r"(?<![\w.])\d+(\.\d+)?(KiB|MiB|GiB|TiB)\b"), "<amount>"),
    (re.compile(r"(?<!\S)-(?!\S)"), "<amount>"),
    (re.compile(r"[ \t]+"), " "),
]
# `rota wait` says it now and then where there is no terminal for a progress bar.
_PROGRESS = re.compile(r"rota: job \d+ [A-Z]+: [\d,]+ tasks?: .*")


class Session:
    """Used as a context; at its end nothing is left of it."""

    def __enter__(self) -> Self:
        # A short path, because of Unix sockets.
        self.base = Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))
        self.place = self.base / "work"
        self.place.mkdir()
        (self.base / "commands").mkdir()
        self._count = 0
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ROTA_")}
        environment |= {
            "HOME": str(self.base),
            "ROTA_HOME": str(self.base / ".rota"),
            "PATH": f"{BIN}:{environment['PATH']}",
            "LC_ALL": "C.UTF-8",
        }
        tell, say = os.pipe(), os.pipe()
        script = _LOOP.replace("TELL", str(tell[0])).replace("SAY", str(say[1]))
        self._bash = subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.place,
            env=environment,
            pass_fds=(tell[0], say[1]),
            start_new_session=True,
        )
        os.close(tell[0])
        os.close(say[1])
        self._tell, self._say = tell[1], say[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._tell)
        left = self._end()
        os.close(self._say)
        subprocess.run(["rm", "-rf", str(self.base)], check=True)
        if error is None:
            assert not left, f"the page leaves processes behind: {left}"

    def _end(self) -> list[str]:
        """Ends what the page has left running; what it was."""
        with suppress(subprocess.TimeoutExpired):
            self._bash.wait(END_S_MAX)
        left = self._left(GOING_S_MAX)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            self._left(END_S_MAX)
        self._bash.wait()
        return left

    def _left(self, seconds: float) -> list[str]:
        """What still runs after so long; returns at once when all has ended."""
        until_s = time.monotonic() + seconds
        while found := self._processes():
            if still_there(found, until_s - time.monotonic()):
                return list(self._processes().values())
            # They have ended, and may have started others before.
        return []

    def _processes(self) -> dict[int, str]:
        """All that has come from the session, by the environment that it was given; with its command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                    if f"={self.base}\0".encode() in (entry / "environ").read_bytes():
                        words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                        found[int(entry.name)] = words.decode(errors="replace").strip()
        return found

    def write(self, name: str, text: str) -> None:
        """Makes a file in the session's first working directory."""
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, command: str) -> tuple[int, list[str]]:
        """Runs a command to its end: its exit code, and the lines that it printed."""
        self._count += 1
        file = self.base / "commands" / str(self._count)
        file.write_text(command + "\n")
        os.write(self._tell, f"{file}\n".encode())
        ready, _, _ = select.select([self._say], [], [], COMMAND_S_MAX)
        assert ready, f"not done after {COMMAND_S_MAX:.0f} s: {command}"
        said = os.read(self._say, 16)
        assert said, f"this ends the shell: {command}"
        printed = file.with_suffix(".out").read_text(errors="replace")
        return int(said), [self._as_shown(line) for line in printed.splitlines() if not _PROGRESS.match(line)]

    def _as_shown(self, line: str) -> str:
        """With the names that stand on the pages instead of those of this machine."""
        line = line.replace(str(self.base), "/home/ada")
        line = line.replace(" (so they may do anything here)", "")
        line = re.sub(rf"\b{re.escape(socket.gethostname().partition('.')[0])}\b", "laptop", line)
        return re.sub(rf"\b(?<!/){re.escape(getpass.getuser())}\b", "ada", line)


def same(shown: list[str], printed: list[str]) -> bool:
    """Whether a page shows what was printed: `...` is anything in a line, and alone on a line any lines."""
    pattern = ""
    for line in shown:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*".join(map(re.escape, _plain(line).split("..."))) + r"\n"
    return re.fullmatch(pattern, "".join(_plain(line) + "\n" for line in printed)) is not None


def _plain(line: str) -> str:
    for what, instead in _VARIES:
        line = what.sub(instead, line)
    return line.strip()

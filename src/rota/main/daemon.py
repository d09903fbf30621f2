"""Starting a part in the background: a session of its own, a log file, and a pipe that says when it is ready.

The part writes one line to the pipe: `ready`, or why it could not start; it closes it without a word if it
dies.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

READY = "ready"
START_S_MAX = 60.0


def start(
    name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Starts `rota ARGUMENTS --ready-fd N` and waits until it is ready. Raises ClickException.

    One that is not ready when this is interrupted is ended.
    """
    reading, writing = os.pipe()
    process: subprocess.Popen[bytes] | None = None
    try:
        with os.fdopen(reading) as pipe:
            # A part that has begun is known here before an interruption ends this.
            with _interrupted_later(), log.open("ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "rota.main", *arguments, "--ready-fd", str(writing)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(writing,),
                    start_new_session=True,
                    env={**os.environ, **(environment or {})},
                )
            os.close(writing)
            ready, _, _ = select.select([pipe], [], [], START_S_MAX)
            said = pipe.readline().strip() if ready else f"it is not ready after {START_S_MAX:.0f} s"
    except KeyboardInterrupt:
        if process is not None:
            # Nobody else knows yet that it is there.
            process.terminate()
            process.wait()
        raise
    if said == READY:
        # It goes on without us; whoever outlives the other.
        process.returncode = 0
        return
    process.terminate()
    process.wait()
    why = said or last_line(log) or f"it ended with {process.returncode}"
    raise click.ClickException(f"the {name} did not start: {why} (its log: {log})")


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """What comes of INT, TERM and HUP meanwhile comes at the end. What is ignored stays so."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    mine = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in mine:
        signal.signal(number, lambda which, _: came.append(which))
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])
        for which in came:
            signal.raise_signal(which)


def say_ready(descriptor: int | None, text: str = READY) -> None:
    """Tells whoever started this process, once."""
    if descriptor is None:
        return
    try:
        os.write(descriptor, f"{text}\n".encode())
        os.close(descriptor)
    except BrokenPipeError:
        # Nobody waits any more.
        return


def last_line(log: Path) -> str:
    """What a part said last, of its errors if there are any near the end."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
    errors = [line.partition(" ERROR ")[2].partition(": ")[2] for line in lines if " ERROR " in line]
    return [*lines, *errors][-1].removeprefix("rota: ") if lines else ""

"""The program `rota`: the command line, and the commands that need more than a client."""

import os
import sys
from contextlib import suppress
from typing import NoReturn

from rota.cli import interrupts, streams
from rota.cli.app import root, run
from rota.cli.group import Entry

__all__ = ["main", "root"]

_MACHINE = "This machine"

root.entries = {
    "up": Entry("rota.main.up:up", "start what is missing of a cluster on this machine", _MACHINE),
    "down": Entry("rota.main.down:down", "stop it", _MACHINE),
    "controller": Entry("rota.main.controller:controller", "run a controller in the foreground", _MACHINE),
    "agent": Entry("rota.main.agent:agent", "run an agent in the foreground", _MACHINE),
    **root.entries,
    "sim": Entry("rota.main.sim:sim", "clusters in virtual time, and simulated nodes", "Other"),
}


def main() -> NoReturn:
    """Runs the command line, and ends the process.

    Not by way of the interpreter's own end, which takes apart object by object what the system frees at once:
    a sixth of a short command's time. Whatever has to be put in order, a command has done when it returns.
    """
    streams.mend()
    interrupts.raise_again()
    code = run(root)
    interrupts.end_quietly()
    for stream in (sys.stdout, sys.stderr):
        # What cannot be written has been said, or there is nobody to be told.
        with suppress(OSError):
            stream.flush()
    os._exit(code)

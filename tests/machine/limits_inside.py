"""Runs as the first process of a machine with cgroup v2 (see `qemu`), and prints what it saw there."""

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

# As a service manager does for a service with delegation.
_DELEGATE = """
mkdir -p /sys/fs/cgroup/rota.service && echo $$ > /sys/fs/cgroup/rota.service/cgroup.procs || exit
echo +memory +cpu +pids > /sys/fs/cgroup/cgroup.subtree_control && exec "$@"
"""
DELEGATED = ("sh", "-c", _DELEGATE, "sh")
MIB = 1024 * 1024


def _look() -> None:
    from rota.core.model.resources import Resources
    from rota.core.model.spec import JobSpec
    from rota.core.model.states import Cause
    from tests.shell.agent.harness import Agent, agent

    def take(node: Agent, lease: int, allocation: int, code: str) -> str:
        node.grant(JobSpec(command=(sys.executable, "-S", "-c", code)), allocation=allocation, lease=lease)
        place = (allocation, 0)
        node.until(lambda: place in node.ended or place in node.succeeded)
        ended = node.ended.get(place)
        return "succeeded" if ended is None else f"{Cause(ended.cause).name} {ended.code}"

    with agent(Path(tempfile.mkdtemp()), prefix=DELEGATED) as node:
        print("SAW warnings", node.inventory.warnings)
        node.lease(1, 2, Resources(cpu=1000, memory=64 * MIB))
        node.lease(1, 3, Resources(cpu=200))
        print("SAW too much memory:", take(node, 2, 20, "x = bytearray(200 << 20)"))
        print("SAW enough memory:", take(node, 2, 21, "x = bytearray(20 << 20)"))
        child = "import os, sys\nif os.fork() == 0: bytearray(200 << 20)\nelse: os.wait(); sys.exit(0)"
        print("SAW a child with too much memory:", take(node, 2, 22, child))
        print("SAW killed by itself:", take(node, 2, 23, "import os; os.kill(os.getpid(), 9)"))
        spin = "import time\nwhile time.process_time() < 0.3: pass\nraise SystemExit(1)"
        print("SAW a fifth of a core:", take(node, 3, 30, spin))
        ended = node.ended[30, 0]
        print("SAW 0.3 s of it took longer than a second:", ended.duration_ms > 1_000)


def main() -> None:
    """Always ends the machine."""
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        _look()
        print("SAW the end")
    except BaseException:  # noqa: BLE001 - the first process may not die
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        os.sync()
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).reboot(0x4321FEDC)


if __name__ == "__main__":
    main()

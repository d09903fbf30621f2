"""Limits need cgroup v2 with its controllers: user-mode Linux is started, which has them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MACHINE = shutil.which("linux.uml")
# What it says before it panics where the processor has more registers (AMX) than it can save.
STATE_TOO_LARGE = "ptrace set fp regs failed"

pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(MACHINE is None, reason="needs user-mode Linux: apt-get install user-mode-linux"),
]


def test_limits_are_enforced_and_running_out_of_memory_is_told(tmp_path: Path) -> None:
    assert MACHINE is not None
    script = tmp_path / "init"
    script.write_text(
        "#!/bin/sh\n"
        f"export PATH={os.environ['PATH']} HOME=/root PYTHONPATH={ROOT}/src:{ROOT} PYTHONUNBUFFERED=1\n"
        f"cd {ROOT} && exec {sys.executable} -m tests.shell.agent.limits_inside\n"
    )
    script.chmod(0o755)
    command = [MACHINE, "mem=1G", "rootfstype=hostfs", "rootflags=/", "ro", f"init={script}"]
    command += ["con=null", "con0=null,fd:1", "quiet", f"umid=rota{os.getpid()}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, check=False)
    if STATE_TOO_LARGE in done.stdout:
        pytest.skip(
            "user-mode Linux does not run on this processor, whose state is larger than it has room for"
        )
    seen = [line.partition("SAW ")[2] for line in done.stdout.splitlines() if "SAW " in line]
    assert seen == [
        "warnings ()",
        "too much memory: OOM 9",
        "enough memory: succeeded",
        "a child with too much memory: OOM 9",
        "killed by itself: SIGNAL 9",
        "a fifth of a core: EXIT 1",
        "0.3 s of it took longer than a second: True",
        "the end",
    ], done.stdout

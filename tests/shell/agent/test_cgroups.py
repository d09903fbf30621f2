"""What an agent may do with cgroups where it was given some of them."""

import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.files import WAIT_S_MAX

NOBODY = "nobody"
# In a cgroup, as an account.
ASK = """
import os, sys
from pathlib import Path
from rota.agent import cgroups
Path(sys.argv[1], "cgroup.procs").write_text("0")
os.setresuid(*[int(sys.argv[2])] * 3)
print(cgroups.writable())
"""


def test_cgroups_that_processes_cannot_be_moved_in_are_none(group: Path) -> None:
    account = pwd.getpwnam(NOBODY)

    def usable() -> str:
        command = [sys.executable, "-c", ASK, str(group), str(account.pw_uid)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S_MAX)
        return done.stdout.strip()

    try:
        (group / "cgroup.procs").stat()
        subprocess.run(["chown", NOBODY, group], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this account may not give a cgroup away")
    assert usable() == "False"
    subprocess.run(["chown", NOBODY, group / "cgroup.procs"], check=True)
    assert usable() == "True"

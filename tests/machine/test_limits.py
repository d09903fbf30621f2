"""Limits need cgroup v2 with its controllers: a machine of its own is started, which has them."""

from pathlib import Path

import pytest

from tests.machine.qemu import boot, needs_machine, saw

pytestmark = [pytest.mark.ci, pytest.mark.timeout(360), needs_machine]


def test_limits_are_enforced_and_running_out_of_memory_is_told(tmp_path: Path) -> None:
    console = boot(tmp_path, "exec python -m tests.machine.limits_inside\n")
    assert saw(console) == [
        (
            "warnings ('tasks of the account root run as root; "
            "with --map-user root=ACCOUNT they run as another',)"
        ),
        "too much memory: OOM 9",
        "enough memory: succeeded",
        "a child with too much memory: OOM 9",
        "killed by itself: SIGNAL 9",
        "a fifth of a core: EXIT 1",
        "0.3 s of it took longer than a second: True",
        "the end",
    ], console

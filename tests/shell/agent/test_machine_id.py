"""A home and the machine that it is of."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rota.agent import facts
from rota.agent.machine_id import Copied, claim
from rota.core.model.spec import JobSpec
from rota.core.node.entries import Start
from tests.shell.agent.harness import agent
from tests.support.files import WAIT_S_MAX
from tests.support.processes import alive

OURS, OTHER = "0123456789abcdef" * 2, "f" * 32


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def _claim(home: Path, machine: str | None) -> None:
    id_file = home / "machine-id"
    id_file.unlink(missing_ok=True)
    if machine is not None:
        id_file.write_text(f"{machine}\n")
    claim(home, id_file)


def _reboot(home: Path) -> None:
    """As if what is recorded were of an earlier boot."""
    found = json.loads((home / "machine.json").read_text())
    (home / "machine.json").write_text(json.dumps({**found, "boot": "earlier"}))


@pytest.mark.parametrize(
    ("before", "after"),
    [(OURS, OURS), (None, None), (None, OURS), ("", None), ("uninitialized", "uninitialized")],
)
def test_after_a_reboot_it_is_the_same_machine(home: Path, before: str | None, after: str | None) -> None:
    _claim(home, before)
    assert OURS not in (home / "machine.json").read_text()
    _reboot(home)
    _claim(home, after)
    assert json.loads((home / "machine.json").read_text())["boot"] == facts.boot_id()


@pytest.mark.parametrize("after", [OTHER, None, ""])
def test_another_machine_is_refused_until_somebody_says_so(home: Path, after: str | None) -> None:
    _claim(home, OURS)
    _reboot(home)
    for _ in range(2):
        with pytest.raises(Copied):
            _claim(home, after)
    (home / "machine.json").unlink()
    _claim(home, after)


def test_a_container_that_is_made_anew_is_the_same_machine_until_it_boots(home: Path) -> None:
    _claim(home, OURS)
    _claim(home, OTHER)
    _reboot(home)
    _claim(home, OTHER)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_file_is_none(home: Path, text: str) -> None:
    (home / "machine.json").write_text(text)
    _claim(home, OURS)


def test_an_agent_in_a_copied_home_does_not_start(home: Path) -> None:
    (home / "machine.json").write_text(json.dumps({"machine": "0" * 32, "boot": "another", "home": ""}))
    command = [sys.executable, "-m", "rota.agent", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S_MAX)
    assert done.returncode == 4
    assert done.stderr == (
        f"rota agent: {home} was copied or moved from another machine. If its agent there will never run "
        f"again, remove {home}/machine.json, and this one takes its place; else remove {home}, and join with "
        "a new token\n"
    )
    assert not (home / "journal").exists()


def test_a_copy_beside_the_original_does_not_start_and_one_that_was_moved_does(tmp_path: Path) -> None:
    home, copy, moved = tmp_path / "home", tmp_path / "copy", tmp_path / "moved"
    with agent(home) as node:
        (home / "identity.json").write_text(json.dumps({"node": node.node_id}))
        node.grant(JobSpec(command=("sleep", "1000"), cwd="/"))
        node.until(lambda: (10, 0) in node.started)
        (start,) = [entry for entry in node.entries() if isinstance(entry, Start)]
        shutil.copytree(home, copy)
        command = [sys.executable, "-m", "rota.agent", "--home", str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_S_MAX)
        assert done.returncode == 4
        assert done.stderr == (
            f"rota agent: {copy} is a copy of {home}, which is there still: they cannot both be one node. "
            f"To go on here, stop the agent there and remove {home}; else remove {copy}, and join with a new "
            "token\n"
        )
        assert alive(start.pid)
        assert node.end() == 0
        home.rename(moved)
        node.home = moved
        node.restart()
        node.connect()
        node.lease()
        assert node.run(JobSpec(command=("true",), cwd="/"), allocation=11) is None
    # It has been moved meanwhile, and the copy knows of no original any more.
    claim(copy)


def test_a_path_that_is_another_nodes_now_or_leads_here_is_no_original(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "identity.json").write_text('{"node": "one"}')
    claim(first)
    first.rename(second)
    first.symlink_to(second)
    claim(second)
    first.unlink()
    first.mkdir()
    found = json.loads((second / "machine.json").read_text())
    for text in ('{"node": "two"}', "{", "[]"):
        (second / "machine.json").write_text(json.dumps({**found, "home": str(first)}))
        (first / "identity.json").write_text(text)
        claim(second)

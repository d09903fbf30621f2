"""What the tests wait with."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.files import Gate, until, until_there, words
from tests.support.processes import alive, freeze, kill, look_again, state, still_there, until_gone


@contextmanager
def shell(script: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A shell with a pipe to tell it things, and one to hear of it; killed in the end."""
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    "change",
    [
        "touch {0}/new",
        "echo x >> {0}/a",
        "mv {0}/a {0}/b",
        "mv {0}/a {1}",
        "mv {1}/c {0}",
        "rm {0}/a",
        "mkdir {0}/d",
    ],
)
def test_every_change_in_a_folder_is_noticed(change: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, name in ((here, "a"), (there, "c")):
        folder.mkdir()
        (folder / name).touch()
    before = sorted((file.name, file.stat().st_size) for file in here.iterdir())
    with shell("read go; " + change.format(here, there)) as process:
        looks: list[list[tuple[str, int]]] = []

        def changed() -> bool:
            looks.append(sorted((file.name, file.stat().st_size) for file in here.iterdir()))
            if len(looks) == 1:
                # Only now, after the first look.
                assert process.stdin is not None
                process.stdin.write(b"\n")
                process.stdin.flush()
            return looks[-1] != before

        until(changed, "nothing happened", here)
        assert looks[0] == before


def test_what_is_there_already_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one two\n")
    until_there(tmp_path / "a")
    assert until(lambda: words(tmp_path / "a"), "nothing there", tmp_path, wait_s=0) == ["one", "two"]
    assert words(tmp_path / "b") == []


def test_what_does_not_happen_is_said(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="waited 0 s, and no file came"):
        until(lambda: None, "no file came", tmp_path, wait_s=0.01)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        until(lambda: None, "no file came", tmp_path / "nowhere")


def test_a_gate_holds_back_and_lets_pass_those_that_come_later(tmp_path: Path) -> None:
    with Gate(tmp_path / "a gate") as gate, shell(f"echo up; {gate.wait} && echo through") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"up\n"
        assert subprocess.run(["flock", "-ns", tmp_path / "a gate", "true"], check=False).returncode == 1
        gate.open()
        assert first.stdout.readline() == b"through\n"
    assert subprocess.run(gate.argv, check=False).returncode == 0
    gate.open()


def test_the_end_of_a_process_is_waited_for() -> None:
    with shell("sleep 1000 & echo $!; wait") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert still_there([child, process.pid], 0.01) == [child, process.pid]
        with pytest.raises(AssertionError, match=rf"there still are \[{child}\]"):
            until_gone(child, wait_s=0.01)
        kill(child)
        assert not alive(child)
        until_gone(process.pid)
        assert state(process.pid) == "Z"
        assert not alive(process.pid)
    assert state(process.pid) == "X"
    until_gone(process.pid)


def test_a_frozen_process_stands_still() -> None:
    with shell("echo up; read go; echo on; read go") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"
        freeze(process.pid)
        assert state(process.pid) == "T"
        assert alive(process.pid)
        os.kill(process.pid, signal.SIGCONT)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"on\n"
        look_again(lambda: state(process.pid) == "S", "it does not sleep")

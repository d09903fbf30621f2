"""What tasks wrote: held to its limit by holes, and read while it grows."""

import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rota.agent import output
from rota.agent.output import Piece, Reader
from rota.agent.watches import Watch, Watches
from rota.core.model.protocol import Forget, ReadOutput
from rota.core.model.spec import JobSpec
from tests.shell.agent.harness import agent
from tests.support.files import Gate, until, until_there


def _read_all(reader: Reader, count_max: int = 1_000) -> list[Piece]:
    pieces = []
    while (piece := reader.read(count_max)) is not None:
        pieces.append(piece)
    return pieces


class Bell:
    """Who waits for changes."""

    def __init__(self, watches: Watches) -> None:
        self._watches = watches
        self.watch = Watch(watches, self._ring)
        self._rung = False

    def _ring(self) -> None:
        self._rung = True

    def _left_s(self, deadline_s: float) -> float:
        return 0 if self._rung else max(0.0, deadline_s - time.monotonic())

    def rings(self, wait_s: float = 0) -> bool:
        """Whether there was a change since the last time."""
        deadline_s = time.monotonic() + wait_s
        while select.select([self._watches], [], [], self._left_s(deadline_s))[0]:
            self._watches.take()
        rung, self._rung = self._rung, False
        return rung


@pytest.fixture
def watches() -> Iterator[Watches]:
    made = Watches()
    yield made
    made.close()


def test_a_file_is_read_in_pieces_and_on_as_it_grows(tmp_path: Path, watches: Watches) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"0123456789")
    bell = Bell(watches)
    reader = Reader(file, offset=3, watch=bell.watch)
    assert _read_all(reader, 4) == [Piece(3, b"3456"), Piece(7, b"789")]
    assert not bell.rings()
    with file.open("ab") as more:
        more.write(b"abc")
    assert bell.rings(10)
    assert _read_all(reader) == [Piece(10, b"abc")]
    assert not bell.rings()
    reader.close()


def test_a_file_may_come_later(tmp_path: Path, watches: Watches) -> None:
    file = tmp_path / "7" / "10" / "0" / "0.1.out"
    bell = Bell(watches)
    reader = Reader(file, watch=bell.watch)
    assert reader.read(10) is None
    file.write_bytes(b"here")
    assert bell.rings(10)
    assert _read_all(reader) == [Piece(0, b"here")]
    reader.close()
    assert Reader(tmp_path / "not" / "there").read(10) is None


def test_one_instance_serves_many_readers_of_one_file_or_of_several(tmp_path: Path, watches: Watches) -> None:
    files = [tmp_path / str(number) for number in range(300)]
    for file in files:
        file.touch()
    bells = [Bell(watches) for _ in range(600)]
    readers = [Reader(file, watch=bell.watch) for file, bell in zip(files * 2, bells, strict=True)]
    files[7].write_bytes(b"x")
    assert [number for number, bell in enumerate(bells) if bell.rings()] == [7, 307]
    # One goes, and the other is told as before; a file that goes takes nobody along.
    readers[7].close()
    files[7].write_bytes(b"y")
    files[8].unlink()
    assert [number for number, bell in enumerate(bells) if bell.rings() and number != 308] == [307]
    for reader in readers:
        reader.close()
    for file in files:
        file.write_bytes(b"z")
    assert not any(bell.rings() for bell in bells)


@pytest.mark.parametrize(
    ("text", "lines", "tail"),
    [
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"", 2, b""),
        (b"x" * 200_000 + b"\nlast\n", 1, b"last\n"),
        (b"first\n" + b"x" * 200_000 + b"\nlast\n", 2, b"x" * 200_000 + b"\nlast\n"),
    ],
)
def test_the_last_lines(tmp_path: Path, text: bytes, lines: int, tail: bytes) -> None:
    file = tmp_path / "x"
    file.write_bytes(text)
    reader = Reader(file, tail_lines=lines)
    assert b"".join(piece.data for piece in _read_all(reader, 1_000_000)) == tail
    reader.close()


def _big(file: Path, size: int) -> None:
    with file.open("wb") as out:
        for at in range(0, size, 1_000_000):
            out.write(b"%015d\n" % at * 62_500)


def test_what_is_too_much_goes_from_the_middle(tmp_path: Path) -> None:
    out, err = tmp_path / "0.1.out", tmp_path / "0.1.err"
    _big(out, 120_000_000)
    before = out.read_bytes()
    output.hold_to_limit([str(out), str(err)])
    assert out.stat().st_size == 120_000_000
    kept = out.stat().st_blocks * 512
    assert 99_000_000 < kept < output.ATTEMPT_BYTES_MAX + 100_000
    reader = Reader(out)
    pieces = _read_all(reader, 1_000_000)
    reader.close()
    gaps = [piece for piece in pieces if piece.gap_bytes]
    assert len(gaps) == 1
    assert 19_900_000 < gaps[0].gap_bytes < 20_100_000
    assert sum(len(piece.data) + piece.gap_bytes for piece in pieces) == 120_000_000
    for piece in pieces:
        assert before[piece.offset : piece.offset + len(piece.data)] == piece.data
    # It grows on, and again the middle goes: what was the end then is not kept.
    with out.open("ab") as more:
        more.write(b"z" * 30_000_000)
    output.hold_to_limit([str(out), str(err)])
    assert out.stat().st_blocks * 512 < output.ATTEMPT_BYTES_MAX + 100_000
    # What one stream does not use the other may have, and no more.
    _big(err, 60_000_000)
    output.hold_to_limit([str(out), str(err)])
    assert (out.stat().st_blocks + err.stat().st_blocks) * 512 < output.ATTEMPT_BYTES_MAX + 200_000
    assert err.stat().st_blocks * 512 > 49_000_000


def test_what_both_streams_have_too_much_goes(tmp_path: Path) -> None:
    files = [tmp_path / "0.1.out", tmp_path / "0.1.err"]
    for file in files:
        with file.open("wb") as out:
            os.posix_fallocate(out.fileno(), 0, 53_000_000)
    output.hold_to_limit(map(str, files))
    assert sum(file.stat().st_blocks * 512 for file in files) < output.ATTEMPT_BYTES_MAX + 100_000


def test_a_task_that_has_written_too_much_in_no_time_is_cut_at_its_end(tmp_path: Path) -> None:
    with agent(tmp_path / "home") as node:
        # On the disk, and quicker than by writing.
        code = "import os\nfor stream in (1, 2): os.posix_fallocate(stream, 0, 85_000_000)"
        node.grant(JobSpec(command=(sys.executable, "-c", code)))
        node.until(lambda: (10, 0) in node.succeeded)
        files = [output.path(node.home, 10, 10, 0, 1, stream) for stream in (1, 2)]
        assert [file.stat().st_size for file in files] == [85_000_000, 85_000_000]
        assert sum(file.stat().st_blocks * 512 for file in files) < output.ATTEMPT_BYTES_MAX + 100_000


def test_a_task_that_writes_without_end_is_held_to_the_limit(tmp_path: Path, gate: Gate) -> None:
    code = (
        "import os, subprocess, sys\n"
        "for i in range(160): os.write(1, b'%015d\\n' % i * 62500)\n"
        "open(sys.argv[1], 'w').close()\n"
        "subprocess.run(sys.argv[2:])\n"
        "print('end', flush=True)\n"
    )
    with agent(tmp_path / "home") as node:
        node.grant(JobSpec(command=(sys.executable, "-c", code, str(tmp_path / "written"), *gate.argv)))
        until_there(tmp_path / "written")
        file = output.path(node.home, 10, 10, 0, 1, 1)
        until(lambda: file.stat().st_blocks * 512 < 105_000_000, "it keeps everything", file.parent)
        gate.open()
        node.until(lambda: (10, 0) in node.succeeded)
        assert file.stat().st_size == 160_000_004
        with file.open("rb") as read:
            read.seek(-4, os.SEEK_END)
            assert read.read() == b"end\n"


def test_readers_are_told_of_the_end_and_forgotten_output_is_deleted(tmp_path: Path) -> None:
    with agent(tmp_path / "home") as node:
        node.grant(JobSpec(command=("sh", "-c", "echo one; read x; echo $x"), stdin=True))
        read = ReadOutput(1, 10, 10, 0, 1, 1, 0, 0, True)
        node.down(read)
        from rota.agent.link_frames import AttemptEnded, SendOutput
        from rota.core.model.protocol import Input

        node.until(lambda: SendOutput(read, True) in node.told)
        assert AttemptEnded(10, 0, 1) not in node.told
        node.down(Input(10, 0, 0, b"two\n", True))
        node.until(lambda: AttemptEnded(10, 0, 1) in node.told)
        node.until(lambda: (10, 0) in node.succeeded)
        assert node.output() == "one\ntwo\n"
        node.down(read)
        node.until(lambda: SendOutput(read, False) in node.told)
        node.down(Forget((10, 11)))
        until(lambda: not (node.home / "out" / "10").exists(), "it was not deleted", node.home / "out")
        trash = node.home / "trash"
        until(lambda: not list(trash.iterdir()), "it is still in the trash", trash)

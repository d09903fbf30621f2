"""Printing what tasks write."""

import threading
from collections.abc import Callable, Iterable

import pytest

from rota.cli import printer as printer_module
from rota.cli.printer import AGAIN_SAID_MAX, LINE_BYTES_MAX, STDERR, STDOUT, Printer
from rota.client.messages import ReadOutputResponse


def take(printer: Printer, index: int, data: bytes = b"", stream: int = STDOUT, **more: object) -> None:
    printer.take(index, ReadOutputResponse(stream=stream, attempt=1, data=data, **more))  # type: ignore[arg-type]


def test_one_tasks_streams_stay_apart_and_as_they_are(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    printer = Printer(prefixed=False)
    take(printer, 0, b"no newline")
    take(printer, 0, b"\xff\x00", STDERR)
    take(printer, 0, end=True)
    assert capfdbinary.readouterr() == (b"no newline", b"\xff\x00")


def test_lines_of_several_tasks_have_their_index(capfd: pytest.CaptureFixture[str]) -> None:
    printer = Printer(prefixed=True)
    take(printer, 7, b"on")
    take(printer, 8, b"two\nthree\nfo")
    take(printer, 7, b"e\n")
    take(printer, 8, b"ur", STDERR)
    assert capfd.readouterr() == ("[8] two\n[8] three\n[7] one\n", "")
    take(printer, 8, end=True)
    take(printer, 8, stream=STDERR, end=True)
    assert capfd.readouterr() == ("[8] fo\n", "[8] ur\n")


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_long_line_has_one_index_and_nobody_else_in_it(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printer_module, "LINE_S_MAX", 60.0)
    printer = Printer(prefixed=True)
    for _ in range(3):
        take(printer, 1, b"x" * LINE_BYTES_MAX)
    other = in_thread(lambda: take(printer, 2, b"other\n"))
    take(printer, 1, b"y\nnext\n")
    other.join()
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "[1] " + "x" * 3 * LINE_BYTES_MAX + "y"
    assert sorted(lines[1:]) == ["[1] next", "[2] other"]


def test_a_line_without_end_is_ended_when_others_have_waited(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(printer_module, "LINE_S_MAX", 0.0)
    printer = Printer(prefixed=True)
    long = "x" * (LINE_BYTES_MAX + 1)
    take(printer, 1, long.encode())
    take(printer, 2, b"other\n")
    take(printer, 1, long.encode())
    take(printer, 1, b"y", end=True)
    assert capfd.readouterr().out.splitlines() == [f"[1] {long}", "[2] other", f"[1] {long}y"]


def test_what_is_missing_is_said_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    printer = Printer(prefixed=True)
    take(printer, 4, unavailable="node a, which kept the output, is gone", end=True)
    take(printer, 4, stream=STDERR, unavailable="node a, which kept the output, is gone", end=True)
    printer.unread("5-9", "not read to the end: no controller answers")
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "rota: task 4: node a, which kept the output, is gone",
        "rota: tasks 5-9: not read to the end: no controller answers",
    ]


def test_an_attempt_that_prints_after_another_is_announced(capfd: pytest.CaptureFixture[str]) -> None:
    printer = Printer(prefixed=False, again=lambda index, attempt: f"{index}, {attempt}")

    def attempt(index: int, number: int, data: bytes, stream: int = STDOUT) -> None:
        printer.take(index, ReadOutputResponse(stream=stream, attempt=number, data=data))  # type: ignore[arg-type]

    attempt(0, 1, b"a\n")
    attempt(0, 1, b"cut", STDERR)
    attempt(1, 2, b"the first that prints\n")
    attempt(0, 3, b"a\n")
    attempt(0, 3, b"b\n", STDERR)
    out, err = capfd.readouterr()
    assert out == "a\nthe first that prints\na\n"
    assert err == "cut\n0, 3\nb\n"
    for number in range(4, 4 + AGAIN_SAID_MAX):
        attempt(0, number, b"a\n")
    assert capfd.readouterr().err.count("\n") == AGAIN_SAID_MAX - 1
    assert printer.again_count == AGAIN_SAID_MAX + 1


@pytest.mark.parametrize("prefixed", [False, True])
def test_a_gap_is_marked_beside_the_data(prefixed: bool, capfd: pytest.CaptureFixture[str]) -> None:
    printer = Printer(prefixed=prefixed)
    take(printer, 3, b"head\nbegun")
    take(printer, 3, b"ended\n", gap_bytes=5_000)
    take(printer, 3, b"tail\n", gap_bytes=7)
    out, err = capfd.readouterr()
    if prefixed:
        assert out == "[3] head\n[3] begun\n[3] ended\n[3] tail\n"
    else:
        assert out == "head\nbegunended\ntail\n"
    mark = "[3] " if prefixed else ""
    assert err.splitlines() == [
        f"{mark}[rota: 5,000 bytes are not kept]",
        f"{mark}[rota: 7 bytes are not kept]",
    ]
    assert printer.cut == {STDOUT}


def test_a_gap_of_standard_error_is_a_line_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    printer = Printer(prefixed=False)
    take(printer, 0, b"begun", STDERR)
    take(printer, 0, b"ended\n", STDERR, gap_bytes=7)
    assert capfd.readouterr() == ("", "begun\n[rota: 7 bytes are not kept]\nended\n")


def test_threads_do_not_mix_lines(capfd: pytest.CaptureFixture[str]) -> None:
    printer = Printer(prefixed=True)

    def write(index: int, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            take(printer, index, piece)

    threads = [
        threading.Thread(target=write, args=(index, [b"a" * 30, b"b" * 30 + b"\n"] * 200))
        for index in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 1600
    assert set(lines) == {f"[{index}] " + "a" * 30 + "b" * 30 for index in range(8)}

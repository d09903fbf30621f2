"""What the client does when connections are lost, and how errors arrive."""

import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rota.client import Client, connection, feeding, methods
from rota.client.connection import Method, Patience
from rota.client.context import load_context
from rota.client.errors import Unreachable
from rota.client.feeding import Feed
from rota.client.messages import OutputStream, ReadOutputResponse, ReadOutputsResponse
from rota.client.reading import Reading, ReadingMany
from rota.controller.ca import SERVER_DAYS, open_authority
from rota.controller.context import write_context
from rota.wire.gen.v1 import cluster_pb2, job_service_pb2, node_pb2

OUT, ERR = OutputStream.OUTPUT_STREAM_STDOUT, OutputStream.OUTPUT_STREAM_STDERR


def test_the_methods_are_those_of_the_contract() -> None:
    declared = {
        (service.name, method.name): (method.input_type.name, method.output_type.name)
        for file in (job_service_pb2, node_pb2, cluster_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    called = {
        (method.service, method.name): (method.question.DESCRIPTOR.name, method.answer.DESCRIPTOR.name)
        for method in vars(methods).values()
        if isinstance(method, Method)
    }
    assert called == declared


# ---------------------------------------------------------------- patience


def test_patience_ends_counted_from_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    pauses: list[float] = []
    said: list[str] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    patience = Patience(10.0, said.append, 2.0)
    error = Unreachable("no controller answers at a")

    def for_ever() -> None:
        while True:
            patience.wait(error)

    with pytest.raises(Unreachable):
        for_ever()
    assert now[0] == pytest.approx(110.0)
    assert pauses[0] == connection.PAUSE_S_MIN
    assert max(pauses) == connection.PAUSE_S_MAX
    assert len(said) == 1
    assert said[0].startswith("no controller answers at a; trying for ")
    patience.answered()
    patience.wait(error)
    assert pauses[-1] == connection.PAUSE_S_MIN


# ---------------------------------------------------------------- what listens there


class Stranger(socketserver.ThreadingTCPServer):
    """A program that is no controller of this cluster: it says something, and ends the connection."""

    daemon_threads = True
    block_on_close = False
    word = b""
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        with suppress(OSError):
            if self.tls is not None:
                request = self.tls.wrap_socket(request, server_side=True)
            request.sendall(self.word)


@pytest.mark.parametrize(
    ("word", "issued_ago_days", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", None, "what listens there speaks no TLS: another program?"),
        (b"", None, "what listens there says nothing"),
        (b"", 0, "its certificate is not of this cluster"),
        (b"", 2 * SERVER_DAYS, "its certificate has expired"),
    ],
)
def test_what_listens_instead_of_the_controller_is_told_apart(
    word: bytes, issued_ago_days: int | None, why: str, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    issued = now - timedelta(days=issued_ago_days or 0)
    ours = open_authority(tmp_path / "ours", "c", issued)
    with Stranger(("127.0.0.1", 0), socketserver.BaseRequestHandler) as stranger:
        stranger.word = word
        if issued_ago_days is not None:
            theirs = ours if issued_ago_days else open_authority(tmp_path / "theirs", "d", issued)
            theirs.server(issued)
            stranger.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            stranger.tls.load_cert_chain(tmp_path / ("ours" if issued_ago_days else "theirs") / "server.pem")
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{stranger.server_address[1]}"
        write_context(tmp_path / "client", ours, user="u", address=address, now=now)
        with Client(load_context(tmp_path), patience_s=0) as client, pytest.raises(Unreachable) as failed:
            client.cluster()
        stranger.shutdown()
    assert str(failed.value).startswith(f"no controller answers at {address} ({why}); is it running")


# ---------------------------------------------------------------- reading


def piece(stream: OutputStream.ValueType, offset: int, data: bytes, gap_bytes: int = 0) -> ReadOutputResponse:
    return ReadOutputResponse(stream=stream, attempt=2, offset=offset, data=data, gap_bytes=gap_bytes)


def test_reading_goes_on_at_the_offset_and_the_attempt_reached() -> None:
    reading = Reading(job_service_pb2.ReadOutputRequest(job=1, index=7, stream=OUT, tail_lines=5))
    assert reading.request().tail_lines == 5
    assert reading.take(piece(OUT, 100, b"hello"))
    again = reading.request()
    assert (again.offset, again.tail_lines, again.attempt) == (105, 0, 2)


def test_both_streams_go_on_from_the_one_that_is_behind() -> None:
    reading = Reading(job_service_pb2.ReadOutputRequest(job=1))
    reading.take(piece(OUT, 0, b"0123456789"))
    assert reading.request().offset == 0, "nothing is known of the other stream"
    reading.take(piece(ERR, 0, b"abc"))
    assert reading.request().offset == 3
    seen = piece(OUT, 3, b"3456789")
    assert not reading.take(seen)
    new = piece(OUT, 3, b"3456789XY")
    assert reading.take(new)
    assert (new.offset, new.data) == (10, b"XY")


def test_a_gap_is_told_once() -> None:
    reading = Reading(job_service_pb2.ReadOutputRequest(job=1, stream=OUT))
    assert reading.take(piece(OUT, 500, b"tail", gap_bytes=400))
    again = piece(OUT, 500, b"tail", gap_bytes=400)
    assert not reading.take(again)


def test_an_end_is_always_news() -> None:
    reading = Reading(job_service_pb2.ReadOutputRequest(job=1, stream=OUT))
    assert reading.take(ReadOutputResponse(stream=OUT, attempt=1, end=True))


def outputs(*pieces: tuple[int, int, bytes], sent_below: int = 0) -> ReadOutputsResponse:
    """Index, offset and data of each."""
    return ReadOutputsResponse(
        outputs=[
            ReadOutputResponse(index=index, stream=OUT, attempt=1, offset=offset, data=data)
            for index, offset, data in pieces
        ],
        sent_below=sent_below,
    )


def test_reading_many_goes_on_behind_what_was_sent_and_repeats_nothing() -> None:
    reading = ReadingMany(job_service_pb2.ReadOutputsRequest(job=1))
    reading.take(outputs((3, 0, b"three"), sent_below=100))
    reading.take(outputs((200, 0, b"abc"), (201, 0, b"de")))
    assert reading.request.first_index == 100
    again = outputs((200, 0, b"abc"), (201, 0, b"defg"), (202, 0, b"h"))
    reading.take(again)
    assert [(each.index, each.offset, each.data) for each in again.outputs] == [
        (201, 2, b"fg"),
        (202, 0, b"h"),
    ]


# ---------------------------------------------------------------- feeding


def test_input_is_numbered_and_ended() -> None:
    with Feed(5, [b"ab", b"c"]) as feed:
        sent = [(request.job, request.offset, request.data, request.end) for request in feed.requests()]
    assert sent == [(5, 0, b"", False), (5, 0, b"ab", False), (5, 2, b"c", False), (5, 3, b"", True)]


def test_who_has_nothing_yet_says_whom_it_feeds() -> None:
    nothing = threading.Event()

    def pieces() -> Iterator[bytes]:
        nothing.wait()
        yield from ()

    with Feed(5, pieces()) as feed:
        assert next(feed.requests()) == feeding.Request(job=5)
    nothing.set()


def test_what_was_sent_is_sent_again_after_a_lost_connection() -> None:
    with Feed(5, [b"ab", b"c", b"de"]) as feed:
        lost = feed.requests()
        assert [next(lost).data for _ in range(3)] == [b"", b"ab", b"c"]
        assert [request.data for request in feed.requests()] == [b"", b"ab", b"c", b"de", b""]


def test_a_reader_that_waits_for_input_does_not_lose_it_to_a_lost_connection() -> None:
    more = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"first"
        assert more.wait(10)
        yield b"second"

    with Feed(5, pieces()) as feed:
        lost = feed.requests()
        assert [next(lost).data for _ in range(2)] == [b"", b"first"]
        waiting = threading.Thread(target=lambda: list(lost))
        waiting.start()
        again = feed.requests()
        assert [next(again).data for _ in range(2)] == [b"", b"first"]
        more.set()
        assert [request.data for request in again] == [b"second", b""]
        waiting.join(10)
        assert not waiting.is_alive()


def test_no_more_is_kept_than_may_be_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "KEPT_BYTES", 100)
    with Feed(5, [b"x" * 30 for _ in range(20)]) as feed:
        offsets = [request.offset for request in feed.requests()][1:]
        assert offsets == [*range(0, 600, 30), 600]
        again = [request.offset for request in feed.requests()][1:]
    assert 600 - again[0] <= 130
    assert again == [*range(again[0], 600, 30), 600]

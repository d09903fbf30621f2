"""Output through all of it: a file on a node, the real link, the real controller, a reader."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from rota.agent import link_frames, output
from rota.core.model.protocol import (
    Ack,
    AllocationReport,
    Grant,
    Heartbeat,
    HeartbeatAck,
    Lease,
    OutputAttempts,
    ReadOutput,
    Report,
    Template,
)
from rota.wire.gen.v1 import job_pb2, job_service_pb2, node_pb2
from tests.shell.controller.harness import Running, running
from tests.shell.link.harness import Supervised, enrol, linked

STDOUT = job_service_pb2.OUTPUT_STREAM_STDOUT

# The link where the account has no inotify instance, or no watch, left.
WITHOUT_WATCHES = """
import ctypes, runpy
from rota.agent import watches

def refused(*_):
    ctypes.set_errno({number})
    return -1

watches._libc.{call} = refused
runpy.run_module("rota.agent.link", run_name="__main__")
"""


async def start(run: Running, link: Supervised) -> tuple[int, Grant]:
    """A job of one task that has started; stream and grant."""
    stream = await link.come_up()
    spec = job_pb2.JobSpec(command=["true"])
    await run.admin().jobs.SubmitJobs(job_service_pb2.SubmitJobsRequest(jobs=[spec]))
    await link.come(stream, Lease)
    await link.come(stream, Template)
    grant = await link.come(stream, Grant)
    started = AllocationReport(grant.allocation, started=((0, 0),))
    await link.say(stream, Report("journal", 1, 1, (started,)))
    await link.come(stream, Ack)
    return stream, grant


def file_of(link: Supervised, grant: Grant) -> Path:
    file = output.path(link.home, grant.job, grant.allocation, 0, 1, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def read(run: Running, **fields: Any) -> Any:
    return run.admin().jobs.ReadOutput(job_service_pb2.ReadOutputRequest(job=1, stream=STDOUT, **fields))


async def pass_on(link: Supervised, stream: int, *, live: bool) -> None:
    """What a supervisor does with ReadOutput."""
    await link.tell(link_frames.SendOutput(await link.come(stream, ReadOutput), live))


async def end(link: Supervised, grant: Grant) -> None:
    await link.tell(link_frames.AttemptEnded(grant.allocation, 0, 1))


async def test_what_is_written_is_followed_to_the_end(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream, grant = await start(run, link)
            file = file_of(link, grant)
            answers = aiter(read(run, follow=True))
            first = asyncio.ensure_future(anext(answers))
            await pass_on(link, stream, live=True)  # the file is not there yet
            with file.open("wb", buffering=0) as writing:
                writing.write(b"one\n")
                assert (await first).data == b"one\n"
                writing.write(b"two\n")
                assert (await anext(answers)).data == b"two\n"
                writing.write(b"three")
            await end(link, grant)
            rest = [answer async for answer in answers]
            assert b"".join(answer.data for answer in rest) == b"three"
            assert (rest[-1].end, rest[-1].offset) == (True, 13)


@pytest.mark.parametrize(
    ("call", "number"), [("inotify_init1", errno.EMFILE), ("inotify_add_watch", errno.ENOSPC)]
)
async def test_without_watches_it_is_followed_all_the_same(call: str, number: int, tmp_path: Path) -> None:
    program = ("-c", WITHOUT_WATCHES.format(call=call, number=number))
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster, program) as link:
            stream, grant = await start(run, link)
            file = file_of(link, grant)
            answers = aiter(read(run, follow=True))
            first = asyncio.ensure_future(anext(answers))
            await pass_on(link, stream, live=True)  # the file is not there yet
            with file.open("wb", buffering=0) as writing:
                writing.write(b"one\n")
                assert (await first).data == b"one\n"
                writing.write(b"two\n")
                assert (await anext(answers)).data == b"two\n"
            await end(link, grant)
            assert [(answer.data, answer.end) async for answer in answers] == [(b"", True)]


@pytest.mark.parametrize(
    ("fields", "data"),
    [
        ({}, b"a\nbb\nccc\n"),
        ({"offset": 2}, b"bb\nccc\n"),
        ({"tail_lines": 1}, b"ccc\n"),
        ({"offset": 99}, b""),
    ],
)
async def test_what_has_ended_is_read_from_an_offset_or_its_last_lines(
    tmp_path: Path, fields: dict[str, int], data: bytes
) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream, grant = await start(run, link)
            file_of(link, grant).write_bytes(b"a\nbb\nccc\n")
            reader = read(run, **fields)
            answers = asyncio.ensure_future(_all(reader))
            await pass_on(link, stream, live=False)
            found = await answers
            assert b"".join(answer.data for answer in found) == data
            assert found[-1].end


async def _all(reader: Any) -> list[job_service_pb2.ReadOutputResponse]:
    return [answer async for answer in reader]


async def test_a_task_that_wrote_nothing_has_an_end_and_no_file(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream, _ = await start(run, link)
            answers = asyncio.ensure_future(_all(read(run, follow=True)))
            await pass_on(link, stream, live=False)
            assert [(answer.end, answer.data) for answer in await answers] == [(True, b"")]


async def test_what_is_there_now_is_read_without_waiting(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream, grant = await start(run, link)
            file_of(link, grant).write_bytes(b"so far")
            answers = asyncio.ensure_future(_all(read(run)))
            await pass_on(link, stream, live=True)
            assert [(answer.data, answer.end) for answer in await answers] == [(b"so far", False)]


async def test_200_megabytes_leave_the_link_small_and_heartbeats_alone(tmp_path: Path) -> None:
    size = 200 * 1024 * 1024
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream, grant = await start(run, link)
            block = os.urandom(1024 * 1024)
            with file_of(link, grant).open("wb") as file:
                for _ in range(size // len(block)):
                    file.write(block)
            reader = read(run)
            answers = aiter(reader)
            first = asyncio.ensure_future(anext(answers))
            await pass_on(link, stream, live=False)
            got = len((await first).data)
            beats = 0
            async for answer in answers:
                assert answer.offset == got
                got += len(answer.data)
                if got // (8 * 1024 * 1024) > beats:
                    beats += 1
                    await link.say(stream, Heartbeat(beats, 0))
                    assert (await link.come(stream, HeartbeatAck)).sent_ms == beats
            assert got == size
            assert beats == 25
            assert peak_kib(link.process.pid) < 100 * 1024, "the file is 200 MiB"


def peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def test_a_reader_that_goes_away_ends_the_sending(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream, grant = await start(run, link)
            file = file_of(link, grant)
            file.write_bytes(b"x")
            reader = read(run, follow=True)
            first = asyncio.ensure_future(reader.read())
            await pass_on(link, stream, live=True)
            assert (await first).data == b"x"
            assert str(file) in open_files(link.process.pid)
            reader.cancel()
            async with asyncio.timeout(20):
                while str(file) in open_files(link.process.pid):
                    await link.say(stream, Heartbeat(1, 0))
                    await link.come(stream, HeartbeatAck)


def open_files(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return found


async def test_a_gap_in_the_file_is_a_gap_for_the_reader(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream, grant = await start(run, link)
            with file_of(link, grant).open("wb") as file:
                file.write(b"a" * 4096)
                file.seek(1024 * 1024)
                file.write(b"z" * 4096)
            answers = asyncio.ensure_future(_all(read(run)))
            await pass_on(link, stream, live=False)
            found = [(answer.offset, answer.data[:1], answer.gap_bytes) for answer in await answers]
            assert found == [
                (0, b"a", 0),
                (1024 * 1024, b"z", 1024 * 1024 - 4096),
                (1024 * 1024 + 4096, b"", 0),
            ]


async def test_when_the_link_dies_the_reader_is_told_to_read_on(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        cluster = run.controller.authority.cluster
        async with linked(tmp_path / "n1", cluster) as link:
            stream, grant = await start(run, link)
            file_of(link, grant).write_bytes(b"before")
            reader = read(run, follow=True)
            first = asyncio.ensure_future(reader.read())
            await pass_on(link, stream, live=True)
            assert (await first).data == b"before"
            link.process.kill()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await reader.read()
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


# ---------------------------------------------------------------- many tasks


async def test_of_many_tasks_what_is_there_is_sent_in_order(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            await link.come_up()
            [node] = (await run.admin().nodes.ListNodes(node_pb2.ListNodesRequest())).nodes
            large = os.urandom(2 * 1024 * 1024).replace(b"\n", b"-")
            written = {(7, 1): b"a\nb\n", (7, 2): b"err", (1200, 1): large, (2500, 2): b"last\n"}
            for index, of in [*written, (2501, 1)]:
                file = output.path(link.home, 1, 9, index, 2, of)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(written.get((index, of), b"not asked for"))
            with run.controller._outputs.reading(node.id, "ann") as reading:
                many = (OutputAttempts(9, 2, ((5, 2500),)),)
                ask = ReadOutput(reading.request, 1, 0, 0, 0, 0, 0, 1, False, many)
                await link.tell(link_frames.SendOutput(ask, False))
                pieces = [piece async for message in reading.pieces() for piece in message.many]
            found: dict[tuple[int, int], bytes] = {}
            for piece in pieces:
                assert piece.attempt == 2
                found[piece.index, piece.stream] = found.get((piece.index, piece.stream), b"") + piece.data
            assert found == {**written, (7, 1): b"b\n"}
            assert list(found) == sorted(found)
            assert [(piece.index, piece.stream) for piece in pieces if piece.end] == sorted(written)

"""Output from a node to a reader: offsets, ends, credits, and readers that go away."""

import asyncio
import resource
from pathlib import Path
from typing import Any

import grpc
import pytest
from pyroaring import BitMap

from rota.controller import output
from rota.controller.api import reading
from rota.controller.calls import send
from rota.core.model import indexset
from rota.store.memory import MemoryStore
from rota.wire.gen.v1 import job_pb2, job_service_pb2, link_pb2
from tests.shell.controller.harness import WAIT_S_MAX, Audience, PlayedNode, Running, running, wall_ms

STDOUT = job_service_pb2.OUTPUT_STREAM_STDOUT
PIECE = b"x" * 65536


async def task_that_runs(run: Running, node: PlayedNode) -> link_pb2.Grant:
    """A job of one task that the node says it has started."""
    await node.come_up()
    spec = job_pb2.JobSpec(command=["true"])
    await run.admin().jobs.SubmitJobs(job_service_pb2.SubmitJobsRequest(jobs=[spec]))
    grant: link_pb2.Grant = await node.hear("grant")
    started = link_pb2.AllocationReport(allocation=grant.allocation)
    started.started.bounds.extend([0, 0])
    report = link_pb2.Report(journal_id=node.hello().journal_id, first_sequence=1, last_sequence=1)
    report.allocations.append(started)
    await node.say(report=report)
    await node.hear("ack")
    return grant


def read(run: Running, **fields: Any) -> Any:
    request = job_service_pb2.ReadOutputRequest(job=1, stream=STDOUT, **fields)
    return run.admin().jobs.ReadOutput(request)


async def pushing(node: PlayedNode) -> tuple[link_pb2.ReadOutput, Any, int]:
    """Answers the leader's ReadOutput: the call, and the first credit."""
    wanted: link_pb2.ReadOutput = await node.hear("read_output")
    call: Any = node.link.PushOutput()
    await call.write(link_pb2.PushOutputRequest(request=wanted.request))
    credit = await call.read()
    return wanted, call, credit.credit_bytes


async def test_what_the_node_pushes_is_what_the_reader_gets(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        grant = await task_that_runs(run, node)
        reader = read(run, offset=3, tail_lines=7, follow=True)
        wanted, call, credit = await pushing(node)
        assert (wanted.allocation, wanted.index, wanted.attempt) == (grant.allocation, 0, 1)
        assert (wanted.stream, wanted.offset, wanted.tail_lines, wanted.follow) == (1, 3, 7, True)
        assert credit == output.WINDOW_BYTES
        await call.write(link_pb2.PushOutputRequest(offset=3, data=b"lo\n"))
        await call.write(link_pb2.PushOutputRequest(offset=6, data=b"!", gap_bytes=5))
        await call.write(link_pb2.PushOutputRequest(offset=12, end=True))
        await call.done_writing()
        answers = [answer async for answer in reader]
        assert [(answer.offset, answer.data, answer.gap_bytes, answer.end) for answer in answers] == [
            (3, b"lo\n", 0, False),
            (6, b"!", 5, False),
            (12, b"", 0, True),
        ]
        assert {(answer.attempt, answer.stream) for answer in answers} == {(1, STDOUT)}


async def test_both_streams_come_side_by_side(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await task_that_runs(run, node)
        reader = run.admin().jobs.ReadOutput(job_service_pb2.ReadOutputRequest(job=1))
        for _ in range(2):
            wanted, call, _ = await pushing(node)
            await call.write(link_pb2.PushOutputRequest(data=b"%d" % wanted.stream))
            await call.write(link_pb2.PushOutputRequest(end=True))
        answers = [answer async for answer in reader]
        assert sorted((answer.stream, answer.data) for answer in answers if answer.data) == [
            (1, b"1"),
            (2, b"2"),
        ]
        assert sorted(answer.stream for answer in answers if answer.end) == [1, 2]


async def test_200_megabytes_pass_through_a_small_window(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await task_that_runs(run, node)
        reader = read(run, follow=True)
        _, call, credit = await pushing(node)
        pieces = 200 * 1024 * 1024 // len(PIECE)
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        async def push() -> None:
            left = credit
            for number in range(pieces):
                while left < len(PIECE):
                    left += (await call.read()).credit_bytes
                left -= len(PIECE)
                await call.write(link_pb2.PushOutputRequest(offset=number * len(PIECE), data=PIECE))
            await call.write(link_pb2.PushOutputRequest(offset=pieces * len(PIECE), end=True))
            await call.done_writing()

        pusher = asyncio.create_task(push())
        got = 0
        async for answer in reader:
            assert answer.offset == got
            got += len(answer.data)
        await pusher
        assert got == pieces * len(PIECE)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        assert grown_kib < 64 * 1024, "both ends of it are in this process"


async def test_a_reader_that_stops_reading_stops_the_node_and_nobody_else(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await task_that_runs(run, node)
        reader = read(run, follow=True)
        _, call, credit = await pushing(node)
        sent = 0
        while credit - sent >= len(PIECE):
            await call.write(link_pb2.PushOutputRequest(offset=sent, data=PIECE))
            sent += len(PIECE)
        for sent_ms in range(10):
            await node.beat(sent_ms)
        open_ = next(iter(run.controller._outputs._readings.values()))
        assert open_._outstanding >= 0
        reader.cancel()
        async with asyncio.timeout(20):
            while not (answer := await call.read()).stop:
                assert answer is not grpc.aio.EOF
        assert run.controller._outputs._readings == {}


async def test_a_node_that_sends_more_than_it_may_is_stopped(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await task_that_runs(run, node)
        reader = read(run, follow=True)
        _, call, credit = await pushing(node)
        big = b"x" * (credit + 1)
        await call.write(link_pb2.PushOutputRequest(data=big))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in reader:
                pass
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "piece",
    [
        link_pb2.PushOutputRequest(offset=1),
        link_pb2.PushOutputRequest(gap_bytes=1),
        link_pb2.PushOutputRequest.FromString(
            link_pb2.PushOutputRequest(data=b"x").SerializeToString() + b"\xfa\x07\x80\x01" + b"u" * 128
        ),
    ],
    ids=["nothing", "gap", "unknown-field"],
)
async def test_what_costs_no_credit_cannot_be_sent_for_ever(
    tmp_path: Path, piece: link_pb2.PushOutputRequest
) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await task_that_runs(run, node)
        reader = read(run, follow=True)
        _, call, _ = await pushing(node)
        await call.write(piece)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        reader.cancel()


async def test_pieces_with_gaps_between_them_are_bounded_in_number() -> None:
    one = output.Reading(1, "n1")
    one.answer()
    taken = 0
    while one.offer(link_pb2.PushOutputRequest(offset=2 * taken, data=b"x", gap_bytes=1)):
        taken += 1
    assert taken == output.PIECES_MAX


async def test_a_trickle_that_nobody_reads_is_joined() -> None:
    one = output.Reading(1, "n1")
    one.answer()
    count = 20_000
    for offset in range(count):
        assert one.offer(link_pb2.PushOutputRequest(offset=offset, data=b"%d" % (offset % 10)))
    assert one.offer(link_pb2.PushOutputRequest(offset=count, end=True))
    assert len(one._pieces) <= count // output.JOINED_BYTES_MAX + 2
    whole = b""
    async for piece in one.pieces():
        assert piece.offset == len(whole)
        whole += piece.data
    assert whole == b"0123456789" * (count // 10)


async def test_a_stream_that_does_not_say_what_it_answers_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "FIRST_S_MAX", 0.05)
    async with running(tmp_path) as run:
        node = await run.join("n1")
        call = node.link.PushOutput()
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_one_user_cannot_use_up_all_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "READINGS_OF_ONE_MAX", 1)
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await task_that_runs(run, node)
        first = read(run, follow=True)
        await pushing(node)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await read(run, follow=True).read()
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert failed.value.details() == "'admin' reads 1 outputs already; end some of them"
        other = await run.user("ann", "viewer")
        monkeypatch.setattr(output, "READINGS_MAX", 1)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await other.jobs.ReadOutput(job_service_pb2.ReadOutputRequest(job=1, stream=STDOUT)).read()
        assert failed.value.details() == "1 outputs are being read already; try again later"
        monkeypatch.undo()
        second = other.jobs.ReadOutput(job_service_pb2.ReadOutputRequest(job=1, stream=STDOUT))
        _, call, _ = await pushing(node)
        await call.write(link_pb2.PushOutputRequest(data=b"seen", end=True))
        assert [answer.data async for answer in second] == [b"seen"]
        first.cancel()


async def test_another_node_cannot_answer_for_it(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node, thief = await run.join("n1"), await run.join("n2")
        await task_that_runs(run, node)
        reader = read(run)
        wanted: link_pb2.ReadOutput = await node.hear("read_output")
        false: Any = thief.link.PushOutput()
        await false.write(link_pb2.PushOutputRequest(request=wanted.request, data=b"lies", end=True))
        assert (await false.read()).stop
        true: Any = node.link.PushOutput()
        await true.write(link_pb2.PushOutputRequest(request=wanted.request, data=b"truth", end=True))
        assert [answer.data async for answer in reader] == [b"truth"]


async def test_a_connection_that_is_lost_is_said_and_the_offset_reached_is_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await task_that_runs(run, node)
        reader = read(run, follow=True)
        _, call, _ = await pushing(node)
        await call.write(link_pb2.PushOutputRequest(data=b"half"))
        assert (await reader.read()).data == b"half"
        call.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await reader.read()
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "read on where it was" in (failed.value.details() or "")


class GoneContext:
    """Of a call whose other side has gone, which gRPC will say later."""

    async def write(self, message: object) -> None:
        raise grpc.aio.InternalError('Failed "execute_batch"')


async def test_who_has_gone_is_no_bug() -> None:
    """It happened to readers in the middle of a flood, and the controller's log had a traceback of it."""
    gone: Any = GoneContext()
    with pytest.raises(asyncio.CancelledError):
        await send(gone, b"x")


async def test_a_node_that_is_away_is_to_be_tried_again(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await task_that_runs(run, node)
        with run.controller.loop.watch_events() as news:
            node.call.cancel()
            async with asyncio.timeout(20):
                await news.wait()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await read(run).read()
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "node n1 is not connected" in (failed.value.details() or "")


@pytest.mark.parametrize(
    ("fields", "says"),
    [({}, "has not started"), ({"attempt": 3}, "has no attempt 3")],
)
async def test_where_there_is_nothing_it_is_said_why(
    tmp_path: Path, fields: dict[str, int], says: str
) -> None:
    async with running(tmp_path) as run:
        spec = job_pb2.JobSpec(command=["true"])
        await run.admin().jobs.SubmitJobs(job_service_pb2.SubmitJobsRequest(jobs=[spec]))
        answers = [answer async for answer in read(run, **fields)]
        assert [(answer.end, says in answer.unavailable) for answer in answers] == [(True, True)]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await read(run, index=9).read()
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_output_that_is_not_kept_is_said_to_be_elsewhere(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.come_up()
        spec = job_pb2.JobSpec(command=["true"], stdout="/var/{index}-{line}", array="3,8", lines=["a", "b"])
        await run.admin().jobs.SubmitJobs(job_service_pb2.SubmitJobsRequest(jobs=[spec]))
        grant: link_pb2.Grant = await node.hear("grant")
        report = link_pb2.Report(journal_id=node.hello().journal_id, first_sequence=1, last_sequence=1)
        report.allocations.add(allocation=grant.allocation).started.bounds.extend([8, 8])
        await node.say(report=report)
        await node.hear("ack")
        answers = [answer async for answer in read(run, index=8)]
        says = "standard output went to /var/8-b on node n1"
        assert [answer.unavailable for answer in answers] == [says]


async def test_a_reader_that_follows_waits_for_the_task_to_start(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        spec = job_pb2.JobSpec(command=["true"])
        await run.admin().jobs.SubmitJobs(job_service_pb2.SubmitJobsRequest(jobs=[spec]))
        reader = read(run, follow=True)
        answers = asyncio.ensure_future(reader.read())
        node = await run.join("n1")
        await node.come_up()
        grant: link_pb2.Grant = await node.hear("grant")
        assert not answers.done()
        report = link_pb2.Report(journal_id=node.hello().journal_id, first_sequence=1, last_sequence=1)
        report.allocations.add(allocation=grant.allocation).started.bounds.extend([0, 0])
        await node.say(report=report)
        _, call, _ = await pushing(node)
        await call.write(link_pb2.PushOutputRequest(data=b"hello", end=True))
        assert (await answers).data == b"hello"


# ---------------------------------------------------------------- many tasks


async def array_that_runs(run: Running, *names: str, tasks: int = 8) -> list[tuple[PlayedNode, set[int]]]:
    """A job of so many tasks, four a node, all started; and which tasks each has."""
    nodes = [await run.join(name) for name in names]
    for node in nodes:
        await node.come_up()
    spec = job_pb2.JobSpec(command=["true"], array=f"0-{tasks - 1}")
    await run.admin().jobs.SubmitJobs(job_service_pb2.SubmitJobsRequest(jobs=[spec]))
    found = []
    for node in nodes:
        indices: set[int] = set()
        sequence = 0
        while len(indices) < 4:
            grant: link_pb2.Grant = await node.hear("grant")
            bounds = grant.indices.bounds
            for first, last in zip(bounds[::2], bounds[1::2], strict=True):
                indices |= set(range(first, last + 1))
            sequence += 1
            report = link_pb2.Report(
                journal_id=node.hello().journal_id, first_sequence=sequence, last_sequence=sequence
            )
            report.allocations.add(allocation=grant.allocation).started.bounds.extend(bounds)
            await node.say(report=report)
            await node.hear("ack")
        found.append((node, indices))
    return found


def piece_of(index: int, data: bytes) -> link_pb2.OutputPiece:
    return link_pb2.OutputPiece(index=index, attempt=1, stream=1, data=data, end=True)


async def test_what_many_tasks_wrote_comes_by_index_from_all_nodes(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        nodes = await array_that_runs(run, "n1", "n2")
        request = job_service_pb2.ReadOutputsRequest(job=1, indices="1-6", stream=STDOUT, tail_lines=3)
        reader = run.admin().jobs.ReadOutputs(request)

        async def answer(node: PlayedNode, indices: set[int]) -> None:
            wanted, call, _ = await pushing(node)
            asked = {
                index
                for each in wanted.many
                for first, last in zip(each.indices.bounds[::2], each.indices.bounds[1::2], strict=True)
                for index in range(first, last + 1)
            }
            assert asked == indices - {0, 7}
            assert (wanted.stream, wanted.tail_lines) == (1, 3)
            # Of one task nothing, and of another node's task a lie.
            pieces = [piece_of(index, b"%d" % index) for index in sorted(asked - {4})]
            pieces += [piece_of(index, b"lies") for index in sorted(set(range(8)) - indices)]
            await call.write(link_pb2.PushOutputRequest(many=pieces))
            await call.write(link_pb2.PushOutputRequest(end=True))

        answering = asyncio.gather(*(answer(node, indices) for node, indices in nodes))
        answers = [each async for each in reader]
        await answering
        outputs = [output for each in answers for output in each.outputs]
        assert [(output.index, output.data, output.end) for output in outputs] == [
            (index, b"%d" % index, True) for index in (1, 2, 3, 5, 6)
        ]
        assert (answers[-1].sent_below, answers[-1].attempt_count) == (7, 6)


async def answer_all(node: PlayedNode) -> None:
    """What is asked of each task is its number."""
    wanted, call, _ = await pushing(node)
    bounds = [bound for each in wanted.many for bound in each.indices.bounds]
    asked = [
        index
        for first, last in zip(bounds[::2], bounds[1::2], strict=True)
        for index in range(first, last + 1)
    ]
    await call.write(link_pb2.PushOutputRequest(many=[piece_of(index, b"%d" % index) for index in asked]))
    await call.write(link_pb2.PushOutputRequest(end=True))


@pytest.mark.parametrize("says_so", [True, False])
async def test_of_a_node_that_is_away_it_is_said_and_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says_so: bool
) -> None:
    monkeypatch.setattr(reading, "RETURN_S_MAX", 0.05)
    async with running(tmp_path) as run:
        (here, mine), (away, theirs) = await array_that_runs(run, "n1", "n2")
        with run.controller.loop.watch_events() as news:
            if says_so:
                await away.say(goodbye=link_pb2.Goodbye(reason="its agent was stopped"))
            else:
                away.call.cancel()
            async with asyncio.timeout(20):
                await news.wait()
        reader = run.admin().jobs.ReadOutputs(job_service_pb2.ReadOutputsRequest(job=1, stream=STDOUT))
        answering = asyncio.create_task(answer_all(here))
        answers = [each async for each in reader]
        await answering
        assert {output.index for each in answers for output in each.outputs} == mine
        (unread,) = answers[-1].unread
        assert (indexset.parse(unread.indices, 8), unread.task_count) == (BitMap(theirs), len(theirs))
        assert unread.why == ("node n2, which keeps the output, is not connected; try again when it is back")


async def test_a_node_that_was_there_just_now_is_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        audience = Audience(run.controller.loop)
        ((node, indices),) = await array_that_runs(run, "n1", tasks=4)
        with run.controller.loop.watch_events() as news:
            node.call.cancel()
            async with asyncio.timeout(20):
                await news.wait()
        reader = run.admin().jobs.ReadOutputs(job_service_pb2.ReadOutputsRequest(job=1, stream=STDOUT))
        await audience.until(1)
        known = await run.controller.loop.read(lambda machine: machine.cluster.nodes[node.node].status)
        node.call = node.link.Connect()
        await node.say(hello=node.hello(last_sequence=known.acknowledged))
        await node.say(holding_end=link_pb2.HoldingEnd())
        await answer_all(node)
        answers = [each async for each in reader]
        assert {output.index for each in answers for output in each.outputs} == indices
        assert not any(each.unread for each in answers)


async def test_many_nodes_are_asked_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "NODES_ASKED_MAX", 1)
    monkeypatch.setattr(output, "READINGS_OF_ONE_MAX", 1)
    async with running(tmp_path) as run:
        nodes = await array_that_runs(run, "n1", "n2")
        reader = run.admin().jobs.ReadOutputs(job_service_pb2.ReadOutputsRequest(job=1, stream=STDOUT))

        async def answer(node: PlayedNode) -> None:
            while True:
                await answer_all(node)

        answering = [asyncio.create_task(answer(node)) for node, _ in nodes]
        answers = [each async for each in reader]
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
        assert [output.index for each in answers for output in each.outputs] == list(range(8))


async def test_a_node_that_stops_answering_for_many_is_said_to(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await task_that_runs(run, node)
        reader = run.admin().jobs.ReadOutputs(job_service_pb2.ReadOutputsRequest(job=1))
        _, call, _ = await pushing(node)
        await call.write(link_pb2.PushOutputRequest(many=[piece_of(0, b"zero")]))
        call.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in reader:
                pass
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("spec", "unread"),
    [
        ({"stdout": "/var/out.txt", "stderr": "none"}, 2),
        ({"stdout": "none"}, 1),
    ],
)
async def test_what_no_node_keeps_is_said_once(tmp_path: Path, spec: dict[str, str], unread: int) -> None:
    async with running(tmp_path) as run:
        jobs = [job_pb2.JobSpec(command=["true"], array="0-99", **spec)]  # type: ignore[arg-type]
        await run.admin().jobs.SubmitJobs(job_service_pb2.SubmitJobsRequest(jobs=jobs))
        reader = run.admin().jobs.ReadOutputs(job_service_pb2.ReadOutputsRequest(job=1))
        answers = [each async for each in reader]
        assert [len(each.unread) for each in answers if each.unread] == [unread]
        assert not any(each.outputs or each.attempt_count for each in answers)


async def test_tasks_that_are_not_there_are_not_read(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        jobs = [job_pb2.JobSpec(command=["true"], array="0-3")]
        await run.admin().jobs.SubmitJobs(job_service_pb2.SubmitJobsRequest(jobs=jobs))
        reader = run.admin().jobs.ReadOutputs(job_service_pb2.ReadOutputsRequest(job=1, indices="7-9"))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await reader.read()
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_of_attempts_of_which_there_is_no_record_it_is_said(tmp_path: Path) -> None:
    """Over its quota the archive drops what jobs have that are still there: that had been told as not run."""
    store = MemoryStore(wall_ms)
    async with running(tmp_path, store) as run:
        node = await run.join("n1")
        grant = await task_that_runs(run, node)
        report = link_pb2.Report(journal_id=node.hello().journal_id, first_sequence=2, last_sequence=2)
        report.allocations.add(allocation=grant.allocation).exits.index = bytes(4)
        await node.say(report=report)
        await node.hear("ack")
        jobs = run.admin().jobs
        asked = job_service_pb2.GetTaskRequest(job=1, index=0)
        task = (await jobs.GetTask(asked)).task
        assert (task.attempt_count, [attempt.number for attempt in task.attempts]) == (1, [1])
        assert await store.prune(0, 0, {1}) == 1
        task = (await jobs.GetTask(asked)).task
        assert (task.attempt_count, list(task.attempts)) == (1, [])
        for fields, says in (
            ({}, (1, f"task 1/0 has run, but {reading.NO_RECORD}")),
            ({"attempt": 1}, (1, "no record of attempt 1 of task 1/0 is kept any more")),
            ({"attempt": 2, "follow": True}, (0, "task 1/0 has no attempt 2")),
        ):
            answers = [answer async for answer in read(run, **fields)]
            assert [(answer.attempt, answer.unavailable) for answer in answers] == [says]
        for attempt, unread in ((0, [("0", reading.NO_RECORD)]), (1, [("0", reading.NO_RECORD)]), (2, [])):
            request = job_service_pb2.ReadOutputsRequest(job=1, stream=STDOUT, attempt=attempt)
            (answer,) = [each async for each in jobs.ReadOutputs(request)]
            assert [(each.indices, each.why) for each in answer.unread] == unread
            assert (answer.sent_below, answer.attempt_count) == (1, 0)


async def test_a_reader_of_both_streams_is_told_that_the_controller_cannot_serve_it(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await task_that_runs(run, node)
        loop = run.controller.loop
        # As while the store takes no writes.
        loop._leading, loop._why_not = False, "the controller's store failed; try again"
        call = run.admin().jobs.ReadOutput(job_service_pb2.ReadOutputRequest(job=1))
        async with asyncio.timeout(WAIT_S_MAX):
            assert await call.code() == grpc.StatusCode.UNAVAILABLE
        loop._leading = True

"""Streams of nodes, played by hand: what the leader takes, refuses, and does not wait for."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from rota.controller import links
from rota.controller.api import views
from rota.core.cluster.inputs import Close, Send
from rota.core.model.protocol import MESSAGE_BYTES_MAX, Down, Grant, HeartbeatAck
from rota.core.model.resources import NOTHING, Resources
from rota.wire.gen.v1 import job_pb2, job_service_pb2, link_pb2, node_pb2
from tests.shell.controller.harness import WAIT_S_MAX, Running, running


def submit(run: Running) -> "asyncio.Future[job_service_pb2.SubmitJobsResponse]":
    spec = job_pb2.JobSpec(command=["true"])
    return asyncio.ensure_future(run.admin().jobs.SubmitJobs(job_service_pb2.SubmitJobsRequest(jobs=[spec])))


async def test_a_node_comes_up_gets_work_and_reports_it(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.come_up()
        await submit(run)
        lease: link_pb2.Lease = await node.hear("lease")
        template: link_pb2.Template = await node.hear("template")
        grant: link_pb2.Grant = await node.hear("grant")
        assert link_pb2.TemplateBody.FromString(template.data).spec.command == ["true"]
        assert (grant.lease, list(grant.indices.bounds)) == (lease.lease, [0, 0])
        done = link_pb2.AllocationReport(allocation=grant.allocation)
        done.exits.index = bytes(4)
        report = link_pb2.Report(journal_id=node.hello().journal_id, first_sequence=1, last_sequence=2)
        report.allocations.append(done)
        await node.say(report=report)
        assert (await node.hear("ack")).sequence == 2
        jobs = run.admin().jobs
        job = (await jobs.GetJob(job_service_pb2.GetJobRequest(id=1))).job
        assert (job.state, job.tasks.succeeded, job.exit_code) == (job_pb2.JOB_STATE_SUCCEEDED, 1, 0)
        task = (await jobs.GetTask(job_service_pb2.GetTaskRequest(job=1))).task
        assert [(attempt.number, attempt.node) for attempt in task.attempts] == [(1, "n1")]


async def test_the_largest_message_is_taken_and_a_larger_one_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.come_up()
        await node.say(goodbye=link_pb2.Goodbye(reason="x" * (MESSAGE_BYTES_MAX + links.SLACK_BYTES + 1)))
        code, details = await node.ended()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"at most {MESSAGE_BYTES_MAX} are allowed" in details


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"\xff" * 100, "no message of the node protocol"),
        (b"", "the message is empty"),
        (
            link_pb2.ConnectRequest(hello=link_pb2.Hello(journal_id="j" * 129)).SerializeToString(),
            "hello.journal_id: is 129 characters long",
        ),
        (
            link_pb2.ConnectRequest(
                report=link_pb2.Report(
                    allocations=[link_pb2.AllocationReport(ended=[link_pb2.Ended(code=256)])]
                )
            ).SerializeToString(),
            "report.allocations[0].ended[0].code: '256' is too large; the most is 255",
        ),
        (
            link_pb2.ConnectRequest(
                report=link_pb2.Report(
                    allocations=[
                        link_pb2.AllocationReport(exits=link_pb2.Columns(index=bytes(4), code=bytes(3)))
                    ]
                )
            ).SerializeToString(),
            "report.allocations[0].exits.code: 3 bytes are no column of 1 numbers",
        ),
        (link_pb2.ConnectRequest(hello=link_pb2.Hello()).SerializeToString()[:-1], None),
    ],
    ids=["noise", "empty", "too-long", "no-exit-code", "no-column", "cut"],
)
async def test_what_is_no_message_ends_the_stream_and_hurts_nobody_else(
    tmp_path: Path, message: bytes, says: str | None
) -> None:
    async with running(tmp_path) as run:
        good, bad = await run.join("good"), await run.join("bad")
        await good.come_up()
        raw: Any = bad.channel.stream_stream("/rota.v1.LinkService/Connect")()
        await raw.write(message)
        await raw.done_writing()
        assert await raw.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OK)
        if says is not None:
            assert says in await raw.details()
        await good.beat(1)


async def test_a_streams_end_is_known_also_where_a_newer_one_has_ended_before(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.come_up()
        newer = node.link.Connect()
        await newer.write(link_pb2.ConnectRequest())
        assert await newer.code() is grpc.StatusCode.INVALID_ARGUMENT
        await node.beat(1)
        nodes = run.admin().nodes
        shown = (await nodes.GetNode(node_pb2.GetNodeRequest(node="n1"))).node
        assert shown.address.startswith("127.0.0.1:"), "it is still connected"
        node.call.cancel()
        async with asyncio.timeout(WAIT_S_MAX):
            while not (known := (await nodes.GetNode(node_pb2.GetNodeRequest(node="n1"))).node).reason:
                pass
        assert known.reason == "its stream has closed"


async def test_who_says_no_hello_is_not_listened_to(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.say(heartbeat=link_pb2.Heartbeat(sent_ms=1))
        await node.say(hello=node.hello())
        first: Any = await node.call.read()
        assert first.WhichOneof("body") == "welcome"
        await node.say(holding_end=link_pb2.HoldingEnd())
        await node.say(heartbeat=link_pb2.Heartbeat(sent_ms=2))
        assert (await node.hear("heartbeat_ack")).sent_ms == 2, "the first was answered"


async def test_a_stream_without_a_hello_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "HELLO_S_MAX", 0.2)
    async with running(tmp_path) as run:
        good, silent = await run.join("good"), await run.join("silent")
        await good.come_up()
        await silent.say(heartbeat=link_pb2.Heartbeat(sent_ms=1))
        assert await silent.ended() == (grpc.StatusCode.DEADLINE_EXCEEDED, "no Hello came within 0.2 s")
        await good.beat(1)


async def test_a_node_that_was_removed_makes_a_commit_once_and_not_again_at_will(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await run.admin().nodes.RemoveNode(node_pb2.RemoveNodeRequest(node="n1"))
        await node.say(hello=node.hello())
        assert "this node is not known here" in (await node.hear("refused")).message
        before = await run.controller.loop.read(lambda machine: machine.cluster.commit)
        for _ in range(3):
            node.call = node.link.Connect()
            code, details = await node.ended()
            assert code is grpc.StatusCode.UNAVAILABLE
            assert details.startswith("refused just now: this node is not known here")
        assert await run.controller.loop.read(lambda machine: machine.cluster.commit) == before


async def test_a_node_that_shall_try_again_is_kept_off_meanwhile(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node, other = await run.join("n1"), await run.join("n2")
        await node.come_up()
        node.call = node.link.Connect()
        await node.say(hello=node.hello(journal_id="another"))
        assert (await node.hear("refused")).retry_ms
        node.call = node.link.Connect()
        code, details = await node.ended()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert details.startswith("refused just now: node n1 was heard ")
        await other.come_up()


async def test_a_node_that_dials_again_and_again_is_kept_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "OPENED_MAX", 3)
    async with running(tmp_path) as run:
        node, other = await run.join("n1"), await run.join("n2")
        for _ in range(3):
            await node.come_up()
            node.call = node.link.Connect()
        code, details = await node.ended()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert details.startswith("the node has opened 3 streams within 10 s")
        await other.come_up()
        monkeypatch.setattr(links, "OPENED_S", 0.0)
        node.call = node.link.Connect()
        await node.come_up()


async def test_a_node_of_another_cluster_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.say(hello=node.hello(cluster="6ba7b810-9dad-41d1-80b4-00c04fd430c8"))
        assert "belongs to cluster" in (await node.hear("refused")).message
        assert (await node.ended())[0] is grpc.StatusCode.ABORTED


async def test_a_node_that_declares_more_than_can_be_is_refused_and_others_are_listed(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        liar, modest, other = [await run.join(name) for name in ("liar", "modest", "other")]
        hello = liar.hello()
        for number in range(2):
            hello.inventory.pools.add(name=f"p{number}", units=1_000_000).resources.memory = 2**50
        await liar.say(hello=hello)
        says = (await liar.hear("refused")).message
        assert says == (
            "the agent declares 2048000000 TiB of memory in all its pools; at most 1048576 TiB are allowed"
        )
        # What each may declare is still a number when they are added up.
        for node in (modest, other):
            hello = node.hello()
            hello.inventory.pools.add(name="much", units=1024).resources.memory = 2**50
            await node.say(hello=hello)
            await node.hear("welcome")
        listed = (await run.admin().nodes.ListNodes(node_pb2.ListNodesRequest())).nodes
        assert [(node.name, node.capacity.memory) for node in listed] == [
            ("liar", 0),
            ("modest", 2**60),
            ("other", 2**60),
        ]
        many = [Resources(memory=2**60, named=(("power", 2**60),))] * 9
        total = NOTHING
        for amount in many:
            total = total.plus(amount)
        shown = views.resources(total)
        assert (shown.memory, shown.named["power"]) == (2**63 - 1, 2**63 - 1)


async def test_a_stream_that_closes_makes_the_node_suspect_and_a_new_one_brings_it_back(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.come_up()
        nodes = run.admin().nodes

        async def until(state: "node_pb2.NodeState.ValueType") -> None:
            with run.controller.loop.watch_events() as news:
                async with asyncio.timeout(20):
                    while True:
                        news.clear()
                        answer = await nodes.GetNode(node_pb2.GetNodeRequest(node="n1"))
                        if answer.node.state == state:
                            return
                        await news.wait()

        await until(node_pb2.NODE_STATE_READY)
        node.call.cancel()
        await until(node_pb2.NODE_STATE_SUSPECT)
        node.call = node.link.Connect()
        await node.come_up()
        await until(node_pb2.NODE_STATE_READY)


async def test_a_node_that_does_not_read_delays_nobody(tmp_path: Path) -> None:
    """One node's connection is full to the brim; another one's heartbeats go on as ever."""
    async with running(tmp_path) as run:
        stuck, lively = await run.join("stuck"), await run.join("lively")
        await stuck.come_up()
        await lively.come_up()
        flood = Down(1, 1, 1, Grant(1, 1, 1, 1, 1, 1, ((0, 0),), lines=("x" * 100_000,)))
        carrier = run.controller._links
        stream = next(one for one in carrier._streams.values() if one.node == stuck.node)
        for _ in range(100):
            carrier.carry_out(Send(stuck.node, stream.number, flood))
        for sent_ms in range(20):
            await lively.beat(sent_ms)
        assert stream.end is None
        assert stream.waiting_bytes > 0, "it is stuck, and only it"


async def test_a_node_that_never_reads_is_cut_off(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.come_up()
        carrier = run.controller._links
        stream = next(iter(carrier._streams.values()))
        flood = Down(1, 1, 1, Grant(1, 1, 1, 1, 1, 1, ((0, 0),), lines=("x" * 200_000,)))
        for _ in range(2 * links.QUEUE_BYTES_MAX // 200_000):
            carrier.carry_out(Send(node.node, stream.number, flood))
        code, details = await node.ended()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "does not read" in details


async def test_a_node_that_stops_to_read_loses_its_session_though_it_goes_on_to_speak(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.come_up()
        carrier = run.controller._links
        stream = next(iter(carrier._streams.values()))
        flood = Down(1, 1, 1, Grant(1, 1, 1, 1, 1, 1, ((0, 0),), lines=("x" * 200_000,)))
        carrier.carry_out(Send(node.node, stream.number, flood))
        async with asyncio.timeout(20):
            while stream.writing_since_s is None or stream.waiting:
                # What the transport takes is not known beforehand: more, until a message is not taken.
                if not stream.waiting:
                    carrier.carry_out(Send(node.node, stream.number, flood))
                await asyncio.sleep(0)
        for _ in range(2 * links.QUEUE_BYTES_MAX // 200_000):
            carrier.carry_out(Send(node.node, stream.number, flood))
        async with asyncio.timeout(20):
            while stream.number in carrier._streams:
                await node.say(heartbeat=link_pb2.Heartbeat(sent_ms=1))
        assert not stream.waiting


async def test_what_a_turn_says_to_a_node_is_one_message_of_its_stream(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.come_up()
        await node.beat(1)
        before = node.envelope_count
        carrier = run.controller._links
        number = next(iter(carrier._streams))
        for sent_ms in range(1000):
            carrier.carry_out(Send(node.node, number, Down(1, 1, sent_ms, HeartbeatAck(sent_ms))))
        assert [(await node.hear("heartbeat_ack")).sent_ms for _ in range(1000)] == list(range(1000))
        assert node.envelope_count == before + 1


async def test_what_was_sent_before_a_close_still_arrives(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.come_up()
        carrier = run.controller._links
        number = next(iter(carrier._streams))
        for sent_ms in range(100):
            carrier.carry_out(Send(node.node, number, Down(1, 1, sent_ms, HeartbeatAck(sent_ms))))
        carrier.carry_out(Close(node.node, number, "because"))
        assert [(await node.hear("heartbeat_ack")).sent_ms for _ in range(100)] == list(range(100))
        assert await node.ended() == (grpc.StatusCode.ABORTED, "because")
        carrier.carry_out(Send(node.node, number, Down(1, 1, 1, HeartbeatAck(1))))  # too late, and no harm


async def test_a_node_speaks_of_itself_alone(tmp_path: Path) -> None:
    """Another node says that it has done the first one's work; that counts for nothing."""
    async with running(tmp_path) as run:
        node, liar = await run.join("n1"), await run.join("n2")
        await node.come_up()
        await submit(run)
        grant: link_pb2.Grant = await node.hear("grant")
        await liar.come_up()
        report = link_pb2.Report(journal_id=liar.hello().journal_id, first_sequence=1, last_sequence=1)
        report.allocations.add(allocation=grant.allocation).exits.index = bytes(4)
        await liar.say(report=report)
        await liar.hear("ack")
        job = (await run.admin().jobs.GetJob(job_service_pb2.GetJobRequest(id=1))).job
        assert (job.tasks.succeeded, job.tasks.allocated) == (0, 1)
        assert [(each.node, each.allocated) for each in job.nodes] == [("n1", 1)]

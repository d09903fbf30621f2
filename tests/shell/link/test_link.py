"""The real link process between a played supervisor and a real controller."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from rota.agent.facts import boot_id
from rota.agent.journal import Journal
from rota.agent.link import RETRY_S_MAX, pause_s
from rota.agent.link_frames import Closed, End, Opened
from rota.core.model.protocol import (
    Ack,
    AllocationReport,
    Columns,
    Goodbye,
    Grant,
    Heartbeat,
    HeartbeatAck,
    Lease,
    Report,
    Slot,
    Template,
)
from rota.core.model.resources import Resources
from rota.core.node.entries import Begin, Granted, Intent, LeaseKept, Start
from rota.wire.gen.v1 import job_pb2, job_service_pb2
from tests.shell.controller.harness import Running, running
from tests.shell.link.harness import enrol, linked


async def submit(run: Running, spec: job_pb2.JobSpec) -> None:
    await run.admin().jobs.SubmitJobs(job_service_pb2.SubmitJobsRequest(jobs=[spec]))


async def test_it_dials_and_carries_both_ways(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream = await link.come_up()
            for sent_ms in range(100):
                await link.say(stream, Heartbeat(sent_ms, 0))
            for sent_ms in range(100):
                assert (await link.come(stream, HeartbeatAck)).sent_ms == sent_ms


async def test_work_comes_down_whole_and_reports_go_up(tmp_path: Path) -> None:
    """The template is larger than a message: it is cut on the way and joined again."""
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream = await link.come_up()
            script = "#!/bin/sh\n" + "# padding\n" * 60_000
            await submit(run, job_pb2.JobSpec(script=script, env={"A": "1"}))
            lease = await link.come(stream, Lease)
            template = await link.come(stream, Template)
            grant = await link.come(stream, Grant)
            assert template.spec.script == script
            assert template.spec.env == (("A", "1"),)
            assert (grant.lease, grant.indices) == (lease.lease, ((0, 0),))
            done = AllocationReport(grant.allocation, exits=Columns(index=bytes(4)))
            await link.say(stream, Report("journal", 1, 2, (done,)))
            assert (await link.come(stream, Ack)).sequence == 2
            job = (await run.admin().jobs.GetJob(job_service_pb2.GetJobRequest(id=1))).job
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED


async def test_it_dials_again_when_the_controller_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        cluster = run.controller.authority.cluster
        store = run.controller._store
    async with linked(tmp_path / "n1", cluster) as link:
        async with running(tmp_path / "home", store):
            first = await link.come_up()
        assert (await link.hear(Closed)).stream == first
        async with running(tmp_path / "home", store):
            second = await link.come_up()
            assert second > first
            await link.say(second, Heartbeat(5, 0))
            assert (await link.come(second, HeartbeatAck)).sent_ms == 5


async def test_it_finds_the_address_that_works(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        path = tmp_path / "n1" / "identity.json"
        identity = json.loads(path.read_bytes())
        identity["addresses"] = ["127.0.0.1:1", "localhost:2", *identity["addresses"]]
        path.write_text(json.dumps(identity))
        async with linked(tmp_path / "n1", identity["cluster"]) as link:
            assert await link.come_up() == 3


async def test_messages_for_a_stream_that_is_gone_are_dropped(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream = await link.come_up()
            await link.say(stream + 1, Heartbeat(1, 0))
            await link.say(stream - 1, Heartbeat(2, 0))
            await link.say(stream, Heartbeat(3, 0))
            assert (await link.come(stream, HeartbeatAck)).sent_ms == 3


async def test_the_supervisor_ends_a_stream_after_what_it_said(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream = await link.come_up()
            with run.controller.loop.watch_events() as news:
                await link.say(stream, Goodbye("over"))
                await link.tell(End(stream, "goodbye", final=True))
                assert (await link.hear(Closed)).stream == stream
                async with asyncio.timeout(20):
                    while not await run.controller.loop.read(
                        lambda machine: any(node.status.away for node in machine.cluster.nodes.values())
                    ):
                        await news.wait()
            assert link.process.returncode is None, "it waits for the supervisor's own end"


async def test_an_end_with_a_pause_is_dialled_again(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream = await link.come_up()
            await link.tell(End(stream, "a gap in the numbers", retry_ms=1))
            assert (await link.hear(Closed)).stream == stream
            assert await link.come_up() == stream + 1


async def test_without_a_controller_it_keeps_trying_and_says_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        cluster = run.controller.authority.cluster
        store = run.controller._store
    async with linked(tmp_path / "n1", cluster) as link:
        waiting = asyncio.create_task(link.hear(Opened))
        async with running(tmp_path / "home", store):
            assert (await waiting).stream >= 1


async def test_when_the_supervisor_dies_it_cleans_up_and_goes(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            await link.come_up()
            link.hang_up()
            assert await link.exit_code() == 0


async def test_when_the_supervisor_dies_what_its_journal_names_dies_too(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        home = tmp_path / "n1"
        await enrol(run, home)
        # In a session of its own and deaf to SIGTERM, as a task may be; its child has left for another one,
        # whose end is not its own.
        script = "trap '' TERM; setsid sleep 1000 & echo $!; exec sleep 1000"
        task = await asyncio.create_subprocess_exec(
            "sh", "-c", script, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert task.stdout is not None
        grandchild = int(await task.stdout.readline())
        ticks = int(stat(task.pid)[19])
        journal = Journal(home)
        journal.begin(
            [
                Begin("journal", boot_id()),
                LeaseKept(1, Resources(cpu=1000), "default", (Slot(1),), 2),
                Granted(1, 1, 1, 1, 1, 1, ((0, 0),), (), False),
                Intent(1, ((0, 0),)),
                Start(1, 0, 1, 1, task.pid, ticks, 0),
            ]
        )
        journal.close()
        async with linked(home, run.controller.authority.cluster) as link:
            await link.come_up()
            link.hang_up()
            assert await link.exit_code() == 0
        assert await task.wait() == -signal.SIGKILL
        assert stat(grandchild)[:1] in ([], ["Z"])


def stat(pid: int) -> list[str]:
    """What /proc says of a process behind its name: state, parent, ...; nothing where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return []


async def test_what_asks_all_processes_to_end_is_the_supervisors_affair(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        await enrol(run, tmp_path / "n1")
        async with linked(tmp_path / "n1", run.controller.authority.cluster) as link:
            stream = await link.come_up()
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(link.process.pid, number)
            await link.say(stream, Heartbeat(9, 0))
            assert (await link.come(stream, HeartbeatAck)).sent_ms == 9


@pytest.mark.parametrize("spoil", ["missing", "damaged"])
async def test_a_home_without_an_identity_is_said_plainly(
    tmp_path: Path, spoil: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if spoil == "damaged":
        (tmp_path / "identity.json").write_text("{}")
    async with linked(tmp_path) as link:
        assert await link.exit_code() == 3
    assert "join the cluster again" in capfd.readouterr().err


def test_pauses_grow_and_have_a_limit() -> None:
    assert all(0.05 <= pause_s(0) <= 0.1 for _ in range(100))
    assert all(RETRY_S_MAX / 2 <= pause_s(50) <= RETRY_S_MAX for _ in range(100))

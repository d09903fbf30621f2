"""What the controller's own look for garbage rests on."""

import asyncio
import gc
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import grpc
import pytest

from rota.controller import pace
from rota.controller.api.desk import Call
from rota.controller.links import _Stream
from rota.wire.gen.v1 import cluster_pb2, job_service_pb2
from tests.shell.controller.harness import WAIT_S_MAX, running
from tests.shell.controller.test_links import submit

CALLS = 40
STREAMS = 4


@pytest.fixture
def collector() -> Iterator[None]:
    """The collector as others have it, afterwards."""
    yield
    gc.enable()
    gc.unfreeze()


async def test_no_cycle_outlives_the_round_that_made_it(tmp_path: Path, collector: None) -> None:
    """Calls, refusals, watches, streams of nodes: a look at all objects would find nothing."""
    async with running(tmp_path) as run:
        admin = run.admin()
        await submit(run)
        nodes = [await run.join(f"n{number}") for number in range(STREAMS)]
        gc.collect()
        gc.freeze()
        garbage = pace.Garbage()
        looked = 0
        for number in range(CALLS):
            await admin.cluster.GetCluster(cluster_pb2.GetClusterRequest())
            refused = admin.jobs.GetJob(job_service_pb2.GetJobRequest(id=99))
            assert await refused.code() == grpc.StatusCode.NOT_FOUND
            if number < STREAMS:
                await nodes[number].come_up()
                watch = admin.jobs.WatchJob(job_service_pb2.WatchJobRequest(id=1))
                await watch.read()
                watch.cancel()
                nodes[number].call.cancel()
            await asyncio.sleep(0)
            looked += garbage.look((number + 1) * 10**15)
        assert looked == CALLS
        async with asyncio.timeout(WAIT_S_MAX):
            while run.controller._links._streams:  # noqa: ASYNC110 (nobody else wants to know)
                await asyncio.sleep(0)
        for _ in range(pace.LOOKS_MAX):
            await asyncio.sleep(0)
            looked += garbage.look((looked + 1) * 10**15)
        assert gc.collect() < CALLS


async def test_old_streams_and_reads_that_end_badly_leave_no_cycle(tmp_path: Path, collector: None) -> None:
    """What lived for long is looked at no more: it must be free by itself."""
    looks = count(1)

    async def grow_old() -> None:
        for _ in range(4 * pace.LOOKS_MAX):
            await asyncio.sleep(0)
            garbage.look(next(looks) * 10**15)

    async with running(tmp_path) as run, asyncio.timeout(WAIT_S_MAX):
        admin, loop = run.admin(), run.controller.loop
        garbage = pace.Garbage()
        # As while a turn lasts.
        loop._turning = True
        calls = [admin.jobs.GetJob(job_service_pb2.GetJobRequest(id=99)) for _ in range(STREAMS)]
        while len(loop._waiting.reads) < STREAMS:  # noqa: ASYNC110 (nobody else wants to know)
            await asyncio.sleep(0)
        await grow_old()
        loop._turning = False
        assert loop._machine is not None
        loop._answer_reads(loop._machine)
        assert [await call.code() for call in calls] == [grpc.StatusCode.NOT_FOUND] * STREAMS
        nodes = [await run.join(f"n{number}") for number in range(STREAMS)]
        for node in nodes:
            await node.come_up()
        await grow_old()
        run.controller._links.close_all("they are closed")
        while run.controller._links._streams:  # noqa: ASYNC110 (nobody else wants to know)
            await asyncio.sleep(0)
        await grow_old()
        assert [each for each in gc.get_objects() if isinstance(each, _Stream | Call)] == []


def test_it_is_looked_for_after_some_work_and_not_before(collector: None) -> None:
    garbage = pace.Garbage()
    now_ns = garbage._looked_ns
    assert not gc.isenabled()
    assert [garbage.look(now_ns + step * pace.LOOK_NS // 2) for step in range(1, 5)] == [
        False,
        True,
        False,
        True,
    ]


def test_what_was_kept_is_found_once_it_is_let_go(collector: None) -> None:
    class Knot:
        def __init__(self) -> None:
            self.self = self

    knot = Knot()
    pace.keep()
    del knot
    gc.collect()
    assert [one for one in gc.get_objects() if isinstance(one, Knot)] == []
    gc.unfreeze()
    assert len([one for one in gc.get_objects() if isinstance(one, Knot)]) == 1
    gc.freeze()
    pace.forget()
    assert [one for one in gc.get_objects() if isinstance(one, Knot)] == []

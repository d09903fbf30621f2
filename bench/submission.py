"""Separate jobs per second: from 1, 8 and 32 clients at once, and many in one call; no node, so all wait.

Over the real API with mutual TLS, a connection for each client; an answer means that the job is on the disk.
Beside it: commits of SQLite with full durability, one after the other, which is what each answer would wait
for if the controller did not commit many at once. The clients share the machine with the controller, so what
one job costs the controller is told in CPU time too.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from statistics import median
from typing import Any

import grpc.aio

from bench.harness import Bar, Cluster, Row, Size, cluster, in_turn, medians, pause_row, ratios
from bench.limits import commits_per_s
from rota.client import methods
from rota.client.connection import SERVER_NAME
from rota.client.context import Context, load_context
from rota.client.messages import JobSpec
from rota.wire.gen.v1.job_service_pb2 import SubmitJobsRequest, SubmitJobsResponse

COMMITS = "commits"
PER_SECOND_MIN = 2_000
IN_BATCH_PER_SECOND_MIN = 20_000
# Well below what a call may carry.
BATCH_JOBS = 10_000
SPEC = JobSpec(command=["true"])


def rows(size: Size) -> Iterator[Row]:
    """Jobs a second, and what one costs the controller."""
    count = size.of(10_000, 1_000)
    with cluster("--nodes", "0") as rota:
        for clients in (1, 8, 32):
            what = f"separate jobs, {clients} client{'s' * (clients > 1)}"
            jobs = count // 5 if clients == 1 else count
            bar = Bar(at_least=PER_SECOND_MIN) if clients > 1 else None
            yield from _rows(rota, size, what, jobs, partial(apart, rota, clients, jobs), bar)
        yield pause_row("submission", rota, "separate jobs")
        batch = size.of(BATCH_JOBS, 2_000)
        bar = Bar(at_least=IN_BATCH_PER_SECOND_MIN)
        yield from _rows(rota, size, "jobs in one call", batch, partial(together, rota, batch), bar)
        yield pause_row("submission", rota, "jobs in one call")


def _rows(
    rota: Cluster, size: Size, what: str, jobs: int, submit: Callable[[], float], bar: Bar | None
) -> Iterator[Row]:
    costs_us = []

    def ours() -> float:
        before_s = rota.cpu_s("controller")
        per_s = submit()
        costs_us.append(1e6 * (rota.cpu_s("controller") - before_s) / jobs)
        return per_s

    submit()
    found = in_turn(size.rounds, **{"ours": ours, COMMITS: commits_per_s})
    yield Row("submission", what, medians(found)["ours"], "/s", ratios(found, "ours"), bar)
    yield Row("submission", f"{what}, controller's CPU for one", median(costs_us), "µs")


def together(rota: Cluster, jobs: int) -> float:
    """So many in one call, a second."""
    with rota.client() as client:
        client.cluster()
        specs = [SPEC] * jobs
        began_s = time.perf_counter()
        assert len(client.submit(specs).ids) == jobs
        return jobs / (time.perf_counter() - began_s)


def apart(rota: Cluster, clients: int, jobs: int) -> float:
    """So many, each in a call of its own, from so many clients, a second."""
    return asyncio.run(_apart(load_context(rota.home), clients, jobs))


async def _apart(context: Context, clients: int, jobs: int) -> float:
    credentials = grpc.ssl_channel_credentials(
        *(file.read_bytes() for file in (context.ca, context.key, context.cert))
    )
    async with AsyncExitStack() as stack:
        calls = []
        for number in range(clients):
            options = [
                ("grpc.ssl_target_name_override", SERVER_NAME),
                # Without it the channels of one process share one connection.
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.client_number", number),
            ]
            channel = await stack.enter_async_context(
                grpc.aio.secure_channel(context.address, credentials, options)
            )
            await channel.channel_ready()
            calls.append(
                channel.unary_unary(
                    methods.SUBMIT_JOBS.path,
                    request_serializer=SubmitJobsRequest.SerializeToString,
                    response_deserializer=SubmitJobsResponse.FromString,
                )
            )
        left = iter(range(jobs))

        async def one(call: Any) -> None:
            for _ in left:
                answer = await call(SubmitJobsRequest(jobs=[SPEC], idempotency_key=str(uuid.uuid4())))
                assert len(answer.ids) == 1

        began_s = time.perf_counter()
        await asyncio.gather(*map(one, calls))
        return jobs / (time.perf_counter() - began_s)

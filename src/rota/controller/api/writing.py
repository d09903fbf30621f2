"""WriteInput: hands a client's bytes to the task that reads them."""

from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from rota.controller.api.desk import Call, Desk, find_job
from rota.controller.api.errors import error
from rota.controller.api.views import holder
from rota.core.cluster.inputs import Done, ToNode
from rota.core.cluster.step import Machine
from rota.core.model.protocol import Input
from rota.wire.gen.v1 import job_service_pb2


class InputWriter:
    """Writes to the standard input of jobs with one task."""

    def __init__(self, desk: Desk, room: Callable[[str], Awaitable[None]]) -> None:
        """`room` waits until a node takes more."""
        self._desk = desk
        self._room = room

    async def write(
        self, requests: AsyncIterator[job_service_pb2.WriteInputRequest], call: Call
    ) -> job_service_pb2.WriteInputResponse:
        """Until the client ends; each piece goes when most of what was before it is with the node."""
        accepted = 0
        target: tuple[str, int, int] | None = None
        async for request in requests:
            if target is None:
                call.about = f"job {request.job}"
                await self._desk.own_job(call.caller, request.job)
                target = await self._target(request.job)
            node, allocation, index = target
            piece = Input(allocation, index, request.offset, request.data, request.end)
            await self._room(node)
            await self._desk.change(lambda ticket, node=node, piece=piece: ToNode(ticket, node, piece), Done)  # type: ignore[misc]
            accepted += len(request.data)
            if request.end:
                break
        return job_service_pb2.WriteInputResponse(accepted_bytes=accepted)

    async def _target(self, number: int) -> tuple[str, int, int]:
        """Node, allocation and index of the running task, once it runs."""
        with self._desk.loop.watch_job(number) as news:
            while True:
                news.clear()
                target = await self._desk.read(lambda machine: _running(machine, number))
                if target is not None:
                    return target
                await news.wait()


def _running(machine: Machine, number: int) -> tuple[str, int, int] | None:
    job = find_job(machine.cluster, number)
    if not job.spec.stdin:
        raise error(
            grpc.StatusCode.FAILED_PRECONDITION, f"job {number} does not read input: submit it with stdin"
        )
    if job.ended:
        raise error(grpc.StatusCode.FAILED_PRECONDITION, f"job {number} has ended")
    index = job.all.min()
    allocation = holder(job, index)
    if allocation is None or index not in allocation.running:
        return None
    return allocation.node.id, allocation.id, index

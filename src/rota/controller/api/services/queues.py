"""QueueService."""

from rota.controller.api import views
from rota.controller.api.desk import Call, Desk
from rota.core.cluster.inputs import Done, DropQueue, PutQueue
from rota.core.cluster.records import QueueConfig
from rota.core.cluster.step import Machine
from rota.core.model.resources import Resources
from rota.core.model.spec import QUEUE_DEFAULT
from rota.wire.convert import codec
from rota.wire.gen.v1 import cluster_pb2, job_pb2

_RESOURCES = codec(Resources, job_pb2.Resources)


class Queues:
    """Whose work it is."""

    CONTRACT = cluster_pb2.DESCRIPTOR.services_by_name["QueueService"]

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create_queue(
        self, request: cluster_pb2.CreateQueueRequest, call: Call
    ) -> cluster_pb2.CreateQueueResponse:
        """Makes or changes a queue."""
        name, config = request.queue.name, _config(request.queue)
        call.about = f"queue {name}"
        await self._desk.change(
            lambda ticket: PutQueue(ticket, call.caller.name, name, config, request.update), Done
        )
        view = await self._desk.read(lambda machine: views.queue(machine.cluster, name, config))
        return cluster_pb2.CreateQueueResponse(queue=view)

    async def list_queues(self, _: cluster_pb2.ListQueuesRequest, __: Call) -> cluster_pb2.ListQueuesResponse:
        """All queues by name, `default` among them."""
        return cluster_pb2.ListQueuesResponse(queues=await self._desk.read(_all))

    async def delete_queue(
        self, request: cluster_pb2.DeleteQueueRequest, call: Call
    ) -> cluster_pb2.DeleteQueueResponse:
        """Removes a queue without jobs."""
        call.about = f"queue {request.name}"
        await self._desk.change(lambda ticket: DropQueue(ticket, call.caller.name, request.name), Done)
        return cluster_pb2.DeleteQueueResponse()


def _config(queue: cluster_pb2.Queue) -> QueueConfig:
    return QueueConfig(
        weight=queue.weight or 1,
        quota=_RESOURCES.from_message(queue.quota) if queue.HasField("quota") else None,
        priority_min=queue.priority_min if queue.HasField("priority_min") else None,
        priority_max=queue.priority_max if queue.HasField("priority_max") else None,
    )


def _all(machine: Machine) -> list[cluster_pb2.Queue]:
    cluster = machine.cluster
    queues = {QUEUE_DEFAULT: QueueConfig(), **cluster.queues}
    return [views.queue(cluster, name, config) for name, config in sorted(queues.items())]

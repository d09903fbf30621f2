"""ClusterService."""

import asyncio
from functools import partial

import rota
from rota.controller.api import views
from rota.controller.api.desk import PIECE_NODES, Call, Desk
from rota.wire.gen.v1 import cluster_pb2


class Clusters:
    """The cluster itself."""

    CONTRACT = cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"]

    def __init__(self, desk: Desk, leader: str) -> None:
        self._desk = desk
        self._leader = leader

    async def get_cluster(
        self, _: cluster_pb2.GetClusterRequest, call: Call
    ) -> cluster_pb2.GetClusterResponse:
        """The cluster in numbers, and who asks."""
        sums = views.NodeSums()
        names = await self._desk.read(lambda machine: list(machine.cluster.nodes))
        for start in range(0, len(names), PIECE_NODES):
            await self._desk.read(partial(sums.add, names[start : start + PIECE_NODES]))
            await asyncio.sleep(0)
        answer = await self._desk.read(lambda machine: views.summary(machine.cluster, sums))
        answer.version = rota.__version__
        answer.now_ms = self._desk.loop.now_ms()
        answer.principal = call.caller.name
        answer.leader = self._leader
        pace = self._desk.loop.pace
        answer.pace.turns = pace.turns
        answer.pace.turn_us_max = pace.turn_ns_max // 1000
        answer.pace.pause_us_max = pace.pause_ns_max // 1000
        answer.pace.busy_us_max = pace.busy_ns_max // 1000
        answer.pace.pauses_long = pace.pauses_long
        return answer

"""NodeService."""

from collections.abc import Callable

import grpc

from rota.controller.api import views
from rota.controller.api.desk import Call, Desk
from rota.controller.api.errors import error
from rota.core.cluster.inputs import Done, EditNode, Input, LabelNode, NodeEdit, RemoveNode
from rota.core.cluster.state import Cluster, Node
from rota.core.cluster.step import Machine
from rota.core.model.states import NodeState
from rota.wire.gen.v1 import node_pb2

PAGE_SIZE_DEFAULT = 100


class Nodes:
    """Machines, and whatever speaks the node protocol. `address` says where a node connects from."""

    CONTRACT = node_pb2.DESCRIPTOR.services_by_name["NodeService"]

    def __init__(self, desk: Desk, address: Callable[[str], str]) -> None:
        self._desk = desk
        self._address = address

    async def list_nodes(self, request: node_pb2.ListNodesRequest, _: Call) -> node_pb2.ListNodesResponse:
        """Nodes by name."""
        states = {NodeState(state) for state in request.states}
        size = request.page_size or PAGE_SIZE_DEFAULT

        def look(machine: Machine) -> node_pb2.ListNodesResponse:
            named = sorted(machine.cluster.node_names.items())
            nodes = (machine.cluster.nodes[number] for name, number in named if name > request.page_token)
            found = [node for node in nodes if not states or node.status.state in states]
            return node_pb2.ListNodesResponse(
                nodes=[self._view(machine, node) for node in found[:size]],
                next_page_token=found[size - 1].config.name if len(found) > size else "",
            )

        return await self._desk.read(look)

    async def get_node(self, request: node_pb2.GetNodeRequest, _: Call) -> node_pb2.GetNodeResponse:
        """One node."""
        return node_pb2.GetNodeResponse(node=await self._one(request.node))

    async def cordon_node(
        self, request: node_pb2.CordonNodeRequest, call: Call
    ) -> node_pb2.CordonNodeResponse:
        """Nothing new is placed there."""
        node, changed = await self._edit(request.node, call, NodeEdit.CORDON)
        return node_pb2.CordonNodeResponse(node=node, changed=changed)

    async def drain_node(self, request: node_pb2.DrainNodeRequest, call: Call) -> node_pb2.DrainNodeResponse:
        """Cordons, and stops what still runs at the deadline."""
        deadline_ms = request.deadline if request.HasField("deadline") else None
        node, changed = await self._edit(request.node, call, NodeEdit.DRAIN, deadline_ms)
        return node_pb2.DrainNodeResponse(node=node, changed=changed)

    async def resume_node(
        self, request: node_pb2.ResumeNodeRequest, call: Call
    ) -> node_pb2.ResumeNodeResponse:
        """Ends cordon and drain."""
        node, changed = await self._edit(request.node, call, NodeEdit.RESUME)
        return node_pb2.ResumeNodeResponse(node=node, changed=changed)

    async def label_node(self, request: node_pb2.LabelNodeRequest, call: Call) -> node_pb2.LabelNodeResponse:
        """Sets and removes labels."""
        labels = tuple(sorted(request.labels.items()))
        remove = tuple(request.remove)
        node, changed = await self._change(
            request.node,
            call,
            lambda ticket: LabelNode(ticket, call.caller.name, request.node, labels, remove),
        )
        return node_pb2.LabelNodeResponse(node=node, changed=changed)

    async def remove_node(
        self, request: node_pb2.RemoveNodeRequest, call: Call
    ) -> node_pb2.RemoveNodeResponse:
        """Forgets a node."""
        call.about = f"node {request.node}"
        await self._desk.change(
            lambda ticket: RemoveNode(ticket, call.caller.name, request.node, request.force), Done
        )
        return node_pb2.RemoveNodeResponse()

    async def _edit(
        self, node: str, call: Call, edit: NodeEdit, deadline_ms: int | None = None
    ) -> tuple[node_pb2.Node, bool]:
        return await self._change(
            node, call, lambda ticket: EditNode(ticket, call.caller.name, node, edit, deadline_ms)
        )

    async def _change(
        self, node: str, call: Call, make: Callable[[int], Input]
    ) -> tuple[node_pb2.Node, bool]:
        call.about = f"node {node}"
        done = await self._desk.change(make, Done)
        return await self._one(node), done.changed

    async def _one(self, node: str) -> node_pb2.Node:
        return await self._desk.read(lambda machine: self._view(machine, _find(machine.cluster, node)))

    def _view(self, machine: Machine, node: Node) -> node_pb2.Node:
        return views.node(node, machine.soft, self._desk.loop.now_ms(), self._address(node.id))


def _find(cluster: Cluster, node: str) -> Node:
    found = cluster.find_node(node)
    if found is None:
        raise error(grpc.StatusCode.NOT_FOUND, f"there is no node '{node}'; 'rota node ls' lists nodes")
    return found

"""EventService."""

from collections.abc import AsyncGenerator
from functools import partial

import grpc

from rota.controller.api import views
from rota.controller.api.desk import Call, Desk
from rota.controller.api.errors import error
from rota.core.cluster.records import Event
from rota.core.cluster.step import Machine
from rota.core.model.states import EventKind
from rota.wire.gen.v1 import cluster_pb2

LIMIT_DEFAULT = 100
BATCH_COUNT_MAX = 500


class Events:
    """What happened."""

    CONTRACT = cluster_pb2.DESCRIPTOR.services_by_name["EventService"]

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list_events(
        self, request: cluster_pb2.ListEventsRequest, _: Call
    ) -> AsyncGenerator[cluster_pb2.ListEventsResponse]:
        """Events in their order, and on as they come if `follow`."""
        await self._desk.read(partial(_check_known, request=request))
        # Where it begins is not said: the newest.
        last = 0 if request.after_seq else request.limit or LIMIT_DEFAULT
        after, left = request.after_seq, request.limit if request.after_seq and not request.follow else 0
        with self._desk.loop.watch_events() as news:
            while True:
                news.clear()
                found = await self._desk.read(partial(_find, request=request, after=after, last=last))
                found = found[:left] if left else found
                for start in range(0, len(found), BATCH_COUNT_MAX):
                    batch = found[start : start + BATCH_COUNT_MAX]
                    yield cluster_pb2.ListEventsResponse(events=[views.event(event) for event in batch])
                if not request.follow:
                    return
                after = found[-1].seq if found else after
                last = 0
                await news.wait()


def _find(machine: Machine, request: cluster_pb2.ListEventsRequest, after: int, last: int) -> list[Event]:
    """Events behind `after` that the request asks for; with `last`, only so many of the newest."""
    found: list[Event] = []
    kinds, node = {EventKind(kind) for kind in request.kinds}, _node_name(machine, request)
    for record in reversed(machine.cluster.events.values()):
        event = record.event
        if event.seq <= after or (last and len(found) >= last):
            break
        if (
            (not request.job or event.job == request.job)
            and (not node or event.node == node)
            and (not kinds or event.kind in kinds)
        ):
            found.append(event)
    found.reverse()
    return found


def _check_known(machine: Machine, request: cluster_pb2.ListEventsRequest) -> None:
    """Raises ApiError where the request names what neither is there nor has left events."""
    events = [record.event for record in machine.cluster.events.values()]
    job, node = request.job, _node_name(machine, request)
    if job and job not in machine.cluster.jobs and not any(event.job == job for event in events):
        raise error(grpc.StatusCode.NOT_FOUND, f"there is no job {job}; 'rota ls' lists jobs")
    if node and machine.cluster.find_node(node) is None and not any(event.node == node for event in events):
        raise error(grpc.StatusCode.NOT_FOUND, f"there is no node '{node}'; 'rota node ls' lists nodes")


def _node_name(machine: Machine, request: cluster_pb2.ListEventsRequest) -> str:
    """The name of the node meant: events say names."""
    found = machine.cluster.find_node(request.node)
    return request.node if found is None else found.config.name

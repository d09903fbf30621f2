"""What the services share: the way to the cluster's machine, for changes and for reads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from rota.controller.api.auth import Action, Caller, authorize
from rota.controller.api.errors import error, refused
from rota.controller.loop import Loop
from rota.core.cluster.inputs import Done, Enrolled, Input, Refusal, Submitted
from rota.core.cluster.state import Cluster, Job
from rota.core.cluster.step import Machine

T = TypeVar("T")
A = TypeVar("A", Submitted, Done, Enrolled)


@dataclass(slots=True)
class Call:
    """One request. `about`: what it changes, for the audit log; a service fills it in."""

    caller: Caller
    about: str = ""


# Of thousands of nodes, so many are looked at before others are served.
PIECE_NODES = 512


class Desk:
    """Changes and reads, for the services."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    async def change(self, make: Callable[[int], Input], expected: type[A]) -> A:
        """What the machine answers to an input, made with its ticket, after the commit. Raises ApiError."""
        answer = await self.loop.ask(make)
        if isinstance(answer, Refusal):
            raise refused(answer)
        assert isinstance(answer, expected), answer
        return answer

    async def read(self, look: Callable[[Machine], T]) -> T:
        """What a function finds in the committed state. Raises whatever the function raises."""
        return await self.loop.read(look)

    async def own_job(self, caller: Caller, number: int) -> None:
        """Raises ApiError unless there is such a job and the caller may change it."""
        owner = await self.read(lambda machine: find_job(machine.cluster, number).config.owner)
        authorize(caller, Action.CHANGE_JOB, owner)


def find_job(cluster: Cluster, number: int) -> Job:
    """A job that the store has. Raises ApiError."""
    job = cluster.jobs.get(number)
    if job is None:
        raise error(grpc.StatusCode.NOT_FOUND, f"there is no job {number}; 'rota ls' lists jobs")
    return job

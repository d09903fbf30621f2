"""A run: a small cluster, its users and its faults from one seed, under the eyes of the checkers.

First a phase with faults, `steps` events long; then the faults stop, operators let go of what they
hold, and everything that can finish must.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rota.core.cluster.check import InvariantBroken, require
from rota.core.cluster.inputs import PutToken
from rota.core.cluster.records import TokenConfig
from rota.core.cluster.state import Node as ClusterNode
from rota.core.model.states import NodeState, TokenKind
from rota.sim.cast import Cast
from rota.sim.faults import Faults
from rota.sim.node import Node
from rota.sim.users import Users

LAST_PHASE_EVENTS_MAX = 20_000
STEPS_DEFAULT = 500
LINES_KEPT = 20


@dataclass(frozen=True, slots=True)
class Found:
    """What a run came to. `invariant` is empty where nothing broke; else `last` ends its history."""

    seed: int
    events: int
    invariant: str
    message: str
    last: tuple[str, ...] = ()


def run_seed(
    seed: int,
    steps: int = STEPS_DEFAULT,
    trace: Callable[[str], None] | None = None,
    *,
    edges: bool = False,
) -> Found:
    """One seed's run. `trace` gets each line of the history; `edges`: its nodes are simulated edges."""
    found = _run(seed, steps, trace, edges)
    if not found.invariant:
        return found
    # Once more, for the end of its history: to keep it in every run would cost too much.
    lines: deque[str] = deque(maxlen=LINES_KEPT)
    _run(seed, steps, lines.append, edges)
    return Found(seed, found.events, found.invariant, found.message, tuple(lines))


def _run(seed: int, steps: int, trace: Callable[[str], None] | None, edges: bool) -> Found:
    cast = Cast(seed, trace, edges=edges)
    try:
        Simulation(cast).run(steps)
    except InvariantBroken as broken:
        return Found(seed, cast.world.event_count, broken.name, str(broken))
    except Exception as bug:  # noqa: BLE001 - whatever it is, the seed is to be named
        cause = bug.__cause__ or bug
        message = f"assertion: {_where(cause)}: {cause!r}"
        return Found(seed, cast.world.event_count, "assertion", message)
    return Found(seed, cast.world.event_count, "", "")


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    last = "?"
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/rota/" in code.co_filename:
            last = f"{code.co_filename.rpartition('/rota/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return last


class Simulation:
    """The two phases."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._world = cast.world
        self._users = Users(cast)

    def run(self, steps: int) -> None:
        """Both of them; the end of the second ends the run."""
        cast, world = self._cast, self._world
        cast.start_leader()
        token = TokenConfig(TokenKind.NODE, b"s", 0, 2**50, 99)
        cast.ask(lambda ticket: PutToken(ticket, "admin", "t", token))
        for number in range(cast.mix.nodes):
            cast.enrol(number)
        self._users.begin()
        Faults(cast).begin()
        while world.event_count < steps:
            require(world.step(), "liveness", "nothing more happens")
        self._last_phase()

    def _last_phase(self) -> None:
        cast, world = self._cast, self._world
        world.faults = False
        cast.network.deaf_up.clear()
        cast.network.deaf_down.clear()
        world.say(lambda: "the faults stop")
        for leader in list(cast.leaders):
            if leader.stopped:
                leader.thaw()
        cast.start_leader()
        for node in cast.nodes.values():
            if self._stays_off(node):
                node.crash_power()
                node.removed = True
            elif not node.on and not node.removed:
                node.start_agent()
        last = world.event_count + LAST_PHASE_EVENTS_MAX
        world.after(1, "operators let go", self._users.let_go)
        while not self._all_ended():
            require(world.step(), "liveness", "nothing more happens")
            if world.event_count >= last:
                raise InvariantBroken("liveness", self._unfinished())
        assert cast.leader is not None
        cast.checkers.at_the_end(cast.leader.machine.cluster)

    def _stays_off(self, node: Node) -> bool:
        """Some machines never come back, and nobody removes them; one always does."""
        others = [other for other in self._cast.nodes.values() if not other.removed and other is not node]
        return node.on and bool(others) and self._world.chance.random() < 0.2

    def _all_ended(self) -> bool:
        cast = self._cast
        if cast.leader is None or cast.leader.stopped or not cast.leader.alive or cast.tickets:
            return False
        cluster = cast.leader.machine.cluster
        if cluster.active or not cluster.commit.term:
            return False
        return all(self._is_idle(node) or cast.nodes[node.id].removed for node in cluster.nodes.values())

    @staticmethod
    def _is_idle(node: ClusterNode) -> bool:
        """Whether a node is as it should be, and its idle slots were given back."""
        return node.status.state is NodeState.GONE or (
            node.status.state is NodeState.READY and not node.leases
        )

    def _unfinished(self) -> str:
        cast = self._cast
        if cast.leader is None:
            return "no controller leads"
        cluster = cast.leader.machine.cluster
        jobs = [
            f"job {job.id} {job.status.state.name}: pending {job.pending}, owned {job.owned - job.finals}, "
            f"held {job.held}, delayed {job.delayed}, lost {list(job.lost)}"
            for job in cluster.active.values()
        ]
        nodes = [
            f"{node.config.name} {node.status.state.name} leases {list(node.leases)}"
            for node in cluster.nodes.values()
        ]
        return f"{jobs}; nodes {nodes}; tickets {list(cast.tickets)}"

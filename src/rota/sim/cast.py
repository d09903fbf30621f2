"""Who takes part in a run: controllers, nodes, and those who ask."""

from collections.abc import Callable
from dataclasses import replace

from rota.core.cluster.check import InvariantBroken
from rota.core.cluster.inputs import Enrol, Input, Refusal, Reply
from rota.core.cluster.soft import Settings
from rota.core.model.states import TokenKind
from rota.sim.checkers import Checkers
from rota.sim.disk import Disk
from rota.sim.edge_node import EdgeNode
from rota.sim.leader import Leader
from rota.sim.network import Network, Stream
from rota.sim.node import Behaviour, Node, Sights
from rota.sim.words import describe
from rota.sim.workload import random_behaviour, random_mix
from rota.sim.world import World

SETTINGS = Settings(
    heartbeat_ms_min=1_000,
    suspect_ms=3_000,
    disconnected_ms=5_000,
    lost_after_ms=9_000,
    fence_margin_ms=500,
    linger_ms=200,
    long_task_ms=1_000,
    # So few that passes are often cut short.
    placed_at_once=8,
)
# One leader may have been told another time than the one before.
LOST_AFTER_MS = (SETTINGS.lost_after_ms, SETTINGS.lost_after_ms, SETTINGS.lost_after_ms * 2 // 3)
ASK_AGAIN_MS = 3_000
WIDE_CHECK_STEPS = 20


class Cast:
    """The cast of one run. `leader` is the controller that users reach, where there is one."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None, *, edges: bool = False) -> None:
        """`edges`: the nodes are those of `rota sim edges`."""
        self._node = EdgeNode if edges else Node
        self.world = World(seed, trace=trace)
        self.mix = random_mix(self.world.chance)
        self.world.noise = self.mix.noise
        self.world.say(lambda: f"seed {seed}: {describe(replace(self.mix, pools=()))}")
        self.checkers = Checkers(self.world)
        self.disk = self.checkers.disk = Disk(self.world, self.checkers.committed)
        self.network = Network(self.world)
        self.leaders: list[Leader] = []
        self.leader: Leader | None = None
        self.nodes: dict[str, Node] = {}
        self.tickets: dict[int, Callable[[Reply], None]] = {}
        self._behaviours: dict[int, Behaviour] = {}
        self._ticket_count = 0
        self._leader_count = 0

    # ------------------------------------------------------------ controllers

    def start_leader(self) -> None:
        """A controller starts, and takes the lead, unless one has it."""
        if self.leader is not None:
            return
        self._leader_count += 1
        self.leader = Leader(
            self.world,
            self.disk,
            replace(SETTINGS, lost_after_ms=self.world.chance.choice(LOST_AFTER_MS)),
            f"controller-{self._leader_count}",
            self.checkers,
            self._replied,
            self._leader_died,
        )
        self.leaders.append(self.leader)

    def _leader_died(self, leader: Leader) -> None:
        if leader in self.leaders:
            self.leaders.remove(leader)
        if leader is self.leader:
            self.leader = None
            delay_ms = self.world.chance.randint(10, 2_000)
            self.world.after(delay_ms, "a controller starts", self.start_leader)

    # ------------------------------------------------------------ nodes

    def enrol(self, number: int) -> None:
        """A new node joins."""
        node_id, name = f"{self.world.seed:08x}-{number:04x}", f"n{number}"

        def enrolled(reply: Reply) -> None:
            if isinstance(reply.answer, Refusal):
                raise InvariantBroken("enrolment", str(reply.answer))
            if node_id not in self.nodes:
                self.nodes[node_id] = self.make_node(node_id, name)
                self.nodes[node_id].boot()

        key = f"enrol-{number}"
        self.ask(lambda ticket: Enrol(ticket, "t", b"s", TokenKind.NODE, node_id, name, key), enrolled)

    def make_node(self, node_id: str, name: str) -> Node:
        """A machine that is off."""
        sights = Sights(self.checkers.truth.started, self.checkers.truth.ended)
        return self._node(
            self.world,
            node_id,
            name,
            list(self.mix.pools),
            self._dial,
            self._behaviour,
            sights,
            check_steps=WIDE_CHECK_STEPS if self.mix.wide else 1,
        )

    def _behaviour(self, job: int) -> Behaviour:
        found = self._behaviours.get(job)
        if found is None:
            spec = self.checkers.truth.specs[job]
            found = self._behaviours[job] = random_behaviour(self.world.chance, self.mix, spec)
        return found

    def _dial(self, node: Node) -> Stream | None:
        reachable = [leader for leader in self.leaders if leader.alive and not leader.stopped]
        if not reachable or self.world.maybe(0.1):
            return None
        server = self.world.chance.choice(reachable)
        stream = self.network.dial(node.id, node, server)
        server.accept(stream)
        return stream

    # ------------------------------------------------------------ asking

    def ask(
        self, make: Callable[[int], Input | None], on_reply: Callable[[Reply], None] | None = None
    ) -> None:
        """Asks until it is answered: with the same key, or something that may be repeated.

        `make` gets a ticket each time, and may think better of it. An answer to an earlier time, which
        was given up, reaches nobody.
        """

        def replied(reply: Reply) -> None:
            del self.tickets[reply.ticket]
            self.world.say(lambda: f"answered: {describe(reply)}")
            if isinstance(reply.answer, Refusal):
                self.checkers.refused(reply.answer)
            if on_reply is not None:
                on_reply(reply)

        def ask(earlier: int) -> None:
            if earlier and self.tickets.pop(earlier, None) is None:
                self.world.void()
                return
            self._ticket_count += 1
            ticket = self._ticket_count
            self.tickets[ticket] = replied
            if self.leader is not None:
                item = make(ticket)
                if item is None:
                    del self.tickets[ticket]
                    return
                self.world.say(lambda: f"asked: {describe(item)}")
                self.leader.put(item)
            self.world.after(ASK_AGAIN_MS, "somebody asks again", lambda: ask(ticket))

        ask(0)

    def _replied(self, reply: Reply) -> None:
        waiting = self.tickets.get(reply.ticket)
        if waiting is not None and not self.world.maybe(0.02):
            waiting(reply)

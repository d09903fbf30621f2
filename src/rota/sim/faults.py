"""What goes wrong with machines and controllers. What goes wrong on the way is `network`'s and `disk`'s."""

from collections.abc import Callable

from rota.sim.cast import SETTINGS, Cast
from rota.sim.leader import Leader
from rota.sim.node import Node
from rota.sim.words import describe
from rota.sim.workload import EXTRA_POOL, less_of

CLONE_MS_MAX = 1_500
CUTS_MS = (500, 4_000, 15_000, 25_000)
# A node that was shut down has left after so long; a copy of it lives so long at most.
COPY_MS = 6_000
COPY_MS_MAX = 4_000
STOPPED_MS = (500, SETTINGS.suspect_ms, SETTINGS.lost_after_ms, 3 * SETTINGS.lost_after_ms)
OFF_MS = (50, 500, 4_000, 8_000, 15_000)


class Faults:
    """One after the other, of the kinds that the run's mix has."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._world = cast.world

    def begin(self) -> None:
        """From now on something fails now and then."""
        self._world.after(self._world.chance.randint(100, 1_000), "a fault", self._fault)

    def _fault(self) -> None:
        if not self._world.faults:
            return
        chance, cast = self._world.chance, self._cast
        kind = chance.choice(cast.mix.faults)
        nodes = [node for node in cast.nodes.values() if not node.removed]
        if kind.startswith("leader"):
            if cast.leader is not None:
                self._leader_fault(cast.leader, kind)
        elif nodes:
            self._node_fault(chance.choice(nodes), kind)
        self._world.after(chance.randint(100, cast.mix.fault_ms_max), "a fault", self._fault)

    # ------------------------------------------------------------ nodes

    def _node_fault(self, node: Node, kind: str) -> None:
        world = self._world
        off_ms = world.chance.choice(OFF_MS)
        if kind == "cut":
            self._cut(node, world.chance.choice(CUTS_MS))
        elif not node.on:
            return
        elif kind == "kill":
            node.crash_agent()
            self._refit(node)
            world.after(off_ms, f"{node} starts again", self._back(node, node.start_agent))
        elif kind == "power":
            node.crash_power()
            self._refit(node)
            world.after(off_ms, f"{node} boots", self._back(node, node.boot))
        elif kind == "shutdown":
            node.shut_down()
            if world.chance.random() < 0.3:
                world.after(COPY_MS, f"a copy of {node} boots", lambda: self._copy(node))
            world.after(
                off_ms + COPY_MS + COPY_MS_MAX, f"{node} starts again", self._back(node, node.start_agent)
            )
        else:
            self._clone(node)

    def _refit(self, node: Node) -> None:
        """Now and then a node comes back with more than it had, or with less."""
        chance = self._world.chance
        if chance.random() < 0.85:
            return
        whole = list(self._cast.mix.pools)
        if chance.random() < 0.3:
            node.pools = [*whole, EXTRA_POOL]
        elif node.pools == whole:
            chance.shuffle(whole)
            node.pools = [*less_of(chance, whole[0]), *whole[1:]]
        else:
            node.pools = whole
        self._world.say(lambda: f"{node} will come back with {[describe(pool) for pool in node.pools]}")

    def _cut(self, node: Node, time_ms: int) -> None:
        """A partition, of both directions or one."""
        network = self._cast.network
        sides = self._world.chance.choice(((True, True), (True, False), (False, True)))
        for side, deaf in zip(sides, (network.deaf_up, network.deaf_down), strict=True):
            if side:
                deaf.add(node.id)
        self._world.say(lambda: f"{node} is cut off for {time_ms} ms, (up, down) {sides}")

        def mend() -> None:
            network.deaf_up.discard(node.id)
            network.deaf_down.discard(node.id)

        self._world.after(time_ms, f"{node} is reachable again", mend)

    @staticmethod
    def _back(node: Node, action: Callable[[], None]) -> Callable[[], None]:
        def act() -> None:
            if not node.on and not node.removed:
                action()

        return act

    def _clone(self, node: Node) -> None:
        """Another machine with a copy of the node's directory dials in: it must get nothing to run.

        Only while the leader has just heard the node: a copy that comes later counts as its reboot.
        """
        leader = self._cast.leader
        if leader is None:
            return
        heard_ms = leader.machine.soft.heard_ms.get(node.id, -SETTINGS.suspect_ms)
        if leader.now_ms - heard_ms > SETTINGS.suspect_ms - CLONE_MS_MAX:
            return
        self._boot_clone(node, CLONE_MS_MAX)

    def _copy(self, node: Node) -> None:
        """A copy of a node that has left is believed, for it looks like the node after a reboot."""
        if not node.on and not node.removed:
            self._boot_clone(node, COPY_MS_MAX)

    def _boot_clone(self, node: Node, time_ms_max: int) -> None:
        clone = self._cast.make_node(node.id, f"{node.name}-clone")
        clone.pools = list(node.pools)
        clone.entries = list(node.entries)
        clone.boots, clone.journals, clone.lives = 1_000 + node.boots, 1_000 + node.journals, 0
        clone.boot()

        def gone() -> None:
            if clone.on:
                clone.crash_agent()
            clone.removed = True

        self._world.after(self._world.chance.randint(100, time_ms_max), f"{clone.name} goes", gone)

    # ------------------------------------------------------------ controllers

    def _leader_fault(self, leader: Leader, kind: str) -> None:
        chance, cast = self._world.chance, self._cast
        if kind == "leader killed":
            leader.die("is killed")
            return
        leader.freeze()
        if kind == "leader stopped":
            # Nobody follows: it goes on after nodes would have been lost, and has not heard them meanwhile.
            self._world.say(lambda: f"{leader} is stopped")
            self._world.after(chance.choice(STOPPED_MS), f"{leader} goes on", leader.thaw)
            return
        # Followed by another: a stale leader when it goes on.
        cast.leader = None
        self._world.say(lambda: f"{leader} freezes")
        self._world.after(chance.randint(100, 3_000), "a controller starts", cast.start_leader)
        self._world.after(chance.randint(500, 6_000), f"{leader} goes on", leader.thaw)

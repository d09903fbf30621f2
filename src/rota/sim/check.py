"""A run: a small cluster, its users and its faults from one seed, under the eyes of the checkers.

First a phase with faults, `steps` events long; then the faults stop, operators let go of what they
hold, and everything that can finish must.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pyroaring import BitMap

from rota.core.cluster.check import InvariantBroken, check_cluster, require
from rota.core.cluster.inputs import (
    CancelJob,
    EditNode,
    Enrol,
    HoldJob,
    Input,
    LabelNode,
    NodeEdit,
    PutQueue,
    PutToken,
    Refusal,
    ReleaseJob,
    RemoveNode,
    Reply,
    RetryJob,
    Submit,
    Submitted,
)
from rota.core.cluster.records import QueueConfig, TokenConfig
from rota.core.cluster.soft import Settings
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import NodeState, TokenKind
from rota.sim.checkers import Checkers
from rota.sim.disk import Disk
from rota.sim.leader import Leader
from rota.sim.network import Network, Stream
from rota.sim.node import Behaviour, Node, Sights
from rota.sim.workload import random_behaviour, random_job
from rota.sim.world import World

SETTINGS = Settings(
    heartbeat_ms_min=1_000,
    suspect_ms=3_000,
    disconnected_ms=5_000,
    lost_after_ms=9_000,
    fence_margin_ms=500,
    linger_ms=200,
    long_task_ms=1_000,
)
CAPACITY = Resources(cpu=4000, memory=4 * 2**30, named=(("power", 20_000),))
CLONE_MS_MAX = 1_500
JOBS_MAX = 12
LAST_PHASE_EVENTS_MAX = 20_000
STEPS_DEFAULT = 500


@dataclass(frozen=True, slots=True)
class Found:
    """What a run came to. `invariant` is empty where nothing broke."""

    seed: int
    events: int
    invariant: str
    message: str


def run_seed(seed: int, steps: int = STEPS_DEFAULT, trace: Callable[[str], None] | None = None) -> Found:
    """One seed's run. `trace` gets each line of the history."""
    simulation = Simulation(seed, trace)
    try:
        simulation.run(steps)
    except InvariantBroken as broken:
        return Found(seed, simulation.world.event_count, broken.name, str(broken))
    except Exception as bug:  # noqa: BLE001 - whatever it is, the seed is to be named
        cause = bug.__cause__ or bug
        message = f"assertion: {_where(cause)}: {cause!r}"
        return Found(seed, simulation.world.event_count, "assertion", message)
    return Found(seed, simulation.world.event_count, "", "")


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
    """The cast of one run."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None) -> None:
        self.world = World(seed, trace=trace)
        self.checkers = Checkers(self.world)
        self.disk = self.checkers.disk = Disk(self.world, self.checkers.committed)
        self.network = Network(self.world)
        self.leaders: list[Leader] = []
        self.leader: Leader | None = None
        self.nodes: dict[str, Node] = {}
        self.behaviours: dict[int, Behaviour] = {}
        self._tickets: dict[int, Callable[[Reply], None]] = {}
        self._ticket_count = 0
        self._submissions = 0
        self._leader_count = 0
        self._removed_nodes: set[str] = set()

    def run(self, steps: int) -> None:
        """The two phases."""
        chance = self.world.chance
        self._start_leader()
        self._ask(
            lambda ticket: PutToken(ticket, "admin", "t", TokenConfig(TokenKind.NODE, b"s", 0, 2**50, 99))
        )
        self._ask(lambda ticket: PutQueue(ticket, "admin", "batch", QueueConfig(weight=2)))
        for number in range(chance.randint(1, 4)):
            self._enrol(number)
        self.world.after(chance.randint(1, 100), "a user", self._user)
        self.world.after(chance.randint(100, 1_000), "a fault", self._fault)
        while self.world.event_count < steps:
            require(self.world.step(), "liveness", "nothing more happens")
        self._last_phase()

    # ------------------------------------------------------------ controllers

    def _start_leader(self) -> None:
        self._leader_count += 1
        self.leader = Leader(
            self.world,
            self.disk,
            SETTINGS,
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
            self.world.after(delay_ms, "a controller starts", self._start_if_none)

    def _start_if_none(self) -> None:
        if self.leader is None:
            self._start_leader()

    # ------------------------------------------------------------ nodes

    def _enrol(self, number: int) -> None:
        node_id, name = f"{self.world.seed:08x}-{number:04x}", f"n{number}"

        def enrolled(reply: Reply) -> None:
            if isinstance(reply.answer, Refusal):
                raise InvariantBroken("enrolment", str(reply.answer))
            if node_id not in self.nodes:
                sights = Sights(self.checkers.process_started, self.checkers.process_ended)
                node = Node(self.world, node_id, name, CAPACITY, self._dial, self._behaviour, sights)
                self.nodes[node_id] = node
                node.boot()

        key = f"enrol-{number}"
        self._ask(lambda ticket: Enrol(ticket, "t", b"s", TokenKind.NODE, node_id, name, key), enrolled)

    def _behaviour(self, job: int) -> Behaviour:
        return self.behaviours.setdefault(job, random_behaviour(self.world.chance))

    def _dial(self, node: Node) -> Stream | None:
        reachable = [leader for leader in self.leaders if leader.alive and not leader.stopped]
        if not reachable or self.world.maybe(0.1):
            return None
        server = self.world.chance.choice(reachable)
        stream = self.network.dial(node.id, node, server)
        server.accept(stream)
        return stream

    # ------------------------------------------------------------ users

    def _ask(self, make: Callable[[int], Input], on_reply: Callable[[Reply], None] | None = None) -> None:
        """Asks until it is answered: with the same key, or something that may be repeated."""
        self._ticket_count += 1
        ticket = self._ticket_count

        def replied(reply: Reply) -> None:
            self._tickets.pop(ticket, None)
            if isinstance(reply.answer, Refusal):
                self.checkers.refused(reply.answer)
            if on_reply is not None:
                on_reply(reply)

        def ask() -> None:
            if ticket in self._tickets:
                if self.leader is not None:
                    self.leader.put(make(ticket))
                self.world.after(3_000, "a user asks again", ask)

        self._tickets[ticket] = replied
        ask()

    def _replied(self, reply: Reply) -> None:
        waiting = self._tickets.get(reply.ticket)
        if waiting is not None and not self.world.maybe(0.02):
            waiting(reply)

    def _user(self) -> None:
        if not self.world.faults:
            return
        chance = self.world.chance
        known = sorted(self.checkers.accepted)
        draw = chance.random()
        if draw < 0.5 or not known:
            if self._submissions < JOBS_MAX:
                self._submit(known)
        else:
            self._change(chance.choice(known), draw)
        self.world.after(chance.randint(20, 2_500), "a user", self._user)

    def _submit(self, known: list[int]) -> None:
        chance = self.world.chance
        self._submissions += 1
        key = f"key-{self._submissions}"
        names = [node.name for node in self.nodes.values() if node.id not in self._removed_nodes]
        specs = tuple(random_job(chance, known, names or [""]) for _ in range(chance.choice((1, 1, 2))))

        def accepted(reply: Reply) -> None:
            if isinstance(reply.answer, Submitted):
                for job, spec in zip(reply.answer.jobs, specs, strict=True):
                    was = self.checkers.accepted.setdefault(job, spec)
                    require(was == spec, "accepted-once", f"job {job} was accepted twice")

        self._ask(lambda ticket: Submit(ticket, "user", specs, "", key, key.encode()), accepted)

    def _change(self, job: int, draw: float) -> None:
        chance = self.world.chance
        spec = self.checkers.accepted[job]
        some = BitMap([chance.randrange(_count(spec))]) if chance.random() < 0.5 else None
        if draw < 0.65:
            grace_ms = chance.choice((None, 0, 300))
            self._ask(lambda ticket: CancelJob(ticket, "user", job, some, grace_ms))
        elif draw < 0.72:
            self._ask(lambda ticket: HoldJob(ticket, "user", job))
        elif draw < 0.80:
            if self._may_release(job):
                self._ask(lambda ticket: ReleaseJob(ticket, "user", job))
        elif draw < 0.90:
            self.checkers.retried.add(job)
            self._ask(lambda ticket: RetryJob(ticket, "user", job, some))
        else:
            self._change_node()

    def _may_release(self, job: int) -> bool:
        """An operator gives a lost node's work up only where the machine is truly off."""
        if self.leader is None:
            return False
        kept = self.leader.machine.cluster.jobs.get(job)
        if kept is None:
            return False
        if kept.lost:
            self.checkers.forced.add(job)
        return True

    def _change_node(self) -> None:
        chance = self.world.chance
        if not self.nodes:
            return
        node = chance.choice(list(self.nodes.values()))
        edit = chance.choice(list(NodeEdit))
        deadline_ms = chance.choice((None, 0, 500)) if edit is NodeEdit.DRAIN else None
        if chance.random() < 0.1 and len(self.nodes) - len(self._removed_nodes) > 1 and not node.on:
            node.removed = True
            self._removed_nodes.add(node.id)
            self._ask(lambda ticket: RemoveNode(ticket, "admin", node.id, force=True))
        elif chance.random() < 0.2:
            self._ask(lambda ticket: LabelNode(ticket, "admin", node.id, (("a", "b"),)))
        else:
            self._ask(lambda ticket: EditNode(ticket, "admin", node.id, edit, deadline_ms))

    # ------------------------------------------------------------ faults

    def _fault(self) -> None:
        if not self.world.faults:
            return
        chance = self.world.chance
        nodes = [node for node in self.nodes.values() if not node.removed]
        if nodes and chance.random() < 0.7:
            self._node_fault(chance.choice(nodes))
        elif self.leader is not None:
            self._leader_fault(self.leader)
        self.world.after(chance.randint(100, 4_000), "a fault", self._fault)

    def _node_fault(self, node: Node) -> None:
        chance, world = self.world.chance, self.world
        off_ms = chance.choice((50, 500, 4_000, 8_000, 15_000))
        draw = chance.random()
        if draw < 0.3:
            self._cut(node, chance.choice((500, 4_000, 15_000, 25_000)))
        elif not node.on:
            return
        elif draw < 0.5:
            node.crash_agent()
            world.after(off_ms, f"{node} starts again", self._back(node, node.start_agent))
        elif draw < 0.7:
            node.crash_power()
            world.after(off_ms, f"{node} boots", self._back(node, node.boot))
        elif draw < 0.85:
            node.shut_down()
            world.after(off_ms + 6_000, f"{node} starts again", self._back(node, node.start_agent))
        else:
            self._clone(node)

    def _cut(self, node: Node, time_ms: int) -> None:
        """A partition, of both directions or one."""
        network = self.network
        sides = self.world.chance.choice(((True, True), (True, False), (False, True)))
        for side, deaf in zip(sides, (network.deaf_up, network.deaf_down), strict=True):
            if side:
                deaf.add(node.id)
        self.world.say(lambda: f"{node} is cut off, {sides}")

        def mend() -> None:
            network.deaf_up.discard(node.id)
            network.deaf_down.discard(node.id)

        self.world.after(time_ms, f"{node} is reachable again", mend)

    def _back(self, node: Node, action: Callable[[], None]) -> Callable[[], None]:
        def act() -> None:
            if not node.on and not node.removed:
                action()

        return act

    def _clone(self, node: Node) -> None:
        """Another machine with a copy of the node's directory dials in: it must get nothing to run.

        Only while the leader has just heard the node: a copy that comes later counts as its reboot.
        """
        if self.leader is None:
            return
        heard_ms = self.leader.machine.soft.heard_ms.get(node.id, -SETTINGS.suspect_ms)
        if self.leader.now_ms - heard_ms > SETTINGS.suspect_ms - CLONE_MS_MAX:
            return
        sights = Sights(self.checkers.process_started, self.checkers.process_ended)
        clone = Node(self.world, node.id, f"{node.name}-clone", CAPACITY, self._dial, self._behaviour, sights)
        clone.entries = list(node.entries)
        clone.boots, clone.journals, clone.lives = 1_000 + node.boots, 1_000 + node.journals, 0
        clone.boot()

        def gone() -> None:
            if clone.on:
                clone.crash_agent()
            clone.removed = True

        self.world.after(self.world.chance.randint(100, CLONE_MS_MAX), f"{clone.name} goes", gone)

    def _leader_fault(self, leader: Leader) -> None:
        chance = self.world.chance
        if chance.random() < 0.5:
            leader.die("is killed")
            return
        # Frozen, and followed by another: a stale leader when it goes on.
        leader.freeze()
        self.leader = None
        self.world.say(lambda: f"{leader} freezes")
        self.world.after(chance.randint(100, 3_000), "a controller starts", self._start_if_none)

        def thaw() -> None:
            if leader.alive:
                leader.thaw()

        self.world.after(chance.randint(500, 6_000), f"{leader} goes on", thaw)

    # ------------------------------------------------------------ the last phase

    def _last_phase(self) -> None:
        world = self.world
        world.faults = False
        self.network.deaf_up.clear()
        self.network.deaf_down.clear()
        for leader in list(self.leaders):
            if leader.stopped:
                leader.thaw()
        self._start_if_none()
        for node in self.nodes.values():
            if self._stays_off(node):
                node.crash_power()
                node.removed = True
            elif not node.on and not node.removed:
                node.start_agent()
        last = world.event_count + LAST_PHASE_EVENTS_MAX
        self._settle_down(last)
        while not self._all_ended():
            require(world.step(), "liveness", "nothing more happens")
            if world.event_count >= last:
                raise InvariantBroken("liveness", self._unfinished())
        assert self.leader is not None
        check_cluster(self.leader.machine.cluster)
        kept, accepted = set(self.leader.machine.cluster.jobs), set(self.checkers.accepted)
        require(accepted <= kept, "accepted-is-kept", f"jobs {accepted - kept} were accepted and are gone")
        require(kept <= accepted, "accepted-once", f"jobs {kept - accepted} are there and nobody's")

    def _stays_off(self, node: Node) -> bool:
        """Some machines never come back, and nobody removes them; one always does."""
        others = [other for other in self.nodes.values() if not other.removed and other is not node]
        return node.on and bool(others) and self.world.chance.random() < 0.2

    def _settle_down(self, last: int) -> None:
        """Operators let go: nodes are resumed, jobs released, and what nothing can run is cancelled."""
        for node in self.nodes.values():
            if not node.removed:
                self._resume(node)
        self.world.after(1, "operators let go", lambda: self._let_go(last))

    def _resume(self, node: Node) -> None:
        self._ask(lambda ticket: EditNode(ticket, "admin", node.id, NodeEdit.RESUME))

    def _let_go(self, last: int) -> None:
        if self.leader is not None:
            for known in self.leader.machine.cluster.nodes.values():
                if known.config.cordoned and not self.nodes[known.id].removed:
                    self._resume(self.nodes[known.id])
            gone = {node.name for node in self.nodes.values() if node.removed}
            for job in list(self.leader.machine.cluster.active.values()):
                if job.config.held or job.held or job.lost:
                    if job.lost:
                        self.checkers.forced.add(job.id)
                    self._release(job.id)
                if job.spec.node in gone and job.spec.node:
                    self._cancel(job.id)
        if self.world.event_count < last:
            self.world.after(2_000, "operators let go", lambda: self._let_go(last))

    def _release(self, job: int) -> None:
        self._ask(lambda ticket: ReleaseJob(ticket, "admin", job))

    def _cancel(self, job: int) -> None:
        self._ask(lambda ticket: CancelJob(ticket, "admin", job))

    def _all_ended(self) -> bool:
        if self.leader is None or self.leader.stopped or not self.leader.alive or self._tickets:
            return False
        cluster = self.leader.machine.cluster
        if cluster.active or not cluster.commit.term:
            return False
        return all(
            node.status.state in (NodeState.READY, NodeState.GONE) or self.nodes[node.id].removed
            for node in cluster.nodes.values()
        )

    def _unfinished(self) -> str:
        if self.leader is None:
            return "no controller leads"
        cluster = self.leader.machine.cluster
        jobs = [
            f"job {job.id} {job.status.state.name}: pending {job.pending}, owned {job.owned - job.finals}, "
            f"held {job.held}, delayed {job.delayed}, lost {list(job.lost)}"
            for job in cluster.active.values()
        ]
        nodes = [f"{node.config.name} {node.status.state.name}" for node in cluster.nodes.values()]
        return f"{jobs}; nodes {nodes}; tickets {list(self._tickets)}"


def _count(spec: JobSpec) -> int:
    return int(spec.array.partition("-")[2]) + 1 if spec.array else 1

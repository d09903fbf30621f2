"""A simulated edge in the simulator: the same that `rota sim edges` runs, under the checkers' eyes.

It has no journal: whatever ends its agent, it comes back as a machine that has booted anew.
"""

from dataclasses import dataclass, field

import numpy as np

from rota.core.cluster.check import InvariantBroken
from rota.core.cluster.rows import Numbers
from rota.core.model.protocol import Down, Grant, Lease, Template
from rota.core.model.resources import NOTHING, Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause
from rota.core.node.entries import Attempt, End
from rota.core.node.inputs import Exited, NodeInput, Outcome, Received, Shutdown, StreamClosed, StreamOpened
from rota.sim.edges.check import sanity_check
from rota.sim.edges.edge import Edge, Happened
from rota.sim.edges.memory import Begun, Ends, Memory
from rota.sim.network import Stream
from rota.sim.node import LAST_MS_MAX, SLOW_MS, Node, Process
from rota.sim.words import describe


@dataclass(slots=True, eq=False, repr=False)
class EdgeNode(Node):
    """An edge in the place of a machine."""

    edge: Edge = field(init=False)
    # What its messages said, for the truth about its processes.
    _devices: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    _shapes: dict[int, Resources] = field(default_factory=dict)
    _specs: dict[tuple[int, int], JobSpec] = field(default_factory=dict)
    _grants: dict[int, Grant] = field(default_factory=dict)

    def start_agent(self) -> None:
        """It begins with nothing."""
        self.on = True
        self.lives += 1
        self.journals += 1
        memory = Memory(f"{self.id}-boot-{self.journals}", f"{self.id}-journal-{self.journals}")
        self.edge = Edge(memory, "", self)
        self._redial(1)

    def crash_agent(self) -> None:
        """The process dies."""
        self.crash_power()

    def crash_power(self) -> None:
        """The same: nothing of it is left."""
        self.world.say(lambda: f"{self.name}: the power fails")
        self._gone()

    def take_down(self, stream: Stream, message: Down) -> None:
        """From a controller."""
        if stream is not self._stream:
            return
        match message.body:
            case Lease(lease=number, shape=shape, slots=slots):
                self._shapes[number] = shape
                self._devices.update({(number, slot.slot): slot.devices for slot in slots})
            case Template(job=job, version=version, spec=spec):
                self._specs[job, version] = spec
            case Grant() as grant:
                self._grants[grant.allocation] = grant
            case _:
                pass
        held = self.edge.held
        stranger = self.edge.talk.open and message.session != held.session.session
        before = (held.grant, set(held.leases), set(held.templates))
        self.step([Received(message)])
        if stranger and before != (held.grant, set(held.leases), set(held.templates)):
            raise InvariantBroken("strangers", f"{self.name} obeyed {describe(message)} of another session")

    def step(self, inputs: list[NodeInput]) -> Outcome:
        """The edge's own law; it may die before it says anything."""
        taken = [one for one in inputs if isinstance(one, StreamOpened | StreamClosed | Received | Shutdown)]
        assert len(taken) == len(inputs), inputs
        outcome = self.edge.step(taken, self.world.now_ms, self.world.wall_ms)
        try:
            sanity_check(self.edge)
        except AssertionError as bug:
            raise InvariantBroken("node-state", f"{self.name}: {bug}") from bug
        for happened in self.edge.happened:
            self._see(happened)
        if self.world.maybe(0.0005):
            self.crash_agent()
            self._later_life(self.start_agent)
            return outcome
        for command in outcome.commands:
            self._do(command)
        for message in outcome.messages:
            if self._stream is not None:
                self._stream.send_up(message)
        if outcome.wake_at_ms is not None:
            self._wake(max(outcome.wake_at_ms, self.world.now_ms + 1))
        return outcome

    # ------------------------------------------------------------ processes

    def _see(self, happened: Happened) -> None:
        number = happened.allocation
        match happened:
            case Begun(indices=indices, slots=slots):
                for index, slot in zip(indices, slots, strict=True):
                    self._started((number, index, 1), slot)
            case Ends(slot=slot):
                rows = zip(
                    happened.index.tolist(),
                    happened.code.tolist(),
                    happened.duration_ms.tolist(),
                    strict=True,
                )
                for index, code, duration_ms in rows:
                    attempt = (number, index, 1)
                    if slot is not None:
                        self._started(attempt, slot)
                    self._ended(Exited(attempt, Cause.EXIT, code, duration_ms))
            case End(ended=ended):
                self._ended(Exited((number, ended.index, 1), ended.cause, ended.code, ended.duration_ms))

    def _started(self, attempt: Attempt, slot: int) -> None:
        grant = self._grants[attempt[0]]
        spec = self._specs[grant.job, grant.version]
        process = Process(
            attempt,
            grant.job,
            grant.lease,
            spec,
            self._shapes.get(grant.lease, NOTHING),
            self._devices[grant.lease, slot],
            # A task that is only time reads no line.
            spec.lines[attempt[1]] if spec.lines else None,
            self.world.now_ms,
        )
        self.processes[attempt] = process
        self.sights.started(self, process)

    def _ended(self, exited: Exited) -> None:
        self._end(self.processes.pop(exited.attempt), exited)

    # ------------------------------------------------------------ its tasks

    def at_once(self, job: int, spec: JobSpec) -> bool:
        """The shortest of all take no time here."""
        behaviour = self.behaviour(job)
        return behaviour.duration_ms_max == 1 and not behaviour.quick_count

    def times_ms(self, job: int, spec: JobSpec, count: int) -> list[int]:
        """As a machine's tasks."""
        behaviour = self.behaviour(job)
        longest_ms = behaviour.duration_ms_max if self.world.faults else LAST_MS_MAX
        chance = self.world.chance
        times_ms = []
        for _ in range(count):
            time_ms = chance.randint(0, min(behaviour.duration_ms_max, longest_ms))
            if behaviour.quick_count:
                behaviour.quick_count -= 1
                time_ms = time_ms if behaviour.quick_count else SLOW_MS
                behaviour.quick_count = max(behaviour.quick_count, 1)
            times_ms.append(time_ms)
        return times_ms

    def codes(self, job: int, count: int) -> Numbers:
        """As a machine's tasks."""
        failing, chance = self.behaviour(job).failing, self.world.chance
        drawn = [chance.choice((1, 2, 3)) if chance.random() < failing else 0 for _ in range(count)]
        return np.array(drawn, np.int64)

    def shuffled(self, indices: Numbers) -> Numbers:
        """In any order."""
        drawn = indices.tolist()
        self.world.chance.shuffle(drawn)
        return np.array(drawn, np.int64)

"""A simulated node: the real node machine, a journal that survives crashes, processes that only take time."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat

from rota.core.cluster.check import InvariantBroken
from rota.core.model.protocol import Down, Inventory, Pool
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause
from rota.core.node.check import sanity_check
from rota.core.node.entries import Attempt, Drop, Entry, Granted, LeaseKept, TemplateKept
from rota.core.node.indices import each, joined
from rota.core.node.inputs import (
    RUN_MS_MAX,
    CloseStream,
    Command,
    Exited,
    KillTree,
    Leave,
    NodeInput,
    Outcome,
    Part,
    Ran,
    Received,
    Returned,
    Shutdown,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    StreamClosed,
    StreamOpened,
)
from rota.core.node.machine import Machine
from rota.core.node.recovery import recover
from rota.sim.network import Stream
from rota.sim.words import describe
from rota.sim.world import World

SIGTERM, SIGKILL = 15, 9
SLOW_MS = 20_000
# What starts once the faults have stopped is over soon: waiting shows nothing more.
LAST_MS_MAX = 300


@dataclass(slots=True)
class Process:
    """A task's process, from the instant that the spawner makes it to the end of its tree."""

    attempt: Attempt
    job: int
    lease: int
    spec: JobSpec
    shape: Resources
    devices: tuple[str, ...]
    line: str | None
    started_at_ms: int
    run: "Run | None" = None
    told: bool = False
    signalled: bool = False
    over: bool = False


@dataclass(slots=True)
class Run:
    """What is left to start of a Spawn."""

    spawn: Spawn
    todo: deque[tuple[Part, int, str | None]]
    until_ms: int


@dataclass(slots=True)
class Sights:
    """What the checkers see of processes: the truth, whatever anybody reports."""

    started: Callable[["Node", Process], None]
    ended: Callable[["Node", Process, Exited | None], None]


@dataclass(slots=True)
class Behaviour:
    """How the tasks of a job behave, drawn when the first of them starts.

    After `quick_count` of them, the others take `SLOW_MS`; 0 means that all are alike.
    """

    duration_ms_max: int = 500
    quick_count: int = 0
    failing: float = 0.0
    unstartable: float = 0.0
    stubborn: float = 0.0


@dataclass(slots=True)
class Node:
    """A machine. `dial` finds a controller, or None; `behaviour` says how a job's tasks behave.

    After every so many steps its memory is checked, which takes long where very much waits on it.
    """

    world: World
    id: str
    name: str
    pools: list[Pool]
    dial: Callable[["Node"], Stream | None]
    behaviour: Callable[[int], Behaviour]
    sights: Sights
    check_steps: int = 1
    on: bool = False
    boots: int = 0
    journals: int = 0
    lives: int = 0
    entries: list[Entry] = field(default_factory=list)
    processes: dict[Attempt, Process] = field(default_factory=dict)
    # Ends that are told later, together.
    unsaid: list[tuple[Process, Exited]] = field(default_factory=list)
    removed: bool = False
    machine: Machine = field(init=False)
    _steps: int = 0
    _stream: Stream | None = None
    _wake_at_ms: int = 0

    def __repr__(self) -> str:
        return self.name

    # ------------------------------------------------------------ power

    def boot(self) -> None:
        """The machine and its agent start."""
        self.boots += 1
        self.start_agent()

    def start_agent(self) -> None:
        """The agent starts, and goes on where its journal ends."""
        self.on = True
        self.lives += 1
        self.journals += 1
        # Pools have names, and their order means nothing.
        self.world.chance.shuffle(self.pools)
        recovered = recover(
            self.entries,
            boot_id=f"{self.id}-boot-{self.boots}",
            journal_id=f"{self.id}-journal-{self.journals}",
            pools=self.pools,
        )
        self.entries = recovered.entries if recovered.begun else self.entries + recovered.entries
        self.machine = recovered.machine
        self._redial(1)

    def crash_agent(self) -> None:
        """The supervisor dies: its link kills every tree, and the journal stays."""
        self.world.say(lambda: f"{self.name}: the agent dies")
        self._gone()

    def crash_power(self) -> None:
        """The machine dies; of the journal some end may be lost."""
        self.world.say(lambda: f"{self.name}: the power fails")
        self._gone()
        if self.entries and self.world.maybe(0.7):
            del self.entries[self.world.chance.randint(1, len(self.entries)) :]
        self.boots += 1

    def shut_down(self) -> None:
        """The agent is asked to end."""
        if self.on:
            self.step([Shutdown(200)])

    def _gone(self) -> None:
        self.on = False
        self.lives += 1
        self._wake_at_ms = 0
        for process in list(self.processes.values()):
            self._end(process, None)
        self.processes.clear()
        self.unsaid.clear()
        if self._stream is not None:
            self._stream.end_by_node()
            self._stream = None

    # ------------------------------------------------------------ the stream

    def _redial(self, delay_ms: int) -> None:
        self._later(delay_ms, "dials", self._dial)

    def _dial(self) -> None:
        if self._stream is not None:
            return
        self._stream = self.dial(self)
        if self._stream is None:
            self._redial(self.world.chance.randint(50, 400))
        else:
            inventory = Inventory(pools=tuple(self.pools))
            self.step([StreamOpened(self._stream.number, inventory)])

    def take_down(self, stream: Stream, message: Down) -> None:
        """From a controller."""
        if stream is self._stream:
            machine = self.machine
            stranger = machine.talk.open and message.session != machine.held.session.session
            outcome = self.step([Received(message)])
            if stranger and any(_is_obedience(entry) for entry in outcome.entries):
                raise InvariantBroken(
                    "strangers", f"{self.name} obeyed {describe(message)} of another session"
                )

    def take_hung_up(self, stream: Stream) -> None:
        """The controller's end is gone."""
        if stream is self._stream:
            self._stream = None
            self.step([StreamClosed()])
            self._redial(self.world.chance.randint(10, 300))

    # ------------------------------------------------------------ the machine

    def step(self, inputs: list[NodeInput]) -> Outcome:
        """Law: write down, do, say. The agent may die between any two of them."""
        outcome = self.machine.step(inputs, self.world.now_ms, self.world.wall_ms)
        self._follow(outcome)
        return outcome

    def _follow(self, outcome: Outcome) -> None:
        machine = self.machine
        lives = self.lives
        if self.world.maybe(0.0005):
            self._torn(outcome)
            return
        self.entries += outcome.entries
        if len(self.entries) > 400:
            self.entries = list(machine.snapshot())
        try:
            self._steps += 1
            if (outcome.entries or outcome.commands) and self._steps % self.check_steps == 0:
                sanity_check(machine)
        except AssertionError as bug:
            raise InvariantBroken("node-state", f"{self.name}: {bug}") from bug
        for command in outcome.commands:
            if self.world.maybe(0.0005):
                self.crash_agent()
                self._later_life(self.start_agent)
                return
            self._do(command)
            if self.lives != lives:
                return
        for message in outcome.messages:
            if self._stream is not None:
                self._stream.send_up(message)
        if outcome.wake_at_ms is not None:
            self._wake(max(outcome.wake_at_ms, self.world.now_ms + 1))

    def _wake(self, at_ms: int) -> None:
        if at_ms == self._wake_at_ms:
            return
        self._wake_at_ms = at_ms

        def wake() -> None:
            if at_ms == self._wake_at_ms:
                self._wake_at_ms = 0
                self.step([])
            else:
                self.world.void()

        self._later(at_ms - self.world.now_ms, "wakes", wake)

    def _torn(self, outcome: Outcome) -> None:
        """The agent dies with only some of the entries written."""
        self.entries += outcome.entries[: self.world.chance.randint(0, len(outcome.entries))]
        self.crash_agent()
        self._later_life(self.start_agent)

    def _later_life(self, action: Callable[[], None]) -> None:
        self.world.after(
            self.world.chance.randint(50, 1500), f"{self.name} starts again", self._unless_on(action)
        )

    def _unless_on(self, action: Callable[[], None]) -> Callable[[], None]:
        def act() -> None:
            if not self.on and not self.removed:
                action()

        return act

    def _later(self, delay_ms: int, what: str | Callable[[], str], action: Callable[[], None]) -> None:
        """Something in this life of the agent."""
        lives = self.lives

        def said() -> str:
            return f"{self.name} {what if isinstance(what, str) else what()}"

        def act() -> None:
            if self.lives == lives and self.on:
                action()

        self.world.after(delay_ms, said, act)

    def _do(self, command: Command) -> None:
        match command:
            case Spawn():
                self._later(
                    self.world.chance.randint(0, 3),
                    lambda: f"runs {command.parts}",
                    lambda: self._run(command),
                )
            case Signal(attempt, signal, tree):
                if tree:
                    self._signal(attempt, signal)
            case KillTree(attempt):
                self._signal(attempt, SIGKILL)
            case CloseStream(stream, reason, retry_ms, final):
                self.world.say(lambda: f"{self.name} hangs up: {reason}")
                if self._stream is not None and self._stream.number == stream:
                    self._stream.end_by_node()
                    self._stream = None
                    if not final:
                        self._redial(max(retry_ms, self.world.chance.randint(10, 300)))
                    else:
                        self.world.say(lambda: f"{self.name} is refused for good")
            case Leave():
                self._later(1, "leaves", self._leave)
            case _:
                pass

    def _leave(self) -> None:
        self._gone()

    # ------------------------------------------------------------ processes

    def _run(self, spawn: Spawn) -> None:
        todo = deque(
            (part, index, line)
            for part in spawn.parts
            for index, line in zip(each(part.indices), part.lines or repeat(None), strict=False)
        )
        run = Run(spawn, todo, self.world.now_ms + RUN_MS_MAX)
        self._go_on(run)
        if run.todo:
            self._later(RUN_MS_MAX, "gives back", lambda: self._give_back(run))

    def _go_on(self, run: Run) -> None:
        """Starts what is next of a run, or has the machine go on with its slot."""
        if not run.todo:
            self._say([])
            return
        part, index, line = run.todo.popleft()
        attempt = (part.allocation, index, 1)
        behaviour = self.behaviour(part.job)
        chance = self.world.chance
        before_ms = run.spawn.start_before_ms
        failed = None
        if before_ms is not None and self.world.now_ms >= before_ms:
            failed = SpawnFailed(attempt, "too late", Cause.NODE_LOST)
        elif chance.random() < behaviour.unstartable:
            failed = SpawnFailed(attempt, "no such program")
        if failed is not None:
            self._say([failed])
            self._give_back(run)
            return
        spec = self.machine.template(part.job, part.version).spec
        devices = self.machine.slot(run.spawn.lease, run.spawn.slot).devices
        process = Process(
            attempt,
            part.job,
            run.spawn.lease,
            spec,
            spec.resources,
            devices,
            line,
            self.world.now_ms,
            run,
        )
        self.processes[attempt] = process
        self.sights.started(self, process)
        code = chance.choice((1, 2, 3)) if chance.random() < behaviour.failing else 0
        longest_ms = behaviour.duration_ms_max if self.world.faults else LAST_MS_MAX
        duration_ms = chance.randint(1, min(behaviour.duration_ms_max, longest_ms))
        if behaviour.quick_count:
            behaviour.quick_count -= 1
            duration_ms = duration_ms if behaviour.quick_count else SLOW_MS
            behaviour.quick_count = max(behaviour.quick_count, 1)
        self._later(duration_ms, lambda: f"ends {attempt}", lambda: self._finish(process, Cause.EXIT, code))
        self._later(chance.randint(0, 5), lambda: f"tells of {attempt}", lambda: self._tell(process))

    def _give_back(self, run: Run) -> None:
        """Nothing more of it is started here."""
        parts: dict[int, list[int]] = {}
        for part, index, _ in run.todo:
            parts.setdefault(part.allocation, []).append(index)
        run.todo.clear()
        tasks = tuple((allocation, joined(indices)) for allocation, indices in parts.items())
        self._say([Returned(tasks)] if tasks else [])

    def _say(self, news: list[NodeInput]) -> None:
        """What has ended before, and then this."""
        ran: dict[int, list[Exited]] = {}
        for _, exited in self.unsaid:
            ran.setdefault(exited.attempt[0], []).append(exited)
        self.unsaid.clear()
        together: list[NodeInput] = [_ran(allocation, some) for allocation, some in ran.items()]
        if together or news:
            self.step(together + news)

    def _tell(self, process: Process) -> None:
        if not process.over:
            process.told = True
            self._say([Spawned(process.attempt, 1000 + process.attempt[1], 1, process.started_at_ms)])

    def _signal(self, attempt: Attempt, signal: int) -> None:
        process = self.processes.get(attempt)
        if process is None or process.over:
            return
        process.signalled = True
        stubborn = self.world.chance.random() < self.behaviour(process.job).stubborn
        if signal == SIGKILL or not stubborn:
            self._later(
                self.world.chance.randint(1, 10),
                lambda: f"kills {attempt}",
                lambda: self._finish(process, Cause.SIGNAL, signal),
            )

    def _finish(self, process: Process, cause: Cause, code: int) -> None:
        if process.over:
            return
        duration_ms = self.world.now_ms - process.started_at_ms
        exited = Exited(process.attempt, cause, code, duration_ms, 1, 1, 100, at_ms=process.started_at_ms)
        self._end(process, exited)
        del self.processes[process.attempt]
        lives = self.lives
        if cause is Cause.EXIT and not process.signalled:
            self.unsaid.append((process, exited))
        else:
            self._say([exited])
        if self.lives == lives and self.on:
            assert process.run is not None
            (self._give_back if code else self._go_on)(process.run)

    def _end(self, process: Process, exited: Exited | None) -> None:
        if not process.over:
            process.over = True
            self.sights.ended(self, process, exited)


def _ran(allocation: int, exits: list[Exited]) -> Ran:
    return Ran(
        allocation,
        tuple(exited.attempt[1] for exited in exits),
        tuple(exited.code for exited in exits),
        tuple(exited.at_ms for exited in exits),
        tuple(exited.duration_ms for exited in exits),
        tuple(exited.cpu_user_ms for exited in exits),
        tuple(exited.cpu_system_ms for exited in exits),
        tuple(exited.memory_peak_kib for exited in exits),
    )


def _is_obedience(entry: Entry) -> bool:
    """Whether an entry follows from a message alone, and never from time."""
    return isinstance(entry, (Granted, LeaseKept, TemplateKept)) or (
        isinstance(entry, Drop) and entry.answers > 0
    )

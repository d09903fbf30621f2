"""A node in a test: its machine, its journal, and a leader's voice. Every step says all that followed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rota.core.model.protocol import (
    Body,
    Down,
    Grant,
    Hello,
    Inventory,
    Lease,
    Pool,
    Ranges,
    Report,
    Slot,
    Template,
    Up,
    Welcome,
)
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause
from rota.core.node.check import sanity_check
from rota.core.node.entries import Attempt, Entry
from rota.core.node.held import Held
from rota.core.node.indices import each
from rota.core.node.inputs import (
    Exited,
    NodeInput,
    Outcome,
    Ran,
    Received,
    Spawn,
    Spawned,
    SpawnFailed,
    StreamClosed,
    StreamOpened,
)
from rota.core.node.recovery import recover

SHAPE = Resources(cpu=1000)
POOLS = (Pool(resources=Resources(cpu=100_000)),)
WALL_MS = 1_700_000_000_000
HEARTBEAT_MS = 5_000
LOST_AFTER_MS = 300_000


def replay(entries: list[Entry]) -> list[Entry]:
    """The memory that these entries make, as the shortest entries that make it."""
    held = Held()
    for entry in entries:
        held.apply(entry)
    return list(held.snapshot())


@dataclass
class Scene:
    """`step` moves it; `outcome` is all that followed from the last step."""

    boot_id: str = "boot-1"
    now_ms: int = 1_000
    session: int = 0
    number: int = 0
    term: int = 1
    journal: list[Entry] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    grants: int = 0
    pids: int = 100
    check: bool = True
    pools: tuple[Pool, ...] = POOLS

    def __post_init__(self) -> None:
        self._start("journal-1")

    def _start(self, journal_id: str) -> None:
        recovered = recover(self.journal, boot_id=self.boot_id, journal_id=journal_id, pools=self.pools)
        if recovered.begun:
            self.journal = []
        self.journal += recovered.entries
        self.machine = recovered.machine

    def crash(self, *, boot_id: str = "", journal_id: str = "journal-2") -> None:
        """The agent dies, and comes back; with a boot id the machine was booted in between."""
        self.boot_id = boot_id or self.boot_id
        self._start(journal_id)
        self.number = 0

    # ------------------------------------------------------------ steps

    def step(self, *inputs: NodeInput, after_ms: int = 0) -> Outcome:
        self.now_ms += after_ms
        self.outcome = self.machine.step(inputs, self.now_ms, WALL_MS + self.now_ms)
        self.journal += self.outcome.entries
        if self.check:
            sanity_check(self.machine)
            assert replay(self.journal) == list(self.machine.snapshot())
        return self.outcome

    def connect(self, acknowledged: int = 0, *, heartbeat_ms: int = HEARTBEAT_MS) -> list[Up]:
        """Opens a stream and a session; what the node said by way of greeting."""
        greeting = self.step(StreamOpened(self.session + 1, Inventory())).messages
        hello = greeting[0]
        assert isinstance(hello, Hello)
        self.session += 1
        self.number = 0
        self.down(welcome(hello.sent_ms, acknowledged, heartbeat_ms))
        return greeting

    def disconnect(self) -> Outcome:
        return self.step(StreamClosed())

    def down(self, *bodies: Body, after_ms: int = 0) -> Outcome:
        """The leader says these, each with the next number."""
        inputs = [self.envelope(body) for body in bodies]
        return self.step(*inputs, after_ms=after_ms)

    def envelope(self, body: Body) -> Received:
        self.number += 1
        return Received(Down(self.term, self.session, self.number, body))

    # ------------------------------------------------------------ work

    def lease(self, lease: int = 1, slots: int = 1, shape: Resources = SHAPE) -> Outcome:
        return self.down(Lease(lease, shape, tuple(Slot(slot) for slot in range(slots)), "default"))

    def grant(
        self,
        indices: Ranges,
        *,
        allocation: int = 10,
        lease: int = 1,
        job: int = 7,
        spec: JobSpec | None = None,
        never_stall: bool = False,
        lines: tuple[str, ...] = (),
    ) -> Outcome:
        """A template and a grant."""
        self.grants += 1
        return self.down(
            Template(job, 1, spec or JobSpec(command=("true",)), 1_000, ""),
            Grant(allocation, lease, job, 1, self.grants, 1, indices, lines, never_stall),
        )

    def spawned(self, *attempts: Attempt, after_ms: int = 0) -> Outcome:
        return self.step(*(self.birth(attempt) for attempt in attempts), after_ms=after_ms)

    def birth(self, attempt: Attempt) -> Spawned:
        self.pids += 1
        return Spawned(attempt, self.pids, 5_000, self.now_ms)

    def exited(
        self, *attempts: Attempt, cause: Cause = Cause.EXIT, code: int = 0, after_ms: int = 0
    ) -> Outcome:
        return self.step(*(Exited(attempt, cause, code, 20) for attempt in attempts), after_ms=after_ms)

    def ran(self, attempt: Attempt, code: int = 0) -> Outcome:
        """Spawned and exited."""
        return self.step(self.birth(attempt), Exited(attempt, Cause.EXIT, code, 20))

    def quick(
        self, allocation: int, *indices: int, codes: tuple[int, ...] = (), after_ms: int = 0
    ) -> Outcome:
        """These were started and have ended, and are told of together: each took 1 ms."""
        return self.step(ran(allocation, indices, self.now_ms + after_ms, codes), after_ms=after_ms)

    def failed(self, attempt: Attempt, message: str = "no such program") -> Outcome:
        return self.step(SpawnFailed(attempt, message))


def welcome(hello_sent_ms: int, acknowledged: int = 0, heartbeat_ms: int = HEARTBEAT_MS) -> Welcome:
    return Welcome("uuid-1", "n1", "", 1, acknowledged, heartbeat_ms, LOST_AFTER_MS, hello_sent_ms)


def ran(allocation: int, indices: Sequence[int], now_ms: int, codes: tuple[int, ...] = ()) -> Ran:
    """These were started and have ended by now, all with code 0 where nothing else is said."""
    count = len(indices)
    ones = (1,) * count
    return Ran(
        allocation, tuple(indices), codes or (0,) * count, (now_ms - 1,) * count, ones, ones, ones, ones
    )


def only(
    outcome: Outcome, *, entries: bool = False, commands: bool = False, messages: bool = False
) -> Outcome:
    """Asserts that what is not named here is empty."""
    assert entries or not outcome.entries, outcome.entries
    assert commands or not outcome.commands, outcome.commands
    assert messages or not outcome.messages, outcome.messages
    return outcome


def spawns(outcome: Outcome) -> list[Attempt]:
    """The attempts that were to be spawned."""
    return [attempt for run in runs(outcome) for attempt in run]


def runs(outcome: Outcome) -> list[list[Attempt]]:
    """The same, those of one slot together."""
    return [attempts_of(command) for command in outcome.commands if isinstance(command, Spawn)]


def attempts_of(spawn: Spawn) -> list[Attempt]:
    """The attempts of a run."""
    return [(part.allocation, index, 1) for part in spawn.parts for index in each(part.indices)]


def reports(outcome: Outcome) -> list[Report]:
    return [message for message in outcome.messages if isinstance(message, Report)]

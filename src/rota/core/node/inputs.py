"""What happens to a node, and what it then wants done: the machine's inputs and its outcome."""

from dataclasses import dataclass, field

from rota.core.model.protocol import Down, Input, Inventory, Ranges, ReadOutput, Up
from rota.core.model.states import Cause
from rota.core.node.entries import Attempt, Entry

# What of a run has not been started so long after its first task comes back.
RUN_MS_MAX = 50

# ---------------------------------------------------------------- inputs


@dataclass(slots=True)
class StreamOpened:
    """A stream to a controller stands. `stream` numbers them; what an outcome says goes to this one alone."""

    stream: int
    inventory: Inventory


@dataclass(slots=True)
class StreamClosed:
    """The stream is gone, whoever ended it."""


@dataclass(slots=True)
class Received:
    """A message from the controller."""

    down: Down


@dataclass(slots=True)
class Spawned:
    """The process of an attempt runs, since `at_ms` by the boot clock.

    Of one that is over soon it need not be said.
    """

    attempt: Attempt
    pid: int
    start_ticks: int
    at_ms: int


@dataclass(slots=True)
class SpawnFailed:
    """No process came to be; the message says why. The cause is START_FAILED, NODE_LOST or AGENT_ERROR."""

    attempt: Attempt
    message: str
    cause: Cause = Cause.START_FAILED


@dataclass(slots=True)
class Exited:
    """An attempt has ended, its whole process tree.

    The cause is EXIT, SIGNAL or OOM, or AGENT_ERROR where whoever watched it died. `code` is the
    exit code or the signal's number. `ended_before_signal`: a signal was asked for, and the main
    process had ended before it could be sent. `at_ms` is when it was started, by the boot clock; 0 where
    nobody knows whether it was.
    """

    attempt: Attempt
    cause: Cause
    code: int = 0
    duration_ms: int = 0
    cpu_user_ms: int = 0
    cpu_system_ms: int = 0
    memory_peak_kib: int = 0
    message: str = ""
    ended_before_signal: bool = False
    at_ms: int = 0


@dataclass(slots=True)
class Ran:
    """Attempts of one allocation that were started, ended by their own exit, and left nothing.

    Columns of one length, in the order of their ends: `at_ms` is when each was started, by the boot clock.
    """

    allocation: int
    index: tuple[int, ...]
    code: tuple[int, ...]
    at_ms: tuple[int, ...]
    duration_ms: tuple[int, ...]
    cpu_user_ms: tuple[int, ...]
    cpu_system_ms: tuple[int, ...]
    memory_peak_kib: tuple[int, ...]


@dataclass(slots=True)
class Returned:
    """Of a run's tasks in these allocations none was started: one before them failed or took too long."""

    tasks: tuple[tuple[int, Ranges], ...]


@dataclass(slots=True)
class InputLost:
    """What an attempt is to read could not be kept here, and nobody sends it again; the message says why."""

    allocation: int
    index: int
    message: str


@dataclass(slots=True)
class Storage:
    """Whether the journal can be written. While it cannot, nothing starts and no stream is held."""

    writable: bool
    message: str = ""


@dataclass(slots=True)
class Shutdown:
    """The agent is to end: what runs is stopped within `grace_ms`, the rest given back. May be repeated."""

    grace_ms: int


# Time that passes is no input: `step` with none.
NodeInput = (
    StreamOpened
    | StreamClosed
    | Received
    | Spawned
    | SpawnFailed
    | Exited
    | Ran
    | Returned
    | InputLost
    | Storage
    | Shutdown
)

# ---------------------------------------------------------------- commands


@dataclass(slots=True)
class Part:
    """Tasks of one allocation, to be started in the order of their indices.

    `number` is the attempt that people see. `lines` are one for each index, or none at all.
    """

    allocation: int
    job: int
    version: int
    number: int
    indices: Ranges
    lines: tuple[str, ...] = ()


@dataclass(slots=True)
class Spawn:
    """Run these tasks in a slot, one after the other. Templates and the slot are looked up in the machine.

    The first is started at once, each other one when that before it has ended with success. The rest is
    Returned when one has not, and RUN_MS_MAX after the first was started: so a run is what takes less time
    than to ask after each task. At boot-clock time `start_before_ms` nothing of it may be started any more
    (SpawnFailed with NODE_LOST).
    """

    lease: int
    slot: int
    parts: tuple[Part, ...]
    start_before_ms: int | None = None


@dataclass(slots=True)
class Signal:
    """Send a signal, to the whole tree or to the main process."""

    attempt: Attempt
    signal: int
    tree: bool


@dataclass(slots=True)
class KillTree:
    """Kill every process of an attempt."""

    attempt: Attempt


@dataclass(slots=True)
class CloseStream:
    """End this stream; another is dialled after `retry_ms`, or none any more where that is `final`."""

    stream: int
    reason: str
    retry_ms: int = 0
    final: bool = False


@dataclass(slots=True)
class DeleteOutput:
    """The output of these jobs is not wanted any more."""

    jobs: tuple[int, ...]


@dataclass(slots=True)
class SendOutput:
    """Somebody wants to read an attempt's output. `live`: it may still be written to."""

    read: ReadOutput
    live: bool


@dataclass(slots=True)
class WriteInput:
    """A piece of a task's standard input."""

    input: Input


@dataclass(slots=True)
class Leave:
    """Everything has ended and been said: the agent may exit."""


@dataclass(frozen=True, slots=True)
class TellInput:
    """Say how much of a task's input there is: a new session does not know what the last one lost."""

    allocation: int
    index: int


@dataclass(frozen=True, slots=True)
class TellOutput:
    """Say of which jobs there is output: what was forgotten while the node was away is to go."""


Command = (
    Spawn
    | Signal
    | KillTree
    | CloseStream
    | DeleteOutput
    | SendOutput
    | WriteInput
    | TellInput
    | TellOutput
    | Leave
)


@dataclass(slots=True)
class Outcome:
    """What follows from a step, to be done in this order: write down, do, say.

    `messages` are for the stream opened last. `wake_at_ms` is when to step again if nothing
    happens before; None means never.
    """

    entries: list[Entry] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    messages: list[Up] = field(default_factory=list)
    wake_at_ms: int | None = None

"""The journal's entries: all that a node remembers is what these say, applied in their order.

`Held.apply` says what each one does. The shell writes them down before anything that follows from
them is done or said. `REPORTED` are the kinds that the leader is told of: they count the journal's
sequence 1, 2, 3, ...; the others do not.
"""

from dataclasses import dataclass

from rota.core.model.protocol import Ended, Ranges, Slot, Template
from rota.core.model.resources import Resources

# A task's place on a node: (allocation, index, run). Two with the same place are the same attempt.
Attempt = tuple[int, int, int]


@dataclass(slots=True)
class Begin:
    """The head of a journal and of every snapshot: forget all else.

    `sequence` is the last one acknowledged; what follows it stands behind as `Unacknowledged`.
    `grant` is the highest grant seen.
    """

    journal_id: str
    boot_id: str
    sequence: int = 0
    grant: int = 0


@dataclass(slots=True)
class Session:
    """The highest term and session obeyed, and what the leader calls this node."""

    term: int
    session: int
    incarnation: int
    node_id: str
    node_name: str


@dataclass(slots=True)
class TemplateKept:
    """A job's template; goes by itself once nothing uses it."""

    template: Template


@dataclass(slots=True)
class LeaseKept:
    """A lease, all of it.

    Slots below `next_slot` that are not in `slots` have been freed and never come back.
    `gone_sequence` is that of the entry which freed the last slot; 0 while there are any. Such a
    lease is remembered until the leader has acknowledged it, for until then it may send the slots
    again.
    """

    lease: int
    shape: Resources
    queue: str
    slots: tuple[Slot, ...]
    next_slot: int
    gone_sequence: int = 0
    pool: str = ""
    unit: int = 0


@dataclass(slots=True)
class Granted:
    """Indices to run. Those that the allocation has had before are not taken again."""

    allocation: int
    lease: int
    job: int
    version: int
    grant: int
    first_attempt: int
    indices: Ranges
    lines: tuple[str, ...]
    never_stall: bool


@dataclass(slots=True)
class Intent:
    """These are started next: without their START or END nobody knows whether they were."""

    allocation: int
    indices: Ranges
    run: int = 1


@dataclass(slots=True)
class Start:
    """An attempt runs. `start_ticks` tells its process from another one with the same pid."""

    allocation: int
    index: int
    run: int
    slot: int
    pid: int
    start_ticks: int
    started_at_ms: int


@dataclass(slots=True)
class End:
    """An attempt has ended; nothing of its process tree is left."""

    allocation: int
    ended: Ended


@dataclass(slots=True)
class Ends:
    """Attempts of an allocation, each the first run, that ended by their own exit and left nothing.

    Columns of one length, the indices ascending. One of them that has no START was started all the same.
    """

    allocation: int
    index: tuple[int, ...]
    code: tuple[int, ...]
    started_at_ms: tuple[int, ...]
    duration_ms: tuple[int, ...]
    cpu_user_ms: tuple[int, ...]
    cpu_system_ms: tuple[int, ...]
    memory_peak_kib: tuple[int, ...]


@dataclass(slots=True)
class Drop:
    """Indices given back that were not started; `answers` is the number of a Recall or Stop, or 0."""

    allocation: int
    indices: Ranges
    answers: int = 0
    stalled: bool = False


@dataclass(slots=True)
class Resize:
    """Slots freed for good."""

    lease: int
    freed: tuple[int, ...]


@dataclass(slots=True)
class Acknowledged:
    """The leader has committed everything up to here."""

    sequence: int


@dataclass(slots=True)
class AllocationKept:
    """In a snapshot: an allocation, all of it.

    `granted` are all indices that it ever had and did not give back; `waiting`, `intended` and `live`
    are apart.
    """

    allocation: int
    lease: int
    job: int
    version: int
    first_attempt: int
    never_stall: bool
    granted: Ranges
    lines: tuple[tuple[int, str], ...]
    waiting: Ranges
    intended: Ranges
    live: tuple[Start, ...]


@dataclass(slots=True)
class Unacknowledged:
    """In a snapshot: a reported entry whose effect the snapshot has, and the leader may not."""

    entry: Start | End | Drop | Resize | Ends


Reported = Start | End | Drop | Resize | Ends
REPORTED = (Start, End, Drop, Resize, Ends)

Entry = (
    Begin
    | Session
    | TemplateKept
    | LeaseKept
    | Granted
    | Intent
    | Start
    | End
    | Drop
    | Resize
    | Acknowledged
    | AllocationKept
    | Unacknowledged
    | Ends
)

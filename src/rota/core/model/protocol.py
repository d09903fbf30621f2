"""The node protocol's messages as plain values, for both machines, the cluster's and the node's.

The fields are those of `proto/rota/v1/link.proto`, which says what they mean; `rota.wire.convert`
maps them by name. Index sets are ranges here: ascending pairs (first, last), both included, that
do not touch.
"""

from dataclasses import dataclass, field

from rota.core.model.resources import NOTHING, Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, StopReason

PROTOCOL_VERSION = 1
MESSAGE_BYTES_MAX = 256 * 1024
# As the count of a Recall: all that has not started.
RECALL_ALL = 2**32 - 1
# Jobs in one OutputHeld.
OUTPUT_HELD_JOBS_MAX = 10_000

Ranges = tuple[tuple[int, int], ...]


# ---------------------------------------------------------------- what a node is


@dataclass(frozen=True, slots=True)
class Device:
    kind: str = ""
    id: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    name: str = ""
    attributes: tuple[tuple[str, str], ...] = ()
    resources: Resources = NOTHING
    units: int = 1
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    pools: tuple[Pool, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    agent_version: str = ""
    warnings: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def capacity(self) -> Resources:
        """All units of all pools together."""
        total = NOTHING
        for pool in self.pools:
            total = total.plus(pool.resources, pool.units)
        return total


@dataclass(slots=True)
class Utilisation:
    cpu_busy_thousandths: int = 0
    memory_used_bytes: int = 0
    disk_free_bytes: int = 0
    gpu_busy_thousandths: tuple[int, ...] = ()
    network_received_bytes: int = 0
    network_sent_bytes: int = 0


# ---------------------------------------------------------------- up


@dataclass(slots=True)
class Hello:
    protocol: int
    cluster: str
    incarnation: int
    boot_id: str
    journal_id: str
    last_sequence: int
    term: int
    inventory: Inventory
    sent_ms: int
    acknowledged: int = 0
    lost_after_ms: int = 0


@dataclass(slots=True)
class HeldLease:
    lease: int
    slots: tuple[int, ...]


@dataclass(slots=True)
class HeldAllocation:
    allocation: int
    waiting: Ranges
    started: Ranges


@dataclass(slots=True)
class Holding:
    leases: tuple[HeldLease, ...] = ()
    allocations: tuple[HeldAllocation, ...] = ()


@dataclass(slots=True)
class HoldingEnd:
    pages: int = 0


@dataclass(slots=True)
class Heartbeat:
    sent_ms: int
    sequence_sent: int
    utilisation: Utilisation | None = None
    leaving: bool = False


@dataclass(slots=True)
class Columns:
    """Attempts that exited, packed: `rota.core.model.columns` makes them and reads them."""

    index: bytes = b""
    code: bytes = b""
    started_at_ms: int = 0
    started_after_ms: bytes = b""
    duration_ms: bytes = b""
    cpu_user_ms: bytes = b""
    cpu_system_ms: bytes = b""
    memory_peak_kib: bytes = b""


@dataclass(slots=True)
class Ended:
    index: int
    cause: Cause
    code: int = 0
    run: int = 1
    message: str = ""
    started_at_ms: int = 0
    duration_ms: int = 0
    cpu_user_ms: int = 0
    cpu_system_ms: int = 0
    memory_peak_kib: int = 0
    started: bool = True
    final: bool = True


@dataclass(slots=True)
class Restarted:
    index: int
    run: int


@dataclass(slots=True)
class AllocationReport:
    allocation: int
    started: Ranges = ()
    exits: Columns = field(default_factory=Columns)
    ended: tuple[Ended, ...] = ()
    dropped: Ranges = ()
    answers: int = 0
    stalled: bool = False
    restarted: tuple[Restarted, ...] = ()


@dataclass(slots=True)
class Resized:
    lease: int
    freed: tuple[int, ...]


@dataclass(slots=True)
class Report:
    journal_id: str
    first_sequence: int
    last_sequence: int
    allocations: tuple[AllocationReport, ...] = ()
    resized: tuple[Resized, ...] = ()


@dataclass(slots=True)
class Goodbye:
    reason: str = ""
    last_sequence: int = 0


@dataclass(slots=True)
class InputTaken:
    allocation: int
    index: int
    bytes: int
    end: bool = False
    again: bool = False


@dataclass(slots=True)
class OutputHeld:
    jobs: tuple[int, ...] = ()


Up = Hello | Holding | HoldingEnd | Heartbeat | Report | Goodbye | InputTaken | OutputHeld


# ---------------------------------------------------------------- down


@dataclass(slots=True)
class Welcome:
    node_id: str
    node_name: str
    cluster: str
    incarnation: int
    acknowledged: int
    heartbeat_ms: int
    lost_after_ms: int
    hello_sent_ms: int


@dataclass(slots=True)
class Refused:
    message: str
    retry_ms: int = 0
    hello_sent_ms: int = 0


@dataclass(frozen=True, slots=True)
class Slot:
    slot: int
    devices: tuple[str, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class Lease:
    lease: int
    shape: Resources
    slots: tuple[Slot, ...]
    queue: str
    pool: str = ""
    unit: int = 0
    target: int | None = None


@dataclass(slots=True)
class Resize:
    lease: int
    target: int


@dataclass(slots=True)
class Template:
    """A template, whole: the shell cuts it into the wire's pieces and joins them again."""

    job: int
    version: int
    spec: JobSpec
    task_count: int
    account: str


@dataclass(slots=True)
class Grant:
    allocation: int
    lease: int
    job: int
    version: int
    grant: int
    first_attempt: int
    indices: Ranges
    lines: tuple[str, ...] = ()
    never_stall: bool = False


@dataclass(slots=True)
class Recall:
    allocation: int
    recall: int
    indices: Ranges = ()
    count: int = 0


@dataclass(slots=True)
class Stop:
    allocation: int
    stop: int
    indices: Ranges
    reason: StopReason
    grace_ms: int | None = None


@dataclass(slots=True)
class Ack:
    sequence: int


@dataclass(slots=True)
class HeartbeatAck:
    sent_ms: int


@dataclass(slots=True)
class OutputAttempts:
    allocation: int
    attempt: int
    indices: Ranges


@dataclass(slots=True)
class ReadOutput:
    request: int
    job: int
    allocation: int
    index: int
    attempt: int
    stream: int
    offset: int
    tail_lines: int
    follow: bool
    many: tuple[OutputAttempts, ...] = ()


@dataclass(slots=True)
class Forget:
    jobs: tuple[int, ...]


@dataclass(slots=True)
class Drain:
    draining: bool


@dataclass(slots=True)
class Input:
    allocation: int
    index: int
    offset: int
    data: bytes
    end: bool


Body = (
    Welcome
    | Refused
    | Lease
    | Resize
    | Template
    | Grant
    | Recall
    | Stop
    | Ack
    | HeartbeatAck
    | ReadOutput
    | Forget
    | Drain
    | Input
)


@dataclass(slots=True)
class Down:
    """A message to a node, in its envelope."""

    term: int
    session: int
    number: int
    body: Body

"""The records that are the cluster, and their keys.

The fields are those of `proto/rota/store/v1/records.proto`; `rota.wire.records` maps them by name.
A record is never changed, and no bitmap within one is: a changed record is a new one.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from pyroaring import BitMap

from rota.core.model import columns
from rota.core.model.planes import Planes
from rota.core.model.protocol import Columns, Inventory, Slot
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import (
    Cause,
    DependencyWhen,
    EventKind,
    JobKind,
    JobState,
    NodeState,
    StopReason,
    TokenKind,
)
from rota.core.model.values import value

SCHEMA = 1
# Beyond any truth, and so little that the sum over all nodes is still a number of the wire.
CPU_MS_MAX = 2**50
# So long after its end a token is still shown. A machine that enrolled at the last moment may ask again.
TOKEN_KEPT_MS = 86_400_000
# Keys that were taken apart and are remembered: the same ones are put again and again.
KEYS_KNOWN_MAX = 4_096

META_CLUSTER = "meta/cluster"
META_COMMIT = "meta/commit"

_EMPTY = BitMap()


def empty() -> BitMap:
    """The empty set that records share; it must not be changed."""
    return _EMPTY


# ---------------------------------------------------------------- meta


@value(frozen=True, slots=True)
class ClusterMeta:
    uuid: str = ""
    incarnation: int = 1
    schema: int = SCHEMA
    next_job: int = 1


@value(frozen=True, slots=True)
class Commit:
    term: int = 0
    seq: int = 0
    now_ms: int = 0
    next_number: int = 1


# ---------------------------------------------------------------- configuration


@value(frozen=True, slots=True)
class After:
    job: int
    when: DependencyWhen = DependencyWhen.SUCCEEDED


@value(frozen=True, slots=True)
class JobConfig:
    owner: str
    kind: JobKind = JobKind.BATCH
    version: int = 1
    cancelled: bool = False
    held: bool = False
    replicas: int = 0
    submitted_at_ms: int = 0
    cancel_grace_ms: int | None = None
    account: str = ""
    after: tuple[After, ...] = ()


@value(frozen=True, slots=True)
class JobVersion:
    spec: JobSpec


@value(frozen=True, slots=True)
class QueueConfig:
    weight: int = 1
    quota: Resources | None = None
    priority_min: int | None = None
    priority_max: int | None = None


@value(frozen=True, slots=True)
class TokenConfig:
    kind: TokenKind
    secret_sha256: bytes
    created_at_ms: int
    expires_at_ms: int
    uses_left: int
    revoked: bool = False
    created_by: str = ""


@value(frozen=True, slots=True)
class UserConfig:
    role: str
    account: str = ""
    created_at_ms: int = 0


@value(frozen=True, slots=True)
class NodeConfig:
    name: str
    labels: tuple[tuple[str, str], ...] = ()
    cordoned: bool = False
    draining: bool = False
    drain_deadline_ms: int | None = None
    registered_at_ms: int = 0
    removed: bool = False


# ---------------------------------------------------------------- inventory, desired, status


@value(frozen=True, slots=True)
class NodeInventory:
    inventory: Inventory


@value(frozen=True, slots=True)
class NodeStatus:
    state: NodeState
    boot_id: str = ""
    journal_id: str = ""
    acknowledged: int = 0
    reason: str = ""
    changed_at_ms: int = 0
    away: bool = False
    journal_new: bool = False
    lost_after_ms: int = 0


@value(frozen=True, slots=True)
class LeaseDesired:
    shape: Resources
    queue: str
    slots: tuple[Slot, ...]
    target: int
    next_slot: int
    pool: str = ""
    unit: int = 0


@value(frozen=True, slots=True)
class StopDesired:
    indices: BitMap
    reason: StopReason
    grace_ms: int | None = None


@value(frozen=True, slots=True)
class AllocationDesired:
    lease: int
    job: int
    version: int
    first_attempt: int
    indices: BitMap
    grant: int
    stops: tuple[StopDesired, ...] = ()
    lost: bool = False
    kept: BitMap = field(default_factory=empty)
    never_stall: bool = False

    @property
    def stopping(self) -> BitMap:
        """Those of which a stop has been asked for, for whatever reason."""
        return BitMap.union(*(stop.indices for stop in self.stops)) if self.stops else _EMPTY

    @property
    def cancelled(self) -> BitMap:
        """Those that somebody wants to end for good."""
        wanted = [stop.indices for stop in self.stops if stop.reason is StopReason.CANCEL]
        return BitMap.union(*wanted) if wanted else _EMPTY


@value(frozen=True, slots=True)
class AllocationStatus:
    started: BitMap = field(default_factory=empty)
    succeeded: BitMap = field(default_factory=empty)
    failed: BitMap = field(default_factory=empty)
    cancelled: BitMap = field(default_factory=empty)
    cpu_ms: int = 0
    memory_peak_bytes: int = 0
    runs: tuple[tuple[int, int], ...] = ()
    started_at_ms: tuple[tuple[int, int], ...] = ()

    @property
    def ended(self) -> BitMap:
        """Those that have ended."""
        return self.succeeded | self.failed | self.cancelled


@value(frozen=True, slots=True)
class JobStatus:
    state: JobState = JobState.PENDING
    reason: str = ""
    cause: Cause | None = None
    started_at_ms: int = 0
    ended_at_ms: int = 0
    ended_ms: int = 0
    avoid: tuple[str, ...] = ()
    fails_everywhere: bool = False
    events_written: int = 0
    stopping: bool = False
    retried_at_ms: int = 0


@value(frozen=True, slots=True)
class Segment:
    """`attempts`: how many attempts at each task have ended other than by success."""

    succeeded: BitMap = field(default_factory=empty)
    failed: BitMap = field(default_factory=empty)
    cancelled: BitMap = field(default_factory=empty)
    attempts: Planes = ()


@value(frozen=True, slots=True)
class FailureSet:
    """Tasks whose last attempt that did not succeed ended alike; `message` is of one of them."""

    cause: Cause
    code: int
    indices: BitMap
    message: str = ""


@value(frozen=True, slots=True)
class BackoffSet:
    """Tasks that wait until `until_ms` of cluster time to be tried again."""

    until_ms: int
    indices: BitMap


@value(frozen=True, slots=True)
class Exceptions:
    """How tasks of a segment ended that did not simply succeed, and what they wait for.

    `failures` (that count towards the retries) and `crashes` (of a node or agent, under the task) are bit
    planes, as a segment's `attempts`; `backoffs` ascend by time, and no index is in two. So do `fences`:
    until then an earlier attempt may still run. Of those, and of what is `held`, an earlier attempt may
    be alive whatever becomes of the task: they outlive a cancel and a retry.
    """

    groups: tuple[FailureSet, ...] = ()
    failures: Planes = ()
    crashes: Planes = ()
    held: BitMap = field(default_factory=empty)
    backoffs: tuple[BackoffSet, ...] = ()
    fences: tuple[BackoffSet, ...] = ()


NO_EXCEPTIONS = Exceptions()


@value(frozen=True, slots=True)
class NodeTally:
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    cpu_ms: int = 0
    memory_peak_bytes: int = 0
    unsuccessful: BitMap = field(default_factory=empty)


@value(frozen=True, slots=True)
class Event:
    seq: int
    at_ms: int
    kind: EventKind
    job: int = 0
    index: int | None = None
    attempt: int = 0
    node: str = ""
    cause: Cause | None = None
    code: int = 0
    by: str = ""
    message: str = ""


@value(frozen=True, slots=True)
class EventRecord:
    event: Event


@value(frozen=True, slots=True)
class Idempotency:
    jobs: tuple[int, ...]
    digest: bytes
    expires_at_ms: int


Record = (
    ClusterMeta
    | Commit
    | JobConfig
    | JobVersion
    | QueueConfig
    | TokenConfig
    | UserConfig
    | NodeConfig
    | NodeInventory
    | NodeStatus
    | LeaseDesired
    | AllocationDesired
    | AllocationStatus
    | JobStatus
    | Segment
    | Exceptions
    | NodeTally
    | EventRecord
    | Idempotency
)


# ---------------------------------------------------------------- the archive's blocks


@dataclass(slots=True)
class ResultBlock:
    """Attempts of one allocation as they were reported: `columns`, and one entry an attempt in each further
    column, packed alike (`rota.core.model.columns`).
    """

    job: int
    allocation: int
    node_id: str
    columns: Columns = field(default_factory=Columns)
    attempt: bytes = b""
    cause: bytes = b""
    messages: dict[int, str] = field(default_factory=dict)

    def tasks(self) -> BitMap:
        """Whose attempts they are."""
        return BitMap(columns.indices(self.columns))


@dataclass(slots=True)
class JobBlock:
    """An ended job, whole: its records as they were."""

    job: int
    records: list[tuple[str, Record]]
    archived_at_ms: int


Block = ResultBlock | JobBlock


# ---------------------------------------------------------------- keys


def job_key(job: int) -> str:
    return f"cfg/job/{job:016x}"


def version_key(job: int, version: int) -> str:
    return f"cfg/job/{job:016x}/v/{version:016x}"


def job_status_key(job: int) -> str:
    return f"st/job/{job:016x}"


def segment_key(job: int, segment: int) -> str:
    return f"st/job/{job:016x}/s/{segment:016x}"


def exceptions_key(job: int, segment: int) -> str:
    return f"st/job/{job:016x}/x/{segment:016x}"


def tally_key(job: int, node: str) -> str:
    return f"st/job/{job:016x}/n/{node}"


def queue_key(queue: str) -> str:
    return f"cfg/queue/{queue}"


def token_key(token: str) -> str:
    return f"cfg/token/{token}"


def user_key(principal: str) -> str:
    return f"cfg/user/{principal}"


def node_key(node: str) -> str:
    return f"cfg/node/{node}"


def inventory_key(node: str) -> str:
    return f"inv/{node}"


def node_status_key(node: str) -> str:
    return f"st/{node}"


def lease_key(node: str, lease: int) -> str:
    return f"des/{node}/lease/{lease:016x}"


def allocation_key(node: str, allocation: int) -> str:
    return f"des/{node}/alloc/{allocation:016x}"


def allocation_status_key(node: str, allocation: int) -> str:
    return f"st/{node}/alloc/{allocation:016x}"


def event_key(seq: int) -> str:
    return f"ev/{seq:016x}"


def idempotency_key(principal: str, key: str) -> str:
    return f"idem/{principal}/{key}"


class Key(NamedTuple):
    """A key taken apart: the type of its record and the ids in it."""

    kind: type
    job: int = 0
    node: str = ""
    number: int = 0
    name: str = ""


@lru_cache(maxsize=KEYS_KNOWN_MAX)
def parse_key(key: str) -> Key:  # noqa: C901 - a table, one row a kind of record
    """Takes a key apart. Raises ValueError for a text that is no key of a record."""
    match key.split("/"):
        # First what is put most.
        case ["ev", seq]:
            return Key(EventRecord, 0, "", int(seq, 16))
        case ["des", node, "alloc", allocation]:
            return Key(AllocationDesired, 0, node, int(allocation, 16))
        case ["st", node, "alloc", allocation]:
            return Key(AllocationStatus, 0, node, int(allocation, 16))
        case ["des", node, "lease", lease]:
            return Key(LeaseDesired, 0, node, int(lease, 16))
        case ["meta", "cluster"]:
            return Key(ClusterMeta)
        case ["meta", "commit"]:
            return Key(Commit)
        case ["cfg", "job", job]:
            return Key(JobConfig, job=int(job, 16))
        case ["cfg", "job", job, "v", version]:
            return Key(JobVersion, job=int(job, 16), number=int(version, 16))
        case ["cfg", "queue", name]:
            return Key(QueueConfig, name=name)
        case ["cfg", "token", name]:
            return Key(TokenConfig, name=name)
        case ["cfg", "user", name]:
            return Key(UserConfig, name=name)
        case ["cfg", "node", node]:
            return Key(NodeConfig, node=node)
        case ["inv", node]:
            return Key(NodeInventory, node=node)
        case ["st", "job", job]:
            return Key(JobStatus, job=int(job, 16))
        case ["st", "job", job, "s", segment]:
            return Key(Segment, job=int(job, 16), number=int(segment, 16))
        case ["st", "job", job, "x", segment]:
            return Key(Exceptions, job=int(job, 16), number=int(segment, 16))
        case ["st", "job", job, "n", node]:
            return Key(NodeTally, job=int(job, 16), node=node)
        case ["st", node]:
            return Key(NodeStatus, node=node)
        case ["idem", principal, *rest]:
            return Key(Idempotency, name="/".join([principal, *rest]))
    raise ValueError(f"'{key}' is not the key of a record")

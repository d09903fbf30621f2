"""What can happen to the cluster, and what comes out of a step.

Every input that somebody waits for carries a `ticket`, given back in a Reply once what was done is
committed. Text and sizes have been checked at the edge (`rota.wire.validate`); what only the
cluster can know (does the job exist, could any node carry it) is checked here.
"""

from dataclasses import dataclass, field
from enum import Enum

from pyroaring import BitMap

from rota.core.cluster.records import Block, Event, QueueConfig, Record, TokenConfig, UserConfig
from rota.core.model.protocol import Body, Down, Up
from rota.core.model.spec import JobSpec
from rota.core.model.states import TokenKind
from rota.core.model.values import value

# ---------------------------------------------------------------- from users


@dataclass(slots=True)
class Submit:
    """All of the jobs or none. `digest` is of the request's body; `account` is who the tasks run as."""

    ticket: int
    principal: str
    specs: tuple[JobSpec, ...]
    account: str = ""
    key: str = ""
    digest: bytes = b""


@dataclass(slots=True)
class CancelJob:
    """`indices` None means the whole job."""

    ticket: int
    by: str
    job: int
    indices: BitMap | None = None
    grace_ms: int | None = None


@dataclass(slots=True)
class HoldJob:
    ticket: int
    by: str
    job: int


@dataclass(slots=True)
class ReleaseJob:
    ticket: int
    by: str
    job: int


@dataclass(slots=True)
class RetryJob:
    ticket: int
    by: str
    job: int
    indices: BitMap | None = None
    ignore_dependencies: bool = False


@dataclass(slots=True)
class Fed:
    """Somebody is about to write to a job's standard input; said again and again while that lasts."""

    ticket: int
    job: int


@dataclass(slots=True)
class PutQueue:
    ticket: int
    by: str
    name: str
    config: QueueConfig
    update: bool = False


@dataclass(slots=True)
class DropQueue:
    ticket: int
    by: str
    name: str


@dataclass(slots=True)
class PutUser:
    ticket: int
    by: str
    name: str
    config: UserConfig


@dataclass(slots=True)
class PutToken:
    ticket: int
    by: str
    token: str
    config: TokenConfig


@dataclass(slots=True)
class RevokeToken:
    ticket: int
    by: str
    token: str


@dataclass(slots=True)
class Enrol:
    """Takes one use of a token. `node` is a fresh UUID; the same `key` again gets the first answer."""

    ticket: int
    token: str
    secret_sha256: bytes
    kind: TokenKind
    node: str
    name: str
    key: str


class NodeEdit(Enum):
    CORDON = "cordon"
    DRAIN = "drain"
    RESUME = "resume"


@dataclass(slots=True)
class EditNode:
    """`node` is a name or a UUID. With DRAIN: milliseconds that what runs may still take, or None."""

    ticket: int
    by: str
    node: str
    edit: NodeEdit
    deadline_ms: int | None = None


@dataclass(slots=True)
class LabelNode:
    ticket: int
    by: str
    node: str
    labels: tuple[tuple[str, str], ...]
    remove: tuple[str, ...] = ()


@dataclass(slots=True)
class RemoveNode:
    ticket: int
    by: str
    node: str
    force: bool = False


# ---------------------------------------------------------------- from nodes


@dataclass(slots=True)
class FromNode:
    """A message on a node's stream. `node` is the UUID that its certificate names; `stream` is
    the shell's number of the stream, never used twice by one process.
    """

    node: str
    stream: int
    message: Up


@dataclass(slots=True)
class StreamClosed:
    node: str
    stream: int


@dataclass(slots=True)
class ToNode:
    """A message that the shell itself has for a connected node (ReadOutput, Input): it gets its
    place in the session's numbering here. Nothing is sent where the node has no session; the reply
    is True or a Refusal.
    """

    ticket: int
    node: str
    body: Body


# ---------------------------------------------------------------- from the leader's own shell


@dataclass(slots=True)
class Found:
    """The first input of a new store: the cluster begins."""

    uuid: str


@dataclass(slots=True)
class Lead:
    """The first input of a leader: the next term begins, every window of time starts again."""


Input = (
    Submit
    | CancelJob
    | HoldJob
    | ReleaseJob
    | RetryJob
    | Fed
    | PutQueue
    | DropQueue
    | PutUser
    | PutToken
    | RevokeToken
    | Enrol
    | EditNode
    | LabelNode
    | RemoveNode
    | FromNode
    | StreamClosed
    | ToNode
    | Found
    | Lead
)


# ---------------------------------------------------------------- out


class Why(Enum):
    """The kinds of refusals; the faces map them to exit codes and status codes."""

    INVALID = "invalid"
    NOT_FOUND = "not found"
    REFUSED = "refused"
    CONFLICT = "conflict"


@value(frozen=True, slots=True)
class Refusal:
    """`problems`: one line each, what is wrong, where, and what would be right."""

    why: Why
    problems: tuple[str, ...]


@value(frozen=True, slots=True)
class Submitted:
    jobs: tuple[int, ...]
    repeated: bool = False


@value(frozen=True, slots=True)
class Done:
    """A change was made, or (not `changed`) nothing had to be. `count`: of tasks, where tasks are meant."""

    count: int = 0
    changed: bool = True


@value(frozen=True, slots=True)
class Enrolled:
    node: str
    name: str


@value(frozen=True, slots=True)
class Reply:
    ticket: int
    answer: Submitted | Done | Enrolled | Refusal


@value(frozen=True, slots=True)
class Send:
    node: str
    stream: int
    message: Down


@value(frozen=True, slots=True)
class Close:
    """The shell ends the stream (after what was sent before)."""

    node: str
    stream: int
    reason: str


Order = Send | Close


@dataclass(slots=True)
class Outcome:
    """What a step wants: commit `changes` and `blocks` as one, then give `orders` and `replies`.

    `changes` is empty or has a new `meta/commit`. `events` are those within `changes`, for watchers.
    `wake_at_ms` is the cluster time at which to step again without an input; None means never.
    """

    changes: dict[str, Record | None] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    wake_at_ms: int | None = None

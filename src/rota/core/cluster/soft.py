"""What the leader knows and does not store: streams, when a node was last heard, averages, timers.

A new leader begins without any of it, and nothing that was promised depends on it.
"""

import heapq
from dataclasses import dataclass, field

from pyroaring import BitMap

from rota.core.model.protocol import Columns, Hello
from rota.core.model.resources import Resources

HOLDING_MS_MIN = 30_000


@dataclass(frozen=True, slots=True)
class Settings:
    """The cluster's times, in milliseconds. They scale together: see `scaled`."""

    heartbeat_ms_min: int = 5_000
    suspect_ms: int = 15_000
    disconnected_ms: int = 30_000
    lost_after_ms: int = 300_000
    # Beyond 1.05 times `lost_after_ms`, before a fenced attempt counts as ended.
    fence_margin_ms: int = 2_000
    # How long an idle lease stays warm.
    linger_ms: int = 1_000
    # Backlog above which work is recalled for an idle slot elsewhere.
    recall_backlog_ms: int = 200
    # A lease's queue is filled to so much work ahead.
    queued_ahead_ms: int = 2_000
    # Tasks longer than this are not queued beyond what runs.
    long_task_ms: int = 10_000
    # A step places no more than this at once, and goes on in the next: about 50 µs each.
    placed_at_once: int = 128

    def scaled(self, factor: float) -> "Settings":
        """The same with every limit of failure detection times `factor`."""
        return Settings(
            heartbeat_ms_min=max(1, round(self.heartbeat_ms_min * factor)),
            suspect_ms=max(2, round(self.suspect_ms * factor)),
            disconnected_ms=max(3, round(self.disconnected_ms * factor)),
            lost_after_ms=max(4, round(self.lost_after_ms * factor)),
            fence_margin_ms=max(1, round(self.fence_margin_ms * factor)),
            linger_ms=self.linger_ms,
            recall_backlog_ms=self.recall_backlog_ms,
            queued_ahead_ms=self.queued_ahead_ms,
            long_task_ms=self.long_task_ms,
            placed_at_once=self.placed_at_once,
        )

    def heartbeat_ms(self, nodes: int) -> int:
        """How often a node is heard: at most 750 messages a second for the whole cluster."""
        return max(self.heartbeat_ms_min, nodes * 1000 // 750)

    @property
    def holding_ms(self) -> int:
        """What a node holds has come whole within this after its Hello: it may be megabytes."""
        return max(self.disconnected_ms, HOLDING_MS_MIN)

    @property
    def confirm_ms(self) -> int:
        """A heartbeat is acknowledged by a leader whose last commit is no older than this.

        A leader that another has followed may so keep a fenced attempt alive for no longer than the
        follower waits beyond `lost_after_ms`.
        """
        return (self.lost_after_ms // 20 + self.fence_margin_ms) // 2

    @property
    def slept_ms(self) -> int:
        """A step that comes so late shows that the leader itself was stopped."""
        return max(self.suspect_ms // 3, 1)

    def fence_ms(self, told_ms: int) -> int:
        """Silence after which a fenced attempt must have ended, the node's clock 5 % slow at worst.

        `told_ms` is the `lost_after` that the node may go by, of another leader perhaps.
        """
        longest_ms = max(self.lost_after_ms, told_ms)
        return longest_ms + longest_ms // 20 + self.fence_margin_ms


@dataclass(slots=True)
class Session:
    """An accepted stream of a node."""

    node: str
    stream: int
    number: int
    hello: Hello
    # The journal was begun anew since the last session: what the old one held is gone.
    fresh: bool
    heard_ms: int
    # Whether hearing the node here is more than hearing it dial.
    counts: bool
    sent_count: int = 0
    holding_count: int = 0
    holding_ended: bool = False
    # Compared with what the node should hold: from here on it is given work.
    compared: bool = False
    # The node is about to go: it gets nothing new.
    leaving: bool = False
    # What it holds of what is known here: the slots of leases, the indices of allocations.
    held_leases: dict[int, tuple[int, ...]] = field(default_factory=dict)
    held_allocations: dict[int, BitMap] = field(default_factory=dict)
    # The numbers of what it holds that is not known here; whether there are more of them.
    strange_leases: set[int] = field(default_factory=set)
    strange_allocations: set[int] = field(default_factory=set)
    more_is_strange: bool = False
    templates_sent: set[tuple[int, int]] = field(default_factory=set)
    # Open recalls for balance: by lease, the allocation and the recall's number.
    recalls: dict[int, tuple[int, int]] = field(default_factory=dict)
    asked_count: int = 0
    # What a lost node says of tasks that have succeeded there, by allocation, until it is known whether they
    # count or the allocation is closed: when they started, and what they used.
    late: dict[int, Columns] = field(default_factory=dict)

    def ask(self) -> int:
        """A number for a Recall or Stop of this session."""
        self.asked_count += 1
        return self.asked_count


@dataclass(slots=True)
class Average:
    """A moving average of the durations of successful attempts."""

    successes: int = 0
    mean_ms: float = 0.0

    def add(self, count: int, total_ms: int) -> None:
        """Takes in `count` durations; the past weighs no more than 100 of them."""
        self.successes += count
        weight = min(1.0, max(count / 100, count / self.successes))
        self.mean_ms += (total_ms / count - self.mean_ms) * weight


class Timers:
    """At most one time for each (kind, id); setting it again replaces it."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, tuple[str, str]]] = []
        self._armed: dict[tuple[str, str], int] = {}
        self._count = 0

    def arm(self, kind: str, name: str, at_ms: int) -> None:
        """Sets the time of (kind, name)."""
        key = (kind, name)
        if self._armed.get(key) == at_ms:
            return
        self._armed[key] = at_ms
        self._count += 1
        heapq.heappush(self._heap, (at_ms, self._count, key))

    def arm_earlier(self, kind: str, name: str, at_ms: int) -> None:
        """Sets the time unless an earlier one is set."""
        armed = self._armed.get((kind, name))
        if armed is None or at_ms < armed:
            self.arm(kind, name, at_ms)

    def at_ms(self, kind: str, name: str) -> int | None:
        """The time of (kind, name); None where none is set."""
        return self._armed.get((kind, name))

    def disarm(self, kind: str, name: str) -> None:
        """Forgets the time of (kind, name)."""
        self._armed.pop((kind, name), None)

    def due(self, now_ms: int) -> list[tuple[str, str]]:
        """Takes what is due, earliest first."""
        result = []
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, _, key = heapq.heappop(self._heap)
            if self._armed.get(key) == at_ms:
                del self._armed[key]
                result.append(key)
        return result

    def next_ms(self) -> int | None:
        """When something is next due."""
        while self._heap and self._armed.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


@dataclass(frozen=True, slots=True)
class Gathering:
    """Room that is kept for one kind of work on a unit of a node (`claims`); without one, a pause."""

    place: tuple[str, str, int] | None
    until_ms: int


@dataclass(slots=True)
class Soft:
    sessions: dict[str, Session] = field(default_factory=dict)
    # When a node was last heard, or this leader began.
    heard_ms: dict[str, int] = field(default_factory=dict)
    # By how much that was put off since, because the leader itself was late.
    excused_ms: dict[str, int] = field(default_factory=dict)
    averages: dict[int, Average] = field(default_factory=dict)
    # The same of all jobs whose tasks ask for the same, by shape and queue.
    kinds: dict[tuple[Resources, str], Average] = field(default_factory=dict)
    timers: Timers = field(default_factory=Timers)
    leading: bool = False
    # Nodes that have said Hello, and since then neither been compared nor reported anything: another Hello
    # shows no more than that they dial.
    beginning: set[str] = field(default_factory=set)
    # How many grants there were when a queue last got one: of equal shares, that with the oldest goes first.
    served: dict[str, int] = field(default_factory=dict)
    served_count: int = 0
    gathering: dict[tuple[Resources, str, str, tuple[str, ...]], Gathering] = field(default_factory=dict)
    # How many nodes were looked at for room to be gathered, where there are too many for one pass.
    gathering_looked: int = 0
    # When it was last an event that a node is refused, by node and reason.
    refused_ms: dict[tuple[str, str], int] = field(default_factory=dict)
    # Jobs whose input nobody feeds, and whose node was asked whether it has the whole of it.
    unfed: set[int] = field(default_factory=set)
    # The alarm of nodes falling silent together has been raised.
    alarmed: bool = False

    def learn(self, job: int, kind: tuple[Resources, str], count: int, total_ms: int) -> None:
        """Attempts of a job have succeeded that took so long together."""
        self.averages.setdefault(job, Average()).add(count, total_ms)
        self.kinds.setdefault(kind, Average()).add(count, total_ms)

    def connected(self, node: str) -> bool:
        """Whether the node has a stream on which it can be given work."""
        session = self.sessions.get(node)
        return session is not None and session.compared

"""A step in the making: what the parts of the core share while they turn inputs into an outcome."""

from rota.core.cluster.inputs import Close, Done, Enrolled, Outcome, Refusal, Reply, Send, Submitted, Why
from rota.core.cluster.records import Event, EventRecord, Key, Record, event_key
from rota.core.cluster.soft import Settings, Soft
from rota.core.cluster.state import Cluster, Job
from rota.core.model.protocol import Body, Down
from rota.core.model.states import Cause, EventKind

EVENTS_KEPT_MAX = 10_000
EVENTS_OF_ENDS_MAX = 100
# Of many jobs, so many are looked at before others may be served.
PIECE_JOBS = 128


class Work:
    """Cluster, soft state and time of one step, and the outcome that grows."""

    def __init__(self, cluster: Cluster, soft: Soft, settings: Settings, now_ms: int, wall_ms: int) -> None:
        self.cluster = cluster
        self.soft = soft
        self.settings = settings
        self.now_ms = now_ms
        self.wall_ms = wall_ms
        self.outcome = Outcome()
        self.next_number = cluster.commit.next_number
        # Jobs of which tasks moved; whether work or room may have appeared since the last placing.
        self.touched: dict[int, Job] = {}
        self.place_wanted = False
        # Whether most nodes are silent at once, as far as it was asked since one was heard.
        self.mass_silence: bool | None = None
        # Whether a commit is due even if nothing changes.
        self.confirm_wanted = False

    def put(self, key: str, record: Record, at: Key | None = None) -> None:
        """Puts a record, here and in the outcome. `at` is the key taken apart, where that is known."""
        self.cluster.put(key, record, at)
        self.outcome.changes[key] = record

    def drop(self, key: str) -> None:
        """Drops a record, here and in the outcome."""
        if key in self.cluster.records:
            self.cluster.drop(key)
            self.outcome.changes[key] = None

    def confirm(self) -> None:
        """What is said in this step counts only for who leads: commits, if the last commit is not recent."""
        if self.now_ms - self.cluster.commit.now_ms >= self.settings.confirm_ms:
            self.confirm_wanted = True

    def number(self) -> int:
        """A number that was never used and never will be."""
        self.next_number += 1
        return self.next_number - 1

    def touch(self, job: Job) -> None:
        """Says that tasks of the job moved."""
        self.touched[job.id] = job
        self.place_wanted = True

    def send(self, node: str, body: Body) -> None:
        """Sends to a node that has a session; to one without, its comparison will tell it."""
        session = self.soft.sessions.get(node)
        if session is not None:
            session.sent_count += 1
            down = Down(self.cluster.commit.term, session.number, session.sent_count, body)
            self.outcome.orders.append(Send(node, session.stream, down))

    def close(self, node: str, stream: int, reason: str) -> None:
        """Ends a stream."""
        self.outcome.orders.append(Close(node, stream, reason))

    def reply(self, ticket: int, answer: Submitted | Done | Enrolled | Refusal) -> None:
        """Answers, once the step is committed."""
        self.outcome.replies.append(Reply(ticket, answer))

    def refuse(self, ticket: int, why: Why, *problems: str) -> None:
        """Answers with a refusal."""
        self.reply(ticket, Refusal(why, problems))

    def event(
        self,
        kind: EventKind,
        *,
        job: int = 0,
        index: int | None = None,
        attempt: int = 0,
        node: str = "",
        cause: Cause | None = None,
        code: int = 0,
        by: str = "",
        message: str = "",
    ) -> None:
        """Records an event; the oldest beyond EVENTS_KEPT_MAX is forgotten."""
        event = Event(self.number(), self.wall_ms, kind, job, index, attempt, node, cause, code, by, message)
        self.put(event_key(event.seq), EventRecord(event))
        self.outcome.events.append(event)
        if len(self.cluster.events) > EVENTS_KEPT_MAX:
            self.drop(event_key(next(iter(self.cluster.events))))


def tasks_text(count: int) -> str:
    """`1 task`, `2,000 tasks`."""
    return "1 task" if count == 1 else f"{count:,} tasks"

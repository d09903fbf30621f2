"""One step of the cluster: inputs in, an outcome out. Everything that can happen is listed here."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from rota.core.cluster import admin, feeding, jobs, nodes, placing, settling, streams
from rota.core.cluster.inputs import (
    CancelJob,
    DropQueue,
    EditNode,
    Enrol,
    Fed,
    Found,
    FromNode,
    HoldJob,
    Input,
    LabelNode,
    Lead,
    Outcome,
    PutQueue,
    PutToken,
    PutUser,
    ReleaseJob,
    RemoveNode,
    RetryJob,
    RevokeToken,
    StreamClosed,
    Submit,
    ToNode,
)
from rota.core.cluster.records import META_CLUSTER, META_COMMIT, Block, ClusterMeta, Commit, Record
from rota.core.cluster.soft import Settings, Soft
from rota.core.cluster.state import Cluster
from rota.core.cluster.work import Work
from rota.core.model.states import EventKind

# What takes long comes in pieces: such a handler is a generator.
_HANDLERS: dict[type, Callable[[Work, Any], Iterator[None] | None]] = {
    Submit: jobs.submit,
    CancelJob: jobs.cancel,
    HoldJob: jobs.hold,
    ReleaseJob: jobs.release,
    RetryJob: jobs.retry,
    Fed: feeding.fed,
    PutQueue: admin.put_queue,
    DropQueue: admin.drop_queue,
    PutUser: admin.put_user,
    PutToken: admin.put_token,
    RevokeToken: admin.revoke_token,
    Enrol: admin.enrol,
    EditNode: admin.edit_node,
    LabelNode: admin.label_node,
    RemoveNode: admin.remove_node,
    FromNode: streams.receive,
    StreamClosed: streams.closed,
    ToNode: streams.pass_on,
}

_TIMERS: dict[str, Callable[[Work, str], None]] = {
    "node": nodes.look,
    "holding": streams.holding_overdue,
    "drain": nodes.drain_deadline,
    "input": feeding.overdue,
    "retry": settling.retry_due,
    "retention": jobs.retention_over,
    "placing": placing.go_on,
    "linger": placing.linger_over,
    "gathering": placing.gathering_over,
    "expiry": jobs.forget_expired,
}

Proof = Callable[[Mapping[str, Record | None], Iterable[Block]], None]
"""Given some of what is to be committed; raises where that cannot be kept."""

# So many records, or blocks, are proved before others may be served.
PIECE_RECORDS = 64


# One input, what it has put, and its blocks.
_Taken = tuple[Input, dict[str, Record | None], list[Block]]


class StepFailed(Exception):
    """A bug, which is the cause, let an input not be taken; the machine is to be thrown away."""

    def __init__(self, item: Input) -> None:
        super().__init__(f"{type(item).__name__} could not be taken")
        self.item = item


class Machine:
    """The cluster, its soft state, and the step that changes both."""

    def __init__(self, settings: Settings | None = None, records: Iterable[tuple[str, Record]] = ()) -> None:
        self.settings = settings or Settings()
        self.cluster = Cluster.load(records)
        self.soft = Soft()
        self.placing = placing.Placing(self.cluster, self.soft)
        # When a step was due at the latest; None where nothing was.
        self._due_ms: int | None = None

    def step(
        self, inputs: Iterable[Input], now_ms: int, wall_ms: int, proof: Proof = lambda records, blocks: None
    ) -> Outcome:
        """Takes what happened: all the pieces at once."""
        pieces = self.pieces(inputs, now_ms, wall_ms, proof)
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome

    def pieces(
        self, inputs: Iterable[Input], now_ms: int, wall_ms: int, proof: Proof = lambda records, blocks: None
    ) -> Generator[None, None, Outcome]:
        """Takes what happened. `now_ms` is cluster time and never goes back; `wall_ms` is for display.

        Between the pieces others may be served, but nobody may look at the machine: what the whole of them
        does is one step.

        Raises StepFailed, which names the input, where one cannot be taken because of a bug, or `proof`
        refuses what has followed from it.

        The outcome's changes are already made here: where they cannot be committed, this machine is
        to be thrown away and loaded again.
        """
        work = Work(self.cluster, self.soft, self.settings, max(now_ms, self.cluster.commit.now_ms), wall_ms)
        late_ms = work.now_ms - self._due_ms if self._due_ms is not None else 0
        if self.soft.leading and late_ms >= self.settings.slept_ms:
            # This process was stopped, not the nodes: what they said meanwhile has still to be read.
            nodes.not_listened(work, late_ms)
            feeding.begin(work)
        taken: list[_Taken] = []
        for item in inputs:
            if isinstance(item, Found):
                work.put(META_CLUSTER, ClusterMeta(uuid=item.uuid))
            elif isinstance(item, Lead):
                self._lead(work)
            else:
                yield from self._take(work, item, taken)
            yield
        for kind, name in self.soft.timers.due(work.now_ms):
            _TIMERS[kind](work, name)
            yield
        if self.soft.leading:
            yield from settling.settle(work)
            if work.place_wanted:
                yield from self.placing.place(work)
        outcome = self._outcome(work)
        yield from _prove(outcome, taken, proof)
        return outcome

    def _take(self, work: Work, item: Input, taken: list[_Taken]) -> Iterator[None]:
        assert self.soft.leading, item
        outcome = work.outcome
        changes, outcome.changes = outcome.changes, {}
        block_count = len(outcome.blocks)
        try:
            yield from _HANDLERS[type(item)](work, item) or ()
        except Exception as bug:
            raise StepFailed(item) from bug
        taken.append((item, outcome.changes, outcome.blocks[block_count:]))
        changes.update(outcome.changes)
        outcome.changes = changes

    def _lead(self, work: Work) -> None:
        commit = self.cluster.commit
        work.put(META_COMMIT, Commit(commit.term + 1, commit.seq, work.now_ms, commit.next_number))
        self.soft.leading = True
        work.event(EventKind.LEADER_CHANGED, message=f"term {commit.term + 1} begins")
        nodes.begin(work)
        settling.begin(work)
        jobs.begin(work)
        feeding.begin(work)

    def _outcome(self, work: Work) -> Outcome:
        outcome = work.outcome
        if outcome.changes or work.confirm_wanted:
            commit = self.cluster.commit
            work.put(META_COMMIT, Commit(commit.term, commit.seq + 1, work.now_ms, work.next_number))
        outcome.wake_at_ms = self._due_ms = self.soft.timers.next_ms()
        return outcome


def _prove(outcome: Outcome, taken: Iterable[_Taken], proof: Proof) -> Iterator[None]:
    """Proves each record once, as it is in the end, in pieces; looks for who put it only if it fails."""
    try:
        records = iter(outcome.changes.items())
        while piece := dict(islice(records, PIECE_RECORDS)):
            proof(piece, ())
            yield
        blocks_left = iter(outcome.blocks)
        while some := list(islice(blocks_left, PIECE_RECORDS)):
            proof({}, some)
            yield
    except Exception:
        for item, changes, blocks in taken:
            try:
                proof(changes, blocks)
            except Exception as bug:
                raise StepFailed(item) from bug
        raise

"""Whatever comes, and wherever the agent is cut off: a task has one outcome, and none starts twice."""

from itertools import groupby

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rota.core.model.columns import exited
from rota.core.model.protocol import (
    Ack,
    Body,
    Down,
    Drain,
    Grant,
    Heartbeat,
    HeartbeatAck,
    Hello,
    Inventory,
    Lease,
    Ranges,
    Recall,
    Report,
    Resize,
    Slot,
    Stop,
    Template,
    Up,
)
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, OnNodeLoss, StopReason
from rota.core.node.check import sanity_check
from rota.core.node.entries import Attempt, Entry
from rota.core.node.indices import each, joined, normal
from rota.core.node.inputs import (
    CloseStream,
    Exited,
    KillTree,
    NodeInput,
    Received,
    Returned,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    StreamClosed,
    StreamOpened,
)
from rota.core.node.recovery import recover
from tests.core.node.scene import POOLS, SHAPE, attempts_of, ran, replay, welcome

SPECS = [
    JobSpec(command=("a",)),
    JobSpec(command=("b",), on_node_loss=OnNodeLoss.HOLD, time_limit=3_000, signal="INT@1s", grace=500),
    JobSpec(command=("c",), on_node_loss=OnNodeLoss.RERUN_FENCED, grace=0),
]
ranges = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 80)).map(lambda pair: (pair[0], pair[0] + pair[1])),
    max_size=4,
).map(lambda pairs: normal(tuple(pairs)))
cuts = st.sampled_from([None] * 12 + [0, 1, 2, 3, 5])
few = st.integers(1, 2)


class Leader:
    """What a leader has committed of a node's reports."""

    def __init__(self) -> None:
        self.journal_id = ""
        self.committed = 0
        self.granted: set[tuple[int, int]] = set()
        self.outcomes: dict[tuple[int, int], str] = {}
        self.dropped: set[tuple[int, int]] = set()
        self.started: set[tuple[int, int]] = set()

    def hear(self, report: Report) -> None:
        if report.journal_id != self.journal_id or report.last_sequence <= self.committed:
            return
        assert report.first_sequence == self.committed + 1, report
        self.committed = report.last_sequence
        for part in report.allocations:
            ended = {end.index: f"{end.cause.name} {end.code}" for end in (*exited(part.exits), *part.ended)}
            for index, outcome in ended.items():
                key = (part.allocation, index)
                assert key in self.granted, key
                # A new journal may say again what the old one had said.
                assert self.outcomes.setdefault(key, outcome) == outcome, (key, outcome)
                assert key not in self.dropped, key
            self.started.update((part.allocation, index) for index in each(part.started))
            for index in each(part.dropped):
                key = (part.allocation, index)
                assert key in self.granted, key
                assert key not in self.outcomes, key
                assert key not in self.started, key
                self.dropped.add(key)


class Node(RuleBasedStateMachine):
    """A node, a leader, tasks that run, and an axe."""

    @initialize()
    def start(self) -> None:
        self.now_ms = 1_000
        self.journal: list[Entry] = []
        self.boot = 1
        self.leader = Leader()
        self.session = self.number = self.stream = 0
        self.connected = False
        self.rebooted_at = 0
        self.grants = self.allocations = self.orders = self.pids = 0
        self.slots: dict[int, int] = {}
        # Runs of which nothing runs; what runs, and what is to run behind it.
        self.spawning: list[list[Attempt]] = []
        self.live: list[Attempt] = []
        self.behind: dict[Attempt, list[Attempt]] = {}
        self.begun: set[Attempt] = set()
        self.signalled: set[Attempt] = set()
        self._recover()
        self.lease(1, 2, None)

    def _recover(self) -> None:
        recovered = recover(
            self.journal, boot_id=f"boot-{self.boot}", journal_id=f"journal-{self.boot}", pools=POOLS
        )
        if recovered.begun:
            self.journal = []
        self.journal += recovered.entries
        self.machine = recovered.machine
        self.spawning, self.live, self.behind, self.connected = [], [], {}, False

    def _step(self, *inputs: NodeInput, cut: int | None = None) -> list[Up]:
        """One step; with `cut` the agent dies after so many entries and commands of it."""
        outcome = self.machine.step(inputs, self.now_ms, 10_000 + self.now_ms)
        sanity_check(self.machine)
        self.journal += outcome.entries[:cut]
        if cut is None:
            assert outcome.wake_at_ms is None or outcome.wake_at_ms > 0
        commands = outcome.commands if cut is None else outcome.commands[: max(cut - len(outcome.entries), 0)]
        for command in commands:
            match command:
                case Spawn():
                    attempts = attempts_of(command)
                    assert self.begun.isdisjoint(attempts), command
                    self.begun.update(attempts)
                    self.spawning.append(attempts)
                case CloseStream():
                    self.connected = False
                case Signal() | KillTree():
                    assert command.attempt in self.live
                    self.signalled.add(command.attempt)
        if cut is not None:
            self._recover()
            return []
        if self.connected:
            for message in outcome.messages:
                if isinstance(message, Report):
                    self.leader.hear(message)
        return outcome.messages

    def _say(self, *bodies: Body, cut: int | None = None) -> None:
        if not self.connected:
            self.connect(None)
        inputs = []
        for body in bodies:
            self.number += 1
            inputs.append(Received(Down(1, self.session, self.number, body)))
        self._step(*inputs, cut=cut)

    # ------------------------------------------------------------ rules

    @rule(cut=cuts)
    def connect(self, cut: int | None) -> None:
        self.stream += 1
        self.connected = True
        messages = self._step(StreamClosed(), StreamOpened(self.stream, Inventory()), cut=cut)
        if not self.connected:
            return
        hello = messages[0]
        assert isinstance(hello, Hello)
        if hello.journal_id != self.leader.journal_id:
            self.leader.journal_id, self.leader.committed = hello.journal_id, 0
        self.session += 1
        self.number = 0
        self._say(welcome(hello.sent_ms, self.leader.committed))

    @rule()
    def disconnect(self) -> None:
        self.connected = False
        self._step(StreamClosed())

    @rule(lease=few, more=st.integers(1, 3), cut=cuts)
    def lease(self, lease: int, more: int, cut: int | None) -> None:
        if self.slots.get(lease, 0) < 20:
            self.slots[lease] = self.slots.get(lease, 0) + more
            slots = tuple(Slot(slot) for slot in range(self.slots[lease]))
            self._say(Lease(lease, SHAPE, slots, "default"), cut=cut)

    @rule(lease=few, left=st.integers(0, 2), cut=cuts)
    def resize(self, lease: int, left: int, cut: int | None) -> None:
        self._say(Resize(lease, left), cut=cut)

    @rule(lease=few, job=st.integers(0, 2), indices=ranges, cut=cuts)
    def grant(self, lease: int, job: int, indices: Ranges, cut: int | None) -> None:
        self.grants += 1
        self.allocations += 1
        before = self.machine.held.grant
        grant = Grant(self.allocations, lease, job, 1, self.grants, 1, indices)
        granted = {(self.allocations, index) for index in each(indices)}
        self.leader.granted |= granted
        self._say(Template(job, 1, SPECS[job], 100, ""), grant, cut=cut)
        if self.machine.held.grant == before:
            self.leader.granted -= granted

    @rule(allocation=st.integers(1, 9), count=st.integers(0, 90), indices=ranges, cut=cuts)
    def recall(self, allocation: int, count: int, indices: Ranges, cut: int | None) -> None:
        self.orders += 1
        self._say(Recall(allocation, self.orders, indices, count), cut=cut)

    @rule(
        allocation=st.integers(1, 9),
        indices=ranges,
        reason=st.sampled_from(StopReason),
        grace_ms=st.sampled_from([None, 0, 700]),
        cut=cuts,
    )
    def stop(
        self, allocation: int, indices: Ranges, reason: StopReason, grace_ms: int | None, cut: int | None
    ) -> None:
        self.orders += 1
        self._say(Stop(allocation, self.orders, indices, reason, grace_ms), cut=cut)

    @rule(draining=st.booleans(), cut=cuts)
    def drain(self, draining: bool, cut: int | None) -> None:
        self._say(Drain(draining), cut=cut)

    @precondition(lambda self: self.spawning)
    @rule(data=st.data(), fails=st.sampled_from([False] * 9 + [True]), cut=cuts)
    def spawn(self, data: st.DataObject, fails: bool, cut: int | None) -> None:
        news: list[NodeInput] = []
        for _ in range(data.draw(st.integers(1, len(self.spawning)))):
            run = self.spawning.pop(data.draw(st.integers(0, len(self.spawning) - 1)))
            attempt = run.pop(0)
            self.pids += 1
            if fails:
                news += [SpawnFailed(attempt, "no"), *self._returned(run)]
            else:
                news.append(Spawned(attempt, self.pids, 1, self.now_ms))
                self.live.append(attempt)
                self.behind[attempt] = run
        self._step(*news, cut=cut)

    @precondition(lambda self: self.spawning)
    @rule(data=st.data(), count=st.integers(1, 80), code=st.sampled_from([0, 0, 0, 1]), cut=cuts)
    def run(self, data: st.DataObject, count: int, code: int, cut: int | None) -> None:
        run = self.spawning.pop(data.draw(st.integers(0, len(self.spawning) - 1)))
        done, rest = run[:count], run[count:]
        news: list[NodeInput] = []
        for number, ones in groupby(done, lambda one: one[0]):
            indices = [one[1] for one in ones]
            last = code if (number, indices[-1], 1) == done[-1] else 0
            news.append(ran(number, indices, self.now_ms, (0,) * (len(indices) - 1) + (last,)))
        if code:
            news += self._returned(rest)
        elif rest:
            self.spawning.append(rest)
        self._step(*news, cut=cut)

    @precondition(lambda self: any(self.behind.values()))
    @rule(data=st.data(), cut=cuts)
    def give_back(self, data: st.DataObject, cut: int | None) -> None:
        attempt = data.draw(st.sampled_from([one for one, behind in self.behind.items() if behind]))
        behind, self.behind[attempt] = self.behind[attempt], []
        self._step(*self._returned(behind), cut=cut)

    def _returned(self, run: list[Attempt]) -> list[NodeInput]:
        """These were not started, and may be commanded again."""
        self.begun.difference_update(run)
        tasks = [
            (number, joined(one[1] for one in ones)) for number, ones in groupby(run, lambda one: one[0])
        ]
        return [Returned(tuple(tasks))] if tasks else []

    @precondition(lambda self: self.live)
    @rule(data=st.data(), code=st.sampled_from([0, 0, 0, 1]), cut=cuts)
    def exit(self, data: st.DataObject, code: int, cut: int | None) -> None:
        news: list[NodeInput] = []
        for _ in range(data.draw(st.integers(1, len(self.live)))):
            attempt = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
            news.append(Exited(attempt, Cause.EXIT, code))
            behind = self.behind.pop(attempt)
            if code:
                news += self._returned(behind)
            elif behind:
                self.spawning.append(behind)
        self._step(*news, cut=cut)

    @rule(ms=st.sampled_from([1, 50, 50, 1_000, 1_000, 5_000, 5_000, 400_000]))
    def wait(self, ms: int) -> None:
        self.now_ms += ms
        for message in self._step():
            if isinstance(message, Heartbeat):
                self._say(HeartbeatAck(message.sent_ms))

    @rule()
    def acknowledge(self) -> None:
        self._say(Ack(self.leader.committed))

    @rule(reboot=st.sampled_from([False] * 4 + [True]))
    def crash(self, reboot: bool) -> None:
        if reboot:
            self.boot += 1
            # What was held then is over for the leader, unless the new journal says how it ended.
            self.rebooted_at = self.allocations
        self._recover()

    @rule()
    def snapshot(self) -> None:
        self.journal = list(self.machine.snapshot())

    # ------------------------------------------------------------ what holds

    @invariant()
    def the_journal_replays_to_the_state(self) -> None:
        if hasattr(self, "machine"):
            assert replay(self.journal) == list(self.machine.snapshot())

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        if not self.connected:
            self.connect(None)
        while self.spawning or self.live or self.machine.held.allocations:
            if self.spawning:
                run = self.spawning.pop()
                self.pids += 1
                self.live.append(run[0])
                self.behind[run[0]] = run[1:]
                self._step(Spawned(run[0], self.pids, 1, self.now_ms))
            if not self.live:
                break
            attempt = self.live.pop()
            behind = self.behind.pop(attempt)
            if behind:
                self.spawning.append(behind)
            self._step(Exited(attempt, Cause.EXIT))
        self._tell_all()
        outcomes = set(self.leader.outcomes) | self.leader.dropped
        held = {
            (held.allocation, index)
            for held in self.machine.held.allocations.values()
            for index in (*held.waiting, *held.intended)
        }
        assert not outcomes & held
        granted = {key for key in self.leader.granted if key[0] > self.rebooted_at}
        assert granted <= outcomes | held <= self.leader.granted

    def _tell_all(self) -> None:
        while self.leader.committed < self.machine.held.sequence:
            self.now_ms += 10
            self._step()
            self._say(Ack(self.leader.committed))


TestNode = Node.TestCase
TestNode.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

"""The loop over stores that fail: nothing uncommitted is seen, nothing accepted is lost."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from rota.controller import loop as loop_module
from rota.controller.loop import (
    INBOX_COUNT_MAX,
    TURN_COUNT_MAX,
    Loop,
    SchemaTooNew,
    Unable,
    Unavailable,
)
from rota.controller.turn import Turn
from rota.core.cluster import step
from rota.core.cluster.inputs import (
    Done,
    Found,
    FromNode,
    Lead,
    Order,
    Outcome,
    PutQueue,
    PutUser,
    StreamClosed,
    Submit,
    Submitted,
)
from rota.core.cluster.placing import Placing
from rota.core.cluster.records import (
    META_CLUSTER,
    META_COMMIT,
    ClusterMeta,
    Commit,
    QueueConfig,
    UserConfig,
    queue_key,
)
from rota.core.cluster.soft import Settings
from rota.core.cluster.step import Machine
from rota.core.cluster.work import Work
from rota.core.model.protocol import Heartbeat, HoldingEnd
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.store.memory import MemoryStore
from rota.store.port import Ambiguous, Changes, Fenced, Full, Loaded, StoreError
from tests.shell.controller.harness import CLOCK, wall_ms

CLUSTER = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


class FlawedStore(MemoryStore):
    """Fails as it is told: before the commit, after it, or until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__(wall_ms)
        self.before: list[StoreError] = []
        self.after: list[StoreError] = []
        self.always: StoreError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.loaded = asyncio.Event()
        self.commits = 0

    async def commit(self, changes: Changes, fence: int) -> int:
        self.asked.set()
        await self.gate.wait()
        if self.always is not None:
            raise self.always
        if self.before:
            raise self.before.pop()
        revision = await super().commit(changes, fence)
        self.commits += 1
        if self.after:
            raise self.after.pop()
        return revision

    async def load(self, prefix: str = "") -> Loaded:
        found = await super().load(prefix)
        self.loaded.set()
        return found

    def close_gate(self) -> None:
        """From now on commits wait, and `asked` tells of the first."""
        self.gate.clear()
        self.asked.clear()


@dataclass
class Nodes:
    """Where orders go."""

    orders: list[Order] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    kept_off: list[str] = field(default_factory=list)
    kept_one_off: asyncio.Event = field(default_factory=asyncio.Event)

    def carry_out(self, order: Order) -> None:
        self.orders.append(order)

    def close_all(self, reason: str) -> None:
        self.closed.append(reason)

    def keep_off(self, node: str) -> None:
        self.kept_off.append(node)
        self.kept_one_off.set()


@dataclass
class Leading:
    loop: Loop
    store: FlawedStore
    nodes: Nodes
    led: asyncio.Event

    async def submit(self, key: str = "") -> tuple[int, ...]:
        answer = await self.loop.ask(
            lambda ticket: Submit(ticket, "ann", (JobSpec(command=("true",)),), key=key, digest=b"d")
        )
        assert isinstance(answer, Submitted), answer
        return answer.jobs

    async def jobs(self) -> list[int]:
        return await self.loop.read(lambda machine: list(machine.cluster.jobs))

    async def until_it_leads_again(self) -> None:
        """To be called after it has failed."""
        await self.led.wait()
        self.led.clear()
        assert self.loop.leading


@asynccontextmanager
async def leading() -> AsyncIterator[Leading]:
    store, nodes = FlawedStore(), Nodes()
    loop = Loop(store, CLOCK, Settings(), CLUSTER)
    loop.connect(nodes)
    led = asyncio.Event()
    run = asyncio.create_task(loop.run(led.set))
    await led.wait()
    led.clear()
    try:
        yield Leading(loop, store, nodes, led)
    finally:
        store.gate.set()
        store.always = None
        loop.stop()
        async with asyncio.timeout(20):
            await run


async def test_a_new_store_becomes_a_cluster_once() -> None:
    async with leading() as it:
        assert await it.loop.read(lambda machine: machine.cluster.meta.uuid) == CLUSTER
        assert await it.loop.read(lambda machine: machine.cluster.commit.term) == 1


async def test_a_read_waits_for_the_commit_and_never_sees_ahead_of_it() -> None:
    async with leading() as it:
        it.store.close_gate()
        submitted = asyncio.create_task(it.submit())
        await it.store.asked.wait()
        read = asyncio.create_task(it.jobs())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not read.done()
        assert not submitted.done()
        it.store.gate.set()
        assert await submitted == (1,)
        assert await read == [1]


async def test_what_arrives_during_a_commit_is_taken_by_one_next_turn() -> None:
    async with leading() as it:
        it.store.close_gate()
        first = asyncio.create_task(it.submit())
        await it.store.asked.wait()
        more = [asyncio.create_task(it.submit()) for _ in range(50)]
        await asyncio.sleep(0)
        before = it.store.commits
        it.store.gate.set()
        assert await asyncio.gather(first, *more) == [(number,) for number in range(1, 52)]
        assert it.store.commits - before == 2


async def test_a_turn_takes_a_bounded_part_of_what_waits() -> None:
    async with leading() as it:
        it.store.close_gate()
        first = asyncio.create_task(it.submit())
        await it.store.asked.wait()
        more = [asyncio.create_task(it.submit()) for _ in range(2 * TURN_COUNT_MAX + 1)]
        await asyncio.sleep(0)
        before = it.store.commits
        it.store.gate.set()
        await asyncio.gather(first, *more)
        assert it.store.commits - before == 4


async def test_others_are_served_between_the_pieces_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "PIECE_NS_MAX", 0)
    async with leading() as it:
        specs = (JobSpec(command=("true",)),) * 1_000
        submitted = asyncio.create_task(it.loop.ask(lambda ticket: Submit(ticket, "ann", specs)))
        served = 0
        while not submitted.done():
            await asyncio.sleep(0)
            served += 1
        assert served > 20
        assert it.store.commits == 2
        assert len(await it.jobs()) == 1_000


async def test_others_are_served_between_the_orders_of_a_turn() -> None:
    """A turn over thousands of nodes has thousands of orders."""
    machine, served = Machine(), 0
    turn = Turn(machine, MemoryStore(lambda: 0), 0, due=lambda: True)

    def speak(outcome: Outcome) -> Iterator[None]:
        assert machine.cluster.commit.seq == 1, "committed"
        for _ in range(100):
            yield

    turned = asyncio.create_task(turn.run([Found("cluster"), Lead()], 0, 0, speak))
    while not turned.done():
        await asyncio.sleep(0)
        served += 1
    assert served > 100


async def test_who_a_user_is_can_be_told_while_a_commit_is_under_way() -> None:
    async with leading() as it:
        await it.loop.ask(lambda ticket: PutUser(ticket, "admin", "ann", UserConfig("admin")))
        it.store.close_gate()
        changed = asyncio.create_task(
            it.loop.ask(lambda ticket: PutUser(ticket, "admin", "ann", UserConfig("viewer")))
        )
        await it.store.asked.wait()
        assert it.loop.users()["ann"].role == "admin", "as committed"
        it.store.gate.set()
        await changed
        assert it.loop.users()["ann"].role == "viewer"


async def test_a_failed_commit_is_as_if_nothing_was_asked() -> None:
    async with leading() as it:
        await it.submit()
        it.store.before.append(StoreError("the disk is gone"))
        with pytest.raises(Unavailable, match="the disk is gone"):
            await it.submit()
        assert it.nodes.closed, "streams end: the nodes come back and say what they hold"
        await it.until_it_leads_again()
        assert await it.jobs() == [1]
        assert await it.submit() == (2,), "no number is lost or used twice"
        assert await it.loop.read(lambda machine: machine.cluster.commit.term) == 2


async def test_a_lost_answer_to_a_commit_that_happened_is_found_out() -> None:
    async with leading() as it:
        it.store.after.append(Ambiguous("no answer"))
        assert await it.submit() == (1,)
        assert await it.jobs() == [1]


async def test_a_lost_answer_to_a_commit_that_did_not_happen_is_tried_again() -> None:
    async with leading() as it:
        it.store.before.append(Ambiguous("no answer"))
        assert await it.submit() == (1,)
        assert await it.jobs() == [1]
        assert await it.loop.read(lambda machine: machine.cluster.commit.term) == 1


async def test_while_the_disk_is_full_reads_go_on_and_changes_are_refused() -> None:
    async with leading() as it:
        await it.submit()
        it.store.loaded.clear()
        it.store.always = Full("no space is left on the device")
        with pytest.raises(Unavailable, match="no space"):
            await it.submit()
        await it.store.loaded.wait()
        assert await it.jobs() == [1]
        with pytest.raises(Unavailable, match="no space"):
            await it.submit()
        it.store.always = None
        await it.until_it_leads_again()
        assert await it.submit() == (2,)


async def test_another_leaders_commit_makes_this_one_begin_anew() -> None:
    async with leading() as it:
        other = Loop(it.store, CLOCK, Settings(), CLUSTER)
        other.connect(Nodes())
        ready = asyncio.Event()
        run = asyncio.create_task(other.run(ready.set))
        await ready.wait()
        with pytest.raises(Unavailable, match="another has committed"):
            await it.submit()
        other.stop()
        await run
        await it.until_it_leads_again()
        assert await it.submit() == (1,)
        assert await it.loop.read(lambda machine: machine.cluster.commit.term) == 3


async def test_a_repeated_request_after_an_unknown_outcome_is_the_same_request() -> None:
    async with leading() as it:
        it.store.after.append(Fenced("the answer is lost for good"))
        with pytest.raises(Unavailable):
            await it.submit(key="k")
        await it.until_it_leads_again()
        assert await it.submit(key="k") == (1,)
        assert await it.jobs() == [1]


async def test_reads_and_answers_that_wait_are_told_when_the_store_fails() -> None:
    async with leading() as it:
        it.store.close_gate()
        asked = asyncio.create_task(it.submit())
        await it.store.asked.wait()
        waiting = [asyncio.create_task(it.jobs()), asyncio.create_task(it.submit())]
        await asyncio.sleep(0)
        it.store.before.append(StoreError("broken"))
        it.store.gate.set()
        for task in (asked, *waiting):
            with pytest.raises(Unavailable, match="broken"):
                await task


async def test_idle_it_takes_no_turn() -> None:
    async with leading() as it:
        await it.submit()
        turns = 0
        original = it.loop._turn

        async def counted(*arguments: object) -> int | None:
            nonlocal turns
            turns += 1
            return await original(*arguments)  # type: ignore[arg-type]

        it.loop._turn = counted  # type: ignore[method-assign, assignment]
        wake_ms = await it.loop.read(lambda machine: machine.soft.timers.next_ms())
        assert wake_ms is None or wake_ms > it.loop.now_ms() + 60_000
        for _ in range(1000):
            await asyncio.sleep(0)
        assert turns == 0


async def test_a_streams_end_waits_for_what_came_before_and_for_no_more() -> None:
    """Or it would be taken only once the inbox is empty, which under load it never is."""
    async with leading() as it:
        for _ in range(TURN_COUNT_MAX + 1):
            await it.loop.tell(FromNode("n", 1, HoldingEnd()))
        it.loop.closed(StreamClosed("n", 1))
        for _ in range(2 * TURN_COUNT_MAX):
            await it.loop.tell(FromNode("m", 2, HoldingEnd()))
        turns = [it.loop._arrived() for _ in range(4)]
        assert [sum(isinstance(one, StreamClosed) for one in turn) for turn in turns] == [0, 1, 0, 0]
        assert sum(map(len, turns)) == 3 * TURN_COUNT_MAX + 2


async def test_the_inbox_has_a_limit_and_loses_nothing() -> None:
    async with leading() as it:
        it.store.close_gate()
        blocked = asyncio.create_task(it.submit())
        await it.store.asked.wait()
        beats = [
            asyncio.create_task(it.loop.tell(FromNode("n", 1, Heartbeat(0, 0))))
            for _ in range(INBOX_COUNT_MAX + 10)
        ]
        await asyncio.sleep(0)
        assert sum(beat.done() for beat in beats) == INBOX_COUNT_MAX
        it.loop.closed(StreamClosed("n", 1))  # there is always room for that
        it.store.gate.set()
        await blocked
        async with asyncio.timeout(20):
            await asyncio.gather(*beats)


async def test_heartbeats_wait_for_company(monkeypatch: pytest.MonkeyPatch) -> None:
    async with leading() as it:
        await it.submit()
        for _ in range(100):  # until it is idle
            await asyncio.sleep(0)
        waited: list[float] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_later", lambda delay_s, act: waited.append(delay_s))
        for stream in range(5):
            await it.loop.tell(FromNode("n", stream, Heartbeat(0, 0)))
        # One time is set for all of them, well below the time between two.
        (delay_s,) = waited
        assert delay_s * 1000 * 10 <= Settings().heartbeat_ms_min
        assert it.loop._inbox.qsize() == 5
        assert not it.loop._wake.is_set()
        # One that leaves is not kept waiting, nor is what came before it.
        await it.loop.tell(FromNode("n", 6, Heartbeat(0, 0, leaving=True)))
        assert it.loop._wake.is_set()
        monkeypatch.undo()
        await it.submit()
        assert it.loop._inbox.empty()


async def test_watchers_hear_of_their_job_and_of_events_alone() -> None:
    async with leading() as it:
        await it.submit()
        with it.loop.watch_job(1) as mine, it.loop.watch_job(2) as next_, it.loop.watch_events() as events:
            await it.submit()
            assert (mine.is_set(), next_.is_set(), events.is_set()) == (False, True, True)
            next_.clear()
            await it.loop.ask(lambda ticket: PutQueue(ticket, "ann", "q", QueueConfig()))
            assert (mine.is_set(), next_.is_set()) == (False, False)
        assert not it.loop._waiting.job_watchers


async def test_a_bug_in_the_machine_ends_one_request_and_not_the_controller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with leading() as it:
        await it.submit()

        def broken(work: Work, item: object) -> None:
            work.put(queue_key("half-done"), QueueConfig())
            raise ZeroDivisionError("a bug")

        monkeypatch.setitem(step._HANDLERS, PutQueue, broken)
        with pytest.raises(Unable, match="PutQueue"):
            await it.loop.ask(lambda ticket: PutQueue(ticket, "ann", "q", QueueConfig()))
        # Everybody else goes on, with what was committed.
        await it.until_it_leads_again()
        assert await it.submit() == (2,)
        assert await it.loop.read(lambda machine: list(machine.cluster.queues)) == []
        assert not it.nodes.kept_off

        monkeypatch.setitem(step._HANDLERS, FromNode, broken)
        await it.loop.tell(FromNode("n", 1, Heartbeat(0, 0)))
        await it.nodes.kept_one_off.wait()
        assert it.nodes.kept_off == ["n"]
        await it.until_it_leads_again()
        assert await it.submit() == (3,)


async def test_what_cannot_be_encoded_ends_the_one_request_that_brought_it() -> None:
    async with leading() as it:
        huge = QueueConfig(quota=Resources(cpu=2**63))
        it.store.close_gate()
        first = asyncio.create_task(it.submit())
        await it.store.asked.wait()
        # One turn takes all three: the one in the middle is to blame, and is told so.
        before = asyncio.create_task(it.submit())
        wrong = asyncio.create_task(it.loop.ask(lambda ticket: PutQueue(ticket, "ann", "q", huge)))
        after = asyncio.create_task(it.submit())
        await asyncio.sleep(0)
        assert it.loop._inbox.qsize() == 3
        it.store.gate.set()
        assert await first == (1,)
        with pytest.raises(Unable, match="PutQueue"):
            await wrong
        for other in (before, after):
            with pytest.raises(Unavailable):
                await other
        await it.until_it_leads_again()
        assert await it.submit() == (2,)
        assert await it.loop.read(lambda machine: list(machine.cluster.queues)) == []


async def test_a_bug_in_what_follows_is_tried_again_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with leading() as it:
        place, failures = Placing.place, [ZeroDivisionError("a bug")]

        def broken(placing: Placing, work: Work) -> Iterator[None]:
            if failures and work.place_wanted:
                raise failures.pop()
            yield from place(placing, work)

        monkeypatch.setattr(Placing, "place", broken)
        with pytest.raises(Unavailable):
            await it.submit()
        await it.until_it_leads_again()
        assert not failures
        assert await it.submit() == (1,)


async def test_after_stop_nothing_is_taken() -> None:
    async with leading() as it:
        it.loop.stop()
        with pytest.raises(Unavailable):
            await it.loop.ask(lambda ticket: PutQueue(ticket, "ann", "q", QueueConfig()))


async def test_records_of_a_later_version_are_refused() -> None:
    store = MemoryStore(wall_ms)
    await store.commit(
        Changes({META_CLUSTER: ClusterMeta(CLUSTER, schema=99), META_COMMIT: Commit(1, 1, 0, 1)}), 0
    )
    loop = Loop(store, CLOCK, Settings(), CLUSTER)
    loop.connect(Nodes())
    with pytest.raises(SchemaTooNew, match="schema 99"):
        await loop.run(lambda: None)


async def test_cluster_time_goes_on_from_the_last_commit() -> None:
    store = MemoryStore(wall_ms)
    for _ in range(2):
        loop = Loop(store, CLOCK, Settings(), CLUSTER)
        loop.connect(Nodes())
        ready = asyncio.Event()
        run = asyncio.create_task(loop.run(ready.set))
        await ready.wait()
        before = (await store.load(META_COMMIT)).records[0][1]
        assert isinstance(before, Commit)
        assert before.now_ms <= loop.now_ms() < before.now_ms + 60_000
        answer = await loop.ask(lambda ticket: PutQueue(ticket, "ann", "q", QueueConfig(), update=True))
        assert answer == Done()
        loop.stop()
        await run

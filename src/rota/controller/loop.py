"""The controller's loop: one turn after the other, for as long as this process leads.

What happens to the cluster comes in through `ask` (somebody waits for the answer), `tell` and `closed`
(nodes); it is taken by the next turn. Reads are run between turns, on committed state alone. A turn that
the store does not take leaves the machine ahead of the store: it is thrown away, all who wait are told to
try again, streams are ended, and the cluster is loaded anew. While the store takes no writes, reads go on.

So it is with a bug in the machine: what follows from a request or a node's message that it cannot take is
thrown away with it. Who asked is told, and the node is kept off for a while, so that the same does not end
the next leadership; everybody else goes on.

Cluster time is the last committed `now_ms` and the time on the boot clock since this process began to lead.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, Literal, Protocol, TypeVar

from rota.controller.pace import Pace, forget, keep
from rota.controller.turn import Turn
from rota.core.cluster.inputs import (
    Done,
    Enrolled,
    Found,
    FromNode,
    Input,
    Lead,
    Order,
    Outcome,
    Refusal,
    StreamClosed,
    Submitted,
)
from rota.core.cluster.records import SCHEMA, UserConfig
from rota.core.cluster.soft import Settings
from rota.core.cluster.state import Cluster
from rota.core.cluster.step import Machine, StepFailed
from rota.core.model.protocol import Heartbeat
from rota.store.port import Store, StoreError

INBOX_COUNT_MAX = 10_000
# So much of the inbox is taken by one turn, so that who comes first does not wait for all.
TURN_COUNT_MAX = 1_024
# A heartbeat asks for nothing but an answer, and waits this share of the shortest time between two for
# company: one turn answers many.
BEAT_WAIT_SHARE = 50
# So often, ahead of a turn, all who are ready may run: no longer than they add to the inbox.
GATHER_ROUNDS_MAX = 8
# A step that has computed for so long lets others be served before it goes on.
PIECE_NS_MAX = 4_000_000
RETRY_S_MIN = 0.1
RETRY_S_MAX = 5.0
# A leadership of so long was a good one: after it, trying again begins with RETRY_S_MIN.
GOOD_MS_MIN = 10_000

_log = logging.getLogger(__name__)

T = TypeVar("T")
Answer = Submitted | Done | Enrolled | Refusal


class Unavailable(Exception):
    """What was asked cannot be done now, and may have been done or not: ask again."""


class Unable(Exception):
    """What was asked cannot be done because of a bug, and was not done."""


class News(asyncio.Event):
    """Set when something has changed; whoever waits is told when there will be no more."""

    retired = False

    async def wait(self) -> Literal[True]:
        """Until it is set. Raises Unavailable where that is for the last time."""
        await super().wait()
        if self.retired:
            raise Unavailable("the controller is stopping; try again")
        return True

    def retire(self) -> None:
        """There will be no more."""
        self.retired = True
        self.set()


class SchemaTooNew(Exception):
    """The records were written by a later version."""


class Nodes(Protocol):
    """Where orders go; `rota.controller.links` is one."""

    def carry_out(self, order: Order) -> None:
        """Sends a message, or ends a stream."""
        ...

    def close_all(self, reason: str) -> None:
        """Ends all streams."""
        ...

    def keep_off(self, node: str) -> None:
        """What the node says cannot be taken: for a while it may not connect."""
        ...


@dataclass(frozen=True, slots=True)
class Clock:
    """`boot_ms`: the boot clock, which counts while the machine sleeps. `wall_ms`: since 1970."""

    boot_ms: Callable[[], int]
    wall_ms: Callable[[], int]


@dataclass(slots=True)
class _Waiting:
    """Those who wait for a turn's end."""

    tickets: dict[int, asyncio.Future[Answer]] = field(default_factory=dict)
    reads: list[tuple[Callable[[Machine], Any], asyncio.Future[Any]]] = field(default_factory=list)
    job_watchers: dict[int, set[News]] = field(default_factory=dict)
    event_watchers: set[News] = field(default_factory=set)

    def watchers(self) -> list[News]:
        """All of them."""
        return [*self.event_watchers, *chain.from_iterable(self.job_watchers.values())]


class Loop:
    """Drives the machine over one store. `cluster` is the UUID of a cluster that is new."""

    def __init__(
        self, store: Store, clock: Clock, settings: Settings, cluster: str, pace: Pace | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._new_cluster = cluster
        self.pace = pace or Pace()
        self._piece_began_ns = 0
        self._nodes: Nodes | None = None
        self._machine: Machine | None = None
        self._users: Mapping[str, UserConfig] = {}
        self._turning = False
        self._leading = False
        self._retired = False
        self._stopping = False
        self._why_not = "the controller is starting; try again"
        self._time_base_ms = 0
        self._boot_base_ms = 0
        self._inbox: asyncio.Queue[Input] = asyncio.Queue(INBOX_COUNT_MAX)
        # How much was put into the inbox so far, and taken; ends of streams, each with what was put before.
        self._put_count = 0
        self._taken_count = 0
        self._closings: deque[tuple[int, StreamClosed]] = deque()
        self._beat_wait_s = settings.heartbeat_ms_min / 1000 / BEAT_WAIT_SHARE
        self._beats_wait = False
        self._wake = asyncio.Event()
        self._waiting = _Waiting()
        self._tickets = count(1)

    # ------------------------------------------------------------ for those around it

    @property
    def leading(self) -> bool:
        """Whether changes are taken and nodes may connect."""
        return self._leading

    def connect(self, nodes: Nodes) -> None:
        """Says where orders go; called once, before `run`."""
        self._nodes = nodes

    def now_ms(self) -> int:
        """Cluster time."""
        return self._time_base_ms + self._clock.boot_ms() - self._boot_base_ms

    def wall_ms(self) -> int:
        """The wall clock."""
        return self._clock.wall_ms()

    async def ask(self, make: Callable[[int], Input]) -> Answer:
        """The answer to an input, made with its ticket, after the commit. Raises Unavailable."""
        self._check_leading()
        ticket = next(self._tickets)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.tickets[ticket] = answer
        try:
            await self._put(make(ticket))
            return await answer
        finally:
            self._waiting.tickets.pop(ticket, None)

    async def tell(self, message: FromNode) -> None:
        """Takes a node's message, once there is room."""
        match message.message:
            case Heartbeat(leaving=False):
                await self._inbox.put(message)
                self._put_count += 1
                if not self._beats_wait:
                    self._beats_wait = True
                    asyncio.get_running_loop().call_later(self._beat_wait_s, self._answer_beats)
            case _:
                await self._put(message)

    def _answer_beats(self) -> None:
        self._beats_wait = False
        if not self._inbox.empty():
            self._wake.set()

    def closed(self, stream: StreamClosed) -> None:
        """Takes the end of a node's stream."""
        self._closings.append((self._put_count, stream))
        self._wake.set()

    async def read(self, look: Callable[[Machine], T]) -> T:
        """What a function finds in the committed state. Raises Unavailable, and what the function raises."""
        if self._machine is None:
            raise Unavailable(self._why_not)
        if not self._turning:
            return look(self._machine)
        found: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.reads.append((look, found))
        try:
            return await found
        finally:
            # An error keeps this by its traceback, and is kept by it: a cycle.
            del found

    def users(self) -> Mapping[str, UserConfig]:
        """The users as of the last commit; unlike `read`, nobody waits for the turn under way.

        Raises Unavailable.
        """
        if self._machine is None:
            raise Unavailable(self._why_not)
        return self._users

    @contextmanager
    def watch_job(self, job: int) -> Iterator[News]:
        """Set after each commit that touched a job."""
        news = News()
        if self._retired:
            news.retire()
        watchers = self._waiting.job_watchers.setdefault(job, set())
        watchers.add(news)
        try:
            yield news
        finally:
            watchers.discard(news)
            if not watchers:
                self._waiting.job_watchers.pop(job, None)

    @contextmanager
    def watch_events(self) -> Iterator[News]:
        """Set after each commit with events."""
        news = News()
        if self._retired:
            news.retire()
        self._waiting.event_watchers.add(news)
        try:
            yield news
        finally:
            self._waiting.event_watchers.discard(news)

    def retire(self) -> None:
        """Ends what waits for news, ahead of `stop`: that could take for ever."""
        self._retired = True
        for news in self._waiting.watchers():
            news.retire()

    def stop(self) -> None:
        """Ends `run` once the turn under way is committed."""
        self._stopping = True
        self._wake.set()

    def _check_leading(self) -> None:
        if not self._leading or self._stopping:
            raise Unavailable(self._why_not)

    async def _put(self, item: Input) -> None:
        await self._inbox.put(item)
        self._put_count += 1
        self._wake.set()

    # ------------------------------------------------------------ turns

    async def run(self, ready: Callable[[], None]) -> None:
        """Leads until `stop`; `ready` is called at the first commit. Raises SchemaTooNew."""
        retry_s = RETRY_S_MIN
        dropped = False
        while not self._stopping:
            began_ms = self._clock.boot_ms()
            again, dropped = dropped, True
            try:
                turn = await self._load()
                if again:
                    # What was dropped is full of cycles.
                    forget()
                keep()
                await self._lead(turn)
                ready()
                await self._turns(turn)
                break
            except SchemaTooNew:
                raise
            except StoreError as failed:
                _log.error("the store failed: %s", failed)
                self._drop(f"the controller's store failed ({failed}); try again")
            except StepFailed as failed:
                _log.error("a bug: %s: %r", failed, failed.item, exc_info=failed.__cause__)
                self._blame(failed.item)
                self._drop("the controller goes on from its store; try again")
                continue
            except Exception:  # noqa: BLE001 (a restart would not mend it either)
                _log.exception("a bug: the controller goes on from its store")
                self._drop("the controller failed, and goes on from its store; try again")
            if self._clock.boot_ms() - began_ms >= GOOD_MS_MIN:
                retry_s = RETRY_S_MIN
            await self._read_only(retry_s)
            retry_s = min(2 * retry_s, RETRY_S_MAX)
        self._drop("the controller is stopping; try again")

    async def _load(self) -> Turn:
        loaded = await self._store.load()
        machine = Machine(self._settings, loaded.records)
        if machine.cluster.meta.schema > SCHEMA:
            raise SchemaTooNew(
                f"the store has schema {machine.cluster.meta.schema}, beyond {SCHEMA}: update Rota"
            )
        self._time_base_ms = machine.cluster.commit.now_ms
        self._boot_base_ms = self._clock.boot_ms()
        self._machine = machine
        self._users = machine.cluster.users
        return Turn(machine, self._store, loaded.fence, due=self._due)

    async def _lead(self, turn: Turn) -> None:
        first: list[Input] = [Lead()]
        if not turn.machine.cluster.meta.uuid:
            first.insert(0, Found(self._new_cluster))
        self._wake.set()
        await self._turn(turn, first)
        self.pace.begin()
        self._leading = True

    async def _turns(self, turn: Turn) -> None:
        wake_at_ms: int | None = 0
        while not self._stopping:
            await self._sleep(wake_at_ms)
            await self._gather()
            wake_at_ms = await self._turn(turn, self._arrived())

    async def _turn(self, turn: Turn, arrived: list[Input]) -> int | None:
        self._turning = True
        began_ns = self._piece_began_ns = time.perf_counter_ns()
        try:
            outcome = await turn.run(arrived, self.now_ms(), self._clock.wall_ms(), self._speak)
        finally:
            self._turning = False
        self.pace.turns += 1
        self.pace.turn_ns_max = max(self.pace.turn_ns_max, time.perf_counter_ns() - began_ns)
        self._users = turn.machine.cluster.users
        self._answer_reads(turn.machine)
        self._tell_watchers(turn.machine.cluster, outcome)
        return outcome.wake_at_ms

    async def _gather(self) -> None:
        """Lets what is about to arrive do so: one commit for many costs little more than for one."""
        for _ in range(GATHER_ROUNDS_MAX):
            count = self._inbox.qsize()
            await asyncio.sleep(0)
            if self._inbox.qsize() == count:
                return

    def _due(self) -> bool:
        """Whether the turn under way has computed for long without a break."""
        now_ns = time.perf_counter_ns()
        if now_ns - self._piece_began_ns < PIECE_NS_MAX:
            return False
        self._piece_began_ns = now_ns
        return True

    def _arrived(self, count_max: int = TURN_COUNT_MAX) -> list[Input]:
        arrived = [self._inbox.get_nowait() for _ in range(min(self._inbox.qsize(), count_max))]
        self._taken_count += len(arrived)
        # What a stream brought goes before its end; what others brought since does not.
        while self._closings and self._closings[0][0] <= self._taken_count:
            arrived.append(self._closings.popleft()[1])
        if self._inbox.empty():
            self._wake.clear()
        return arrived

    async def _sleep(self, wake_at_ms: int | None) -> None:
        """Until something arrives, or it is `wake_at_ms` in cluster time."""
        if self._wake.is_set():
            return
        late_s = None if wake_at_ms is None else max(0.0, (wake_at_ms - self.now_ms()) / 1000)
        try:
            async with asyncio.timeout(late_s):
                await self._wake.wait()
        except TimeoutError:
            return

    # ------------------------------------------------------------ after the commit

    def _speak(self, outcome: Outcome) -> Iterator[None]:
        for order in outcome.orders:
            assert self._nodes is not None
            self._nodes.carry_out(order)
            yield
        for reply in outcome.replies:
            waiting = self._waiting.tickets.get(reply.ticket)
            if waiting is not None and not waiting.done():
                waiting.set_result(reply.answer)

    def _answer_reads(self, machine: Machine) -> None:
        reads, self._waiting.reads = self._waiting.reads[::-1], []
        while reads:
            look, found = reads.pop()
            if not found.done():
                try:
                    found.set_result(look(machine))
                except Exception as error:  # noqa: BLE001 (whatever it is, it is the reader's)
                    found.set_exception(error)
            # By its traceback the error keeps what is named here: a cycle.
            del look, found

    def _tell_watchers(self, cluster: Cluster, outcome: Outcome) -> None:
        if outcome.events:
            for news in self._waiting.event_watchers:
                news.set()
        if self._waiting.job_watchers:
            for job in touched(cluster, outcome, self._waiting.job_watchers.keys()):
                for news in self._waiting.job_watchers[job]:
                    news.set()

    # ------------------------------------------------------------ when a turn fails

    def _blame(self, item: Input) -> None:
        """Tells who sent what could not be taken, so that it does not come again at once."""
        if isinstance(item, FromNode):
            assert self._nodes is not None
            self._nodes.keep_off(item.node)
            return
        waiting = self._waiting.tickets.get(getattr(item, "ticket", 0))
        if waiting is not None and not waiting.done():
            waiting.set_exception(Unable(f"a bug: {type(item).__name__} could not be carried out"))

    def _drop(self, why: str) -> None:
        """Forgets the machine, and tells all who wait to try again."""
        self._leading = False
        self._machine = None
        self._why_not = why
        assert self._nodes is not None
        self._nodes.close_all(why)
        self._arrived(INBOX_COUNT_MAX)
        waiting = [*self._waiting.tickets.values(), *(found for _, found in self._waiting.reads)]
        self._waiting.reads.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(Unavailable(why))
        for news in self._waiting.watchers():
            news.set()

    async def _read_only(self, seconds: float) -> None:
        """Waits before the next try to lead; what can be loaded can be read meanwhile."""
        try:
            await self._load()
        except StoreError as failed:
            _log.error("the store cannot be read: %s", failed)
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                while not self._stopping:
                    await self._wake.wait()
                    self._arrived(INBOX_COUNT_MAX)
        except TimeoutError:
            return


def touched(cluster: Cluster, outcome: Outcome, jobs: Collection[int]) -> set[int]:
    """Those of the jobs of which something changed."""
    by_key = {f"{job:016x}": job for job in jobs}
    found: set[int | None] = set()
    for key in outcome.changes:
        # A turn may change very many: they are not taken apart.
        if key.startswith("cfg/job/"):
            found.add(by_key.get(key[8:24]))
        elif key.startswith("st/job/"):
            found.add(by_key.get(key[7:23]))
        elif "/alloc/" in key:
            _, node, _, allocation = key.split("/")
            of_node = cluster.nodes.get(node)
            held = of_node.allocations.get(int(allocation, 16)) if of_node is not None else None
            if held is not None and held.desired.job in jobs:
                found.add(held.desired.job)
    return {job for job in found if job is not None}

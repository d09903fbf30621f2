"""A simulated controller: the real machine and the real turn, over a failing disk and network."""

from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

from rota.controller.turn import Turn
from rota.core.cluster.inputs import Close, Found, FromNode, Input, Lead, Outcome, Reply, Send, StreamClosed
from rota.core.cluster.soft import Settings
from rota.core.cluster.step import Machine
from rota.core.model.protocol import Up
from rota.sim.disk import Crash, Disk, Values
from rota.sim.network import Stream
from rota.sim.world import World
from rota.store.port import StoreError

TURN_MS_MAX = 5

T = TypeVar("T")


class Watcher(Protocol):
    """Who looks on: see `checkers`."""

    def turned(self, leader: "Leader", outcome: Outcome) -> None: ...

    def speaks(self, leader: "Leader", order: Send | Reply) -> None: ...

    def loaded(self, leader: "Leader") -> None: ...


class Leader:
    """A controller that believes that it leads, until a commit says otherwise or it dies."""

    def __init__(
        self,
        world: World,
        disk: Disk,
        settings: Settings,
        name: str,
        watcher: Watcher,
        on_reply: Callable[[Reply], None],
        on_death: Callable[["Leader"], None],
    ) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.stopped = False
        self._watcher = watcher
        self._on_reply = on_reply
        self._on_death = on_death
        self._streams: dict[int, Stream] = {}
        loaded = _now(disk.load())
        self.machine = Machine(settings, loaded.records)
        self._turn = Turn(self.machine, disk, loaded.fence, Values)
        self._led_since_ms = world.now_ms
        commit = self.machine.cluster.commit
        self._base_ms = commit.now_ms
        self._inbox: list[Input] = [] if loaded.records else [Found("sim")]
        self._inbox.append(Lead())
        self._scheduled = False
        self._wake_at_ms = 0
        watcher.loaded(self)
        self._soon()

    def __repr__(self) -> str:
        return self.name

    @property
    def now_ms(self) -> int:
        """Cluster time, as it sees it."""
        return self._base_ms + self.world.now_ms - self._led_since_ms

    # ------------------------------------------------------------ what arrives

    def put(self, item: Input) -> None:
        """An input from a user."""
        if self.alive:
            self._inbox.append(item)
            self._soon()

    def waits(self, kind: type[Input]) -> bool:
        """Whether such an input has come and was not taken yet."""
        return any(isinstance(item, kind) for item in self._inbox)

    def accept(self, stream: Stream) -> None:
        """A node has dialled."""
        self._streams[stream.number] = stream

    def take_up(self, stream: Stream, message: Up) -> None:
        """From a node."""
        self.put(FromNode(stream.node, stream.number, message))

    def take_closed(self, stream: Stream) -> None:
        """A node's stream has ended."""
        self._streams.pop(stream.number, None)
        self.put(StreamClosed(stream.node, stream.number))

    # ------------------------------------------------------------ turns

    def _soon(self) -> None:
        if not self._scheduled and not self.stopped:
            self._scheduled = True
            delay_ms = self.world.chance.randint(0, TURN_MS_MAX)
            self.world.after(delay_ms, f"{self.name} turns", self._run)

    def _run(self) -> None:
        self._scheduled = False
        if not self.alive or self.stopped:
            return
        if self.world.maybe(0.002):
            self.die("dies before a turn")
            return
        arrived, self._inbox = self._inbox, []
        now_ms = self.now_ms
        try:
            outcome = _now(self._turn.run(arrived, now_ms, self.world.wall_ms, self._speak))
        except StoreError as error:
            message = str(error)
            self.die(f"gives up: {message}")
            return
        except Crash:
            self.die("died in its turn")
            return
        self._watcher.turned(self, outcome)
        if outcome.wake_at_ms is not None:
            self._wake(self.world.now_ms + max(outcome.wake_at_ms - now_ms, 1))

    def _wake(self, at_ms: int) -> None:
        if at_ms == self._wake_at_ms:
            return
        self._wake_at_ms = at_ms

        def wake() -> None:
            if at_ms == self._wake_at_ms and self.alive:
                self._wake_at_ms = 0
                self._soon()
            else:
                self.world.void()

        self.world.after(at_ms - self.world.now_ms, f"{self.name} wakes", wake)

    def _speak(self, outcome: Outcome) -> Iterator[None]:
        for order in outcome.orders:
            yield
            if isinstance(order, Close):
                stream = self._streams.pop(order.stream, None)
                if stream is not None:
                    stream.end_by_server()
            else:
                self._watcher.speaks(self, order)
                stream = self._streams.get(order.stream)
                if stream is not None:
                    stream.send_down(order.message)
            if self.world.maybe(0.002):
                raise Crash
        for reply in outcome.replies:
            self._watcher.speaks(self, reply)
            self._on_reply(reply)
            if self.world.maybe(0.002):
                raise Crash

    # ------------------------------------------------------------ ends

    def die(self, how: str) -> None:
        """The process is gone; its streams end."""
        if self.alive:
            self.world.say(lambda: f"{self.name} {how}")
            self.alive = False
            for stream in list(self._streams.values()):
                stream.end_by_server()
            self._streams.clear()
            self._on_death(self)

    def freeze(self) -> None:
        """SIGSTOP: its clock goes on, and it does not."""
        self.stopped = True

    def thaw(self) -> None:
        """SIGCONT: it goes on as if nothing had been, and may have been followed by another."""
        if self.alive and self.stopped:
            self.stopped = False
            self._scheduled = False
            self._soon()


def _now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that waits for nothing: the disk answers at once."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("the turn waited")

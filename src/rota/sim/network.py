"""Streams between nodes and controllers. They lose, delay, double, reorder and replay messages.

A stream of a real network does none of that but end. The protocol must be right all the same, so
that no proxy, bug or attack can make it wrong.
"""

from typing import Protocol

from rota.core.model.protocol import Down, Up
from rota.sim.words import describe
from rota.sim.world import World

DELAY_MS_MAX = 20
LATE_MS_MAX = 6_000
REPLAYED_COUNT_MAX = 200


class Server(Protocol):
    """A controller's end."""

    def take_up(self, stream: "Stream", message: Up) -> None: ...

    def take_closed(self, stream: "Stream") -> None: ...


class Dialler(Protocol):
    """A node's end."""

    def take_down(self, stream: "Stream", message: Down) -> None: ...

    def take_hung_up(self, stream: "Stream") -> None: ...


class Stream:
    """One stream, numbered once and never again. Each end learns of the other's end after a delay."""

    def __init__(self, network: "Network", number: int, node: str, dialler: Dialler, server: Server) -> None:
        self.number = number
        self.node = node
        self._network = network
        self._dialler = dialler
        self._server = server
        self.node_open = True
        self.server_open = True
        self._up_at_ms = 0
        self._down_at_ms = 0

    def __repr__(self) -> str:
        return f"stream {self.number} of {self.node}"

    def send_up(self, message: Up) -> None:
        """From the node."""
        self._network.carry(self, message, up=True)

    def send_down(self, message: Down) -> None:
        """From the controller."""
        self._network.carry(self, message, up=False)

    def arrive_up(self, message: Up) -> None:
        """At the controller."""
        if self.server_open:
            self._server.take_up(self, message)

    def arrive_down(self, message: Down) -> None:
        """At the node."""
        if self.node_open:
            self._dialler.take_down(self, message)

    def end_by_node(self) -> None:
        """The node hangs up, or is gone; the controller may never learn of it."""
        if self.node_open:
            self.node_open = False
            world = self._network.world
            if not world.maybe(0.3):
                at_ms = self.not_before(world.now_ms + world.chance.randint(1, DELAY_MS_MAX), up=True)
                world.after(at_ms - world.now_ms, lambda: f"{self} ends", self._tell_server)

    def end_by_server(self) -> None:
        """The controller hangs up, or is gone."""
        if self.server_open:
            self.server_open = False
            world = self._network.world
            if not world.maybe(0.3):
                at_ms = self.not_before(world.now_ms + world.chance.randint(1, DELAY_MS_MAX), up=False)
                world.after(at_ms - world.now_ms, lambda: f"{self} ends", self._tell_node)

    def _tell_server(self) -> None:
        if self.server_open:
            self.server_open = False
            self._server.take_closed(self)

    def _tell_node(self) -> None:
        if self.node_open:
            self.node_open = False
            self._dialler.take_hung_up(self)

    def not_before(self, at_ms: int, *, up: bool) -> int:
        """Keeps the order of a direction."""
        if up:
            self._up_at_ms = max(self._up_at_ms, at_ms)
            return self._up_at_ms
        self._down_at_ms = max(self._down_at_ms, at_ms)
        return self._down_at_ms


class Network:
    """Everything on its way."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._streams = 0
        # Nodes cut off: nothing of this direction arrives.
        self.deaf_up: set[str] = set()
        self.deaf_down: set[str] = set()
        self._past: list[tuple[str, bool, Up | Down]] = []

    def dial(self, node: str, dialler: Dialler, server: Server) -> Stream:
        """A new stream."""
        self._streams += 1
        return Stream(self, self._streams, node, dialler, server)

    def carry(self, stream: Stream, message: Up | Down, *, up: bool) -> None:
        """Takes a message to the other end, if nothing comes between."""
        world = self.world
        if len(self._past) < REPLAYED_COUNT_MAX:
            self._past.append((stream.node, up, message))
        elif world.chance.random() < 0.1:
            self._past[world.chance.randrange(REPLAYED_COUNT_MAX)] = (stream.node, up, message)
        if world.maybe(0.01):
            world.say(lambda: f"lost: {_said(message)} on {stream}")
            return
        at_ms = stream.not_before(world.now_ms + world.chance.randint(1, DELAY_MS_MAX), up=up)
        if world.maybe(0.01):
            at_ms = world.now_ms + world.chance.randint(1, LATE_MS_MAX)
            if world.chance.random() < 0.5:
                stream.not_before(at_ms, up=up)
        self._deliver(stream, message, at_ms, up=up)
        if world.maybe(0.01):
            self._deliver(stream, message, at_ms + world.chance.randint(0, 50), up=up)
        if world.maybe(0.01):
            self._replay(stream, message, up=up)

    def _replay(self, stream: Stream, message: Up | Down, *, up: bool) -> None:
        """Something from long ago; often the like of what is said now."""
        fitting = [old for node, was_up, old in self._past if node == stream.node and was_up is up]
        if self.world.chance.random() < 0.5:
            fitting = [old for old in fitting if _kind(old) is _kind(message)]
        if fitting:
            old = self.world.chance.choice(fitting)
            self._deliver(stream, old, self.world.now_ms + self.world.chance.randint(1, DELAY_MS_MAX), up=up)

    def _deliver(self, stream: Stream, message: Up | Down, at_ms: int, *, up: bool) -> None:
        def arrive() -> None:
            if stream.node in (self.deaf_up if up else self.deaf_down):
                return
            if up:
                stream.arrive_up(message)  # type: ignore[arg-type]
            else:
                stream.arrive_down(message)  # type: ignore[arg-type]

        self.world.after(at_ms - self.world.now_ms, lambda: f"{stream}: {_said(message)}", arrive)


def _kind(message: Up | Down) -> type:
    return type(message.body if isinstance(message, Down) else message)


def _said(message: Up | Down) -> str:
    if isinstance(message, Down):
        place = f"session {message.session} message {message.number}, term {message.term}"
        return f"{describe(message.body)}, {place}"
    return describe(message)

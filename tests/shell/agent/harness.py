"""A real supervisor process, with a test in the place of the link and the leader."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from rota.agent import journal
from rota.agent.codec import Codec, Frames, frame
from rota.agent.link_frames import Came, Closed, End, FromLink, Opened, Say, ToLink
from rota.core.model.columns import exited
from rota.core.model.protocol import (
    Ack,
    AllocationReport,
    Body,
    Down,
    Ended,
    Grant,
    Heartbeat,
    HeartbeatAck,
    Hello,
    Inventory,
    Lease,
    Ranges,
    Report,
    Slot,
    Template,
    Up,
    Welcome,
)
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause
from rota.core.node.entries import Entry
from rota.core.node.indices import each
from tests.support.files import WAIT_S_MAX

SHAPE = Resources(cpu=1000)
U = TypeVar("U")

_FROM_LINK: Codec[FromLink] = Codec(FromLink)
_TO_LINK: Codec[ToLink] = Codec(ToLink)


class Agent:
    """One supervisor, its home, and the leader's voice. It acknowledges heartbeats and reports by itself."""

    def __init__(
        self,
        home: Path,
        *options: str,
        environment: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.home = home
        self._options = options
        self._prefix = prefix
        self._environment = environment or {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._link: socket.socket | None = None
        self._frames = Frames()
        # A supervisor that cleans up knows tasks by their node's name, their job and index, also those of
        # another test that runs at the same time.
        self.node_id = str(uuid.uuid4())
        self.name = f"n-{self.node_id[:8]}"
        self.session = self.number = self.stream = self.grants = 0
        self.acknowledged = 0
        # As a leader of few nodes says. Three of them unanswered are silence, and a busy machine may keep a
        # test from answering for a second.
        self.heartbeat_ms = 5_000
        self.lost_after_ms = 300_000
        self.inventory = Inventory()
        self.said: list[Up] = []
        self.told: list[ToLink] = []
        self.reports: list[AllocationReport] = []
        self.ended: dict[tuple[int, int], Ended] = {}
        self.succeeded: set[tuple[int, int]] = set()
        self.dropped: set[tuple[int, int]] = set()
        self.started: set[tuple[int, int]] = set()
        self.process: subprocess.Popen[bytes] | None = None

    # ------------------------------------------------------------ the process

    def start(self) -> "Agent":
        """Starts it, and waits until its link is there."""
        relay = str(Path(__file__).with_name("relay_link.py"))
        port = str(self._listener.getsockname()[1])
        command = [sys.executable, "-m", "rota.agent", "--home", str(self.home), *self._options]
        command += [
            "--pid-file",
            str(self.home / "agent.pid"),
            "--link-pid-file",
            str(self.home / "link.pid"),
        ]
        command += ["--link", sys.executable, relay, "--home", str(self.home), "--test", port]
        # The arguments of the link begin with dashes too.
        at = command.index("--link")
        command[at:] = [f"--link={word}" for word in command[at + 1 :]]
        self.process = subprocess.Popen(
            [*self._prefix, *command], env={**os.environ, **self._environment}, stdin=subprocess.DEVNULL
        )
        self.accept()
        return self

    def accept(self) -> None:
        """Waits for the (next) link."""
        if self._link is not None:
            self._link.close()
        self._listener.settimeout(WAIT_S_MAX)
        self._link, _ = self._listener.accept()
        self._link.settimeout(WAIT_S_MAX)
        self._frames = Frames()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(WAIT_S_MAX)

    def restart(self) -> "Agent":
        """A new process on the same home; the session is over."""
        return self.start()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Asks it to end; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Listens until it has ended; its exit code."""
        assert self.process is not None
        while self.listen():
            pass
        return self.process.wait(WAIT_S_MAX)

    def close(self) -> None:
        """Whatever is left."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(AssertionError, TimeoutError):
                self.wait()
            if self.process.poll() is None:
                self.kill()
        if self._link is not None:
            self._link.close()
        self._listener.close()

    # ------------------------------------------------------------ the link

    def _send(self, message: FromLink) -> None:
        assert self._link is not None
        self._link.sendall(frame(_FROM_LINK.encode(message)))

    def open(self) -> Hello:
        """Opens a stream; the node's greeting."""
        self.stream += 1
        self._send(Opened(self.stream))
        return self.hear(Hello)

    def connect(self) -> Hello:
        """Opens a stream and a session."""
        hello = self.open()
        self.inventory = hello.inventory
        self.session += 1
        self.number = 0
        times = (self.heartbeat_ms, self.lost_after_ms, hello.sent_ms)
        self.down(Welcome(self.node_id, self.name, "", 1, self.acknowledged, *times))
        return hello

    def open_in_vain(self) -> None:
        """Opens a stream, and waits until the node has ended it."""
        self.stream += 1
        self._send(Opened(self.stream))
        self.until(lambda: [one for one in self.told if isinstance(one, End) and one.stream == self.stream])

    def hang_up(self) -> None:
        self._send(Closed(self.stream, "the test says so"))

    def down(self, *bodies: Body) -> None:
        """The leader says these."""
        for body in bodies:
            self.number += 1
            self._send(Came(self.stream, Down(1, self.session, self.number, body)))

    def listen(self) -> bool:
        """Takes what comes next; False at the end of the link."""
        assert self._link is not None
        try:
            data = self._link.recv(65536)
        except ConnectionError:
            data = b""
        for one in self._frames.feed(data):
            self._take(_TO_LINK.decode(one))
        return bool(data)

    def _take(self, message: ToLink) -> None:
        if isinstance(message, End):
            self.told.append(message)
            self._send(Closed(message.stream, message.reason))
        elif not isinstance(message, Say):
            self.told.append(message)
        elif message.stream == self.stream:
            self.said.append(message.message)
            if isinstance(message.message, Heartbeat):
                self.down(HeartbeatAck(message.message.sent_ms))
            elif isinstance(message.message, Report):
                self._report(message.message)

    def _report(self, report: Report) -> None:
        assert report.first_sequence == self.acknowledged + 1, report
        self.acknowledged = report.last_sequence
        for part in report.allocations:
            self.reports.append(part)
            for ended in (*exited(part.exits), *part.ended):
                self._once(part.allocation, ended.index)
                if ended.cause is Cause.EXIT and not ended.code:
                    self.succeeded.add((part.allocation, ended.index))
                else:
                    self.ended[part.allocation, ended.index] = ended
            self.dropped |= {(part.allocation, index) for index in each(part.dropped)}
            self.started |= {(part.allocation, index) for index in each(part.started)}
        self.down(Ack(report.last_sequence))

    def _once(self, allocation: int, index: int) -> None:
        place = (allocation, index)
        assert place not in self.succeeded, f"{place} ended twice"
        assert place not in self.ended, f"{place} ended twice"

    def hear(self, kind: type[U]) -> U:
        """Listens until a message of this kind comes."""
        seen = len(self.said)
        while True:
            for message in self.said[seen:]:
                if isinstance(message, kind):
                    return message
            seen = len(self.said)
            assert self.listen(), f"the link ended, and no {kind.__name__} had come"

    def until(self, found: Callable[[], U | None]) -> U:
        """Listens until something holds."""
        while not (seen := found()):
            assert self.listen(), "the link ended"
        return seen

    def until_ended(self, count: int) -> None:
        """Listens until so many attempts have ended."""
        self.until(lambda: len(self.succeeded) + len(self.ended) >= count)

    # ------------------------------------------------------------ work

    def lease(
        self, slots: int = 1, lease: int = 1, shape: Resources = SHAPE, devices: tuple[str, ...] = ()
    ) -> None:
        self.down(Lease(lease, shape, tuple(Slot(slot, devices) for slot in range(slots)), "default"))

    def grant(
        self,
        spec: JobSpec,
        indices: Ranges = ((0, 0),),
        *,
        allocation: int = 10,
        job: int = 0,
        lease: int = 1,
        account: str = "",
        lines: tuple[str, ...] = (),
        never_stall: bool = True,
    ) -> None:
        """A template and a grant; where no job is named it has the allocation's number."""
        self.grants += 1
        job = job or allocation
        count = indices[-1][1] + 1
        self.down(
            Template(job, 1, spec, count, account),
            Grant(allocation, lease, job, 1, self.grants, 1, indices, lines, never_stall),
        )

    def run(self, spec: JobSpec, *, allocation: int = 10, account: str = "") -> Ended | None:
        """Runs one task to its end; None where it succeeded."""
        self.grant(spec, allocation=allocation, account=account)
        place = (allocation, 0)
        self.until(lambda: place in self.succeeded or place in self.ended)
        return self.ended.get(place)

    def output(self, allocation: int = 10, index: int = 0, stream: str = "out") -> str:
        """What a task of a job with the allocation's number wrote."""
        folder = self.home / "out" / str(allocation) / str(allocation) / str(index // 1000)
        path = folder / f"{index}.1.{stream}"
        return path.read_text() if path.exists() else ""

    def entries(self) -> list[Entry]:
        """What stands in the journal."""
        return journal.read(self.home)


@contextlib.contextmanager
def agent(
    home: Path,
    *options: str,
    environment: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
) -> Iterator[Agent]:
    """An agent in a session with a lease of two slots, ended when the block is."""
    made = Agent(home, *options, environment=environment, prefix=prefix)
    try:
        made.start()
        made.connect()
        made.lease(2)
        yield made
    finally:
        made.close()

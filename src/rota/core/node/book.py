"""The pen of a step: what the machine's parts write, want done and say, and the time it is."""

from typing import Generic, Protocol, TypeVar

from rota.core.model.protocol import Up
from rota.core.node.entries import Entry, Session
from rota.core.node.inputs import Command, Outcome


class Memory(Protocol):
    """What a node remembers, as far as its talk with the leader needs it; `Held` is one."""

    journal_id: str
    boot_id: str
    sequence: int
    acknowledged: int
    session: Session

    def apply(self, entry: Entry) -> None:
        """Makes true what an entry says: at least a Session, and an Acknowledged."""
        ...


M = TypeVar("M", bound=Memory)


class Book(Generic[M]):
    """Shared by the parts of one machine."""

    def __init__(self, held: M) -> None:
        self.held = held
        self.now_ms = 0
        self.wall_ms = 0
        self._outcome = Outcome()

    def open(self, now_ms: int, wall_ms: int) -> None:
        """A step begins. Boot-clock and wall-clock milliseconds."""
        self.now_ms = now_ms
        self.wall_ms = wall_ms
        self._outcome = Outcome()

    def write(self, entry: Entry) -> None:
        """Makes an entry true, and has it written down."""
        self.held.apply(entry)
        self._outcome.entries.append(entry)

    def command(self, command: Command) -> None:
        """Has something done once all is written down."""
        self._outcome.commands.append(command)

    def say(self, message: Up) -> None:
        """Sends a message up once all is done."""
        self._outcome.messages.append(message)

    def unsay(self) -> None:
        """The stream that messages of this step were for is gone."""
        self._outcome.messages.clear()

    def close(self, wake_at_ms: int | None) -> Outcome:
        """The step is over."""
        self._outcome.wake_at_ms = wake_at_ms
        return self._outcome

"""The pen of a step: what the machine's parts write, want done and say, and the time it is."""

from rota.core.model.protocol import Up
from rota.core.node.entries import Entry
from rota.core.node.held import Held
from rota.core.node.inputs import Command, Outcome


class Book:
    """Shared by the parts of one machine."""

    def __init__(self, held: Held) -> None:
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

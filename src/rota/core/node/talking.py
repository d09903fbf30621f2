"""The stream: who may command this node, what it says of itself, and when.

A stream is greeted with Hello and what is held; the Welcome that answers this Hello opens a session.
In a session messages count 1, 2, 3, ...: one that comes twice is ignored, a gap ends the stream. So
does silence. Everything else, from other sessions and lower terms, is as if it had not come.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Generic
from zlib import crc32

from rota.core.model.columns import count
from rota.core.model.protocol import (
    PROTOCOL_VERSION,
    Body,
    Down,
    Goodbye,
    Heartbeat,
    Hello,
    Holding,
    HoldingEnd,
    Inventory,
    Refused,
    Report,
    Welcome,
)
from rota.core.node.book import Book, M
from rota.core.node.entries import Acknowledged
from rota.core.node.inputs import CloseStream

GREETING_MS_MAX = 10_000
# Silence that ends a stream, in heartbeats.
SILENT_HEARTBEATS_MAX = 3
# Until a leader with older records than were obeyed is asked again.
OLDER_RETRY_MS = 30_000
REPORTS_IN_FLIGHT_MAX = 4
# While a report is on its way, further entries wait this long for company.
REPORT_WAIT_MS_MAX = 10
# After a report of so many ends the next one waits so long, also where nothing is on its way, while more of
# them are to come: a leader takes many at once for little more than one.
MANY_ENDS = 64
BUSY_WAIT_MS_MAX = 100
# Acknowledgements are written down when so many entries can be forgotten, or all.
ACKNOWLEDGED_COUNT_MIN = 256
# A heartbeat comes earlier or later by up to this share: nodes that began together do not go on so.
JITTER_SHARE = 10


class Talk(Generic[M]):
    """One stream at a time, and its session."""

    def __init__(
        self,
        book: Book[M],
        cluster: str,
        holding: Callable[[], Iterator[Holding]],
        report: Callable[[int, int], Report],
    ) -> None:
        """`holding`: what is held, in pages. `report`: of the entries from the first to the last at most."""
        self._holding = holding
        self._reported = report
        self._book = book
        self._held = book.held
        self._cluster = cluster
        self._hello_ms = -1
        self._hello_sequence = 0
        # When the last heartbeat was sent that the leader has acknowledged. A Welcome is none: it shows
        # that a Hello was heard, and one that leads to nothing makes nobody wait for this node.
        self._contact_ms: int | None = None
        # As the last Welcome said; 0 since the start.
        self.lost_after_ms = 0
        self._heartbeat_ms = 0
        self._alive_ms = 0
        self._leaving = False
        self._close()

    def _close(self) -> None:
        self.stream = 0
        self.greeting = False
        self.open = False
        self._number = 0
        self._sent_sequence = 0
        self._acknowledged = 0
        self._in_flight: deque[int] = deque()
        self._reported_ms = 0
        # Whether the last report was of many ends; and whether tasks run, whose ends are to be told.
        self._busy = False
        self.more = False
        self._heartbeat_sent_ms = -1
        self._beat_at_ms = 0
        self._said_leaving = False

    # ------------------------------------------------------------ the stream

    def opened(self, stream: int, inventory: Inventory) -> None:
        """Says who this is and what it holds, all of one instant."""
        self._book.unsay()
        self._close()
        held = self._held
        self.stream = stream
        self.greeting = True
        # Times of Hellos differ, so that a Welcome answers one alone.
        self._hello_ms = max(self._book.now_ms, self._hello_ms + 1)
        self._hello_sequence = held.sequence
        session = held.session
        self._book.say(
            Hello(
                PROTOCOL_VERSION,
                self._cluster,
                session.incarnation,
                held.boot_id,
                held.journal_id,
                held.sequence,
                session.term,
                inventory,
                self._hello_ms,
                held.acknowledged,
                self.lost_after_ms,
            )
        )
        pages = list(self._holding())
        for page in pages:
            self._book.say(page)
        self._book.say(HoldingEnd(len(pages)))

    def closed(self) -> None:
        """The stream is gone."""
        self._book.unsay()
        self._close()

    def hang_up(self, reason: str, retry_ms: int = 0, *, final: bool = False) -> None:
        """Ends the stream."""
        stream = self.stream
        self.closed()
        if stream:
            self._book.command(CloseStream(stream, reason, retry_ms, final))

    # ------------------------------------------------------------ what comes

    def accept(self, down: Down) -> Body | None:
        """The message if it is to be obeyed. Refused is obeyed here; Welcome is also given back."""
        older = down.term < self._held.session.term
        if self.greeting:
            match down.body:
                case Welcome() if not older:
                    return down.body if self._welcome(down, down.body) else None
                case Refused() if down.body.hello_sent_ms == self._hello_ms and older:
                    self._refused_by_an_older_leader(down.body)
                case Refused() if down.body.hello_sent_ms == self._hello_ms:
                    self._refused(down.body)
            return None
        if older:
            return None
        if not self.open or down.session != self._held.session.session or down.number <= self._number:
            return None
        if down.number > self._number + 1:
            self.hang_up(f"messages {self._number + 1} to {down.number - 1} of the session were lost")
            return None
        self._number = down.number
        if down.term > self._held.session.term:
            self._book.write(replace(self._held.session, term=down.term))
        if isinstance(down.body, Refused):
            self._refused(down.body)
            return None
        return None if isinstance(down.body, Welcome) else down.body

    def _refused(self, refused: Refused) -> None:
        self.hang_up(
            f"the controller refused: {refused.message}", refused.retry_ms, final=not refused.retry_ms
        )

    def _refused_by_an_older_leader(self, refused: Refused) -> None:
        """Not to be obeyed, and no use to be asked again soon: it has committed that, so it truly leads."""
        self.hang_up(
            f"the controller refused: {refused.message}; it has older records than this node has obeyed, "
            "so this node goes on trying; if they are there to stay (its store was removed, say), stop this "
            "agent, remove its home, and let it join again",
            max(refused.retry_ms, OLDER_RETRY_MS),
        )

    def _welcome(self, down: Down, welcome: Welcome) -> bool:
        """Opens the session, where this answers the last Hello and comes from the cluster as it is now."""
        held, last = self._held, self._held.session
        if welcome.hello_sent_ms != self._hello_ms or down.session <= last.session:
            return False
        if welcome.incarnation < last.incarnation or (self._cluster and welcome.cluster != self._cluster):
            return False
        if welcome.acknowledged > held.sequence:
            self.hang_up(
                f"the controller knows entries up to {welcome.acknowledged} of this node's journal, which "
                f"ends at {held.sequence}: the agent's home is an old copy; remove its journal",
                final=True,
            )
            return False
        self._book.write(
            replace(
                last,
                term=down.term,
                session=down.session,
                incarnation=welcome.incarnation,
                node_id=welcome.node_id,
                node_name=welcome.node_name,
            )
        )
        self.greeting = False
        self.open = True
        self._number = down.number
        self._heartbeat_ms = welcome.heartbeat_ms
        self.lost_after_ms = welcome.lost_after_ms
        self._alive_ms = self._book.now_ms
        # The first one is due at once.
        self._beat_at_ms = self._book.now_ms
        self._sent_sequence = max(welcome.acknowledged, held.acknowledged)
        self._acknowledge(self._sent_sequence)
        return True

    def acknowledge(self, sequence: int) -> None:
        """The leader has committed everything up to here."""
        if sequence > self._sent_sequence:
            sent = self._sent_sequence
            self.hang_up(f"the controller acknowledged entry {sequence}, and {sent} was the last sent")
        elif sequence > self._acknowledged:
            self._acknowledge(sequence)

    def _acknowledge(self, sequence: int) -> None:
        self._acknowledged = sequence
        while self._in_flight and self._in_flight[0] <= sequence:
            self._in_flight.popleft()
        if sequence > self._held.acknowledged and (
            sequence == self._held.sequence or sequence - self._held.acknowledged >= ACKNOWLEDGED_COUNT_MIN
        ):
            self._book.write(Acknowledged(sequence))

    def heard(self, sent_ms: int) -> None:
        """The leader has seen the heartbeat that was sent then."""
        if sent_ms <= self._heartbeat_sent_ms:
            self._contact_ms = max(self._contact_ms or 0, sent_ms)
            self._alive_ms = max(self._alive_ms, sent_ms)

    # ------------------------------------------------------------ what goes

    @property
    def fence_ms(self) -> int | None:
        """Until when the leader does not call this node lost; None if it never acknowledged a heartbeat."""
        return None if self._contact_ms is None else self._contact_ms + self.lost_after_ms

    @property
    def settled(self) -> bool:
        """Whether the leader knows all, or nobody is there to tell."""
        return not self.greeting and (not self.open or self._acknowledged == self._held.sequence)

    def say(self) -> None:
        """Sends the reports and the heartbeat that are due, or gives a silent stream up."""
        now_ms = self._book.now_ms
        if self.greeting and now_ms >= self._hello_ms + GREETING_MS_MAX:
            self.hang_up("the controller did not answer the greeting")
        if not self.open:
            return
        if now_ms >= self._silence_ms:
            self.hang_up("the controller has fallen silent")
            return
        if now_ms >= self._beat_at_ms or self._leaving > self._said_leaving:
            # Ahead of the reports: what they give back must not be granted to one that leaves.
            self._heartbeat_sent_ms = now_ms
            self._beat_at_ms = now_ms + self._jittered(self._heartbeat_ms)
            self._said_leaving = self._leaving
            self._book.say(Heartbeat(now_ms, self._sent_sequence, leaving=self._leaving))
        while self._report_ms() is not None and self._report_due(now_ms):
            self._report()

    @property
    def _silence_ms(self) -> int:
        return self._alive_ms + SILENT_HEARTBEATS_MAX * self._heartbeat_ms

    def _jittered(self, beat_ms: int) -> int:
        """Another time for each heartbeat of each node, drawn by a checksum: there is no chance in here."""
        spread_ms = beat_ms // JITTER_SHARE
        drawn = crc32(f"{self._held.journal_id} {self._heartbeat_sent_ms}".encode())
        return beat_ms - spread_ms + drawn % (2 * spread_ms + 1)

    def _report_ms(self) -> int | None:
        """When the next report may go; None where nothing is to be said, or too much is on its way."""
        if self._sent_sequence >= self._held.sequence or len(self._in_flight) >= REPORTS_IN_FLIGHT_MAX:
            return None
        if self._busy and self.more:
            return self._reported_ms + BUSY_WAIT_MS_MAX
        return self._reported_ms + REPORT_WAIT_MS_MAX if self._in_flight else self._book.now_ms

    def _report_due(self, now_ms: int) -> bool:
        at_ms = self._report_ms()
        return at_ms is not None and now_ms >= at_ms

    def _report(self) -> None:
        first = self._sent_sequence + 1
        # What Hello counted as said is told apart from what came after it.
        last_max = self._hello_sequence if first <= self._hello_sequence else self._held.sequence
        message = self._reported(first, last_max)
        self._book.say(message)
        self._sent_sequence = message.last_sequence
        self._in_flight.append(message.last_sequence)
        self._reported_ms = self._book.now_ms
        ends = sum(count(part.exits) for part in message.allocations)
        # What did not fit into this one waits no longer.
        self._busy = ends >= MANY_ENDS and message.last_sequence == self._held.sequence

    def leave(self) -> None:
        """Says from now on that the node is about to go."""
        self._leaving = True

    def say_goodbye(self, reason: str) -> None:
        """The last message."""
        if self.open:
            self._book.say(Goodbye(reason, self._held.sequence))

    def next_ms(self) -> int | None:
        """When something is due."""
        if self.greeting:
            return self._hello_ms + GREETING_MS_MAX
        if not self.open:
            return None
        times = [self._silence_ms, self._beat_at_ms]
        report_ms = self._report_ms()
        if report_ms is not None:
            times.append(report_ms)
        return min(times)

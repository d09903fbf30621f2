"""Entries of the journal as the leader is told of them, and what is held as pages."""

from collections.abc import Iterable, Iterator

from rota.core.model.columns import columns_of
from rota.core.model.protocol import (
    AllocationReport,
    Ended,
    HeldAllocation,
    HeldLease,
    Holding,
    Ranges,
    Report,
    Resized,
    Restarted,
)
from rota.core.model.states import Cause
from rota.core.node.entries import Drop, End, Ends, Reported, Resize, Start
from rota.core.node.held import Held
from rota.core.node.indices import Indices, normal

# Below the limit of a message, since the sizes here are estimates from above.
REPORT_BYTES_MAX = 200 * 1024
REPORT_ENTRIES_MAX = 4_096
PAGE_BYTES_MAX = 200 * 1024
_PIECE_RANGES_MAX = 4_096

_RANGE_BYTES = 12
_ALLOCATION_BYTES = 64
_ATTEMPT_BYTES = 64


def size_bytes(entry: Reported) -> int:
    """At most so many bytes of a Report."""
    match entry:
        case Start():
            return _RANGE_BYTES + _ALLOCATION_BYTES
        case End():
            return _ATTEMPT_BYTES + _ALLOCATION_BYTES + 4 * len(entry.ended.message)
        case Ends():
            return _ATTEMPT_BYTES * len(entry.index) + _ALLOCATION_BYTES
        case Drop():
            return _RANGE_BYTES * len(entry.indices) + _ALLOCATION_BYTES
        case Resize():
            return 6 * len(entry.freed) + _ALLOCATION_BYTES


class _Folded:
    """What consecutive entries come to, for one allocation."""

    def __init__(self) -> None:
        self.started: set[int] = set()
        self.exits: list[Ended] = []
        self.ended: list[Ended] = []
        self.dropped = Indices()
        self.answers = 0
        self.stalled = False
        self.restarted: dict[int, int] = {}

    def start(self, entry: Start) -> None:
        if entry.run == 1:
            self.started.add(entry.index)
        else:
            self.restarted[entry.index] = entry.run

    def end(self, ended: Ended) -> None:
        self.started.discard(ended.index)
        self.restarted.pop(ended.index, None)
        if ended.run == 1 and ended.cause is Cause.EXIT and ended.final and not ended.message:
            self.exits.append(ended)
        else:
            self.ended.append(ended)

    def ends(self, entry: Ends) -> None:
        for index, code, *times in zip(
            entry.index,
            entry.code,
            entry.started_at_ms,
            entry.duration_ms,
            entry.cpu_user_ms,
            entry.cpu_system_ms,
            entry.memory_peak_kib,
            strict=True,
        ):
            self.end(Ended(index, Cause.EXIT, code, 1, "", *times))

    def drop(self, entry: Drop) -> None:
        self.dropped.add(entry.indices)
        self.answers = entry.answers or self.answers
        self.stalled = self.stalled or entry.stalled

    def report(self, allocation: int) -> AllocationReport:
        self.exits.sort(key=lambda ended: ended.index)
        return AllocationReport(
            allocation,
            _ranges(sorted(self.started)),
            columns_of(self.exits),
            tuple(self.ended),
            self.dropped.ranges(),
            self.answers,
            self.stalled,
            tuple(Restarted(index, run) for index, run in self.restarted.items()),
        )


def _ranges(indices: list[int]) -> Ranges:
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return tuple(found)


def report(held: Held, first: int, last_max: int) -> Report:
    """The net effect of the entries from `first` on, as many as fit into one message."""
    folded: dict[int, _Folded] = {}
    freed: dict[int, list[int]] = {}
    bytes_left = REPORT_BYTES_MAX
    sequence = first
    while sequence <= min(last_max, first + REPORT_ENTRIES_MAX - 1):
        entry = held.reported(sequence)
        bytes_left -= size_bytes(entry)
        if bytes_left < 0 and sequence > first:
            break
        if isinstance(entry, Resize):
            freed.setdefault(entry.lease, []).extend(entry.freed)
        else:
            of_allocation = folded.setdefault(entry.allocation, _Folded())
            match entry:
                case Start():
                    of_allocation.start(entry)
                case End():
                    of_allocation.end(entry.ended)
                case Ends():
                    of_allocation.ends(entry)
                case Drop():
                    # One report has one answer.
                    if entry.answers and of_allocation.answers:
                        break
                    of_allocation.drop(entry)
        sequence += 1
    return Report(
        held.journal_id,
        first,
        sequence - 1,
        tuple(of_allocation.report(number) for number, of_allocation in folded.items()),
        tuple(Resized(lease, tuple(slots)) for lease, slots in freed.items()),
    )


def holding(held: Held) -> Iterator[Holding]:
    """What is held, in pages; a large allocation comes in several pieces, apart from one another."""
    return pages(_pieces(held))


def pages(pieces: Iterable[HeldLease | HeldAllocation]) -> Iterator[Holding]:
    """Pages of what is held, each small enough for a message."""
    leases: list[HeldLease] = []
    allocations: list[HeldAllocation] = []
    bytes_left = PAGE_BYTES_MAX
    for piece in pieces:
        if isinstance(piece, HeldLease):
            bytes_left -= _ALLOCATION_BYTES + 6 * len(piece.slots)
        else:
            bytes_left -= _ALLOCATION_BYTES + _RANGE_BYTES * (len(piece.waiting) + len(piece.started))
        if bytes_left < 0 and (leases or allocations):
            yield Holding(tuple(leases), tuple(allocations))
            leases, allocations, bytes_left = [], [], PAGE_BYTES_MAX
        if isinstance(piece, HeldLease):
            leases.append(piece)
        else:
            allocations.append(piece)
    if leases or allocations:
        yield Holding(tuple(leases), tuple(allocations))


def pieces_of(allocation: int, waiting: Ranges, started: Ranges) -> Iterator[HeldAllocation]:
    """An allocation, in several pieces where it is large; one that holds nothing has one."""
    while len(waiting) > _PIECE_RANGES_MAX:
        yield HeldAllocation(allocation, waiting[:_PIECE_RANGES_MAX], ())
        waiting = waiting[_PIECE_RANGES_MAX:]
    while len(started) > _PIECE_RANGES_MAX:
        yield HeldAllocation(allocation, (), started[:_PIECE_RANGES_MAX])
        started = started[_PIECE_RANGES_MAX:]
    yield HeldAllocation(allocation, waiting, started)


def _pieces(held: Held) -> Iterator[HeldLease | HeldAllocation]:
    for lease in held.leases.values():
        if lease.slots:
            yield HeldLease(lease.lease, tuple(lease.slots))
    for allocation in held.allocations.values():
        # Intended is not started yet, for all that the leader knows.
        waiting = normal(allocation.waiting.ranges() + allocation.intended.ranges())
        yield from pieces_of(allocation.allocation, waiting, _ranges(sorted(allocation.live)))

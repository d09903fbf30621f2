"""What a simulated node holds and has still to tell, by whole sets of tasks.

It lives as long as the process: an edge that is started again is a machine that has booted anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from pyroaring import BitMap

from rota.core.cluster.rows import Numbers, bitmap, pack
from rota.core.model.indexset import to_ranges
from rota.core.model.protocol import (
    AllocationReport,
    Columns,
    Ended,
    HeldAllocation,
    HeldLease,
    Holding,
    Report,
    Resized,
    Slot,
    Template,
)
from rota.core.model.resources import Resources
from rota.core.node.entries import Acknowledged, Drop, End, Entry, Resize, Session
from rota.core.node.reporting import pages, pieces_of

# Below the limit of a message, by the estimates from above that follow.
REPORT_BYTES_MAX = 200 * 1024
# Ranges of one allocation in a page, of which one larger comes in several pieces.
RANGE_BYTES = 12
ALLOCATION_BYTES = 128
ENDED_BYTES = 80
ROW_BYTES = 24
# A row of tasks that took no time: all of them began at once, so index and code are all of it.
ROW_AT_ONCE_BYTES = 5
ENDS_COUNT_MAX = 30_000


@dataclass(slots=True)
class Begun:
    """These have started, in ascending order each on its slot."""

    allocation: int
    indices: BitMap
    slots: list[int]


@dataclass(slots=True)
class Ends:
    """These have exited by themselves: ascending indices, and a number for each of them."""

    allocation: int
    index: Numbers
    code: Numbers
    # Wall-clock milliseconds.
    started_at_ms: Numbers
    duration_ms: Numbers
    # The slot on which they ran one after the other in no time; None for tasks that have begun before.
    slot: int | None = None

    @property
    def size_bytes(self) -> int:
        """At most so much of a Report."""
        return len(self.index) * (ROW_BYTES if self.slot is None else ROW_AT_ONCE_BYTES) + ALLOCATION_BYTES


Told = Begun | Ends | End | Drop | Resize


@dataclass(slots=True)
class Running:
    """A task that takes time; milliseconds of the boot clock, and of the wall clock."""

    slot: int
    ends_at_ms: int
    began_ms: int
    began_wall_ms: int
    code: int
    # It will be cut short by its time limit.
    over_limit: bool


@dataclass(slots=True)
class Lease:
    """Slots of one shape, and the allocations that wait for them, in order."""

    lease: int
    shape: Resources
    slots: dict[int, Slot] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    next_slot: int = 0
    target: int | None = None
    # Slots that the leader does not know: they go as soon as they are idle.
    surplus: frozenset[int] = frozenset()
    # The sequence that freed the last slot; 0 while there are any.
    gone_sequence: int = 0
    waiting: dict[int, None] = field(default_factory=dict)


@dataclass(slots=True)
class Allocation:
    """Indices of one job: each waits or runs; of `granted` the rest has ended."""

    allocation: int
    lease: int
    template: Template
    never_stall: bool
    granted: BitMap = field(default_factory=BitMap)
    waiting: BitMap = field(default_factory=BitMap)
    running: dict[int, Running] = field(default_factory=dict)


class Memory:
    """The node's memory."""

    def __init__(self, boot_id: str, journal_id: str) -> None:
        self.boot_id = boot_id
        self.journal_id = journal_id
        self.sequence = 0
        self.acknowledged = 0
        self.session = Session(0, 0, 0, "", "")
        self.grant = 0
        self.leases: dict[int, Lease] = {}
        self.allocations: dict[int, Allocation] = {}
        self.templates: dict[tuple[int, int], Template] = {}
        self._untold: list[Told] = []

    def apply(self, entry: Entry) -> None:
        """What the talk with the leader changes."""
        match entry:
            case Session():
                if entry.session != self.session.session:
                    # The leader sends each again, ahead of the first grant that needs it.
                    self.templates.clear()
                self.session = entry
            case Acknowledged():
                del self._untold[: entry.sequence - self.acknowledged]
                self.acknowledged = entry.sequence
                for lease in [lease for lease in self.leases.values() if lease.gone_sequence]:
                    if lease.gone_sequence <= entry.sequence:
                        del self.leases[lease.lease]
            case _:
                raise AssertionError(entry)

    def tell(self, entry: Told) -> None:
        """Counts an entry that the leader is to be told of."""
        self.sequence += 1
        self._untold.append(entry)

    # ------------------------------------------------------------ what is told

    def report(self, first: int, last_max: int) -> Report:
        """The net effect of the entries from `first` on, as many as fit into one message."""
        folded: dict[int, _Folded] = {}
        freed: dict[int, tuple[int, ...]] = {}
        bytes_left = REPORT_BYTES_MAX
        sequence = first
        while sequence <= last_max:
            entry = self._untold[sequence - self.acknowledged - 1]
            bytes_left -= size_bytes(entry)
            if bytes_left < 0 and sequence > first:
                break
            if isinstance(entry, Resize):
                freed[entry.lease] = freed.get(entry.lease, ()) + entry.freed
            else:
                of_allocation = folded.setdefault(entry.allocation, _Folded())
                if not of_allocation.add(entry):
                    break
            sequence += 1
        return Report(
            self.journal_id,
            first,
            sequence - 1,
            tuple(one.report(number) for number, one in folded.items()),
            tuple(Resized(lease, slots) for lease, slots in freed.items()),
        )

    def holding(self) -> Iterator[Holding]:
        """What is held, in pages."""
        return pages(self._pieces())

    def _pieces(self) -> Iterator[HeldLease | HeldAllocation]:
        for lease in self.leases.values():
            if lease.slots:
                yield HeldLease(lease.lease, tuple(lease.slots))
        for held in self.allocations.values():
            yield from pieces_of(held.allocation, to_ranges(held.waiting), to_ranges(BitMap(held.running)))


def size_bytes(entry: Told) -> int:
    """At most so many bytes of a Report."""
    match entry:
        case Begun():
            return RANGE_BYTES * len(entry.indices) + ALLOCATION_BYTES
        case Ends():
            return entry.size_bytes
        case End():
            return ENDED_BYTES + ALLOCATION_BYTES + 4 * len(entry.ended.message)
        case Drop():
            return RANGE_BYTES * len(entry.indices) + ALLOCATION_BYTES
        case Resize():
            return 6 * len(entry.freed) + ALLOCATION_BYTES


class _Folded:
    """What consecutive entries come to, for one allocation."""

    def __init__(self) -> None:
        self._started = BitMap()
        self._ends: list[Ends] = []
        self._ended: list[Ended] = []
        self._dropped = BitMap()
        self._answers = 0
        self._stalled = False

    def add(self, entry: Begun | Ends | End | Drop) -> bool:
        """Takes an entry in; False for one that is for the next report: one report has one answer."""
        match entry:
            case Begun():
                self._started |= entry.indices
            case Ends():
                self._started -= bitmap(entry.index)
                self._ends.append(entry)
            case End():
                self._started.discard(entry.ended.index)
                self._ended.append(entry.ended)
            case Drop():
                if entry.answers and self._answers:
                    return False
                for first, last in entry.indices:
                    self._dropped.add_range(first, last + 1)
                self._answers = entry.answers or self._answers
                self._stalled = self._stalled or entry.stalled
        return True

    def report(self, allocation: int) -> AllocationReport:
        return AllocationReport(
            allocation,
            started=to_ranges(self._started),
            exits=_columns(self._ends),
            ended=tuple(self._ended),
            dropped=to_ranges(self._dropped),
            answers=self._answers,
            stalled=self._stalled,
        )


def _columns(ends: list[Ends]) -> Columns:
    """All of these as columns of the wire, in ascending order of the indices."""
    if not ends:
        return Columns()
    index = np.concatenate([each.index for each in ends])
    code = np.concatenate([each.code for each in ends])
    started_at_ms = np.concatenate([each.started_at_ms for each in ends])
    duration_ms = np.concatenate([each.duration_ms for each in ends])
    if len(ends) > 1:
        order = np.argsort(index, kind="stable")
        index, code = index[order], code[order]
        started_at_ms, duration_ms = started_at_ms[order], duration_ms[order]
    base_ms = int(started_at_ms.min())
    return Columns(
        index=index.astype("<u4").tobytes(),
        code=pack(code),
        started_at_ms=base_ms,
        started_after_ms=pack(started_at_ms - base_ms),
        duration_ms=pack(duration_ms),
    )

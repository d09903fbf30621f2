"""What a node holds: the state that the journal replays to.

`Held.apply` is the only thing that changes it, live and in replay. Whatever is not in here (the
stream, timers, which slot is busy) is made again after a crash.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import assert_never

from rota.core.model.protocol import Ranges, Slot, Template
from rota.core.model.resources import Resources
from rota.core.node.entries import (
    REPORTED,
    Acknowledged,
    AllocationKept,
    Begin,
    Drop,
    End,
    Ends,
    Entry,
    Granted,
    Intent,
    LeaseKept,
    Reported,
    Resize,
    Session,
    Start,
    TemplateKept,
    Unacknowledged,
)
from rota.core.node.indices import Indices, each, joined

# Above these, templates that no allocation uses are forgotten at each grant, though another may follow: one
# whose template is gone ends the stream, and in the next session the template is sent again.
TEMPLATES_COUNT_MAX = 1_000
TEMPLATES_BYTES_MAX = 4 * 1024 * 1024


class LeaseHeld:
    """Slots of one shape, and the allocations that wait for them, in order."""

    __slots__ = (
        "gone_sequence",
        "lease",
        "next_slot",
        "pool",
        "queue",
        "shape",
        "slots",
        "unit",
        "waiting",
    )

    def __init__(self, entry: LeaseKept) -> None:
        self.lease = entry.lease
        self.shape: Resources = entry.shape
        self.queue = entry.queue
        self.slots: dict[int, Slot] = {slot.slot: slot for slot in entry.slots}
        self.next_slot = entry.next_slot
        self.gone_sequence = entry.gone_sequence
        self.pool = entry.pool
        self.unit = entry.unit
        self.waiting: OrderedDict[int, None] = OrderedDict()

    def kept(self) -> LeaseKept:
        """All of it but the allocations."""
        return LeaseKept(
            self.lease,
            self.shape,
            self.queue,
            tuple(self.slots.values()),
            self.next_slot,
            self.gone_sequence,
            self.pool,
            self.unit,
        )


class AllocationHeld:
    """Indices of one job, each waiting, intended (written down, perhaps started) or live."""

    __slots__ = (
        "allocation",
        "first_attempt",
        "granted",
        "intended",
        "job",
        "lease",
        "lines",
        "live",
        "never_stall",
        "version",
        "waiting",
    )

    def __init__(self, entry: AllocationKept) -> None:
        self.allocation = entry.allocation
        self.lease = entry.lease
        self.job = entry.job
        self.version = entry.version
        self.first_attempt = entry.first_attempt
        self.never_stall = entry.never_stall
        self.granted = Indices(entry.granted)
        self.lines: dict[int, str] = dict(entry.lines)
        self.waiting = Indices(entry.waiting)
        self.intended = Indices(entry.intended)
        self.live: dict[int, Start] = {start.index: start for start in entry.live}

    @property
    def over(self) -> bool:
        """Whether nothing of it is left here."""
        return not (self.waiting or self.intended or self.live)

    def kept(self) -> AllocationKept:
        """All of it."""
        return AllocationKept(
            self.allocation,
            self.lease,
            self.job,
            self.version,
            self.first_attempt,
            self.never_stall,
            self.granted.ranges(),
            tuple(self.lines.items()),
            self.waiting.ranges(),
            self.intended.ranges(),
            tuple(self.live.values()),
        )


class Held:
    """The node's memory. A new one is empty until `Begin` has been applied."""

    def __init__(self) -> None:
        self._begin(Begin("", ""))

    def _begin(self, entry: Begin) -> None:
        self.journal_id = entry.journal_id
        self.boot_id = entry.boot_id
        self.sequence = entry.sequence
        self.acknowledged = entry.sequence
        self.grant = entry.grant
        self.session = Session(0, 0, 0, "", "")
        self.unacknowledged: list[Reported] = []
        self.leases: dict[int, LeaseHeld] = {}
        self.allocations: dict[int, AllocationHeld] = {}
        self.templates: dict[tuple[int, int], Template] = {}
        self.template_uses: dict[tuple[int, int], int] = {}
        # Templates that no allocation uses, the one that was used least lately first.
        self._unused: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._templates_bytes = 0

    @property
    def unused_templates(self) -> Iterable[tuple[int, int]]:
        """Templates that no allocation uses, the one that was used least lately first."""
        return self._unused.keys()

    def template(self, allocation: AllocationHeld) -> Template:
        """The template of a held allocation."""
        return self.templates[allocation.job, allocation.version]

    def apply(self, entry: Entry) -> None:  # noqa: C901 - a table
        """Makes true what an entry says."""
        if isinstance(entry, REPORTED):
            self.sequence += 1
            self.unacknowledged.append(entry)
        match entry:
            case Intent():
                allocation = self.allocations[entry.allocation]
                self._unqueue(allocation, entry.indices)
                allocation.intended.add(entry.indices)
            case Start():
                allocation = self.allocations[entry.allocation]
                allocation.intended.remove(((entry.index, entry.index),))
                allocation.live[entry.index] = entry
            case End():
                self._end(entry.allocation, (entry.ended.index,))
            case Ends():
                self._end(entry.allocation, entry.index)
            case Drop():
                self._drop(entry)
            case Granted():
                self._granted(entry)
            case Acknowledged():
                self._acknowledge(entry.sequence)
            case TemplateKept():
                self._keep_template(entry.template)
            case LeaseKept():
                waiting = self.leases[entry.lease].waiting if entry.lease in self.leases else OrderedDict()
                lease = self.leases[entry.lease] = LeaseHeld(entry)
                lease.waiting = waiting
            case Resize():
                self._resize(entry)
            case Session():
                if entry.session != self.session.session:
                    self._forget_templates(0, 0)
                self.session = entry
            case AllocationKept():
                self._adopt(AllocationHeld(entry))
            case Unacknowledged():
                self.sequence += 1
                self.unacknowledged.append(entry.entry)
            case Begin():
                self._begin(entry)
            case _:
                assert_never(entry)

    def snapshot(self) -> Iterator[Entry]:
        """Entries that make this state out of nothing.

        None of them has templates forgotten, and of those without a use the order is kept: what follows then
        forgets the same ones in a replay.
        """
        yield Begin(self.journal_id, self.boot_id, self.acknowledged, self.grant)
        yield self.session
        used = dict.fromkeys((held.job, held.version) for held in self.allocations.values())
        for key in (*used, *self._unused):
            yield TemplateKept(self.templates[key])
        for lease in self.leases.values():
            yield lease.kept()
        for allocation in self.allocations.values():
            yield allocation.kept()
        for entry in self.unacknowledged:
            yield Unacknowledged(entry)

    def reported(self, sequence: int) -> Reported:
        """The entry of a sequence that is not acknowledged."""
        return self.unacknowledged[sequence - self.acknowledged - 1]

    # ------------------------------------------------------------ allocations

    def _granted(self, entry: Granted) -> None:
        self.grant = entry.grant
        held = self.allocations.pop(entry.allocation, None)
        if held is None:
            held = AllocationHeld(
                AllocationKept(
                    entry.allocation,
                    entry.lease,
                    entry.job,
                    entry.version,
                    entry.first_attempt,
                    entry.never_stall,
                    (),
                    (),
                    (),
                    (),
                    (),
                )
            )
        else:
            self._release(held)
        held.never_stall = entry.never_stall
        held.waiting.add(held.granted.missing(entry.indices))
        held.granted.add(entry.indices)
        if entry.lines:
            held.lines.update(zip(each(entry.indices), entry.lines, strict=True))
        # At the end of all, so that the order on a lease is the order in `allocations`.
        self._adopt(held)
        # Not where a template comes: in a replay nothing is known yet of the allocations that use it.
        self._forget_templates(TEMPLATES_COUNT_MAX, TEMPLATES_BYTES_MAX)

    def _adopt(self, held: AllocationHeld) -> None:
        self.allocations[held.allocation] = held
        use = (held.job, held.version)
        self.template_uses[use] = self.template_uses.get(use, 0) + 1
        self._unused.pop(use, None)
        if held.over:
            self._close(held)
        elif held.waiting and held.lease in self.leases:
            self.leases[held.lease].waiting[held.allocation] = None

    def _release(self, held: AllocationHeld) -> None:
        """Takes back what `_adopt` counted."""
        use = (held.job, held.version)
        left = self.template_uses.pop(use) - 1
        if left:
            self.template_uses[use] = left
        elif use in self.templates:
            self._unused[use] = None
        if held.lease in self.leases:
            self.leases[held.lease].waiting.pop(held.allocation, None)

    def _close(self, held: AllocationHeld) -> None:
        del self.allocations[held.allocation]
        self._release(held)

    def _unqueue(self, held: AllocationHeld, indices: Ranges) -> None:
        held.waiting.remove(indices)
        if not held.waiting and held.lease in self.leases:
            self.leases[held.lease].waiting.pop(held.allocation, None)

    def _end(self, allocation: int, indices: tuple[int, ...]) -> None:
        held = self.allocations[allocation]
        if held.live:
            indices = tuple(index for index in indices if held.live.pop(index, None) is None)
        held.intended.remove(joined(indices))
        if held.over:
            self._close(held)

    def _drop(self, entry: Drop) -> None:
        held = self.allocations.get(entry.allocation)
        if held is not None and entry.indices:
            held.granted.remove(entry.indices)
            held.intended.remove(entry.indices)
            self._unqueue(held, entry.indices)
            if held.over:
                self._close(held)

    # ------------------------------------------------------------ leases, templates, reports

    def _resize(self, entry: Resize) -> None:
        lease = self.leases[entry.lease]
        for slot in entry.freed:
            del lease.slots[slot]
        if not lease.slots:
            lease.gone_sequence = self.sequence

    def _acknowledge(self, sequence: int) -> None:
        del self.unacknowledged[: sequence - self.acknowledged]
        self.acknowledged = sequence
        for lease in [lease for lease in self.leases.values() if 0 < lease.gone_sequence <= sequence]:
            del self.leases[lease.lease]

    def _keep_template(self, template: Template) -> None:
        key = (template.job, template.version)
        self._forget_template(key)
        self.templates[key] = template
        if key not in self.template_uses:
            self._unused[key] = None
        self._templates_bytes += template_bytes(template)

    def _forget_templates(self, count_max: int, bytes_max: int) -> None:
        """Drops unused templates, those used least lately first, until no more than these are left."""
        while self._unused and (len(self.templates) > count_max or self._templates_bytes > bytes_max):
            self._forget_template(next(iter(self._unused)))

    def _forget_template(self, key: tuple[int, int]) -> None:
        template = self.templates.pop(key, None)
        self._unused.pop(key, None)
        if template is not None:
            self._templates_bytes -= template_bytes(template)


def template_bytes(template: Template) -> int:
    """About how much memory a template takes: its texts."""
    spec = template.spec
    texts = [spec.script, *spec.command, *(value for _, value in spec.env), *spec.lines]
    return 1024 + sum(map(len, texts))

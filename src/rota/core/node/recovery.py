"""The machine that goes on where a journal ends."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rota.core.model.protocol import Ended, Pool
from rota.core.model.resources import NOTHING
from rota.core.model.states import Cause
from rota.core.node.entries import Begin, Drop, End, Ends, Entry, Resize, Session, Start, Unacknowledged
from rota.core.node.held import Held, LeaseHeld
from rota.core.node.machine import Machine


@dataclass(slots=True)
class Recovered:
    """A machine, and the entries to write before its first step.

    `begun`: they are the first of a new journal, which takes the old one's place; else they go behind it.
    """

    machine: Machine
    entries: list[Entry]
    begun: bool


def recover(
    entries: Iterable[Entry], *, boot_id: str, journal_id: str, pools: Sequence[Pool], cluster: str = ""
) -> Recovered:
    """Replays a journal, which may be empty, after every process of the node's tasks has ended.

    In the boot that the journal was made in, what waited goes on, and an intent or a start without
    an end ends as AGENT_ERROR; of leases beyond `pools`, which the node has now, slots are freed. What
    waits without a slot or a template is given back. In
    another boot a new journal is begun, named `journal_id`: it takes over the ends, drops and freed
    slots that the leader may not know; all else is held no longer.
    """
    held = Held()
    for entry in entries:
        held.apply(entry)
    if held.boot_id != boot_id:
        written = _begin_again(held, boot_id, journal_id)
        held = Held()
        for entry in written:
            held.apply(entry)
        return Recovered(Machine(held, cluster), written, begun=True)
    written = []
    # Each begins only where the one before has been applied.
    for part in (_ends(held), _freed(held, pools), _drops(held)):
        for entry in list(part):
            held.apply(entry)
            written.append(entry)
    return Recovered(Machine(held, cluster), written, begun=False)


def _ends(held: Held) -> Iterator[Entry]:
    """The attempts that the agent's end has ended."""
    for allocation in held.allocations.values():
        for start in allocation.live.values():
            yield End(allocation.allocation, _lost(start))
        for index in allocation.intended:
            ended = Ended(index, Cause.AGENT_ERROR, message="the agent ended", started=False)
            yield End(allocation.allocation, ended)


def _freed(held: Held, pools: Sequence[Pool]) -> Iterator[Entry]:
    """Slots whose devices are gone, and then the newest, until the node has what the rest asks for."""
    by_name = {pool.name: pool for pool in pools}
    units: dict[tuple[str, int], list[LeaseHeld]] = {}
    for lease in held.leases.values():
        if lease.slots:
            units.setdefault((lease.pool, lease.unit), []).append(lease)
    for (name, unit), leases in units.items():
        pool = by_name.get(name)
        there = pool is not None and unit < pool.units
        free = pool.resources if pool is not None and there else NOTHING
        devices = {device.id for device in pool.devices} if pool is not None and there else set()
        kept = {lease.lease: sorted(lease.slots) for lease in leases}
        for lease in leases:
            kept[lease.lease] = [
                slot for slot in kept[lease.lease] if devices.issuperset(lease.slots[slot].devices)
            ]
            free = free.plus(lease.shape, -len(kept[lease.lease]))
        for lease in reversed(leases):
            # One that asks for nothing of what is short would give nothing back.
            while kept[lease.lease] and any(free.get(name) < 0 for name, _ in lease.shape.items()):
                kept[lease.lease].pop()
                free = free.plus(lease.shape)
        for lease in leases:
            gone = tuple(slot for slot in sorted(lease.slots) if slot not in kept[lease.lease])
            if gone:
                yield Resize(lease.lease, gone)


def _drops(held: Held) -> Iterator[Entry]:
    """What waits for a lease that has no slot any more, or has no template.

    Earlier versions' snapshots forgot some that were in use.
    """
    for allocation in held.allocations.values():
        lease = held.leases.get(allocation.lease)
        known = (allocation.job, allocation.version) in held.templates
        if allocation.waiting and (lease is None or not lease.slots or not known):
            yield Drop(allocation.allocation, allocation.waiting.ranges())


def _lost(start: Start) -> Ended:
    return Ended(
        start.index,
        Cause.AGENT_ERROR,
        run=start.run,
        message="the agent ended",
        started_at_ms=start.started_at_ms,
    )


def _begin_again(held: Held, boot_id: str, journal_id: str) -> list[Entry]:
    written: list[Entry] = [Begin(journal_id, boot_id, 0, held.grant)]
    if held.session != Session(0, 0, 0, "", ""):
        written.append(held.session)
    written.extend(
        Unacknowledged(entry) for entry in held.unacknowledged if isinstance(entry, (End, Ends, Drop, Resize))
    )
    return written

"""The machine that goes on where a journal ends."""

from collections.abc import Iterable
from dataclasses import dataclass

from rota.core.model.protocol import Ended
from rota.core.model.states import Cause
from rota.core.node.entries import Begin, Drop, End, Entry, Resize, Session, Start, Unacknowledged
from rota.core.node.held import Held
from rota.core.node.machine import Machine


@dataclass(slots=True)
class Recovered:
    """A machine, and the entries to write before its first step.

    `begun`: they are the first of a new journal, which takes the old one's place; else they go behind it.
    """

    machine: Machine
    entries: list[Entry]
    begun: bool


def recover(entries: Iterable[Entry], *, boot_id: str, journal_id: str, cluster: str = "") -> Recovered:
    """Replays a journal, which may be empty, after every process of the node's tasks has ended.

    In the boot that the journal was made in, what waited goes on, and an intent or a start without
    an end ends as AGENT_ERROR. In another boot a new journal is begun, named `journal_id`: it takes
    over the ends, drops and freed slots that the leader may not know; all else is held no longer.
    """
    held = Held()
    for entry in entries:
        held.apply(entry)
    if held.boot_id == boot_id:
        written = _go_on(held)
        begun = False
    else:
        written = _begin_again(held, boot_id, journal_id)
        begun = True
        held = Held()
    for entry in written:
        held.apply(entry)
    return Recovered(Machine(held, cluster), written, begun)


def _go_on(held: Held) -> list[Entry]:
    written: list[Entry] = []
    for allocation in held.allocations.values():
        written += [End(allocation.allocation, _lost(start)) for start in allocation.live.values()]
        for index in allocation.intended:
            ended = Ended(index, Cause.AGENT_ERROR, message="the agent ended", started=False)
            written.append(End(allocation.allocation, ended))
        # The lease went, and the agent ended before it could say so.
        lease = held.leases.get(allocation.lease)
        if allocation.waiting and (lease is None or not lease.slots):
            written.append(Drop(allocation.allocation, allocation.waiting.ranges()))
    return written


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
        Unacknowledged(entry) for entry in held.unacknowledged if isinstance(entry, (End, Drop, Resize))
    )
    return written

"""What must be true of a machine after every step. For tests and the simulator."""

from rota.core.node.held import AllocationHeld
from rota.core.node.indices import Indices
from rota.core.node.machine import Machine


def sanity_check(machine: Machine) -> None:
    """Raises AssertionError with what is wrong."""
    held, attempts = machine.held, machine.attempts
    assert held.sequence - held.acknowledged == len(held.unacknowledged), "sequence"
    for lease in held.leases.values():
        name = f"lease {lease.lease}"
        assert all(slot < lease.next_slot for slot in lease.slots), f"{name}: a slot beyond the next"
        assert bool(lease.slots) != bool(lease.gone_sequence), f"{name}: gone, or not"
        waiting = [a.allocation for a in held.allocations.values() if a.lease == lease.lease and a.waiting]
        assert list(lease.waiting) == waiting, f"{name}: {list(lease.waiting)} wait, not {waiting}"
        assert lease.slots or not waiting, f"{name}: work waits, and no slot is left"
        if lease.slots:
            _check_slots(machine, lease.lease)
    uses: dict[tuple[int, int], int] = {}
    for allocation in held.allocations.values():
        uses[allocation.job, allocation.version] = uses.get((allocation.job, allocation.version), 0) + 1
        _check_allocation(machine, allocation)
    assert uses == held.template_uses, "uses of templates"
    assert set(held.unused_templates) == set(held.templates) - set(uses), "templates without a use"
    assert all(use in held.templates for use in uses), "a template in use is gone"
    assert set(attempts.running) <= set(held.allocations), "an attempt runs for no allocation"


def _check_slots(machine: Machine, lease: int) -> None:
    place = machine.attempts.places[lease]
    runs = {
        id(running.run): running.run
        for of_allocation in machine.attempts.running.values()
        for running in of_allocation.values()
        if running.run.lease == lease
    }
    busy = [run.slot for run in runs.values()]
    slots = sorted(place.free + busy)
    assert len(set(slots)) == len(slots), f"lease {lease}: a slot is used twice: {slots}"
    assert slots == sorted(machine.held.leases[lease].slots), f"lease {lease}: slots {slots}"


def _check_allocation(machine: Machine, allocation: AllocationHeld) -> None:
    name = f"allocation {allocation.allocation}"
    assert not allocation.over, f"{name} is over and still held"
    waiting = _checked(name, allocation.waiting)
    intended = _checked(name, allocation.intended)
    granted = _checked(name, allocation.granted)
    live = allocation.live.keys()
    apart = waiting.isdisjoint(intended) and waiting.isdisjoint(live) and intended.isdisjoint(live)
    assert apart, f"{name}: an index is in two states"
    known = granted.issuperset(waiting) and granted.issuperset(intended) and granted.issuperset(live)
    assert known, f"{name} has what it was not granted"
    running = machine.attempts.running.get(allocation.allocation, {})
    spawned = {index for index, attempt in running.items() if attempt.live}
    assert spawned == live, f"{name}: live {spawned}, not {live}"
    place = machine.attempts.places.get(allocation.lease)
    ready = {index for number, index in (place.ready if place else ()) if number == allocation.allocation}
    assert ready | (running.keys() - spawned) == intended, (
        f"{name}: intended is not what is ready or spawning"
    )
    assert ready.isdisjoint(running), f"{name}: ready and running"
    for start in allocation.live.values():
        attempt = running[start.index]
        assert (start.slot, start.run) == (attempt.run.slot, attempt.attempt[2]), f"{name}: {start}"


def _checked(name: str, indices: Indices) -> set[int]:
    """As a set, once its ranges are in order."""
    ranges = indices.ranges()
    before = -2
    for first, last in ranges:
        assert before + 1 < first <= last, f"{name}: {ranges}"
        before = last
    return {index for first, last in ranges for index in range(first, last + 1)}

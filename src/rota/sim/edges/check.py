"""What must be true of an edge after every step. For tests and the simulator."""

from rota.sim.edges.edge import Edge


def sanity_check(edge: Edge) -> None:
    """Raises AssertionError with what is wrong."""
    held = edge.held
    busy: dict[int, list[int]] = {}
    for number, allocation in held.allocations.items():
        name = f"allocation {number}"
        assert allocation.waiting or allocation.running, f"{name} is over and still held"
        assert allocation.granted >= allocation.waiting, f"{name} waits with what it was not granted"
        assert all(index in allocation.granted for index in allocation.running), f"{name} runs another's"
        assert not any(index in allocation.waiting for index in allocation.running), f"{name}: in two states"
        busy.setdefault(allocation.lease, []).extend(one.slot for one in allocation.running.values())
        lease = held.leases.get(allocation.lease)
        waits = lease is not None and number in lease.waiting
        assert waits == bool(allocation.waiting), f"{name}: waits, or not, on lease {allocation.lease}"
    for number, lease in held.leases.items():
        name = f"lease {number}"
        slots = sorted(lease.free + busy.pop(number, []))
        assert slots == sorted(lease.slots), f"{name}: slots {slots}, not {sorted(lease.slots)}"
        assert all(slot < lease.next_slot for slot in slots), f"{name}: a slot beyond the next"
        assert bool(lease.slots) != bool(lease.gone_sequence), f"{name}: gone, or not"
        assert all(one in held.allocations for one in lease.waiting), f"{name}: waited for by none"
    assert not busy, f"tasks run on leases {sorted(busy)}, which there are not"

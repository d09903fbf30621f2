"""Leases: slots shrink, close, and get their devices. What makes them grow is `placing`."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from rota.core.cluster.records import lease_key
from rota.core.cluster.state import Lease, Node
from rota.core.cluster.work import Work
from rota.core.model import protocol
from rota.core.model.protocol import Pool, Resize
from rota.core.model.resources import NOTHING
from rota.core.model.states import EventKind

_WHOLE = 1000
"""Thousandths of one device."""


def close_lease_if_empty(work: Work, lease: Lease) -> None:
    """Drops a lease that has no slots left, once no grant on it can be on its way."""
    if not lease.desired.slots and not lease.allocations:
        work.drop(lease_key(lease.node.id, lease.id))
        message = f"lease {lease.id} closed"
        work.event(EventKind.LEASE_CLOSED, node=lease.node.config.name, message=message)


def tell_lease(work: Work, lease: Lease) -> None:
    """Sends the lease as it is, all of it, to its node."""
    desired = lease.desired
    message = protocol.Lease(
        lease.id, desired.shape, desired.slots, desired.queue, desired.pool, desired.unit, desired.target
    )
    work.send(lease.node.id, message)


def shrink(work: Work, lease: Lease, target: int) -> None:
    """The lease shall have no more slots than this. They are charged until the node has freed them."""
    if target >= lease.desired.target:
        return
    work.put(lease_key(lease.node.id, lease.id), replace(lease.desired, target=target))
    session = work.soft.sessions.get(lease.node.id)
    if session is not None and session.compared:
        work.send(lease.node.id, Resize(lease.id, target))


def fit_leases(work: Work, node: Node) -> None:
    """Where the node has come back with less than is charged to it, its newest leases shrink."""
    for pool, unit in list(node.charged):
        free = node.free(pool, unit)
        leases = [
            lease
            for lease in node.leases.values()
            if (lease.desired.pool, lease.desired.unit) == (pool, unit)
        ]
        for lease in leases:
            # What is being freed already.
            free = free.plus(lease.desired.shape, len(lease.desired.slots) - lease.desired.target)
        for lease in reversed(leases):
            target = 0 if _device_gone(node, lease) else lease.desired.target
            free = free.plus(lease.desired.shape, lease.desired.target - target)
            # One that asks for nothing of what is short would give nothing back.
            while target and any(free.get(name) < 0 for name, _ in lease.desired.shape.items()):
                target -= 1
                free = free.plus(lease.desired.shape)
            shrink(work, lease, target)


def _device_gone(node: Node, lease: Lease) -> bool:
    """Whether a slot has a GPU that its node declares no more, or none where it now names them."""
    pool = node.pool(lease.desired.pool)
    named = {device.id for device in pool.devices if device.kind == "gpu"} if pool is not None else set()
    return lease.desired.shape.gpu > 0 and any(
        not named.issuperset(slot.devices) or bool(named) > bool(slot.devices) for slot in lease.desired.slots
    )


def fit_quota(work: Work, queue: str) -> None:
    """Where a queue's work holds more than its quota now allows, its newest leases shrink."""
    config = work.cluster.queue(queue)
    if config is None or config.quota is None:
        return
    quota = config.quota
    leases = [
        lease
        for node in work.cluster.nodes.values()
        if not node.lost
        for lease in node.leases.values()
        if lease.desired.queue == queue
    ]
    charged = NOTHING
    for lease in leases:
        charged = charged.plus(lease.desired.shape, lease.desired.target)
    for lease in sorted(leases, key=lambda lease: lease.id, reverse=True):
        target, shape = lease.desired.target, lease.desired.shape
        while target and any(0 < quota.get(name) < charged.get(name) for name, _ in shape.items()):
            target -= 1
            charged = charged.plus(shape, -1)
        shrink(work, lease, target)


# ---------------------------------------------------------------- units and devices


def units_of(node: Node, pool: Pool, wanted: int) -> Iterator[int]:
    """The units of a pool that may differ: those with something on them, and `wanted` of the empty ones."""
    yield from sorted(unit for name, unit in node.charged if name == pool.name and unit < pool.units)
    empty = (unit for unit in range(pool.units) if (pool.name, unit) not in node.charged)
    yield from islice(empty, wanted)


def devices_free(node: Node, pool: Pool, unit: int) -> dict[str, int]:
    """Thousandths left of each GPU of a unit, by identifier; empty where the pool names none."""
    free = {device.id: _WHOLE for device in pool.devices if device.kind == "gpu"}
    if free:
        for lease in node.leases.values():
            if (lease.desired.pool, lease.desired.unit) == (pool.name, unit):
                for slot in lease.desired.slots:
                    for device in slot.devices:
                        if device in free:
                            free[device] -= min(_WHOLE, lease.desired.shape.gpu)
    return free


def devices_room(free: dict[str, int], gpu: int) -> int:
    """How many slots of `gpu` thousandths the devices have room for: a part of one, or whole ones."""
    if gpu < _WHOLE:
        return sum(left // gpu for left in free.values())
    return sum(left == _WHOLE for left in free.values()) // -(-gpu // _WHOLE)


def take_devices(free: dict[str, int], gpu: int) -> tuple[str, ...]:
    """The devices of one slot, taken out of `free`, which has room: parts go to the fullest that has it."""
    if not gpu or not free:
        return ()
    if gpu < _WHOLE:
        taken = [min((left, device) for device, left in free.items() if left >= gpu)[1]]
    else:
        taken = [device for device, left in free.items() if left == _WHOLE][: -(-gpu // _WHOLE)]
    for device in taken:
        free[device] -= min(_WHOLE, gpu)
    return tuple(taken)

"""What a node may cost the leader, whatever it says."""

import pytest

from rota.core.cluster import streams
from rota.core.cluster.inputs import Close, FromNode
from rota.core.model.protocol import (
    Grant,
    HeldAllocation,
    HeldLease,
    Hello,
    Holding,
    HoldingEnd,
    Inventory,
    Pool,
    Resize,
    Stop,
)
from rota.core.model.resources import Resources
from tests.core.cluster.scene import Scene

INVENTORY = Inventory(pools=(Pool(resources=Resources(cpu=2_000)),))
HELLO = Hello(1, "", 1, "b", "j", 0, 0, INVENTORY, 1, 0)
EVERYTHING = ((0, 2**32 - 2),)


def strange(*numbers: int) -> Holding:
    """A page of what no leader knows."""
    return Holding(
        tuple(HeldLease(number, (0,)) for number in numbers),
        tuple(HeldAllocation(number, EVERYTHING, ()) for number in numbers),
    )


def test_of_what_is_not_known_here_a_session_keeps_some_numbers_and_ends_the_rest_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "STRANGE_MAX", 4)
    scene = Scene()
    node = scene.node("n", 1)
    held = list(range(1_000, 1_010))
    for count in (4, 4, 2):
        outcome = scene.hello(node, 1, strange(*held[:5]), strange(*held[4:]))
        ended = {stop.allocation for stop in scene.sent(Stop)}
        assert ended == {resize.lease for resize in scene.sent(Resize)} == set(held[:count])
        held = held[count:]
        reasons = [order.reason for order in outcome.orders if isinstance(order, Close)]
        assert ("the node holds more than 4 things that are not known here" in reasons) == bool(held)
    assert scene.machine.soft.sessions[node].compared


def test_a_session_keeps_no_more_of_an_allocation_than_its_job_has() -> None:
    scene = Scene()
    node = scene.node("n", 2)
    job = scene.submit(array="0-1")
    (grant,) = scene.sent(Grant)
    scene.step(FromNode(node, 99, HELLO))
    page = Holding(
        (HeldLease(grant.lease, tuple(range(10_000))),),
        tuple(HeldAllocation(grant.allocation, EVERYTHING, EVERYTHING) for _ in range(5_000)),
    )
    scene.step(FromNode(node, 99, page))
    session = scene.machine.soft.sessions[node]
    assert session.held_allocations == {grant.allocation: scene.job(job).all}
    assert session.held_leases == {grant.lease: ()}
    scene.step(FromNode(node, 99, HoldingEnd(1)))
    assert session.compared
    assert scene.outcomes(job) == []


def test_a_node_that_does_not_come_to_the_end_of_what_it_holds_is_not_listened_to() -> None:
    """Its pages would count as heard for ever."""
    scene = Scene()
    node = scene.node("n", 1)
    scene.step(FromNode(node, 99, HELLO))
    limit_ms = scene.machine.settings.holding_ms
    for _ in range(5):
        scene.step(FromNode(node, 99, Holding()), after_ms=limit_ms // 5)
    (close,) = (order for order in scene.last.orders if isinstance(order, Close))
    assert close.reason == f"what the node holds did not come within {limit_ms} ms"
    assert node not in scene.machine.soft.sessions
    scene.hello(node, 1)
    scene.wait(limit_ms // 2)
    assert scene.machine.soft.sessions[node].compared

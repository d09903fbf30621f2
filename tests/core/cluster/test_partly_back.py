"""Stories of lost nodes that are back with a task that others hold; of late leaders; of many silent nodes."""

import pytest

from rota.core.cluster.inputs import CancelJob, Outcome, ReleaseJob, Send
from rota.core.cluster.soft import Settings
from rota.core.cluster.step import Machine
from rota.core.model.protocol import (
    AllocationReport,
    Grant,
    Heartbeat,
    HeldAllocation,
    HeldLease,
    Holding,
    Stop,
)
from rota.core.model.states import NodeState, OnNodeLoss
from tests.core.cluster.scene import WALL_MS, Scene, exits


def _partly_back() -> tuple[Scene, int]:
    """Node `a` runs both tasks of a job; the first was granted to `b`, which is not heard."""
    scene = Scene()
    first = scene.node("a", 2)
    job = scene.submit(array="0-1")
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 1),)))
    scene.silence(first, Settings().lost_after_ms)
    second = scene.node("b", 1)
    scene.silence(second, 1_000)
    slots = HeldLease(grant.lease, (0, 1))
    scene.hello(first, 2, Holding((slots,), (HeldAllocation(grant.allocation, (), ((0, 1),)),)))
    return scene, job


def _stopped(outcome: Outcome) -> dict[int, int | None]:
    """The tasks that `a` is told to end, each with its grace."""
    stops = [
        order.message.body for order in outcome.orders if isinstance(order, Send) and order.node == "id-a"
    ]
    return {
        index: stop.grace_ms
        for stop in stops
        if isinstance(stop, Stop)
        for first, last in stop.indices
        for index in range(first, last + 1)
    }


def test_a_cancel_ends_also_what_the_node_has_not_taken_back_yet() -> None:
    scene, job = _partly_back()
    scene.ask(CancelJob(0, "user", job))
    assert _stopped(scene.last).keys() == {0, 1}


def test_a_second_cancel_with_less_grace_reaches_it() -> None:
    scene, job = _partly_back()
    scene.ask(CancelJob(0, "user", job))
    scene.ask(CancelJob(0, "user", job, grace_ms=0))
    assert _stopped(scene.last) == {1: 0}


def test_a_release_does_not_give_up_what_runs_on_a_node_that_is_away_for_a_moment() -> None:
    scene, job = _partly_back()
    scene.node("c", 1)
    scene.silence("id-a", 1)
    answer = scene.ask(ReleaseJob(0, "user", job))
    assert not answer.changed
    assert scene.sent(Grant) == []


def test_what_a_lost_node_says_of_a_job_that_has_ended_teaches_nothing() -> None:
    scene = Scene()
    first = scene.node("a", 1)
    job = scene.submit(on_node_loss=OnNodeLoss.RERUN)
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.silence(first, Settings().lost_after_ms)
    second = scene.node("b", 1)
    (again,) = scene.sent(Grant)
    measured = exits(0, started_at_ms=WALL_MS, duration_ms=5)
    scene.report(second, AllocationReport(again.allocation, exits=measured))
    assert scene.job(job).ended
    slots, running = HeldLease(grant.lease, (0,)), HeldAllocation(grant.allocation, (), ((0, 0),))
    scene.hello(first, 1, Holding((slots,), (running,)))
    scene.report(first, AllocationReport(grant.allocation, exits=measured))
    assert not scene.machine.soft.averages


@pytest.mark.parametrize(("lost_s", "late_ms", "every_ms"), [(300, 5_000, 240_000), (10, 170, 8_000)])
def test_a_leader_that_is_late_now_and_then_still_loses_a_dead_node(
    lost_s: int, late_ms: int, every_ms: int
) -> None:
    settings = Settings().scaled(lost_s / 300)
    scene = Scene(Machine(settings))
    first = scene.node("a", 1)
    scene.submit()
    second = scene.node("b", 1)
    scene.silence(first, 1)
    began_ms = late_at_ms = scene.now_ms
    granted: list[Grant] = []
    while not granted:
        assert scene.now_ms - began_ms < 2 * lost_s * 1000
        wake_ms = scene.last.wake_at_ms
        assert wake_ms is not None
        next_ms = max(wake_ms, scene.now_ms + 1)
        if next_ms - late_at_ms >= every_ms:
            next_ms += late_ms
            late_at_ms = next_ms
        scene.step(scene.said(second, Heartbeat(next_ms, 0)), after_ms=next_ms - scene.now_ms)
        granted = scene.sent(Grant)
    assert scene.machine.cluster.nodes[first].status.state is NodeState.LOST
    assert scene.machine.cluster.nodes[second].status.state is NodeState.READY


def test_while_most_nodes_are_silent_none_is_lost_for_twice_the_time() -> None:
    settings = Settings()
    scene = Scene()
    nodes = [scene.node(name, 1) for name in "abcd"]
    for node in nodes[1:]:
        scene.silence(node, 0)

    def listen(until_ms: int) -> list[str]:
        """The kinds of what has happened meanwhile; the first node is heard."""
        kinds = []
        while scene.now_ms < until_ms:
            beat = scene.said(nodes[0], Heartbeat(scene.now_ms, 0))
            scene.step(beat, after_ms=min(5_000, until_ms - scene.now_ms))
            kinds += [event.kind for event in scene.last.events]
        return [kind.name for kind in kinds]

    known = scene.machine.cluster.nodes
    assert listen(settings.lost_after_ms * 2 - 1_000).count("ALARM") == 1
    assert {known[node].status.state for node in nodes[1:]} == {NodeState.DISCONNECTED}
    # Two are back: the fault was not here, and the last one is lost as ever.
    scene.hello(nodes[1], 1)
    scene.hello(nodes[2], 1)
    for node in nodes[1:3]:
        scene.step(scene.said(node, Heartbeat(scene.now_ms, 0)))
    listen(scene.now_ms + 5_000)
    assert [known[node].status.state for node in nodes] == [
        NodeState.READY,
        NodeState.READY,
        NodeState.READY,
        NodeState.LOST,
    ]

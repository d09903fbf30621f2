"""Stories of nodes that are not heard, or were removed, and of what may still run there."""

from dataclasses import replace
from typing import Any

import pytest

from rota.core.cluster.inputs import (
    CancelJob,
    EditNode,
    HoldJob,
    Lead,
    NodeEdit,
    PutQueue,
    ReleaseJob,
    RemoveNode,
    RetryJob,
)
from rota.core.cluster.records import QueueConfig
from rota.core.cluster.soft import Settings
from rota.core.cluster.step import Machine
from rota.core.model.protocol import (
    AllocationReport,
    Goodbye,
    Grant,
    Heartbeat,
    HeldAllocation,
    HeldLease,
    Holding,
    Resize,
    Resized,
    Stop,
)
from rota.core.model.resources import Resources
from rota.core.model.states import (
    JobState,
    OnNodeLoss,
    StopReason,
)
from tests.core.cluster.scene import Scene

MINUTE_MS = 60_000
DAY_MS = 86_400_000


def _cut_off(scene: Scene, **spec: Any) -> int:
    """A job whose one task runs on a node, `a`, that is not heard any more; there is another node."""
    first = scene.node("a", 1)
    job = scene.submit(**spec)
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.silence(first, 1_000)
    scene.node("b", 1)
    return job


@pytest.mark.parametrize("cancelled_first", [True, False])
@pytest.mark.parametrize("policy", [OnNodeLoss.RERUN_FENCED, OnNodeLoss.HOLD])
def test_an_attempt_that_may_be_alive_is_not_forgotten_by_cancel_and_retry(
    policy: OnNodeLoss, cancelled_first: bool
) -> None:
    scene = Scene()
    job = _cut_off(scene, on_node_loss=policy)
    if cancelled_first:
        scene.ask(CancelJob(0, "user", job))
    scene.ask(RemoveNode(0, "admin", "a", force=True))
    for _ in range(2):
        if scene.job(job).status.state is not JobState.CANCELLED:
            scene.ask(CancelJob(0, "user", job))
        scene.ask(RetryJob(0, "user", job))
        assert scene.sent(Grant) == []
    if policy is OnNodeLoss.HOLD:
        scene.ask(ReleaseJob(0, "user", job))
        assert len(scene.sent(Grant)) == 1
        return
    heard_ms = scene.now_ms
    while not (granted := scene.sent(Grant)):
        beat = scene.said("id-b", Heartbeat(scene.now_ms, 0))
        scene.step(beat, after_ms=1_000)
    assert scene.now_ms - heard_ms > Settings().lost_after_ms
    assert [grant.first_attempt for grant in granted] == [2]


def test_a_leader_with_less_patience_waits_for_what_a_node_was_told_before() -> None:
    settings = Settings()
    scene = Scene(Machine(settings))
    job = _cut_off(scene, on_node_loss=OnNodeLoss.RERUN_FENCED)
    records = sorted(scene.machine.cluster.records.items())
    scene.machine = Machine(replace(settings, lost_after_ms=settings.lost_after_ms // 10), records)
    scene.step(Lead())
    scene.hello("id-b", 1)
    led_ms = scene.now_ms
    while not (granted := scene.sent(Grant)):
        beat = scene.said("id-b", Heartbeat(scene.now_ms, 0))
        scene.step(beat, after_ms=1_000)
    assert granted[0].job == job
    assert scene.now_ms - led_ms >= settings.fence_ms(0)


def test_a_task_that_reads_input_does_not_run_again_when_its_node_is_removed() -> None:
    scene = Scene()
    job = _cut_off(scene, stdin=True)
    scene.ask(RemoveNode(0, "admin", "a", force=True))
    assert scene.sent(Grant) == []
    assert scene.job(job).status.state is JobState.FAILED


def test_a_quota_that_is_lowered_holds_for_what_runs_as_its_tasks_end() -> None:
    scene = Scene()
    scene.ask(PutQueue(0, "admin", "q", QueueConfig(quota=Resources(cpu=4_000))))
    node = scene.node("n", 4)
    scene.submit(array="0-39", queue="q")
    (grant,) = scene.sent(Grant)
    scene.ask(PutQueue(0, "admin", "q", QueueConfig(quota=Resources(cpu=1_000)), update=True))
    assert [(one.lease, one.target) for one in scene.sent(Resize)] == [(grant.lease, 1)]
    scene.report(node, resized=(Resized(grant.lease, (1, 2, 3)),))
    assert scene.machine.cluster.queue_charged["q"] == Resources(cpu=1_000)
    # One that can never fit any more gives all of its slots back.
    scene.ask(PutQueue(0, "admin", "q", QueueConfig(quota=Resources(cpu=500)), update=True))
    assert [one.target for one in scene.sent(Resize)] == [0]


def test_no_number_of_an_attempt_is_used_twice_when_a_node_takes_its_task_back() -> None:
    settings = Settings()
    scene = Scene()
    first = scene.node("a", 1)
    job = scene.submit()
    (grant,) = scene.sent(Grant)
    scene.silence(first, settings.lost_after_ms)
    second = scene.node("b", 1)
    assert [again.first_attempt for again in scene.sent(Grant)] == [2]
    scene.silence(second, settings.lost_after_ms)
    slots, waiting = HeldLease(grant.lease, (0,)), HeldAllocation(grant.allocation, ((0, 0),), ())
    scene.hello(first, 1, Holding((slots,), (waiting,)))
    scene.step(scene.said(first, Goodbye("it was asked to end")))
    scene.node("c", 1)
    assert [again.first_attempt for again in scene.sent(Grant)] == [3]
    assert scene.job(job).attempts(0) == 2


def test_who_ends_a_hold_does_not_give_up_a_machine_that_is_out_of_reach() -> None:
    scene = Scene()
    job = _cut_off(scene, on_node_loss=OnNodeLoss.RERUN_FENCED)
    scene.ask(HoldJob(0, "user", job))
    scene.ask(RemoveNode(0, "admin", "a", force=True))
    scene.ask(ReleaseJob(0, "user", job))
    assert scene.sent(Grant) == []
    scene.ask(ReleaseJob(0, "user", job))
    assert len(scene.sent(Grant)) == 1


def test_a_drains_deadline_holds_for_a_node_that_was_away_when_it_came() -> None:
    settings = Settings()
    scene = Scene()
    node = scene.node("n", 1)
    job = scene.submit()
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.ask(EditNode(0, "admin", "n", NodeEdit.DRAIN, deadline_ms=1_000))
    scene.silence(node, settings.lost_after_ms)
    slots, running = HeldLease(grant.lease, (0,)), HeldAllocation(grant.allocation, (), ((0, 0),))
    scene.hello(node, 1, Holding((slots,), (running,)))
    assert [stop.reason for stop in scene.sent(Stop)] == [StopReason.PREEMPT], job


def test_a_quota_holds_when_a_lost_node_is_back_with_what_it_had() -> None:
    settings = Settings()
    scene = Scene()
    scene.ask(PutQueue(0, "admin", "q", QueueConfig(quota=Resources(cpu=1_000))))
    first = scene.node("a", 1)
    scene.submit(array="0-9", queue="q")
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.silence(first, settings.lost_after_ms)
    scene.node("b", 1)
    (other,) = scene.sent(Grant)
    slots, running = HeldLease(grant.lease, (0,)), HeldAllocation(grant.allocation, (), ((0, 0),))
    scene.hello(first, 1, Holding((slots,), (running,)))
    assert [(resize.lease, resize.target) for resize in scene.sent(Resize)] == [(other.lease, 0)]

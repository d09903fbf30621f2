"""Stories of users and operators who want something else after a fault, and of nodes that come back."""

from dataclasses import replace

import pytest
from pyroaring import BitMap

from rota.core.cluster.inputs import (
    CancelJob,
    EditNode,
    FromNode,
    Lead,
    NodeEdit,
    Refusal,
    RemoveNode,
    RetryJob,
    Send,
)
from rota.core.cluster.soft import Settings
from rota.core.cluster.step import Machine
from rota.core.model import indexset
from rota.core.model.protocol import (
    AllocationReport,
    Device,
    Ended,
    Grant,
    Heartbeat,
    HeartbeatAck,
    HeldAllocation,
    HeldLease,
    Hello,
    Holding,
    HoldingEnd,
    Inventory,
    Lease,
    Pool,
    Recall,
    Report,
    Resize,
    Stop,
    Up,
)
from rota.core.model.resources import Resources
from rota.core.model.spec import Dependency
from rota.core.model.states import Cause, DependencyWhen, JobState, NodeState, OnNodeLoss, StopReason
from tests.core.cluster.scene import Scene, exits, reasons

SETTINGS = Settings()
RETENTION_MS = 3_600_000


def _holding(grant: Grant) -> Holding:
    """A node that runs the one task of a grant."""
    return Holding((HeldLease(grant.lease, (0,)),), (HeldAllocation(grant.allocation, (), ((0, 0),)),))


def _lost_and_granted_anew(scene: Scene, policy: OnNodeLoss) -> tuple[int, Grant, Grant]:
    """A task that runs on `a`, which is lost, and was granted to `b`, which has not begun it."""
    first = scene.node("a", 1)
    job = scene.submit(on_node_loss=policy)
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.silence(first, SETTINGS.fence_ms(0))
    scene.node("b", 1)
    (again,) = scene.sent(Grant)
    return job, grant, again


def test_a_task_that_is_back_outlives_an_attempt_that_never_started() -> None:
    scene = Scene()
    job, grant, _ = _lost_and_granted_anew(scene, OnNodeLoss.RERUN)
    scene.silence("id-b", 1_000)
    scene.hello("id-a", 1, _holding(grant))
    scene.ask(RemoveNode(0, "admin", "b", force=True))
    assert scene.sent(Stop) == []
    assert scene.job(job).count_started == 1
    scene.report("id-a", AllocationReport(grant.allocation, exits=exits(0)))
    assert scene.job(job).status.state is JobState.SUCCEEDED
    assert sorted(scene.outcomes(job)) == [(0, 1), (0, 2)]


def test_a_fenced_task_that_is_back_does_not_go_on_beside_one_that_may_yet_start() -> None:
    scene = Scene()
    job, grant, _ = _lost_and_granted_anew(scene, OnNodeLoss.RERUN_FENCED)
    scene.silence("id-b", 1_000)
    scene.hello("id-a", 1, _holding(grant))
    scene.ask(RemoveNode(0, "admin", "b", force=True))
    assert [(stop.allocation, stop.reason) for stop in scene.sent(Stop)] == [
        (grant.allocation, StopReason.SUPERSEDED)
    ]
    assert scene.sent(Grant) == []
    assert scene.job(job).fenced


def _away_at_the_end_of_a_drain() -> tuple[Scene, str, Grant]:
    """A node with one running task is not heard when the deadline of its drain passes."""
    scene = Scene()
    node = scene.node("n", 1)
    scene.submit()
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.ask(EditNode(0, "admin", "n", NodeEdit.DRAIN, deadline_ms=5_000))
    scene.silence(node, 10_000)
    return scene, node, grant


def test_a_drain_that_was_withdrawn_ends_nothing() -> None:
    scene, node, grant = _away_at_the_end_of_a_drain()
    scene.ask(EditNode(0, "admin", "n", NodeEdit.RESUME))
    scene.hello(node, 1, _holding(grant))
    assert scene.sent(Stop) == []


def test_a_drain_with_a_later_deadline_ends_nothing_before_it() -> None:
    scene, node, grant = _away_at_the_end_of_a_drain()
    scene.ask(EditNode(0, "admin", "n", NodeEdit.DRAIN, deadline_ms=10_000))
    scene.hello(node, 1, _holding(grant))
    assert scene.sent(Stop) == []
    scene.step(scene.said(node, Heartbeat(scene.now_ms, 0)), after_ms=10_000)
    assert [stop.reason for stop in scene.sent(Stop)] == [StopReason.PREEMPT]


def test_a_job_that_failed_is_kept_as_long_as_one_that_waits_for_it_in_vain() -> None:
    """Else the one that waits would take it for one that had ended as was asked."""
    scene = Scene()
    node = scene.node("n", 1)
    first = scene.submit(retention=60_000)
    (grant,) = scene.sent(Grant)
    second = scene.submit(after=(Dependency(str(first)),), retention=RETENTION_MS)
    scene.ask(CancelJob(0, "user", second))
    failed = Ended(0, Cause.EXIT, 1, started=True)
    scene.report(node, AllocationReport(grant.allocation, ended=(failed,)))
    scene.wait(RETENTION_MS // 2)
    assert isinstance(scene.ask(RetryJob(0, "user", second)), Refusal)
    scene.wait(RETENTION_MS)
    assert not scene.machine.cluster.jobs


def test_a_job_that_has_begun_goes_on_whatever_becomes_of_those_before_it() -> None:
    scene = Scene()
    node = scene.node("n", 2)
    first = scene.submit()
    (grant,) = scene.sent(Grant)
    failed = Ended(0, Cause.EXIT, 1, started=True)
    scene.report(node, AllocationReport(grant.allocation, ended=(failed,)))
    after = (Dependency(str(first), DependencyWhen.FAILED),)
    second = scene.submit(after=after, array="0-9", max_running=1)
    (granted,) = scene.sent(Grant)
    scene.report(node, AllocationReport(granted.allocation, started=((0, 0),)))
    scene.ask(RetryJob(0, "user", first))
    (again,) = scene.sent(Grant)
    scene.report(node, AllocationReport(again.allocation, exits=exits(0)))
    assert scene.job(first).status.state is JobState.SUCCEEDED
    assert scene.job(second).status.state is JobState.RUNNING
    scene.report(node, AllocationReport(granted.allocation, exits=exits(0)))
    assert len(scene.sent(Grant)) == 1


def test_a_retry_after_which_the_job_would_be_stopped_at_once_is_refused() -> None:
    scene = Scene()
    node = scene.node("n", 3)
    job = scene.submit(array="0-2", max_failures=1)
    ends = tuple(Ended(index, Cause.EXIT, 1, started=True) for index in range(3))
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, ended=ends))
    assert scene.job(job).count_failed == 3
    answer = scene.ask(RetryJob(0, "user", job, indices=scene.job(job).all[:1]))
    assert isinstance(answer, Refusal)
    assert "max_failures, which is 1" in answer.problems[0]
    scene.ask(RetryJob(0, "user", job, indices=scene.job(job).all[:2]))
    assert sum(len(grant.indices) for grant in scene.sent(Grant)) == 1


def test_a_task_is_rerun_after_its_own_time_also_while_the_silent_stream_is_open() -> None:
    scene = Scene()
    first, second = scene.node("a", 1), scene.node("b", 1)
    scene.ask(EditNode(0, "admin", "b", NodeEdit.CORDON))
    scene.submit(rerun_after=20_000)
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.ask(EditNode(0, "admin", "b", NodeEdit.RESUME))
    heard_ms = scene.now_ms
    while not (granted := scene.sent(Grant)):
        scene.step(scene.said(second, Heartbeat(scene.now_ms, 0)), after_ms=1_000)
    assert [one.first_attempt for one in granted] == [2]
    assert scene.now_ms - heard_ms == 20_000


def test_a_node_that_dials_for_ever_and_never_says_what_it_holds_is_lost() -> None:
    scene = Scene()
    first = scene.node("a", 1)
    scene.submit()
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 0),)))
    second = scene.node("b", 1)
    heard_ms = scene.now_ms
    granted: list[Grant] = []
    inventory = Inventory(pools=(Pool(resources=Resources(cpu=1_000)),))
    hello = Hello(1, "", 1, "b", "j", 1, 0, inventory, scene.now_ms, 1)
    pages: list[Up] = [Holding((), ())] * 4
    stream = 1_000
    while not granted:
        stream += 1
        for message in [hello, *pages]:
            dialled = FromNode(first, stream, message)
            scene.step(dialled, scene.said(second, Heartbeat(scene.now_ms, 0)), after_ms=2_000)
            granted += scene.sent(Grant)
    assert [one.first_attempt for one in granted] == [2]
    assert scene.now_ms - heard_ms <= SETTINGS.lost_after_ms + 20_000
    lost = scene.machine.cluster.nodes[first].status
    assert lost.state is NodeState.LOST
    assert "without saying all that it holds" in lost.reason
    # Nor does a stream stay open on which nothing more comes.
    for message in (replace(hello, last_sequence=2), HoldingEnd(0)):
        scene.step(FromNode(first, stream + 1, message))
    assert first in scene.machine.soft.sessions
    scene.wait(SETTINGS.disconnected_ms + 1)
    assert first not in scene.machine.soft.sessions
    # Once it does, it is a node as before.
    scene.hello(first, 1, _holding(grant))
    assert scene.machine.cluster.nodes[first].status.state is NodeState.READY


def test_a_node_that_is_not_waited_for_is_not_told_that_it_is() -> None:
    """Its fenced attempts would go on beside those that are granted elsewhere."""
    scene = Scene()
    node = scene.node("n", 1)
    inventory = Inventory(pools=(Pool(resources=Resources(cpu=1_000)),))
    hello = Hello(1, "", 1, "b", "j", 1, 0, inventory, 0, 0)
    acknowledged = []
    for stream in (98, 99):
        for message in (hello, HoldingEnd(0), Heartbeat(scene.now_ms, 0)):
            scene.step(FromNode(node, stream, message))
        acknowledged.append(len(scene.sent(HeartbeatAck)))
    assert acknowledged == [1, 0]
    report = Report("j", 1, 1, (), ())
    scene.step(FromNode(node, 99, report), FromNode(node, 99, Heartbeat(scene.now_ms, 1)))
    assert len(scene.sent(HeartbeatAck)) == 1


@pytest.mark.parametrize("how", ["restart", "cordon", "blink"])
def test_a_job_stays_off_the_node_where_it_fails_while_others_are_away_for_a_moment(how: str) -> None:
    scene = Scene()
    first, second = scene.node("a", 4), scene.node("b", 4)
    job = scene.submit(array="0-999")
    grants = {order.node: order.message.body for order in scene.last.orders if isinstance(order, Send)}
    on_first, on_second = grants[first], grants[second]
    assert isinstance(on_first, Grant)
    assert isinstance(on_second, Grant)
    scene.report(second, AllocationReport(on_second.allocation, started=on_second.indices))
    ends = tuple(Ended(index, Cause.START_FAILED, started=False) for index in _indices(on_first))
    scene.report(first, AllocationReport(on_first.allocation, ended=ends, stalled=True))
    match how:
        case "restart":
            scene.machine = Machine(records=sorted(scene.machine.cluster.records.items()))
            scene.step(Lead())
            scene.hello(first, 4)
        case "cordon":
            scene.ask(EditNode(0, "admin", "b", NodeEdit.CORDON))
        case _:
            scene.silence(second, 1)
    assert scene.sent(Grant) == []
    assert scene.job(job).status.avoid == (first,)
    assert not scene.job(job).status.fails_everywhere
    waiting = reasons(scene).of_job(scene.job(job))
    assert waiting is not None
    assert "kept off it, where it failed in a row" in waiting.says


def _indices(grant: Grant) -> BitMap:
    return indexset.from_ranges(grant.indices)


def test_a_drain_ends_also_what_a_lost_node_takes_back_after_its_deadline() -> None:
    scene = Scene()
    first = scene.node("a", 2)
    job = scene.submit(array="0-1")
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 1),)))
    scene.silence(first, SETTINGS.lost_after_ms)
    second = scene.node("b", 1)
    (again,) = scene.sent(Grant)
    scene.silence(second, 1_000)
    slots = HeldLease(grant.lease, (0, 1))
    scene.hello(first, 2, Holding((slots,), (HeldAllocation(grant.allocation, (), ((0, 1),)),)))
    # One is back; the other may yet have begun elsewhere.
    assert scene.job(job).count_started == 1
    assert reasons(scene).of_task(scene.job(job), 1) is None
    scene.ask(EditNode(0, "admin", "a", NodeEdit.DRAIN, deadline_ms=5_000))
    told: list[Stop] = []

    def beat() -> None:
        for _ in range(20):
            scene.step(scene.said(first, Heartbeat(scene.now_ms, 1)), after_ms=1_000)
            told.extend(scene.sent(Stop))

    beat()
    assert [stop.indices for stop in told] == [((1, 1),)]
    scene.hello(second, 1)
    recall = scene.sent(Recall)[-1]
    scene.report(second, AllocationReport(again.allocation, dropped=((0, 0),), answers=recall.recall))
    beat()
    assert [stop.indices for stop in told] == [((1, 1),), ((0, 0),)]


def _gpus(*devices: str) -> Pool:
    return Pool(
        resources=Resources(cpu=8_000, gpu=len(devices) * 1000),
        devices=tuple(Device("gpu", one) for one in devices),
    )


@pytest.mark.parametrize("gpu", [1000, 500])
def test_a_gpu_that_was_exchanged_is_told_to_no_further_task(gpu: int) -> None:
    scene = Scene()
    node = scene.node("n", 0, _gpus("old"))
    scene.submit(array="0-9", resources=Resources(cpu=1_000, gpu=gpu))
    (lease,) = scene.sent(Lease)
    (grant,) = scene.sent(Grant)
    slots = tuple(slot.slot for slot in lease.slots)
    held = Holding((HeldLease(lease.lease, slots),), (HeldAllocation(grant.allocation, grant.indices, ()),))
    scene.silence(node, 1_000)
    scene.hello(node, 0, held, pools=(_gpus("new"),))
    assert [(one.lease, one.target) for one in scene.sent(Resize)] == [(lease.lease, 0)]


def test_a_task_whose_new_grant_was_recalled_goes_on_where_it_was() -> None:
    scene = Scene()
    job, grant, again = _lost_and_granted_anew(scene, OnNodeLoss.RERUN)
    scene.hello("id-a", 1, _holding(grant))
    (recall,) = scene.sent(Recall)
    assert recall.allocation == again.allocation
    dropped = AllocationReport(again.allocation, dropped=((0, 0),), answers=recall.recall)
    scene.report("id-b", dropped)
    assert scene.sent(Stop) == []
    assert scene.job(job).attempts(0) == 0


def test_holding_that_does_not_add_up_ends_the_stream() -> None:
    scene = Scene()
    node = scene.node("n", 1)
    scene.silence(node, 1_000)
    inventory = Inventory(pools=(Pool(resources=Resources(cpu=1_000)),))
    hello = Hello(1, "", 1, "b", "j", 0, 0, inventory, scene.now_ms, 0)
    scene.step(replace(scene.said(node, hello), stream=99))
    scene.step(replace(scene.said(node, HoldingEnd(3)), stream=99))
    assert node not in scene.machine.soft.sessions

"""What a node may cost the leader, whatever it says."""

from dataclasses import replace

import pytest
from pyroaring import BitMap

from rota.core.cluster import streams
from rota.core.cluster.check import check_job
from rota.core.cluster.inputs import Close, FromNode
from rota.core.cluster.records import job_key, tally_key
from rota.core.cluster.tasks import MESSAGES_MAX, TaskWriter
from rota.core.cluster.work import Work
from rota.core.model import indexset
from rota.core.model.protocol import (
    AllocationReport,
    Grant,
    Heartbeat,
    HeldAllocation,
    HeldLease,
    Hello,
    Holding,
    HoldingEnd,
    Inventory,
    Pool,
    Report,
    Resize,
    Stop,
)
from rota.core.model.resources import Resources
from rota.core.model.states import Cause, EventKind
from tests.core.cluster.scene import WALL_MS, Scene, exits

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


def test_a_node_that_is_refused_again_and_again_is_an_event_once_a_minute_for_each_reason() -> None:
    scene = Scene()
    node = scene.node("n", 2)
    messages = []
    for number in range(60):
        # What changes with each Hello makes no other reason of it.
        for hello in (replace(HELLO, journal_id=f"other-{number}"), replace(HELLO, protocol=100 + number)):
            outcome = scene.step(FromNode(node, 99, hello), after_ms=1_000)
            messages += [event.message for event in outcome.events if event.kind is EventKind.NODE_REFUSED]
        beat = scene.said(node, Heartbeat(scene.now_ms, 0))
        scene.step(beat)
    assert [message.split(" ")[0] for message in messages] == ["node", "the", "node", "the"]
    assert len(scene.machine.soft.refused_ms) == 2


def test_of_each_task_its_last_end_is_known_however_many_ends_one_report_tells() -> None:
    """A cause and code after the other, each among all others, took seconds."""
    scene = Scene()
    job = scene.job(scene.submit(array="0-65999"))
    machine = scene.machine
    work = Work(machine.cluster, machine.soft, machine.settings, scene.now_ms, WALL_MS)
    for shift in (0, 7):
        ends = {
            (Cause.EXIT, code): (BitMap(range((code + shift) % 256, 66_000, 256)), str(code))
            for code in range(256)
        }
        writer = TaskWriter(work, job)
        writer.failed_by_each(ends)
        writer.flush()
        check_job(job)
    for number in (0, 1):
        groups = job.exceptions_of(number).groups
        codes = {index: group.code for group in groups for index in group.indices}
        assert codes == {
            index: (index - 7) % 256 for index in job.all if index // indexset.SEGMENT_SIZE == number
        }
        told = [group.message for group in groups if group.message]
        assert told == [str(group.code) for group in groups[:MESSAGES_MAX]]


def test_ranges_that_reach_far_beyond_a_job_cost_no_more_than_the_job() -> None:
    scene = Scene()
    node = scene.node("n", 2)
    job = scene.submit(array="0-1")
    (grant,) = scene.sent(Grant)
    for _ in range(4):
        scene.report(node, *(AllocationReport(grant.allocation, started=EVERYTHING) for _ in range(5_000)))
    assert scene.job(job).count_started == 2
    scene.report(node, AllocationReport(grant.allocation, exits=exits(*range(1_000))))
    assert scene.outcomes(job) == [(0, 1), (1, 1)]


def test_of_how_many_jobs_a_node_has_a_tally_is_counted_in_whatever_order_they_go() -> None:
    scene = Scene()
    node = scene.node("n", 1)
    for _ in range(2):
        scene.submit()
        (grant,) = scene.sent(Grant)
        scene.report(node, AllocationReport(grant.allocation, exits=exits(0)))
    cluster = scene.machine.cluster
    assert cluster.tally_counts == {node: 2}
    # As a standby is told: with the changes of a commit in the order of their keys.
    cluster.drop(job_key(1))
    cluster.drop(tally_key(1, node))
    assert cluster.tally_counts == {node: 1}
    cluster.drop(tally_key(2, node))
    assert cluster.tally_counts == {}


def test_what_a_lost_node_did_in_vain_is_kept_no_longer_than_it_may_count() -> None:
    scene = Scene()
    first, second = scene.node("a", 2), scene.node("b", 0)
    scene.submit(resources=Resources(cpu=2_000))
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.silence(first, scene.machine.settings.lost_after_ms + 1)
    # It tells that the task has succeeded, and has still more to tell before it is compared.
    succeeded = AllocationReport(grant.allocation, exits=exits(0))
    hello = replace(HELLO, last_sequence=3, acknowledged=1)
    for message in (hello, HoldingEnd(0), Report("j", 2, 2, (succeeded,))):
        scene.step(FromNode(first, 99, message))
    session = scene.machine.soft.sessions[first]
    assert list(session.late) == [grant.allocation]
    scene.hello(second, 2)
    (again,) = scene.sent(Grant)
    scene.report(second, AllocationReport(again.allocation, started=((0, 0),)))
    assert session.late == {}

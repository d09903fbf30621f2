"""What is remembered of attempts and jobs, so that people can be told."""

from pyroaring import BitMap

from rota.core.cluster.inputs import CancelJob, Done, EditNode, LabelNode, NodeEdit, RetryJob
from rota.core.cluster.soft import Settings
from rota.core.model.protocol import AllocationReport, Ended, Forget, Grant
from rota.core.model.states import Cause, EventKind
from tests.core.cluster.scene import WALL_MS, Scene


def test_a_task_that_is_put_back_has_its_end_on_no_node() -> None:
    """Failed on one node, and again on another: it counts for the second alone, and the job began once."""
    scene = Scene()
    first = scene.node("a", 2)
    job = scene.submit(array="0-2", max_running=2)
    (grant,) = scene.sent(Grant)
    failed = tuple(Ended(index, Cause.EXIT, 1, started=True) for index in range(2))
    scene.report(first, AllocationReport(grant.allocation, ended=failed))
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, ended=(Ended(2, Cause.EXIT, 0, started=True),)))
    assert scene.job(job).ended
    began_ms = scene.job(job).status.started_at_ms
    scene.ask(EditNode(0, "admin", "a", NodeEdit.CORDON))
    scene.step(after_ms=60_000)
    second = scene.node("b", 2)
    scene.ask(RetryJob(0, "admin", job, BitMap([1])))
    tallies = scene.job(job).tallies
    assert (tallies[first].failed, tallies[first].succeeded) == (1, 1)
    (grant,) = scene.sent(Grant)
    scene.report(second, AllocationReport(grant.allocation, ended=failed[1:]))
    assert (tallies[first].failed, tallies[second].failed) == (1, 1)
    assert scene.job(job).ended
    assert scene.job(job).status.started_at_ms == began_ms
    assert scene.job(job).status.retried_at_ms == WALL_MS + 60_000


def test_a_node_that_ran_a_task_in_vain_forgets_its_output_with_the_others() -> None:
    scene = Scene()
    node = scene.node("a", 1)
    job = scene.submit(retention=1_000)
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.silence(node, Settings().lost_after_ms + 1)
    failed = Ended(0, Cause.EXIT, 3, started=True)
    scene.hello(node, 1, reports=[AllocationReport(grant.allocation, ended=(failed,))])
    assert scene.outcomes(job) == [(0, 1)]
    assert list(scene.job(job).tallies) == [node]
    scene.ask(CancelJob(0, "admin", job))
    (again,) = scene.job(job).allocations
    scene.report(node, AllocationReport(again, dropped=((0, 0),)))
    scene.wait(1_000)
    assert scene.sent(Forget) == [Forget((job,))]


def test_of_what_runs_it_is_known_since_when() -> None:
    scene = Scene()
    node = scene.node("a", 2)
    job = scene.submit(array="0-1")
    (grant,) = scene.sent(Grant)
    (allocation,) = scene.job(job).allocations.values()
    scene.step(after_ms=100)
    scene.report(node, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.step(after_ms=100)
    scene.report(node, AllocationReport(grant.allocation, started=((1, 1),)))
    assert dict(allocation.status.started_at_ms) == {0: WALL_MS + 100, 1: WALL_MS + 200}
    scene.report(node, AllocationReport(grant.allocation, ended=(Ended(0, Cause.EXIT, 0, started=True),)))
    assert dict(allocation.status.started_at_ms) == {1: WALL_MS + 200}


def test_what_changes_nothing_of_a_node_is_no_event() -> None:
    scene = Scene()
    scene.node("a", 2)
    labels = (("disk", "ssd"),)
    for make in (
        lambda: EditNode(0, "admin", "a", NodeEdit.CORDON),
        lambda: EditNode(0, "admin", "a", NodeEdit.DRAIN),
        lambda: EditNode(0, "admin", "a", NodeEdit.RESUME),
        lambda: LabelNode(0, "admin", "a", labels),
        lambda: LabelNode(0, "admin", "a", (), ("disk",)),
    ):
        assert scene.ask(make()) == Done(changed=True)
        assert [event.kind for event in scene.last.events] == [EventKind.NODE_CHANGED]
        assert scene.ask(make()) == Done(changed=False)
        assert scene.last.events == []


def test_one_task_is_said_to_be_one() -> None:
    scene = Scene()
    job = scene.submit()
    assert [event.message for event in scene.last.events] == ["1 task"]
    scene.submit(array="0-1999")
    assert [event.message for event in scene.last.events] == ["2,000 tasks"]
    scene.ask(CancelJob(0, "admin", job))
    scene.ask(RetryJob(0, "admin", job))
    assert [event.message for event in scene.last.events] == ["1 task"]

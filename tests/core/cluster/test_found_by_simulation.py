"""Stories of a leader that the simulator told first."""

from rota.core.cluster.inputs import Close, FromNode, PutQueue
from rota.core.cluster.records import META_COMMIT, QueueConfig
from rota.core.cluster.soft import Settings
from rota.core.cluster.step import Machine
from rota.core.model.protocol import (
    AllocationReport,
    Goodbye,
    Grant,
    Heartbeat,
    HeldAllocation,
    Hello,
    Holding,
    Inventory,
    Lease,
    Refused,
    Resized,
    Welcome,
)
from rota.core.model.resources import Resources
from rota.core.model.states import NodeState
from tests.core.cluster.scene import Scene, exits

HELLO = Hello(1, "", 1, "b", "j", 0, 0, Inventory(), 1, 0)


def test_what_a_lost_node_had_of_a_quota_is_given_out_when_it_is_lost() -> None:
    """The task is given up before its node is, while the quota is used; after that nothing else happens."""
    settings = Settings()
    scene = Scene(Machine(settings))
    scene.ask(PutQueue(0, "admin", "q", QueueConfig(quota=Resources(cpu=1000))))
    first = scene.node("a", 1)
    job = scene.submit(queue="q", rerun_after=20_000)
    second = scene.node("b", 1)
    scene.silence(first, 30_000)
    scene.hello(second, 1)
    assert list(scene.job(job).pending) == [0]
    while not scene.sent(Grant) and scene.now_ms < settings.lost_after_ms * 2:
        scene.step(scene.said(second, Heartbeat(scene.now_ms, 0)), after_ms=4_000)
    assert [grant.job for grant in scene.sent(Grant)] == [job]
    assert scene.machine.cluster.nodes[first].status.state is NodeState.LOST


def test_a_session_ends_whose_pages_were_lost() -> None:
    """Heartbeats would keep it alive, and the node would never be given anything."""
    scene = Scene()
    node = scene.node("n", 1)
    scene.step(FromNode(node, 99, HELLO))
    outcome = scene.step(FromNode(node, 99, Heartbeat(1, 0)))
    assert [type(order) for order in outcome.orders] == [Close]


def test_a_lease_whose_slots_are_all_freed_is_not_sent_again() -> None:
    """It is kept for the sake of a grant that the node may still give back."""
    scene = Scene()
    node = scene.node("n", 1)
    scene.submit()
    (grant,) = scene.sent(Grant)
    scene.report(node, resized=(Resized(grant.lease, (0,)),))
    held = HeldAllocation(grant.allocation, ((0, 0),), ())
    scene.hello(node, 1, Holding((), (held,)))
    assert [lease.lease for lease in scene.sent(Lease) if not lease.slots] == []


def test_who_refuses_a_node_for_good_has_committed_first() -> None:
    """A leader that another has followed finds out, and does not turn nodes away that it never knew."""
    scene = Scene()
    scene.step(after_ms=1_000)
    outcome = scene.step(FromNode("id-unknown", 99, HELLO))
    (refused,) = scene.sent(Refused)
    assert refused.retry_ms == 0
    assert META_COMMIT in outcome.changes


def test_what_a_journal_was_acknowledged_counts_when_another_came_between() -> None:
    """A copy of a node that had left was believed; then the node comes back with its own journal."""
    scene = Scene()
    node = scene.node("n", 1)
    scene.submit()
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, exits=exits(0)))
    scene.step(scene.said(node, Goodbye("it was asked to end")))
    scene.hello(node, 1, journal="copy", boot="other")
    scene.silence(node, Settings().suspect_ms)
    scene.hello(node, 1)
    (welcome,) = scene.sent(Welcome)
    assert welcome.acknowledged == 1

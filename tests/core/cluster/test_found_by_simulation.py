"""Stories of a leader that the simulator told first."""

from rota.core.cluster.inputs import PutQueue
from rota.core.cluster.records import QueueConfig
from rota.core.cluster.soft import Settings
from rota.core.cluster.step import Machine
from rota.core.model.protocol import Grant, Heartbeat
from rota.core.model.resources import Resources
from rota.core.model.states import NodeState
from tests.core.cluster.scene import Scene


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
        scene.step(scene.said(second, Heartbeat(scene.now_ms, 0)), after_ms=10_000)
    assert [grant.job for grant in scene.sent(Grant)] == [job]
    assert scene.machine.cluster.nodes[first].status.state is NodeState.LOST

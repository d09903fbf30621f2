"""Why tasks wait: each reason, with the sentence that people read."""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from rota.core.cluster.inputs import EditNode, HoldJob, NodeEdit, PutQueue, RemoveNode, Submit
from rota.core.cluster.records import QueueConfig
from rota.core.cluster.soft import Settings
from rota.core.cluster.waiting import Reasons, Waiting
from rota.core.model.protocol import AllocationReport, Device, Ended, Grant, Pool
from rota.core.model.resources import Resources
from rota.core.model.spec import Dependency, JobSpec
from rota.core.model.states import Cause, DependencyWhen, OnNodeLoss, PendingReason
from tests.core.cluster.scene import Scene, reasons


def why(scene: Scene, job: int, index: int | None = None) -> Waiting:
    """Why a job waits, or one of its tasks."""
    found_by = reasons(scene)
    one = scene.job(job)
    found = found_by.of_job(one) if index is None else found_by.of_task(one, index)
    assert found is not None
    return found


@dataclass
class All:
    """All nodes are told of."""

    scene: Scene

    def telling(self, shape: Resources, avoid: tuple[str, ...]) -> Iterable[str]:
        return self.scene.machine.cluster.nodes

    def able(self, shape: Resources) -> Iterable[str]:
        return [
            name
            for name, node in self.scene.machine.cluster.nodes.items()
            if any(not shape.missing_in(pool.resources) for pool in node.pools)
        ]


def cores(count: float) -> Resources:
    return Resources(cpu=round(count * 1000))


def test_a_job_that_waits_for_nothing_has_no_reason() -> None:
    scene = Scene()
    scene.node("a", 1)
    job = scene.job(scene.submit())
    assert (reasons(scene).of_job(job), reasons(scene).of_task(job, 0)) == (None, None)


def test_no_node_is_known() -> None:
    scene = Scene()
    assert why(scene, scene.submit()) == Waiting(PendingReason.NO_NODE, "waits for a node: none is known")


def test_the_node_that_is_named_is_known_no_more() -> None:
    scene = Scene()
    scene.node("a", 1)
    scene.node("b", 1)
    scene.submit(node="b")
    job = scene.submit(node="b")
    scene.ask(RemoveNode(0, "admin", "b", force=True))
    assert why(scene, job) == Waiting(PendingReason.NO_NODE, "waits for node 'b', which is not known")


def test_a_node_that_came_later_is_too_small() -> None:
    scene = Scene()
    job = scene.submit(resources=cores(3))
    scene.node("a", 1)
    scene.node("b", 2)
    says = "can run on no node: needs cpu 3, the largest node has 2 (b)"
    assert why(scene, job) == Waiting(PendingReason.TOO_LARGE, says)


def test_nodes_that_could_carry_it_take_no_work() -> None:
    scene = Scene()
    for name in ("a", "b"):
        scene.node(name, 2)
    scene.ask(EditNode(0, "admin", "a", NodeEdit.CORDON))
    scene.ask(EditNode(0, "admin", "b", NodeEdit.DRAIN))
    scene.node("small", 1)
    silent = scene.node("c", 2)
    scene.silence(silent, 0)
    job = scene.submit(resources=cores(2))
    says = "waits for a node that takes it: 1 cordoned, 1 draining, 1 suspect"
    assert why(scene, job) == Waiting(PendingReason.NODES_UNAVAILABLE, says)


def test_no_room_names_what_is_missing_and_where_most_of_it_is() -> None:
    scene = Scene()
    scene.node("a", 4)
    scene.node("b", 4)
    scene.submit(resources=cores(3.5))
    scene.submit(resources=cores(1))
    job = scene.submit(resources=cores(4))
    says = "waits for room: needs cpu 4, the most that is free on one node is 3 (b)"
    assert why(scene, job) == Waiting(PendingReason.NO_ROOM, says)


def test_a_sum_of_parts_of_gpus_is_no_room() -> None:
    scene = Scene()
    gpus = tuple(Device("gpu", f"gpu{number}") for number in range(2))
    scene.node("a", 0, Pool(resources=Resources(cpu=64_000, gpu=2_000), devices=gpus))
    scene.submit(array="0-1", resources=Resources(cpu=1_000, gpu=600))
    job = scene.submit(resources=Resources(cpu=1_000, gpu=600))
    says = "waits for room: needs cpu 1, gpu 0.6 together, which no node has free"
    assert why(scene, job) == Waiting(PendingReason.NO_ROOM, says)


def test_max_running_is_reached() -> None:
    scene = Scene()
    scene.node("a", 8)
    job = scene.submit(array="0-9", max_running=3)
    says = "waits because max_running is reached: 3 of 3"
    assert why(scene, job) == Waiting(PendingReason.MAX_RUNNING, says)
    assert why(scene, job, 9).reason is PendingReason.MAX_RUNNING


def test_the_quota_of_the_queue_is_reached() -> None:
    scene = Scene()
    scene.node("a", 8)
    scene.ask(PutQueue(0, "admin", "video", QueueConfig(quota=cores(3))))
    job = scene.submit(array="0-9", queue="video", resources=cores(2))
    says = "waits because queue 'video' has reached its quota: cpu 2 of 3"
    assert why(scene, job) == Waiting(PendingReason.QUOTA, says)


def test_what_a_queue_has_too_little_of_is_told_by_its_field() -> None:
    scene = Scene()
    limits = Resources.of(cpu=1_000, named={"power": 2_000})
    scene.ask(PutQueue(0, "admin", "video", QueueConfig(quota=limits)))
    wanted = Resources.of(cpu=3_000, named={"power": 4_000})
    refusal = scene.ask(Submit(0, "user", (JobSpec(command=("x",), queue="video", resources=wanted),)))
    assert refusal.problems == (
        "jobs[0].resources.cpu: asks 3; queue 'video' has 1 in all",
        "jobs[0].resources.named.power: asks 4; queue 'video' has 2 in all",
    )


@pytest.mark.parametrize(
    ("when", "says"),
    [
        (DependencyWhen.SUCCEEDED, "to succeed"),
        (DependencyWhen.FINISHED, "to end"),
        (DependencyWhen.FAILED, "to fail"),
    ],
)
def test_dependencies_are_named(when: DependencyWhen, says: str) -> None:
    scene = Scene()
    first = [scene.submit() for _ in range(5)]
    job = scene.submit(after=tuple(Dependency(str(number), when) for number in first[:2]))
    both = f"waits for job {first[0]} {says}, job {first[1]} {says}"
    assert why(scene, job) == Waiting(PendingReason.DEPENDENCY, both)
    many = scene.submit(after=tuple(Dependency(str(number), when) for number in first))
    assert why(scene, many).says.endswith(f"job {first[2]} {says} and 2 more")


def test_a_back_off_says_until_when() -> None:
    scene = Scene()
    node = scene.node("a", 4)
    job = scene.submit(array="0-1", retries=5, backoff=20_000)
    (grant,) = scene.sent(Grant)
    scene.step(after_ms=1_000)
    failures = tuple(Ended(index, Cause.EXIT, 1, started=True) for index in range(2))
    scene.report(node, AllocationReport(grant.allocation, ended=failures[:1]))
    scene.step(after_ms=1_000)
    scene.report(node, AllocationReport(grant.allocation, ended=failures[1:]))
    # Rounded up to a sixteenth of the wait.
    expected = Waiting(PendingReason.BACKOFF, "waits to be tried again", 21_250)
    assert why(scene, job) == why(scene, job, 0) == expected
    assert why(scene, job, 1).until_ms == 22_500


def test_a_held_job_and_tasks_kept_for_a_lost_node() -> None:
    scene = Scene()
    node = scene.node("a", 1)
    job = scene.submit(on_node_loss=OnNodeLoss.HOLD)
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.silence(node, Settings().lost_after_ms + 1)
    kept = why(scene, job)
    assert kept == why(scene, job, 0)
    assert kept.reason is PendingReason.HELD
    assert "node a, which is lost" in kept.says
    other = scene.submit()
    scene.ask(HoldJob(0, "admin", other))
    held = Waiting(PendingReason.HELD, f"is held; to let it go on: rota release {other}")
    assert why(scene, other) == why(scene, other, 0) == held


@pytest.mark.parametrize("seed", range(12))
def test_a_few_nodes_tell_what_all_would(seed: int) -> None:
    """However many there are: a reader must not wait for a look at each."""
    scene, chance = Scene(), random.Random(seed)
    names = [f"n{number}" for number in range(40)]
    for name in names:
        scene.node(name, chance.randint(1, 6))
    scene.submit(array="0-59", resources=cores(chance.choice([1, 2, 3])))
    for name in chance.sample(names, chance.choice([0, 10, 38, 40])):
        match chance.randrange(4):
            case 0:
                scene.ask(EditNode(0, "admin", name, NodeEdit.CORDON))
            case 1:
                scene.silence(f"id-{name}", 0)
            case 2:
                scene.ask(RemoveNode(0, "admin", name, force=True))
            case _:
                scene.ask(EditNode(0, "admin", name, NodeEdit.DRAIN))
    machine = scene.machine
    for cpu in (1, 2, 4, 6, 7):
        avoid = tuple(chance.sample(sorted(machine.cluster.nodes), chance.choice([0, 5])))
        few, all_ = (
            Reasons(machine.cluster, machine.soft, nodes)._of_nodes(cores(cpu), "", avoid)
            for nodes in (machine.placing.index, All(scene))
        )
        assert (few.reason, _unnamed(few.says)) == (all_.reason, _unnamed(all_.says))
        assert len(machine.placing.index.telling(cores(cpu), avoid)) <= 4 + len(machine.cluster.news.nodes)


def test_the_roomiest_node_is_among_the_few_that_tell() -> None:
    """One is full, two lack one thing each, and the last has half of both."""
    scene = Scene()
    shape = Resources(cpu=8_000, memory=8 << 30)
    for name in "abcd":
        scene.node(name, 0, Pool(resources=shape))
    taken = {"a": shape, "b": Resources(memory=8 << 30), "c": Resources(cpu=8_000)}
    for name, resources in {**taken, "d": Resources(cpu=4_000, memory=4 << 30)}.items():
        scene.submit(node=name, resources=resources)
    machine = scene.machine
    wanted = Resources(cpu=2_000, memory=2 << 30)
    assert "id-d" in machine.placing.index.telling(wanted, ())
    assert Reasons(machine.cluster, machine.soft, machine.placing.index)._of_nodes(wanted, "", ()) == Reasons(
        machine.cluster, machine.soft, All(scene)
    )._of_nodes(wanted, "", ())


def _unnamed(says: str) -> str:
    """Without which of several nodes has the most, and in no order."""
    return " ".join(sorted(re.sub(r"\(.*?\)", "", says).replace(",", "").split()))

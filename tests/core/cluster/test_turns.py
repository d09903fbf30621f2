"""Stories of who gives way to whom on full nodes: queues by weight, work by priority and age."""

from typing import Any

import pytest

from rota.core.cluster.claims import (
    GATHERING_MS_MAX,
    GATHERING_PAUSE_MS,
    GROUPS_LOOKED_AT_MAX,
    GROUPS_MAX,
    SHORT_TASK_MS,
)
from rota.core.cluster.inputs import CancelJob, EditNode, NodeEdit, PutQueue
from rota.core.cluster.records import QueueConfig
from rota.core.model import indexset
from rota.core.model.protocol import (
    AllocationReport,
    Device,
    Grant,
    Heartbeat,
    Pool,
    Resize,
    Resized,
)
from rota.core.model.resources import Resources
from rota.core.model.states import OnNodeLoss
from tests.core.cluster.scene import WALL_MS, Scene, exits


class Full:
    """A node full of the tasks of one job, which ends them one by one and gives back what it is asked for."""

    def __init__(self, cpu: int = 4, *pools: Pool, **spec: Any) -> None:
        self.scene = Scene()
        for queue, weight in (("video", 3), ("quiet", 1), ("late", 1)):
            self.scene.ask(PutQueue(0, "admin", queue, QueueConfig(weight=weight)))
        self.node = self.scene.node("n", cpu, *pools)
        self.first = self.scene.submit(**{"array": "0-999", **spec})
        self.asked: dict[int, int] = {}
        # As the node reports it; 0 where it does not.
        self.task_ms = 0
        self.running: list[tuple[Grant, int]] = []
        self._hear()

    def submit(self, **spec: Any) -> int:
        job = self.scene.submit(**spec)
        self._hear()
        return job

    def _hear(self) -> None:
        for resize in self.scene.sent(Resize):
            self.asked[resize.lease] = resize.target
        for grant in self.scene.sent(Grant):
            started = AllocationReport(grant.allocation, started=grant.indices)
            self.running += [(grant, index) for index in indexset.from_ranges(grant.indices)]
            self.scene.report(self.node, started)

    def end_one(self, job: int) -> None:
        """A task of the job ends; its slot is given back if the lease is to have fewer."""
        place, (grant, index) = next(
            (place, pair) for place, pair in enumerate(self.running) if pair[0].job == job
        )
        del self.running[place]
        lease = self.scene.machine.cluster.nodes[self.node].leases[grant.lease]
        resized: tuple[Resized, ...] = ()
        slots = lease.desired.slots
        if len(slots) > self.asked.get(lease.id, len(slots)):
            resized = (Resized(lease.id, (slots[-1].slot,)),)
        # Where it does not say when it started, nothing was measured.
        measured = {"started_at_ms": WALL_MS, "duration_ms": self.task_ms} if self.task_ms else {}
        ended = AllocationReport(grant.allocation, exits=exits(index, **measured))
        self.scene.report(self.node, ended, resized=resized)
        self._hear()

    def wait(self, after_ms: int) -> None:
        """The node is heard, and nothing ends."""
        for _ in range(after_ms // 5_000):
            sequence = self.scene.machine.cluster.nodes[self.node].status.acknowledged
            self.scene.step(
                self.scene.said(self.node, Heartbeat(self.scene.now_ms, sequence)), after_ms=5_000
            )
            self._hear()

    def count(self, job: int) -> int:
        return sum(grant.job == job for grant, _ in self.running)


def test_a_queue_that_comes_later_gets_its_share_as_tasks_end() -> None:
    full = Full()
    second = full.submit(array="0-999", queue="video")
    # Weights 1 and 3, and four slots: one stays.
    assert list(full.asked.values()) == [1]
    for count in (1, 2, 3):
        full.end_one(full.first)
        assert (full.count(full.first), full.count(second)) == (4 - count, count)
    full.asked.clear()
    for job in (full.first, second, second):
        full.end_one(job)
    assert full.asked == {}
    assert (full.count(full.first), full.count(second)) == (1, 3)


def test_three_queues_share_and_then_leave_one_another_alone() -> None:
    full = Full(6)
    second = full.submit(array="0-999", queue="quiet")
    third = full.submit(array="0-999", queue="late")
    jobs = (full.first, second, third)
    for turn in range(60):
        job = jobs[turn % 3]
        if full.count(job):
            full.end_one(job)
    assert [full.count(job) for job in jobs] == [2, 2, 2]
    full.asked.clear()
    for turn in range(30):
        full.end_one(jobs[turn % 3])
    assert full.asked == {}


def test_a_queue_gives_no_more_than_the_other_needs() -> None:
    full = Full()
    second = full.submit(queue="video")
    assert list(full.asked.values()) == [3]
    full.end_one(full.first)
    assert full.count(second) == 1


def test_no_more_is_asked_back_than_a_quota_lets_a_queue_have() -> None:
    full = Full()
    quota = QueueConfig(weight=3, quota=Resources(cpu=1_000))
    full.scene.ask(PutQueue(0, "admin", "video", quota, update=True))
    for _ in range(3):
        full.submit(queue="video")
    assert list(full.asked.values()) == [3]


def test_work_for_nodes_that_take_none_is_in_nobodys_way() -> None:
    full = Full(node="n", queue="video")
    for number in range(GROUPS_MAX + 1):
        away = full.scene.node(f"away-{number}", 4)
        full.scene.ask(EditNode(0, "admin", away, NodeEdit.CORDON))
        full.submit(array="0-9", queue="quiet", node=f"away-{number}")
    full.submit(array="0-9", queue="quiet", node="n")
    assert full.asked, "the queue has a share"


def test_of_very_much_work_for_nodes_that_take_none_the_rest_has_its_turn() -> None:
    full = Full(node="n", queue="video")
    away = full.scene.node("away", 4)
    full.scene.ask(EditNode(0, "admin", away, NodeEdit.CORDON))
    for number in range(GROUPS_LOOKED_AT_MAX + 1):
        full.submit(queue="quiet", node="away", resources=Resources(cpu=1_000 + number))
    full.submit(array="0-9", queue="quiet", node="n")
    full.end_one(full.first)
    assert full.asked, "the queue has a share"


def test_room_that_nobody_gathers_any_more_is_given_to_others_at_once() -> None:
    full = Full()
    full.task_ms = 1_000
    full.end_one(full.first)
    large = full.submit(queue="video", resources=Resources(cpu=4_000))
    for _ in range(2):
        full.end_one(full.first)
    assert len(full.running) == 2
    full.scene.ask(CancelJob(0, "user", large))
    full.scene.wait(1)
    full._hear()
    assert len(full.running) == 4


def test_work_that_may_start_once_is_not_queued_behind_short_tasks() -> None:
    full = Full(cpu=1, array="0-0")
    full.task_ms = 20
    short = [full.first, *(full.submit(array="0-0") for _ in range(7))]
    for job in short[:4]:
        full.end_one(job)
    once = full.submit(array="0-19", on_node_loss=OnNodeLoss.HOLD)
    for job in short[4:]:
        full.end_one(job)
        assert sum(grant.job == once for grant, _ in full.running) <= 1
    full.end_one(once)
    assert sum(grant.job == once for grant, _ in full.running) == 1


def test_work_of_higher_priority_does_not_wait_for_the_end_of_all_the_other() -> None:
    full = Full()
    urgent = full.submit(array="0-1", resources=Resources(cpu=500), priority=100)
    assert list(full.asked.values()) == [2]
    full.end_one(full.first)
    # Both fit into the one slot.
    assert full.count(urgent) == 2


def test_older_work_is_kept_and_newer_work_of_the_same_lease_gives_way() -> None:
    full = Full(array="0")
    for _ in range(3):
        full.submit(priority=-1)
    assert len(full.running) == 4
    full.submit(array="0-9", resources=Resources(cpu=500))
    assert list(full.asked.values()) == [1]


@pytest.mark.parametrize("cpu", [2_000, 3_000])
def test_room_for_large_work_is_gathered_where_tasks_are_short(cpu: int) -> None:
    full = Full()
    full.task_ms = 1_000
    full.end_one(full.first)
    large = full.submit(queue="video", resources=Resources(cpu=cpu))
    assert list(full.asked.values()) == [4 - cpu // 1_000]
    for left in range(3, 4 - cpu // 1_000, -1):
        full.end_one(full.first)
        # What is free is kept, though a task of the other job would fit.
        assert (full.count(full.first), full.count(large)) == (left, 0)
    full.end_one(full.first)
    assert (full.count(full.first), full.count(large)) == (4 - cpu // 1_000, 1)
    full.end_one(large)
    # Its lease goes back to those that wait.
    assert [target for lease, target in full.asked.items() if lease == max(full.asked)] == [0]


def test_room_is_not_gathered_for_ever_beside_a_task_that_does_not_end() -> None:
    full = Full()
    full.task_ms = 1_000
    full.end_one(full.first)
    large = full.submit(queue="video", resources=Resources(cpu=4_000))
    for _ in range(3):
        full.end_one(full.first)
    assert len(full.running) == 1
    full.wait(GATHERING_MS_MAX)
    assert full.count(full.first) == 4
    full.wait(GATHERING_PAUSE_MS)
    assert full.count(large) == 0


@pytest.mark.parametrize("cpu", [2_000, 4_000])
def test_nothing_is_kept_idle_for_large_work_where_tasks_are_long(cpu: int) -> None:
    full = Full()
    full.task_ms = SHORT_TASK_MS + 1
    full.end_one(full.first)
    large = full.submit(queue="video", resources=Resources(cpu=cpu))
    assert full.asked == {}
    full.end_one(full.first)
    assert (full.count(full.first), full.count(large)) == (4, 0)


def test_a_queue_that_has_nothing_gets_a_slot_however_large() -> None:
    full = Full(4, array="0-9", resources=Resources(cpu=4_000))
    second = full.submit(queue="video", array="0-9", resources=Resources(cpu=3_000))
    assert list(full.asked.values()) == [0]
    full.end_one(full.first)
    assert (full.count(full.first), full.count(second)) == (0, 1)


def test_work_that_came_later_waits_its_turn() -> None:
    full = Full()
    full.submit(resources=Resources(cpu=500))
    assert full.asked == {}


def test_whole_gpus_are_not_hoped_for_from_parts_of_several() -> None:
    devices = (Device("gpu", "gpu-0"), Device("gpu", "gpu-1"))
    pool = Pool(resources=Resources(cpu=8_000, gpu=2_000), devices=devices)
    parts = Full(0, pool, resources=Resources(gpu=500))
    parts.submit(resources=Resources(gpu=1_000), priority=1)
    assert parts.asked == {}
    whole = Full(0, pool, resources=Resources(gpu=1_000))
    whole.submit(resources=Resources(gpu=300), priority=1)
    assert list(whole.asked.values()) == [1]

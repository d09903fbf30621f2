"""What a pass of placing looks at: what has changed, once for all that is alike. No times, only counts."""

from dataclasses import replace
from itertools import pairwise

from rota.core.cluster.index import PIECE_NODES, Index
from rota.core.cluster.inputs import Submit
from rota.core.cluster.placing import PIECE_PLACED
from rota.core.cluster.recount import check_index
from rota.core.cluster.soft import Settings
from rota.core.cluster.step import Machine
from rota.core.model.columns import columns_of
from rota.core.model.protocol import AllocationReport, Ended, Grant, Pool, Recall, Resize
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause
from tests.core.cluster.scene import Scene


def scene_of(nodes: int, cpu: int, **settings: int) -> Scene:
    scene = Scene(Machine(replace(Settings(), **settings)))
    for number in range(nodes):
        scene.node(f"n{number}", cpu)
    return scene


def index_of(scene: Scene) -> Index:
    return scene.machine.placing.index


def go_on(scene: Scene) -> int:
    """Steps while passes are cut short; how many."""
    count = 0
    while scene.last.wake_at_ms is not None and scene.last.wake_at_ms <= scene.now_ms:
        scene.step()
        count += 1
    return count


def end(scene: Scene, grant: Grant, duration_ms: int = 60_000) -> None:
    """The first task of a grant ends on its node."""
    node = next(
        node.id for node in scene.machine.cluster.nodes.values() if grant.allocation in node.allocations
    )
    ended = Ended(grant.indices[0][0], Cause.EXIT, 0, started_at_ms=1, duration_ms=duration_ms)
    scene.report(node, AllocationReport(grant.allocation, exits=columns_of([ended])))


def test_equal_jobs_are_scored_once_and_placed_by_one_choice() -> None:
    scene = scene_of(8, 4)
    scene.submit(array="0-7")
    for _ in range(12):
        scene.submit(array="0-1")
    room = index_of(scene).room
    assert room.shapes_scored == 1
    assert len(index_of(scene).kinds) == 1
    assert all(node.free("", 0).cpu == 0 for node in scene.machine.cluster.nodes.values())


def test_jobs_that_wait_are_not_looked_at_when_a_slot_is_freed() -> None:
    scene = scene_of(1, 2)
    grants = []
    for _ in range(60):
        scene.submit()
        grants += scene.sent(Grant)
    index = index_of(scene)
    before, scored = index.jobs_looked_at, index.room.shapes_scored
    end(scene, grants[0])
    assert len(scene.sent(Grant)) == 1
    # The one that ended, and the one that came in its place.
    assert index.jobs_looked_at - before <= 4
    assert index.room.shapes_scored == scored


def test_a_shape_that_found_no_room_is_not_sought_for_until_a_node_could_take_it() -> None:
    scene = scene_of(3, 4)
    scene.submit(array="0-11")
    grants = scene.sent(Grant)
    for number in range(5):
        scene.submit(array="0-99", resources=Resources(cpu=3_000 + number))
    index = index_of(scene)
    asked = [group for groups in index.parked.values() for group in groups]
    assert len(asked) == 5
    scored, rescored = index.room.shapes_scored, index.room.rows_rescored
    for grant in grants[:2]:
        end(scene, grant)
        assert all(group.parked for group in asked)
    assert (index.room.shapes_scored, index.room.rows_rescored) == (scored, rescored)


def test_only_what_fits_into_what_was_freed_is_looked_at_again() -> None:
    scene = scene_of(1, 4)
    first = scene.submit(resources=Resources(cpu=2_000))
    grant = scene.sent(Grant)[0]
    scene.submit(resources=Resources(cpu=2_000), array="0-8", priority=5)
    large = scene.submit(resources=Resources(cpu=4_000))
    assert not scene.job(large).owned
    parked = {group.kind.shape.cpu for groups in index_of(scene).parked.values() for group in groups}
    assert parked == {2_000, 4_000}
    end(scene, grant)
    assert scene.job(first).ended
    assert len(scene.sent(Grant)) == 1


def test_a_pass_that_would_be_long_goes_on_in_the_next_step() -> None:
    scene = scene_of(12, 4, placed_at_once=6)
    job = scene.submit(array="0-47")
    sent = len(scene.sent(Grant))
    assert 0 < sent <= 6
    assert go_on(scene) >= 3
    assert len(scene.job(job).owned) == 48
    # As if it had been one pass: what was chosen is carried out, and nothing twice.
    assert all(len(node.leases) == 1 for node in scene.machine.cluster.nodes.values())
    assert all(len(node.allocations) == 1 for node in scene.machine.cluster.nodes.values())


def test_a_pass_comes_in_pieces_in_which_little_is_placed() -> None:
    """Others are served between them."""
    scene = scene_of(80, 1)
    inputs = [Submit(1, "user", (JobSpec(command=("x",), array="0-79"),))]
    pieces = scene.machine.pieces(inputs, scene.now_ms, 0)
    jobs = scene.machine.cluster.jobs
    placed = [0, *(sum(len(one.owned) for one in jobs.values()) for _ in pieces)]
    steps = [after - before for before, after in pairwise(placed)]
    assert max(steps) <= PIECE_PLACED // 2  # each a lease and a grant
    assert placed[-1] > PIECE_PLACED


def test_what_has_changed_very_much_is_taken_in_in_pieces() -> None:
    scene = scene_of(3 * PIECE_NODES, 1)
    index = index_of(scene)
    scene.machine.cluster.news.nodes.update(dict.fromkeys(scene.machine.cluster.nodes))
    left = [len(scene.machine.cluster.news.nodes) for _ in index.catch_up()]
    assert left == [2 * PIECE_NODES, PIECE_NODES]
    index.refresh()
    check_index(index, scene.machine.cluster, scene.machine.soft)


def test_passes_that_are_cut_short_starve_no_queue() -> None:
    scene = scene_of(4, 8, placed_at_once=4)
    jobs = []
    for number in range(24):
        jobs.append(scene.submit(queue="default"))
        if number % 2:
            go_on(scene)
    go_on(scene)
    assert all(scene.job(job).owned for job in jobs)


def test_what_was_chosen_goes_to_no_other_node_that_has_come_to_its_place() -> None:
    scene = scene_of(0, 0, placed_at_once=6)
    unit = Resources(cpu=1_000)
    gateway, other = scene.node("gw", 0, Pool(resources=unit, units=12)), scene.node("m", 1)
    scene.submit(array="0-11", node="gw")
    # One has fewer units than it had, and the other more, in the same step.
    fewer = scene.greeting(gateway, 0, pools=(Pool(resources=unit, units=3),))
    more = scene.greeting(other, 0, pools=(Pool(resources=unit, units=12),))
    scene.step(*fewer, *more)
    go_on(scene)
    assert not scene.machine.cluster.nodes[other].leases


def test_what_was_chosen_is_chosen_again_where_its_node_takes_nothing_more() -> None:
    scene = scene_of(6, 4, placed_at_once=6)
    job = scene.submit(array="0-23")
    left = [node for node in scene.machine.cluster.nodes.values() if not node.leases]
    assert left
    scene.silence(left[0].id, 0)
    go_on(scene)
    assert not left[0].leases
    assert len(scene.job(job).owned) == 20


def test_short_jobs_of_one_task_are_queued_ahead_like_tasks_of_an_array() -> None:
    scene = scene_of(1, 2)
    jobs = [scene.submit() for _ in range(40)]
    assert sum(bool(scene.job(job).owned) for job in jobs) == 2
    for _ in range(6):
        for number in jobs:
            running = [one for one in scene.job(number).allocations.values() if one.remaining]
            if running:
                node = running[0].node.id
                ended = Ended(0, Cause.EXIT, 0, started_at_ms=1, duration_ms=2)
                scene.report(node, AllocationReport(running[0].id, exits=columns_of([ended])))
                break
    waiting = [job for job in jobs if scene.job(job).owned]
    assert len(waiting) > 4


def test_a_backlog_of_many_small_jobs_is_asked_back_for_an_idle_slot() -> None:
    scene = scene_of(1, 1)
    grants = []
    for _ in range(14):
        scene.submit()
        grants += scene.sent(Grant)
    for _ in range(4):
        end(scene, grants.pop(0), duration_ms=150)
        grants += scene.sent(Grant)
    lease = next(iter(scene.machine.cluster.nodes["id-n0"].leases.values()))
    waiting = lease.load - 1
    assert waiting > 2
    # Room for what is left, and one slot more.
    scene.node("n1", 16)
    grants += scene.sent(Grant)
    scene.submit(array="0-20")
    recalled: list[Recall] = []
    for _ in range(8):
        recalled = scene.sent(Recall)
        if recalled:
            break
        late = next(one for one in scene.machine.cluster.nodes["id-n1"].allocations.values())
        rows = [Ended(index, Cause.EXIT, 0, started_at_ms=1, duration_ms=150) for index in late.remaining]
        scene.report("id-n1", AllocationReport(late.id, exits=columns_of(rows)))
    # Half of what waits, of each of the newest its one task.
    assert [recall.count for recall in recalled] == [1] * ((waiting + 1) // 2)


def test_what_waits_behind_a_task_that_takes_long_is_asked_back_whole() -> None:
    scene = scene_of(1, 1)
    grants = []
    for _ in range(30):
        scene.submit()
        grants += scene.sent(Grant)
    for _ in range(6):
        end(scene, grants.pop(0), duration_ms=2)
        grants += scene.sent(Grant)
    lease = next(iter(scene.machine.cluster.nodes["id-n0"].leases.values()))
    waiting = lease.load - 1
    assert waiting > 4
    scene.node("n1", 16)
    other = next(iter(scene.machine.cluster.nodes["id-n1"].allocations.values()))
    # So little is expected of it that it is left where it is, until it stands still.
    rows = [Ended(index, Cause.EXIT, 0, started_at_ms=1, duration_ms=2) for index in other.remaining]
    asked = []
    scene.report("id-n1", AllocationReport(other.id, exits=columns_of(rows)))
    asked += scene.sent(Recall)
    while not asked and scene.now_ms < 900:
        scene.step(after_ms=10)
        asked += scene.sent(Recall)
    assert scene.now_ms >= scene.machine.settings.recall_backlog_ms
    assert sum(recall.count for recall in asked) == waiting


def test_asking_for_slots_wakes_nobody_who_could_use_none() -> None:
    scene = scene_of(2, 4)
    scene.submit(array="0-99")
    scene.submit(array="0-99", priority=5, resources=Resources(cpu=500))
    assert scene.sent(Resize)
    assert not index_of(scene).awake
    assert scene.last.wake_at_ms is None or scene.last.wake_at_ms > scene.now_ms


def test_work_that_waits_for_one_node_takes_no_idle_slots_on_others() -> None:
    scene = scene_of(2, 1)
    scene.submit(node="n1", resources=Resources(cpu=1_000))
    scene.submit(node="n1", resources=Resources(cpu=900))
    scene.submit(node="n0", resources=Resources(cpu=1_000))
    (grant,) = scene.sent(Grant)
    end(scene, grant)
    leases = scene.machine.cluster.nodes["id-n0"].leases.values()
    assert [(lease.desired.target, lease.load) for lease in leases] == [(1, 0)]

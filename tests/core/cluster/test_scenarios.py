"""Stories of a leader that once went wrong, or easily could."""

from dataclasses import replace

import pytest
from pyroaring import BitMap

from rota.core.cluster.check import InvariantBroken, same
from rota.core.cluster.index import SLOTS_OF_UNIT_MAX
from rota.core.cluster.inputs import (
    CancelJob,
    Done,
    EditNode,
    Enrol,
    Enrolled,
    Lead,
    NodeEdit,
    PutToken,
    Refusal,
    ReleaseJob,
    RemoveNode,
    RetryJob,
    RevokeToken,
    Submit,
)
from rota.core.cluster.nodes import become
from rota.core.cluster.records import NodeConfig, NodeStatus, ResultBlock, TokenConfig
from rota.core.cluster.rows import Result, results
from rota.core.cluster.soft import Settings
from rota.core.cluster.state import Cluster
from rota.core.cluster.step import Machine
from rota.core.cluster.tasks import put_job_status
from rota.core.cluster.verdicts import UNSTARTED_BACKOFF_MS
from rota.core.cluster.work import Work
from rota.core.model import indexset
from rota.core.model.protocol import (
    AllocationReport,
    Device,
    Ended,
    Forget,
    Goodbye,
    Grant,
    Heartbeat,
    HeldAllocation,
    HeldLease,
    Holding,
    Lease,
    OutputHeld,
    Pool,
    Refused,
    Resize,
    Resized,
    Stop,
)
from rota.core.model.resources import Resources
from rota.core.model.spec import Dependency, JobSpec
from rota.core.model.states import (
    Cause,
    DependencyWhen,
    JobKind,
    JobState,
    NodeState,
    OnNodeLoss,
    StopReason,
    TokenKind,
)
from rota.wire.records import encode
from tests.core.cluster.scene import WALL_MS, Scene, exits

MINUTE_MS = 60_000
DAY_MS = 86_400_000


def test_what_a_node_holds_may_come_in_pieces() -> None:
    """A large allocation is several entries of Holding; none of it may be taken for lost."""
    scene = Scene()
    node = scene.node("n", 8)
    job = scene.submit(array="0-7")
    (grant,) = scene.sent(Grant)
    lease = HeldLease(grant.lease, tuple(range(8)))
    pieces = tuple(HeldAllocation(grant.allocation, ((index, index),), ()) for index in range(8))
    scene.silence(node, 1_000)
    scene.hello(node, 8, Holding((lease,), pieces))
    assert scene.outcomes(job) == []
    assert len(scene.job(job).owned) == 8
    assert scene.sent(Grant) == []


def test_what_was_taken_back_in_part_is_given_up_again() -> None:
    """The node dies for good while another still holds the rest: its tasks must run elsewhere."""
    settings = Settings()
    scene = Scene(Machine(settings))
    first = scene.node("a", 2)
    job = scene.submit(array="0-1")
    (grant,) = scene.sent(Grant)
    second = scene.node("b", 1)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 1),)))
    scene.silence(first, settings.lost_after_ms // 2)
    scene.hello(second, 1)
    scene.wait(settings.lost_after_ms // 2 + 1)
    scene.hello(second, 1)
    elsewhere = scene.sent(Grant)
    assert elsewhere, "one of the two runs on the other node"
    held = HeldAllocation(grant.allocation, (), ((0, 1),))
    scene.hello(first, 2, Holding((HeldLease(grant.lease, (0, 1)),), (held,)))
    assert scene.machine.cluster.nodes[first].allocations[grant.allocation].desired.lost
    scene.silence(first, 3 * settings.lost_after_ms)
    assert scene.machine.cluster.nodes[first].status.state is NodeState.LOST
    assert scene.machine.cluster.nodes[first].allocations[grant.allocation].owned == BitMap()
    assert len(scene.job(job).pending) + len(scene.job(job).owned) == 2


def test_a_retry_keeps_what_the_job_waits_for() -> None:
    scene = Scene()
    scene.node("n", 8)
    render = scene.submit(array="0-3")
    movie = scene.submit(array="0-3", after=(Dependency(str(render)),))
    scene.ask(CancelJob(0, "user", movie, BitMap([2])))
    scene.ask(RetryJob(0, "user", movie, BitMap([2])))
    assert scene.job(movie).owned == BitMap()
    assert [after.job for after in scene.job(movie).config.after] == [render]


def test_a_job_cannot_wait_for_a_number_that_is_not_given_yet() -> None:
    scene = Scene()
    answer = scene.ask(Submit(0, "user", (JobSpec(name="a", after=(Dependency("1"),)),)))
    assert isinstance(answer, Refusal)
    assert "there is no job '1'" in answer.problems[0]
    answer = scene.ask(Submit(0, "user", (JobSpec(name="1"),)))
    assert isinstance(answer, Refusal)
    assert answer.problems[0].startswith("jobs[0].name: '1' would be taken for a job's number")


def test_a_service_is_refused_whole() -> None:
    scene = Scene()
    answer = scene.ask(Submit(0, "user", (JobSpec(kind=JobKind.SERVICE, replicas=5),)))
    assert isinstance(answer, Refusal)
    assert scene.machine.cluster.jobs == {}


def test_a_drain_stops_the_rest_beside_a_cancelled_task() -> None:
    scene = Scene()
    node = scene.node("n", 4)
    job = scene.submit(array="0-3")
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, started=((0, 3),)))
    scene.ask(CancelJob(0, "user", job, BitMap([1])))
    scene.ask(EditNode(0, "admin", node, NodeEdit.DRAIN, 0))
    stops = [stop for stop in scene.sent(Stop) if stop.reason is StopReason.PREEMPT]
    assert [indexset.from_ranges(stop.indices) for stop in stops] == [BitMap([0, 2, 3])]


def test_of_a_report_of_more_than_was_granted_only_that_counts() -> None:
    scene = Scene()
    node = scene.node("n", 1)
    job = scene.submit()
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, exits=exits(0, 1, 2**32 - 2)))
    assert scene.outcomes(job) == [(0, 1)]


def test_an_attempt_that_could_not_start_takes_the_lost_ones_place() -> None:
    """The lost node's attempt 1 must not come back once attempt 2 has an outcome: numbers are used once."""
    settings = Settings()
    scene = Scene(Machine(settings))
    first = scene.node("a", 1)
    job = scene.submit(retries=5)
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.silence(first, settings.lost_after_ms + 1)
    second = scene.node("b", 1)
    (again,) = scene.sent(Grant)
    assert again.first_attempt == 2
    failed = Ended(0, Cause.START_FAILED, message="no program", started=False)
    scene.report(second, AllocationReport(again.allocation, ended=(failed,)))
    outcomes = scene.outcomes(job)
    assert sorted(outcomes) == [(0, 1), (0, 2)]
    assert scene.job(job).attempts(0) == 2


def test_a_node_that_leaves_gets_nothing_and_what_was_on_its_way_goes_elsewhere() -> None:
    """A grant that crossed the Goodbye was held for it until the node counted as lost."""
    scene = Scene()
    first = scene.node("a", 2)
    job = scene.submit(array="0-3")
    (grant,) = scene.sent(Grant)
    scene.step(scene.said(first, Heartbeat(1, 0, leaving=True)))
    # One has ended and one was given back; neither is granted to the node that leaves.
    ends = AllocationReport(
        grant.allocation, ended=(Ended(0, Cause.PREEMPTED, started=True),), dropped=((1, 1),)
    )
    assert scene.report(first, ends).orders, "acknowledged"
    assert scene.sent(Grant) == []
    scene.step(scene.said(first, Goodbye("asked to end", 1)))
    assert scene.job(job).pending == BitMap(range(4))
    second = scene.node("b", 4)
    granted = [indexset.from_ranges(one.indices) for one in scene.sent(Grant)]
    assert BitMap.union(*granted) == BitMap(range(4))
    assert scene.machine.cluster.nodes[second].leases
    assert not scene.machine.cluster.nodes[first].leases


def test_a_goodbye_before_its_last_report_came_frees_nothing() -> None:
    scene = Scene()
    node = scene.node("a", 2)
    job = scene.submit(array="0-3")
    scene.step(scene.said(node, Goodbye("asked to end", 1)))
    assert scene.job(job).owned == BitMap([0, 1])


def test_what_a_lost_node_finished_keeps_its_times_when_it_is_taken_back() -> None:
    scene = Scene()
    node = scene.node("n", 2)
    job = scene.submit(array="0-1")
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, started=((0, 1),)))
    scene.silence(node, Settings().lost_after_ms + 1)
    assert scene.machine.cluster.nodes[node].allocations[grant.allocation].desired.lost
    # Its journal has two more entries, which it tells before it is compared.
    first = AllocationReport(
        grant.allocation,
        exits=exits(
            0, started_at_ms=WALL_MS, duration_ms=70, cpu_user_ms=5, cpu_system_ms=6, memory_peak_kib=1024
        ),
    )
    ended = Ended(
        1,
        Cause.EXIT,
        started_at_ms=WALL_MS + 1,
        duration_ms=80,
        cpu_user_ms=7,
        cpu_system_ms=8,
        memory_peak_kib=9,
    )
    scene.hello(node, 2, reports=[first, AllocationReport(grant.allocation, ended=(ended,))])
    assert scene.outcomes(job) == [(0, 1), (1, 1)]
    (block,) = [block for block in scene.blocks if isinstance(block, ResultBlock)]
    assert list(results(block)) == [
        Result(0, 1, Cause.EXIT, 0, WALL_MS, 70, 5, 6, 1024),
        Result(1, 1, Cause.EXIT, 0, WALL_MS + 1, 80, 7, 8, 9),
    ]
    assert scene.job(job).status.state is JobState.SUCCEEDED


def test_a_state_goes_nowhere_but_along_its_table() -> None:
    scene = Scene()
    node = scene.node("n", 1)
    job = scene.submit()
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, exits=exits(0)))
    machine = scene.machine
    work = Work(machine.cluster, machine.soft, machine.settings, scene.now_ms, WALL_MS)
    with pytest.raises(InvariantBroken, match="job 1: SUCCEEDED -> RUNNING"):
        put_job_status(work, scene.job(job), state=JobState.RUNNING)
    with pytest.raises(InvariantBroken, match="node n: READY -> LOST"):
        become(work, machine.cluster.nodes[node], NodeState.LOST, "")
    assert work.outcome.changes == {}


def test_tokens_and_keys_are_forgotten_when_their_time_is_over_and_not_before() -> None:
    scene = Scene()
    cluster = scene.machine.cluster
    for minutes in (30, 10, 20):
        expires_ms = WALL_MS + minutes * MINUTE_MS
        scene.ask(PutToken(0, "admin", f"t{minutes}", TokenConfig(TokenKind.NODE, b"s", 0, expires_ms, 1)))
    scene.ask(RevokeToken(0, "admin", "t20"))
    assert scene.ask(Enrol(0, "t30", b"s", TokenKind.NODE, "id-n", "n", "key")) == Enrolled("id-n", "n")
    first = scene.ask(Submit(0, "user", (JobSpec(command=("x",)),), key="first"))
    scene.wait(DAY_MS + 9 * MINUTE_MS)
    assert set(cluster.tokens) == {"t", "t10", "t20", "t30"}
    scene.wait(2 * MINUTE_MS)
    assert set(cluster.tokens) == {"t", "t20", "t30"}
    scene.ask(Submit(0, "user", (JobSpec(command=("x",)),), key="second"))
    scene.wait(21 * MINUTE_MS)
    assert set(cluster.tokens) == {"t"}
    assert set(cluster.idempotency) == {"user/first", "user/second"}
    same(cluster, Cluster.load(sorted(cluster.records.items())))
    scene.wait(DAY_MS)
    assert set(cluster.idempotency) == {"user/second"}
    again = scene.ask(Submit(0, "user", (JobSpec(command=("x",)),), key="first"))
    assert again.jobs != first.jobs
    scene.wait(2 * DAY_MS + 2 * MINUTE_MS)
    assert cluster.idempotency == {}


def test_a_removed_node_is_kept_in_mind_as_long_as_a_job_speaks_of_it() -> None:
    scene = Scene()
    nodes = scene.machine.cluster.nodes
    idle, lost = scene.node("idle", 1), scene.node("lost", 1)
    scene.silence(idle, 0)
    scene.ask(RemoveNode(0, "admin", "idle"))
    assert idle not in nodes
    scene.hello(idle, 1)
    (refused,) = scene.sent(Refused)
    assert "it was removed" in refused.message
    scene.submit(retention=DAY_MS)
    (grant,) = scene.sent(Grant)
    scene.report(lost, AllocationReport(grant.allocation, started=((0, 0),)))
    heard_ms = WALL_MS + scene.now_ms
    scene.wait(1_000)
    scene.ask(RemoveNode(0, "admin", "lost", force=True))
    assert nodes[lost].config.removed
    other = scene.node("other", 1)
    (grant,) = scene.sent(Grant)
    scene.report(other, AllocationReport(grant.allocation, exits=exits(0)))
    # What its attempts are shown with: the first was on the node that was removed.
    blocks = [block for block in scene.blocks if isinstance(block, ResultBlock)]
    assert [block.node_id for block in blocks] == [lost, other]
    assert [(one.started_at_ms, one.duration_ms) for one in results(blocks[0])] == [(heard_ms, 0)]
    scene.wait(DAY_MS - 1)
    assert lost in nodes
    machine = Machine(records=sorted(scene.machine.cluster.records.items()))
    machine.step([Lead()], scene.now_ms, WALL_MS)
    assert lost in machine.cluster.nodes
    scene.wait(1)
    assert lost not in nodes
    assert not any(lost in key for key in scene.machine.cluster.records)


def test_a_new_leader_forgets_removed_nodes_that_nobody_speaks_of() -> None:
    scene = Scene()
    node = scene.node("n", 1)
    records = dict(scene.machine.cluster.records)
    config, status = records[f"cfg/node/{node}"], records[f"st/{node}"]
    assert isinstance(config, NodeConfig)
    assert isinstance(status, NodeStatus)
    records[f"cfg/node/{node}"] = replace(config, removed=True)
    records[f"st/{node}"] = replace(status, state=NodeState.GONE)
    machine = Machine(records=sorted(records.items()))
    outcome = machine.step([Lead()], scene.now_ms, WALL_MS)
    assert outcome.changes[f"cfg/node/{node}"] is None
    assert node not in machine.cluster.nodes


def test_a_fenced_task_of_a_node_removed_by_force_waits_until_its_agent_cannot_run_it() -> None:
    settings = Settings()
    scene = Scene(Machine(settings))
    first = scene.node("a", 1)
    job = scene.submit(on_node_loss=OnNodeLoss.RERUN_FENCED)
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 0),)))
    second = scene.node("b", 1)
    scene.ask(RemoveNode(0, "admin", "a", force=True))
    assert scene.outcomes(job) == [(0, 1)]
    heard_ms = scene.now_ms
    while not (granted := scene.sent(Grant)):
        wake_ms = scene.last.wake_at_ms
        assert wake_ms is not None
        beat = scene.said(second, Heartbeat(scene.now_ms, 0))
        scene.step(beat, after_ms=min(max(wake_ms - scene.now_ms, 1), settings.suspect_ms // 2))
    assert scene.now_ms - heard_ms == settings.fence_ms(0)
    assert granted[0].first_attempt == 2


def test_whole_gpus_are_not_shared_and_parts_are_of_one() -> None:
    """0.6 of a GPU fits twice into the sum of what is left of two GPUs, and into neither."""
    scene = Scene()
    gpus = tuple(Device("gpu", f"gpu{number}") for number in range(2))
    node = scene.node("n", 0, Pool(resources=Resources(cpu=64_000, gpu=2_000), devices=gpus))
    scene.submit(array="0-9", resources=Resources(cpu=1_000, gpu=600))
    leases = list(scene.machine.cluster.nodes[node].leases.values())
    taken = [slot.devices for lease in leases for slot in lease.desired.slots]
    assert sorted(taken) == [("gpu0",), ("gpu1",)]
    scene.submit(resources=Resources(cpu=1_000, gpu=1_000))
    assert scene.sent(Grant) == [], "no GPU is whole"
    scene.submit(array="0-1", resources=Resources(cpu=1_000, gpu=300))
    (grant,) = scene.sent(Grant)
    assert grant.indices == ((0, 1),)


def test_a_node_that_comes_back_with_less_is_trimmed() -> None:
    scene = Scene()
    node = scene.node("n", 4)
    scene.submit(array="0-9")
    (grant,) = scene.sent(Grant)
    slots, waiting = HeldLease(grant.lease, (0, 1, 2, 3)), HeldAllocation(grant.allocation, ((0, 3),), ())
    scene.silence(node, 1_000)
    with pytest.raises(InvariantBroken, match="oversubscribed"):
        # Until the node has said that two of the slots are free.
        scene.hello(node, 2, Holding((slots,), (waiting,)))
    (resize,) = scene.sent(Resize)
    assert resize.target == 2
    scene.report(
        node, AllocationReport(grant.allocation, dropped=((2, 3),)), resized=(Resized(grant.lease, (2, 3)),)
    )


def test_a_pool_of_a_million_units_is_not_walked_through() -> None:
    scene = Scene()
    node = scene.node("site", 0, Pool("racks", resources=Resources(cpu=2_000), units=1_000_000))
    scene.submit(array="0-4", resources=Resources(cpu=2_000))
    leases = scene.machine.cluster.nodes[node].leases.values()
    assert [(lease.desired.unit, len(lease.desired.slots)) for lease in leases] == [(n, 1) for n in range(5)]


def test_a_task_that_reads_input_runs_once() -> None:
    """What its attempt has read is gone: a second one would wait for it for ever."""
    scene = Scene()
    node = scene.node("n", 1)
    job = scene.submit(stdin=True)
    (grant,) = scene.sent(Grant)
    end = Ended(0, Cause.AGENT_ERROR, message="its supervisor died", started=True)
    scene.report(node, AllocationReport(grant.allocation, ended=(end,)))
    assert scene.job(job).status.state is JobState.FAILED
    assert isinstance(scene.ask(RetryJob(0, "admin", job)), Refusal)
    job = scene.submit(stdin=True)
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.silence(node, Settings().lost_after_ms)
    assert scene.job(job).status.state is JobState.FAILED


def test_output_of_forgotten_jobs_is_forgotten_by_nodes_that_come_back() -> None:
    scene = Scene()
    node = scene.node("n", 1)
    job = scene.submit(retention=1_000)
    (grant,) = scene.sent(Grant)
    scene.report(node, AllocationReport(grant.allocation, exits=exits(0)))
    scene.silence(node, 2_000)
    kept = scene.submit()
    scene.hello(node, 1)
    # A job that this leader cannot know yet is not its to forget.
    scene.step(scene.said(node, OutputHeld((job, kept, kept + 1))))
    assert scene.sent(Forget) == [Forget((job,))]


def test_a_held_task_cancelled_while_its_node_was_away_is_not_run_beside_itself_by_a_retry() -> None:
    settings = Settings()
    scene = Scene(Machine(settings))
    first = scene.node("a", 1)
    job = scene.submit(on_node_loss=OnNodeLoss.HOLD)
    (grant,) = scene.sent(Grant)
    scene.report(first, AllocationReport(grant.allocation, started=((0, 0),)))
    scene.silence(first, settings.disconnected_ms)
    scene.ask(CancelJob(0, "user", job, BitMap([0])))
    scene.silence(first, settings.lost_after_ms)
    scene.node("b", 1)
    scene.ask(RetryJob(0, "user", job))
    assert scene.sent(Grant) == [], "the first attempt may still run: its node was never heard again"
    scene.ask(ReleaseJob(0, "user", job))
    (again,) = scene.sent(Grant)
    assert again.first_attempt == 2


def test_a_leader_that_was_stopped_calls_no_node_lost_for_it() -> None:
    """What the nodes said meanwhile is still to be read: the silence was the leader's own."""
    settings = Settings()
    scene = Scene(Machine(settings))
    node = scene.node("n", 1)
    job = scene.submit(on_node_loss=OnNodeLoss.CANCEL)
    scene.step(after_ms=settings.lost_after_ms * 2)
    # As when it should have looked.
    assert scene.machine.cluster.nodes[node].status.state is NodeState.SUSPECT
    scene.step(scene.said(node, Heartbeat(1, 0)), after_ms=1)
    assert scene.machine.cluster.nodes[node].status.state is NodeState.READY
    assert scene.job(job).status.state is JobState.PENDING
    # From then on silence counts again.
    scene.silence(node, settings.lost_after_ms)
    assert scene.job(job).status.state is JobState.CANCELLED


def test_what_a_node_says_again_is_not_counted() -> None:
    scene = Scene()
    node = scene.node("n", 2)
    job = scene.submit(array="0-2", max_running=3)
    (grant,) = scene.sent(Grant)
    measured = exits(0, started_at_ms=5, duration_ms=10, cpu_user_ms=70, cpu_system_ms=30)
    for _ in range(2):
        scene.report(node, AllocationReport(grant.allocation, exits=measured))
    (allocation,) = (one for one in scene.job(job).allocations.values() if one.id == grant.allocation)
    assert allocation.status.cpu_ms == 100
    # With something new beside it, that alone counts.
    more = exits(0, 1, started_at_ms=5, duration_ms=10, cpu_user_ms=7, cpu_system_ms=3)
    scene.report(node, AllocationReport(grant.allocation, exits=more))
    assert sum(tally.cpu_ms for tally in scene.job(job).tallies.values()) == 110
    assert scene.outcomes(job) == [(0, 1), (1, 1)]


def test_an_agent_that_can_start_nothing_is_not_asked_as_fast_as_it_answers() -> None:
    scene = Scene()
    node = scene.node("n", 1)
    scene.submit()
    (grant,) = scene.sent(Grant)
    scene.report(
        node, AllocationReport(grant.allocation, ended=(Ended(0, Cause.AGENT_ERROR, started=False),))
    )
    assert scene.sent(Grant) == []
    scene.step(after_ms=UNSTARTED_BACKOFF_MS - 1)
    assert scene.sent(Grant) == []
    scene.step(after_ms=1 + UNSTARTED_BACKOFF_MS // 16)
    assert len(scene.sent(Grant)) == 1


def test_a_cancelled_task_whose_grant_was_lost_never_begins() -> None:
    scene = Scene()
    node = scene.node("n", 1)
    job = scene.submit()
    scene.silence(node, 1_000)
    scene.ask(CancelJob(0, "user", job))
    scene.hello(node, 1)
    assert scene.sent(Grant) == []
    assert scene.job(job).status.state is JobState.CANCELLED


def test_a_job_that_is_being_stopped_is_not_retried_in_halves() -> None:
    scene = Scene()
    node = scene.node("n", 4)
    job = scene.submit(array="0-3", max_failures=0)
    (grant,) = scene.sent(Grant)
    scene.report(
        node, AllocationReport(grant.allocation, ended=(Ended(0, Cause.EXIT, 1),), started=((1, 3),))
    )
    assert isinstance(scene.ask(RetryJob(0, "user", job)), Refusal)


def test_tasks_that_ask_for_nothing_have_a_bound() -> None:
    scene = Scene()
    scene.node("n", 1)
    for _ in range(6):
        scene.submit(array="0-1999", resources=Resources())
    leases = [lease for node in scene.machine.cluster.nodes.values() for lease in node.leases.values()]
    assert sum(len(lease.desired.slots) for lease in leases) == SLOTS_OF_UNIT_MAX


def test_a_node_that_comes_back_with_less_memory_keeps_the_leases_that_ask_for_none() -> None:
    scene = Scene()
    whole = Pool(resources=Resources(cpu=4_000, memory=4_000))
    node = scene.node("n", 0, whole)
    scene.submit(resources=Resources(cpu=1_000, memory=4_000))
    (heavy,) = scene.sent(Grant)
    scene.submit(resources=Resources(cpu=1_000))
    (light,) = scene.sent(Grant)
    slots = tuple(HeldLease(grant.lease, (0,)) for grant in (heavy, light))
    waiting = tuple(HeldAllocation(grant.allocation, ((0, 0),), ()) for grant in (heavy, light))
    scene.silence(node, 1_000)
    less = Pool(resources=Resources(cpu=4_000, memory=1_000))
    with pytest.raises(InvariantBroken, match="oversubscribed"):
        scene.hello(node, 0, Holding(slots, waiting), pools=(less,))
    assert [(resize.lease, resize.target) for resize in scene.sent(Resize)] == [(heavy.lease, 0)]


def test_what_is_recorded_of_failures_does_not_grow_with_their_number() -> None:
    scene = Scene()
    node = scene.node("n", 64)
    job = scene.submit(array="0-4095", retries=3, backoff=60_000)
    failed = BitMap()
    while len(failed) < 4096:
        grant = scene.sent(Grant)[0]
        indices = indexset.from_ranges(grant.indices)
        failed |= indices
        ended = tuple(Ended(index, Cause.EXIT, 1, started=True) for index in indices)
        scene.now_ms += 7
        scene.report(node, AllocationReport(grant.allocation, ended=ended))
    said = scene.job(job).exceptions_of(0)
    assert len(encode(said)) < 200
    assert scene.job(job).delayed == failed
    assert {scene.job(job).failures(index) for index in failed} == {1}


def test_the_last_end_is_what_is_said_of_a_task_that_a_lost_node_had_too() -> None:
    scene = Scene()
    first, second = scene.node("a", 1), scene.node("b", 0)
    job = scene.submit()
    scene.report(first, AllocationReport(scene.sent(Grant)[0].allocation, started=((0, 0),)))
    scene.silence(first, Settings().lost_after_ms + 1)
    scene.hello(second, 1)
    (grant,) = scene.sent(Grant)
    scene.report(second, AllocationReport(grant.allocation, ended=(Ended(0, Cause.EXIT, 7, started=True),)))
    (group,) = scene.job(job).exceptions_of(0).groups
    assert (group.cause, group.code) == (Cause.EXIT, 7)


def test_a_job_whose_dependency_failed_is_not_retried_as_if_it_had_none() -> None:
    scene = Scene()
    node = scene.node("n", 1)
    first = scene.submit()
    (grant,) = scene.sent(Grant)
    second = scene.submit(after=(Dependency(str(first), DependencyWhen.SUCCEEDED),))
    scene.report(node, AllocationReport(grant.allocation, ended=(Ended(0, Cause.EXIT, 1, started=True),)))
    assert scene.job(second).status.cause is Cause.DEPENDENCY
    refused = scene.ask(RetryJob(0, "user", second))
    assert isinstance(refused, Refusal)
    (says,) = refused.problems
    assert says.startswith(f"job {second} waits for job {first}, which has failed: retry job {first} first")
    assert says.endswith(f"rota retry {second} --ignore-dependencies")
    scene.ask(RetryJob(0, "user", first))
    assert isinstance(scene.ask(RetryJob(0, "user", second)), Done)
    assert scene.job(second).pending, "it waits again"
    scene.ask(CancelJob(0, "user", second))
    scene.ask(RetryJob(0, "user", second, None, ignore_dependencies=True))
    assert scene.job(second).config.after == ()


def test_a_lease_that_was_lost_goes_out_again_with_what_the_node_has_room_for_now() -> None:
    """Slots that a Resize takes back only afterwards would have begun work (simulator, seed 3247)."""
    scene = Scene()
    node = scene.node("n", 3)
    scene.submit(array="0-2")
    scene.silence(node, 1_000)
    with pytest.raises(InvariantBroken, match="oversubscribed"):
        scene.hello(node, 1)
    sent = scene.sent(Lease)
    assert [(len(lease.slots), lease.target) for lease in sent] == [(3, 1)]
    assert scene.sent(Resize) == []

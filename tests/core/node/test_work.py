"""Leases, grants, starts, stops, failures: the node's daily work."""

from signal import SIGTERM, SIGUSR1

import pytest

from rota.core.model.protocol import (
    RECALL_ALL,
    Ack,
    Drain,
    Ended,
    Forget,
    Goodbye,
    Grant,
    Heartbeat,
    HeartbeatAck,
    Input,
    Lease,
    Ranges,
    ReadOutput,
    Recall,
    Resize,
    Slot,
    Stop,
)
from rota.core.model.protocol import Template as TemplateMessage
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, OnNodeLoss, StopReason
from rota.core.node.entries import (
    Attempt,
    Drop,
    End,
    Ends,
    Granted,
    Intent,
    LeaseKept,
    Start,
    TemplateKept,
)
from rota.core.node.entries import Resize as Resized
from rota.core.node.granting import DROP_RANGES_MAX, FAILURES_MAX, START_FAILURES_MAX
from rota.core.node.indices import normal
from rota.core.node.inputs import (
    CloseStream,
    DeleteOutput,
    Exited,
    InputLost,
    KillTree,
    Leave,
    Part,
    Returned,
    SendOutput,
    Shutdown,
    Signal,
    Spawn,
    SpawnFailed,
    WriteInput,
)
from rota.core.node.machine import GOODBYE_MS_MAX
from rota.core.node.running import INTENT_COUNT_MAX
from tests.core.node.scene import LOST_AFTER_MS, SHAPE, WALL_MS, Scene, only, ran, reports, runs, spawns

TERM = int(SIGTERM)


@pytest.fixture
def scene() -> Scene:
    """A node in a session, with a lease of two slots."""
    made = Scene()
    made.connect()
    made.lease(slots=2)
    return made


# ---------------------------------------------------------------- starting


def test_a_grant_is_written_down_intended_and_spawned_into_free_slots(scene: Scene) -> None:
    outcome = only(scene.grant(((0, 2),)), entries=True, commands=True)
    assert outcome.entries == [
        TemplateKept(TemplateMessage(7, 1, JobSpec(command=("true",)), 1_000, "")),
        Granted(10, 1, 7, 1, 1, 1, ((0, 2),), (), False),
        Intent(10, ((0, 2),)),
    ]
    assert outcome.commands == [
        Spawn(1, 1, (Part(10, 7, 1, 1, ((0, 0),)),)),
        Spawn(1, 0, (Part(10, 7, 1, 1, ((1, 1),)),)),
    ]


def test_a_free_slot_takes_the_next_index(scene: Scene) -> None:
    scene.grant(((0, 2),))
    outcome = scene.ran((10, 0, 1))
    at_ms = WALL_MS + scene.now_ms
    assert outcome.entries == [
        Start(10, 0, 1, 1, 101, 5_000, at_ms),
        End(10, Ended(0, Cause.EXIT, 0, 1, "", at_ms, 20)),
    ]
    assert outcome.commands == [Spawn(1, 1, (Part(10, 7, 1, 1, ((2, 2),)),))]


def test_allocations_of_a_lease_run_in_order(scene: Scene) -> None:
    scene.grant(((0, 0),), allocation=10, job=7)
    scene.grant(((0, 1),), allocation=11, job=8)
    scene.grant(((0, 0),), allocation=12, job=9)
    assert spawns(scene.ran((10, 0, 1))) == [(11, 1, 1)]
    assert spawns(scene.ran((11, 1, 1))) == [(12, 0, 1)]


def test_an_intent_covers_a_bounded_number_of_indices_over_allocations() -> None:
    scene = Scene()
    scene.connect()
    scene.down(
        TemplateMessage(7, 1, JobSpec(command=("true",)), 1_000, ""),
        Grant(10, 1, 7, 1, 1, 1, ((0, 9),)),
        Grant(11, 1, 7, 1, 2, 1, ((0, 99),)),
    )
    assert scene.machine.held.allocations == {}, "there is no lease: all was dropped"
    scene.lease()
    outcome = scene.down(Grant(12, 1, 7, 1, 3, 1, ((0, 9),)), Grant(13, 1, 7, 1, 4, 1, ((0, 99),)))
    intents = [entry for entry in outcome.entries if isinstance(entry, Intent)]
    assert intents == [Intent(12, ((0, 9),)), Intent(13, ((0, INTENT_COUNT_MAX - 11),))]


def test_jobs_that_may_not_start_twice_are_intended_one_by_one(scene: Scene) -> None:
    outcome = scene.grant(((0, 9),), spec=JobSpec(command=("true",), on_node_loss=OnNodeLoss.HOLD))
    assert outcome.entries[-1] == Intent(10, ((0, 1),))
    outcome = scene.ran((10, 0, 1))
    assert outcome.entries[-1] == Intent(10, ((2, 2),))


def test_a_million_tasks_are_held_in_little(scene: Scene) -> None:
    scene.check = False
    scene.grant(((0, 999_999),))
    held = scene.machine.held.allocations[10]
    assert held.waiting.ranges() == ((INTENT_COUNT_MAX, 999_999),)
    scene.down(Recall(10, 1, (), 500_000))
    assert held.waiting.ranges() == ((INTENT_COUNT_MAX, 499_999),)


def test_an_old_grant_is_ignored_and_a_new_one_adds_what_the_allocation_never_had(scene: Scene) -> None:
    scene.grant(((0, 2),))
    scene.ran((10, 0, 1))
    only(scene.down(Grant(10, 1, 7, 1, 1, 1, ((0, 9),))))
    scene.down(Grant(10, 1, 7, 1, 2, 1, ((0, 4),)))
    held = scene.machine.held.allocations[10]
    assert held.waiting.ranges() == ((3, 4),)
    assert held.intended.ranges() == ((1, 2),)


def test_what_was_given_back_can_be_granted_again(scene: Scene) -> None:
    scene.grant(((0, 5),))
    scene.down(Recall(10, 1, ((4, 5),)))
    scene.down(Grant(10, 1, 7, 1, 2, 1, ((4, 4),)))
    assert scene.machine.held.allocations[10].waiting.ranges() == ((4, 4),)


def test_a_grant_without_its_template_ends_the_stream(scene: Scene) -> None:
    outcome = only(scene.down(Grant(10, 1, 7, 1, 1, 1, ((0, 0),))), commands=True)
    assert outcome.commands == [CloseStream(1, "allocation 10 came without the template of job 7")]
    assert scene.machine.held.grant == 0


def test_a_grant_with_lines_gives_each_task_its_own(scene: Scene) -> None:
    outcome = scene.grant(((3, 3), (8, 8)), lines=("three", "eight"))
    lines = [
        part.lines for command in outcome.commands if isinstance(command, Spawn) for part in command.parts
    ]
    assert lines == [("three",), ("eight",)]
    (close,) = scene.grant(((0, 1),), lines=("one",), allocation=11).commands
    assert close == CloseStream(1, "allocation 11 has 2 tasks and 1 lines")


# ---------------------------------------------------------------- runs


def lengthen(scene: Scene, *, count: int = 100) -> list[list[Attempt]]:
    """Grants allocation 10 and ends what is quick until runs are longer; what the two slots have then."""
    given = runs(scene.grant(((0, count - 1),)))
    assert list(map(len, given)) == [1, 1]
    while len(given[-1]) < 8:
        run = given.pop(0)
        given += runs(scene.quick(10, *(index for _, index, _ in run), after_ms=2))
    return given


def test_slots_that_are_done_soon_get_more_at_once_and_tell_of_it_in_one_entry(scene: Scene) -> None:
    first = lengthen(scene)[0]
    indices = tuple(index for _, index, _ in first)
    assert len(indices) > 1
    outcome = scene.quick(10, *reversed(indices))
    (ends,) = [entry for entry in outcome.entries if isinstance(entry, Ends)]
    assert ends.index == indices
    assert len(runs(outcome)) == 1


def test_a_run_goes_on_with_the_next_allocations(scene: Scene) -> None:
    given = lengthen(scene)
    for number in range(11, 60):
        scene.grant(((0, 0),), allocation=number, job=number)
    over: list[Attempt] = []
    while given:
        run = given.pop(0)
        by_allocation = {number: [one[1] for one in run if one[0] == number] for number, _, _ in run}
        over += run
        news = [ran(number, indices, scene.now_ms) for number, indices in by_allocation.items()]
        given += runs(scene.step(*news))
        if any(number > 10 for number, _, _ in run):
            break
    assert len({number for number, _, _ in over}) > 2, "one run has tasks of several"


def test_when_little_is_left_each_slot_has_some_of_it(scene: Scene) -> None:
    given = lengthen(scene, count=60)
    lengths = []
    while given:
        lengths.append(len(given[0]))
        given += runs(scene.quick(10, *(index for _, index, _ in given.pop(0))))
    assert lengths[-4:] == [1, 1, 1, 1]


def test_what_was_not_started_is_next_and_runs_get_shorter(scene: Scene) -> None:
    run = lengthen(scene)[0]
    scene.spawned(run[0])
    only(scene.step(Returned(((10, ((run[1][1], run[-1][1]),)),))))
    assert scene.machine.granting.draining is False
    (again,) = runs(scene.exited(run[0], after_ms=5_000))
    assert again == run[1:2]


def test_what_was_not_started_of_a_stopped_job_is_given_back(scene: Scene) -> None:
    run = lengthen(scene)[0]
    scene.spawned(run[0])
    scene.down(Stop(10, 1, (), StopReason.CANCEL, 1_000))
    back = ((run[1][1], run[-1][1]),)
    outcome = scene.step(Returned(((10, back),)))
    assert outcome.entries == [Drop(10, back)]


@pytest.mark.parametrize("indices", [(), ((0, 99),)])
def test_what_is_recalled_out_of_a_run_is_given_back_when_it_returns(scene: Scene, indices: Ranges) -> None:
    run = lengthen(scene)[0]
    scene.spawned(run[0])
    scene.down(Recall(10, 9, indices, 0 if indices else RECALL_ALL))
    back = ((run[1][1], run[-1][1]),)
    outcome = scene.step(Returned(((10, back),)))
    assert outcome.entries == [Drop(10, back)]


def test_what_was_not_started_on_a_draining_node_is_given_back(scene: Scene) -> None:
    run = lengthen(scene)[0]
    scene.spawned(run[0])
    scene.down(Drain(draining=True))
    back = ((run[1][1], run[-1][1]),)
    assert Drop(10, back) in scene.step(Returned(((10, back),))).entries


def test_a_spawner_that_dies_with_a_run_is_one_failed_start(scene: Scene) -> None:
    run = lengthen(scene)[0]
    outcome = scene.exited(*run, cause=Cause.AGENT_ERROR)
    assert not any(isinstance(entry, Drop) for entry in outcome.entries)
    assert runs(outcome), "the node goes on with the job"


# ---------------------------------------------------------------- leases


def test_freed_slots_never_come_back(scene: Scene) -> None:
    assert scene.down(Resize(1, 1)).entries == [Resized(1, (1,))]
    outcome = scene.down(Lease(1, SHAPE, (Slot(0), Slot(1), Slot(2)), "default"))
    assert outcome.entries == [LeaseKept(1, SHAPE, "default", (Slot(0), Slot(2)), 3)]


def test_a_lease_that_is_gone_is_remembered_until_the_leader_knows(scene: Scene) -> None:
    scene.down(Resize(1, 0))
    stale = Lease(1, SHAPE, (Slot(0), Slot(1)), "default")
    only(scene.down(stale))
    assert list(scene.machine.held.leases) == [1]
    scene.connect(acknowledged=1)
    assert list(scene.machine.held.leases) == []


def test_busy_slots_are_freed_as_tasks_end(scene: Scene) -> None:
    scene.grant(((0, 9),))
    scene.spawned((10, 0, 1), (10, 1, 1))
    only(scene.down(Resize(1, 1)))
    outcome = scene.exited((10, 0, 1), after_ms=1_000)
    assert outcome.entries[1:] == [Resized(1, (1,))]
    assert spawns(outcome) == []
    assert spawns(scene.exited((10, 1, 1), after_ms=1_000)) == [(10, 2, 1)]


def test_a_lease_without_slots_gives_its_work_back(scene: Scene) -> None:
    scene.grant(((0, 9),))
    scene.down(Resize(1, 0))
    scene.ran((10, 0, 1))
    outcome = scene.ran((10, 1, 1))
    assert outcome.entries[2:] == [Drop(10, ((2, 9),)), Resized(1, (0,))]
    # What is granted on it now comes back at once.
    outcome = scene.grant(((20, 21),), allocation=11)
    assert outcome.entries[-1] == Drop(11, ((20, 21),))
    assert outcome.commands == []


def test_slots_that_the_leader_does_not_know_are_freed(scene: Scene) -> None:
    scene.grant(((0, 0),))
    only(scene.down(Lease(1, SHAPE, (Slot(0),), "default")))
    assert scene.ran((10, 0, 1)).entries[2:] == [Resized(1, (1,))]


# ---------------------------------------------------------------- recalls and stops


def test_a_recall_takes_from_the_end_what_has_not_started(scene: Scene) -> None:
    scene.grant(((0, 9),))
    assert scene.down(Recall(10, 5, (), 3)).entries == [Drop(10, ((7, 9),), 5)]
    assert scene.down(Recall(10, 6, (), 99)).entries == [Drop(10, ((2, 6),), 6)]
    assert scene.down(Recall(10, 7, (), 99)).entries == [Drop(10, (), 7)]


def test_a_recall_by_name_takes_those_alone(scene: Scene) -> None:
    scene.grant(((0, 9),))
    assert scene.down(Recall(10, 5, ((0, 3), (9, 12)))).entries == [Drop(10, ((2, 3), (9, 9)), 5)]
    assert scene.down(Recall(99, 6, ((0, 3),))).entries == [Drop(99, (), 6)]


def test_a_large_drop_comes_in_pieces_and_the_last_answers(scene: Scene) -> None:
    scene.check = False
    scene.grant(tuple((index, index) for index in range(0, 4 * DROP_RANGES_MAX, 2)))
    drops = scene.down(Recall(10, 5, (), 1_000_000)).entries
    assert [len(drop.indices) for drop in drops if isinstance(drop, Drop)] == [DROP_RANGES_MAX] * 1 + [
        2 * DROP_RANGES_MAX - DROP_RANGES_MAX - 2
    ]
    assert [drop.answers for drop in drops if isinstance(drop, Drop)] == [0, 5]
    assert scene.machine.held.allocations[10].waiting.ranges() == ()


def test_a_stop_drops_what_waits_and_ends_what_runs(scene: Scene) -> None:
    scene.grant(((0, 9),))
    scene.spawned((10, 0, 1), (10, 1, 1))
    outcome = scene.down(Stop(10, 9, (), StopReason.CANCEL, 2_000))
    assert outcome.entries == [Drop(10, ((2, 9),), 9)]
    assert outcome.commands == [Signal((10, 0, 1), TERM, True), Signal((10, 1, 1), TERM, True)]
    outcome = scene.exited((10, 0, 1), cause=Cause.SIGNAL, code=TERM, after_ms=100)
    (end,) = outcome.entries
    assert isinstance(end, End)
    assert (end.ended.cause, end.ended.code) == (Cause.STOPPED, TERM)
    outcome = scene.step(after_ms=1_900)
    assert outcome.commands == [KillTree((10, 1, 1))]
    only(scene.step(after_ms=60_000), messages=True, commands=True)
    outcome = scene.exited((10, 1, 1), cause=Cause.SIGNAL, code=9)
    (end,) = outcome.entries
    assert isinstance(end, End)
    assert end.ended.cause == Cause.STOPPED


def test_what_had_ended_before_the_signal_ends_as_it_did(scene: Scene) -> None:
    scene.grant(((0, 0),))
    scene.spawned((10, 0, 1))
    scene.down(Stop(10, 9, (), StopReason.CANCEL))
    outcome = scene.step(Exited((10, 0, 1), Cause.EXIT, 0, ended_before_signal=True))
    (end,) = outcome.entries
    assert isinstance(end, End)
    assert end.ended.cause == Cause.EXIT


def test_an_attempt_whose_input_is_lost_is_killed_and_says_why(scene: Scene) -> None:
    scene.grant(((0, 2),))
    scene.spawned((10, 0, 1), (10, 1, 1))
    lost = InputLost(10, 0, "no space left")
    assert scene.step(lost).commands == [KillTree((10, 0, 1))]
    # It is said again with each piece; and of what does not run there is nothing to say.
    only(scene.step(lost, InputLost(10, 2, "x"), InputLost(11, 0, "x"), after_ms=1))
    (end, *_) = scene.exited((10, 0, 1), cause=Cause.SIGNAL, code=9).entries
    assert isinstance(end, End)
    assert (end.ended.cause, end.ended.message) == (Cause.AGENT_ERROR, "no space left")
    # One that was being stopped ends as stopped.
    scene.down(Stop(10, 9, ((1, 1),), StopReason.CANCEL))
    scene.step(InputLost(10, 1, "no space left"))
    (end, *_) = scene.exited((10, 1, 1), cause=Cause.SIGNAL, code=15).entries
    assert isinstance(end, End)
    assert (end.ended.cause, end.ended.message) == (Cause.STOPPED, "")


def test_a_stop_between_spawn_and_start_is_not_lost(scene: Scene) -> None:
    scene.grant(((0, 0),))
    assert scene.down(Stop(10, 9, (), StopReason.PREEMPT)).commands == []
    assert scene.spawned((10, 0, 1)).commands == [Signal((10, 0, 1), TERM, True)]
    (end,) = scene.exited((10, 0, 1), code=1).entries
    assert isinstance(end, End)
    assert end.ended.cause == Cause.PREEMPTED


def test_a_stop_of_some_indices_leaves_the_others(scene: Scene) -> None:
    scene.grant(((0, 9),))
    scene.spawned((10, 0, 1), (10, 1, 1))
    outcome = scene.down(Stop(10, 9, ((1, 3),), StopReason.DEADLINE))
    assert outcome.entries == [Drop(10, ((2, 3),), 9)]
    assert outcome.commands == [Signal((10, 1, 1), TERM, True)]
    outcome = scene.exited((10, 1, 1), cause=Cause.SIGNAL, code=TERM)
    assert isinstance(outcome.entries[0], End)
    assert outcome.entries[0].ended.cause == Cause.DEADLINE
    assert spawns(outcome) == [(10, 4, 1)]


def test_a_stop_may_be_repeated_and_may_shorten_the_grace(scene: Scene) -> None:
    scene.grant(((0, 0),))
    scene.spawned((10, 0, 1))
    scene.down(Stop(10, 9, (), StopReason.CANCEL, 10_000))
    assert scene.down(Stop(10, 9, (), StopReason.CANCEL, 10_000)).commands == []
    assert scene.down(Stop(10, 11, (), StopReason.CANCEL, 0)).commands == [KillTree((10, 0, 1))]
    assert scene.down(Stop(10, 12, (), StopReason.CANCEL, 0)).commands == []


def test_a_superseded_attempt_is_killed_at_once(scene: Scene) -> None:
    scene.grant(((0, 0),))
    scene.spawned((10, 0, 1))
    assert scene.down(Stop(10, 9, (), StopReason.SUPERSEDED)).commands == [KillTree((10, 0, 1))]


# ---------------------------------------------------------------- time


def test_a_time_limit_warns_terminates_and_kills(scene: Scene) -> None:
    spec = JobSpec(command=("sleep",), time_limit=10_000, signal="USR1@4s", grace=1_000)
    scene.grant(((0, 0),), spec=spec)
    scene.spawned((10, 0, 1))
    assert scene.step(after_ms=5_999).commands == []
    assert scene.step(after_ms=1).commands == [Signal((10, 0, 1), int(SIGUSR1), False)]
    assert scene.step(after_ms=4_000).commands == [Signal((10, 0, 1), TERM, True)]
    assert scene.step(after_ms=1_000).commands == [KillTree((10, 0, 1))]
    (end,) = scene.exited((10, 0, 1), cause=Cause.SIGNAL, code=9).entries
    assert isinstance(end, End)
    assert end.ended.cause == Cause.TIME_LIMIT


def test_a_task_that_ends_in_time_leaves_no_timer(scene: Scene) -> None:
    scene.grant(((0, 0),), spec=JobSpec(command=("sleep",), time_limit=1_000))
    scene.ran((10, 0, 1))
    assert scene.machine.attempts.next_ms() is None


def test_fenced_attempts_are_killed_when_the_leader_may_call_the_node_lost(scene: Scene) -> None:
    scene.down(HeartbeatAck(scene.now_ms))
    scene.grant(((0, 9),), spec=JobSpec(command=("x",), on_node_loss=OnNodeLoss.RERUN_FENCED))
    scene.spawned((10, 0, 1), (10, 1, 1))
    heard_ms = scene.now_ms
    scene.disconnect()
    assert scene.outcome.wake_at_ms == heard_ms + LOST_AFTER_MS
    assert scene.step(after_ms=LOST_AFTER_MS - 1).commands == []
    outcome = scene.step(after_ms=1)
    # What waits could start when the node is back, while another node runs it already: it is given back.
    assert outcome.entries == [Drop(10, ((2, 9),))]
    assert outcome.commands == [KillTree((10, 0, 1)), KillTree((10, 1, 1))]
    outcome = scene.exited((10, 0, 1), (10, 1, 1), cause=Cause.SIGNAL, code=9)
    assert [entry.ended.cause for entry in outcome.entries if isinstance(entry, End)] == [Cause.NODE_LOST] * 2
    only(outcome, entries=True)
    scene.connect()
    assert spawns(scene.grant(((0, 1),), allocation=11)) == [(11, 0, 1), (11, 1, 1)]


def test_a_stream_that_leads_to_nothing_keeps_no_fenced_attempt_alive(scene: Scene) -> None:
    """The leader does not wait for a node that dials for ever, whatever it answers to each Hello."""
    scene.down(HeartbeatAck(scene.now_ms))
    scene.grant(((0, 0),), spec=JobSpec(command=("x",), on_node_loss=OnNodeLoss.RERUN_FENCED))
    scene.spawned((10, 0, 1))
    for _ in range(2):
        scene.disconnect()
        scene.step(after_ms=LOST_AFTER_MS // 2 - 1)
        scene.connect()
    assert scene.step(after_ms=1).commands == []
    assert KillTree((10, 0, 1)) in scene.step(after_ms=1).commands


def test_fenced_starts_carry_their_time_and_others_pass_them_by(scene: Scene) -> None:
    fenced = JobSpec(command=("x",), on_node_loss=OnNodeLoss.RERUN_FENCED)
    # Before the leader has answered a heartbeat, nobody is known to wait for this node.
    assert spawns(scene.grant(((0, 3),), spec=fenced)) == []
    outcome = scene.down(HeartbeatAck(scene.now_ms))
    times = [command.start_before_ms for command in outcome.commands if isinstance(command, Spawn)]
    assert times == [1_000 + LOST_AFTER_MS] * 2
    scene.grant(((0, 3),), allocation=11, job=8)
    scene.disconnect()
    scene.step(after_ms=LOST_AFTER_MS)
    outcome = scene.failed((10, 0, 1), "too late")
    assert spawns(outcome) == [(11, 0, 1)]


# ---------------------------------------------------------------- failures in a row


def test_failed_starts_in_a_row_stall_the_job(scene: Scene) -> None:
    scene.grant(((0, 99),))
    scene.grant(((0, 99),), allocation=11)
    scene.grant(((0, 99),), allocation=12, job=8)
    for index in range(START_FAILURES_MAX - 1):
        scene.failed((10, index, 1))
    outcome = scene.failed((10, 2, 1))
    assert outcome.entries[:3] == [
        End(10, Ended(2, Cause.START_FAILED, message="no such program", started=False)),
        Drop(11, ((0, 99),), 0, True),
        Drop(10, ((4, 99),), 0, True),
    ]
    assert spawns(outcome) == [(12, 0, 1)]
    # What was granted before the leader knew comes back too.
    assert scene.grant(((0, 9),), allocation=13).entries[-1] == Drop(13, ((0, 9),), 0, True)


def test_what_comes_back_from_a_run_after_the_stall_was_acknowledged_is_given_back(scene: Scene) -> None:
    run, other = lengthen(scene)
    scene.spawned(run[0])
    for _ in range(START_FAILURES_MAX):
        failed, rest = other[0], other[1:]
        indices = normal(tuple((index, index) for _, index, _ in rest))
        scene.step(SpawnFailed(failed, "no such program"), Returned(((10, indices),)))
        other = next(iter(runs(scene.outcome)), other)
    assert any(isinstance(entry, Drop) and entry.stalled for entry in scene.outcome.entries)
    scene.down(Ack(scene.machine.held.sequence))
    back = ((run[1][1], run[-1][1]),)
    outcome = scene.step(Returned(((10, back),)))
    assert outcome.entries == [Drop(10, back)]


def test_a_stall_is_said_even_where_nothing_is_left(scene: Scene) -> None:
    scene.grant(((0, 2),))
    for index in range(START_FAILURES_MAX):
        scene.failed((10, index, 1))
    assert scene.outcome.entries[-1] == Drop(10, (), 0, True)


def test_failures_in_a_row_stall_and_a_success_begins_anew(scene: Scene) -> None:
    scene.check = False
    scene.grant(((0, 999),))
    for index in range(FAILURES_MAX - 1):
        scene.ran((10, index, 1), code=1)
    scene.ran((10, FAILURES_MAX - 1, 1))
    for index in range(FAILURES_MAX, 2 * FAILURES_MAX - 1):
        scene.ran((10, index, 1), code=1)
        assert not any(isinstance(entry, Drop) for entry in scene.outcome.entries)
    outcome = scene.ran((10, 2 * FAILURES_MAX - 1, 1), code=1)
    assert [entry.stalled for entry in outcome.entries if isinstance(entry, Drop)] == [True]


def test_failures_that_are_the_jobs_own_do_not_stall(scene: Scene) -> None:
    scene.check = False
    scene.grant(((0, 999),), never_stall=True)
    for index in range(3 * FAILURES_MAX):
        scene.failed((10, index, 1))
    assert spawns(scene.outcome)


# ---------------------------------------------------------------- going away, and small things


def test_draining_gives_back_what_waits_and_what_comes(scene: Scene) -> None:
    scene.grant(((0, 9),))
    scene.spawned((10, 0, 1), (10, 1, 1))
    assert scene.down(Drain(True)).entries == [Drop(10, ((2, 9),))]
    assert scene.grant(((0, 3),), allocation=11).entries[-1] == Drop(11, ((0, 3),))
    only(scene.exited((10, 0, 1)), entries=True)
    scene.down(Drain(False))
    assert spawns(scene.grant(((0, 3),), allocation=12)) == [(12, 0, 1)]


def test_a_shutdown_stops_gives_all_back_and_says_goodbye(scene: Scene) -> None:
    scene.grant(((0, 9),))
    scene.spawned((10, 0, 1), (10, 1, 1))
    outcome = scene.step(Shutdown(3_000))
    assert outcome.entries == [Drop(10, ((2, 9),))]
    # Said before what is given back, which would come again otherwise.
    (first, *_) = outcome.messages
    assert isinstance(first, Heartbeat)
    assert first.leaving
    assert outcome.commands == [Signal((10, 0, 1), TERM, True), Signal((10, 1, 1), TERM, True)]
    outcome = scene.exited((10, 0, 1), (10, 1, 1), cause=Cause.SIGNAL, code=TERM, after_ms=50)
    assert [entry.ended.cause for entry in outcome.entries if isinstance(entry, End)] == [Cause.PREEMPTED] * 2
    assert outcome.entries[-1] == Resized(1, (0, 1))
    assert outcome.commands == []
    assert reports(outcome)[-1].last_sequence == scene.machine.held.sequence
    outcome = scene.down(Ack(scene.machine.held.sequence))
    assert outcome.commands == [Leave()]
    assert outcome.messages == [Goodbye("the agent was asked to end", scene.machine.held.sequence)]
    # What was on its way is not for this node any more: the leader has given it to others.
    assert scene.grant(((20, 29),), allocation=11).entries == []


def test_a_shutdown_does_not_wait_for_a_leader_that_is_not_there(scene: Scene) -> None:
    scene.disconnect()
    assert scene.step(Shutdown(3_000)).commands == [Leave()]


def test_a_shutdown_waits_a_while_for_a_leader_that_does_not_answer(scene: Scene) -> None:
    assert scene.step(Shutdown(3_000)).commands == []
    outcome = scene.step(after_ms=GOODBYE_MS_MAX)
    assert outcome.commands == [Leave()]


def test_output_is_deleted_read_and_input_written_by_the_shell(scene: Scene) -> None:
    read = ReadOutput(1, 7, 10, 0, 1, 1, 0, 0, True)
    assert scene.down(Forget((3, 4))).commands == [DeleteOutput((3, 4))]
    assert scene.down(read).commands == [SendOutput(read, False)]
    scene.grant(((0, 0),))
    assert scene.down(read).commands == [SendOutput(read, True)]
    piece = Input(10, 0, 0, b"text", True)
    assert scene.down(piece).commands == [WriteInput(piece)]

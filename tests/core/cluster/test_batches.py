"""Many jobs in one submission: in pieces, and whole none the less; what is equal is kept and encoded once."""

from typing import Any

import pytest

from rota.core.cluster.inputs import Found, FromNode, Lead, Refusal, Send, Submit, Submitted
from rota.core.cluster.jobs import EVENTS_OF_SUBMISSION_MAX
from rota.core.cluster.records import JobConfig, JobStatus, JobVersion, Record, segment_key
from rota.core.cluster.step import Machine
from rota.core.cluster.work import PIECE_JOBS
from rota.core.model.protocol import AllocationReport, Ended, Grant, Report
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, EventKind, JobState
from rota.store.port import Changes
from rota.wire import records as wire
from tests.core.cluster.scene import WALL_MS, Scene, exits

COUNT = 1_000
TRUE = JobSpec(command=("true",))


@pytest.fixture
def machine() -> Machine:
    made = Machine()
    made.step([Found("3f2504e0-4f89-41d3-9a0c-0305e82c3301"), Lead()], 1, 1)
    return made


def test_others_are_served_while_a_large_submission_is_taken(machine: Machine) -> None:
    pieces = sum(1 for _ in machine.pieces([Submit(1, "ann", (TRUE,) * COUNT)], 2, 2))
    # Looked at, put, and settled: each in pieces.
    assert pieces >= 3 * (COUNT // PIECE_JOBS)
    assert len(machine.cluster.jobs) == COUNT


def test_a_large_submission_is_refused_whole(machine: Machine) -> None:
    specs = (*(TRUE,) * COUNT, JobSpec(command=("true",), queue="none"))
    outcome = machine.step([Submit(1, "ann", specs)], 2, 2)
    answer = outcome.replies[0].answer
    assert isinstance(answer, Refusal)
    assert [problem.partition(":")[0] for problem in answer.problems] == [f"jobs[{COUNT}].queue"]
    assert (machine.cluster.jobs, outcome.changes) == ({}, {})


def test_equal_jobs_share_their_records_which_are_encoded_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[type] = []
    encode = wire.encode

    def counted(record: Record) -> bytes:
        encoded.append(type(record))
        return encode(record)

    monkeypatch.setattr(wire, "encode", counted)
    changes = Changes()
    outcome = machine.step([Submit(1, "ann", (TRUE,) * COUNT)], 2, 2, changes.encode)
    changes.records = outcome.changes
    values = changes.values()
    assert len(values) > 3 * COUNT
    for kind in (JobConfig, JobVersion, JobStatus):
        assert encoded.count(kind) == 1
    for key, record in outcome.changes.items():
        assert record is not None
        assert values[key] == encode(record)


def test_the_first_jobs_of_a_submission_have_an_event_each_and_the_rest_one(machine: Machine) -> None:
    outcome = machine.step([Submit(1, "ann", (TRUE,) * COUNT)], 2, 2)
    assert outcome.replies[0].answer == Submitted(tuple(range(1, COUNT + 1)))
    found = [event for event in outcome.events if event.kind is EventKind.JOB_SUBMITTED]
    assert [event.job for event in found] == [*range(1, EVENTS_OF_SUBMISSION_MAX + 1), 0]
    assert found[-1].message == f"and jobs {EVENTS_OF_SUBMISSION_MAX + 1}-{COUNT}"


def test_what_jobs_share_at_first_is_each_ones_own_once_it_changes(machine: Machine) -> None:
    spec = JobSpec(command=("true",), array="0-9")
    machine.step([Submit(1, "ann", (spec, spec))], 2, 2)
    first, second = machine.cluster.jobs.values()
    assert first.pending is second.pending
    loaded = Machine(records=sorted(machine.cluster.records.items())).cluster
    for one in (first, loaded.jobs[1]):
        changed = one.all & one.all
        one.owned = changed
        one.moved(changed)
        assert not one.pending
    assert len(second.pending) == len(second.all) == len(loaded.jobs[2].pending) == 10


def test_placing_takes_in_very_many_jobs_in_pieces(machine: Machine) -> None:
    few = sum(1 for _ in machine.pieces([Submit(1, "ann", (TRUE,) * PIECE_JOBS)], 2, 2))
    looked_at = machine.placing.index.jobs_looked_at
    many = sum(1 for _ in machine.pieces([Submit(2, "ann", (TRUE,) * COUNT)], 3, 3))
    assert machine.placing.index.jobs_looked_at - looked_at == COUNT, "each once"
    assert many - few >= 4 * (COUNT // PIECE_JOBS - 1)


def test_a_record_that_many_inputs_put_is_encoded_once_as_it_is_in_the_end() -> None:
    scene = Scene()
    nodes = [scene.node(f"n{number}", 2) for number in range(4)]
    scene.submit(array="0-7")
    reports = [
        FromNode(
            order.node,
            order.stream,
            Report("j", 1, 1, (AllocationReport(body.allocation, exits=exits(first)),)),
        )
        for order in scene.last.orders
        if isinstance(order, Send) and isinstance(body := order.message.body, Grant)
        for first, _ in body.indices[:1]
    ]
    assert len({report.node for report in reports}) == len(nodes)
    proved: list[str] = []
    outcome = scene.machine.step(
        reports, scene.now_ms, WALL_MS, lambda records, blocks: proved.extend(records)
    )
    assert sorted(proved) == sorted(outcome.changes)


def test_all_that_an_allocation_has_may_succeed_at_once_or_by_and_by() -> None:
    told: dict[str, Any] = {
        "started_at_ms": WALL_MS,
        "duration_ms": 3,
        "cpu_user_ms": 1,
        "memory_peak_kib": 4,
    }
    found = []
    for one_by_one in (False, True):
        scene = Scene()
        node = scene.node("n", 2)
        job = scene.submit(array="0-1")
        (grant,) = scene.sent(Grant)
        if one_by_one:
            ended = tuple(Ended(index, Cause.EXIT, **told) for index in (0, 1))
            scene.report(node, AllocationReport(grant.allocation, ended=ended))
        else:
            scene.report(node, AllocationReport(grant.allocation, exits=exits(0, 1, **told)))
        assert scene.job(job).status.state is JobState.SUCCEEDED
        assert not scene.job(job).allocations
        found.append((scene.machine.cluster.records, scene.outcomes(job)))
    assert found[0] == found[1]
    assert segment_key(1, 0) in found[0][0]

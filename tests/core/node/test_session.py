"""Who may command a node, and how it tells what it did."""

import pytest

from rota.core.model import columns
from rota.core.model.columns import columns_of
from rota.core.model.protocol import (
    PROTOCOL_VERSION,
    Ack,
    AllocationReport,
    Down,
    Ended,
    Heartbeat,
    HeartbeatAck,
    HeldAllocation,
    HeldLease,
    Hello,
    Holding,
    HoldingEnd,
    Inventory,
    Lease,
    Refused,
    Report,
    Resize,
    Resized,
    Slot,
    Stop,
)
from rota.core.model.states import Cause, StopReason
from rota.core.node.entries import Acknowledged, LeaseKept, Session
from rota.core.node.inputs import CloseStream, Received, Storage, StreamClosed, StreamOpened, TellOutput
from rota.core.node.reporting import REPORT_ENTRIES_MAX
from rota.core.node.talking import (
    BUSY_WAIT_MS_MAX,
    GREETING_MS_MAX,
    OLDER_RETRY_MS,
    REPORT_WAIT_MS_MAX,
    REPORTS_IN_FLIGHT_MAX,
)
from tests.core.node.scene import SHAPE, WALL_MS, Scene, only, reports, runs, welcome


def test_greets_with_all_that_it_holds() -> None:
    scene = Scene()
    hello = Hello(PROTOCOL_VERSION, "", 0, "boot-1", "journal-1", 0, 0, Inventory(), 1_000)
    assert only(scene.step(StreamOpened(1, Inventory())), messages=True).messages == [hello, HoldingEnd()]


def test_the_welcome_of_this_hello_opens_the_session() -> None:
    scene = Scene()
    scene.step(StreamOpened(1, Inventory()))
    only(scene.step(Received(Down(1, 5, 1, welcome(999)))))
    outcome = scene.step(Received(Down(1, 5, 1, welcome(1_000))))
    # So that it is known at once to be waited for.
    assert outcome.messages == [Heartbeat(1_000, 0)]
    assert outcome.commands == [TellOutput()]
    assert outcome.entries == [Session(1, 5, 1, "uuid-1", "n1")]
    assert scene.machine.node_name == "n1"


def test_a_session_not_above_the_last_is_refused() -> None:
    scene = Scene()
    scene.connect()
    scene.disconnect()
    hello = scene.step(StreamOpened(2, Inventory()), after_ms=5).messages[0]
    assert isinstance(hello, Hello)
    only(scene.step(Received(Down(1, 1, 1, welcome(hello.sent_ms)))))
    assert scene.machine.talk.greeting


def test_two_hellos_of_one_instant_are_told_apart() -> None:
    scene = Scene()
    first = scene.step(StreamOpened(1, Inventory())).messages[0]
    scene.step(StreamClosed())
    second = scene.step(StreamOpened(2, Inventory())).messages[0]
    assert isinstance(first, Hello)
    assert isinstance(second, Hello)
    assert first.sent_ms != second.sent_ms


def test_a_lower_term_is_ignored_and_a_higher_one_written_down() -> None:
    scene = Scene(term=3)
    scene.connect()
    scene.number += 1
    lease = Lease(1, SHAPE, (Slot(0),), "default")
    only(scene.step(Received(Down(2, 1, scene.number, lease))))
    outcome = scene.step(Received(Down(4, 1, scene.number, lease)))
    assert outcome.entries == [
        Session(4, 1, 1, "uuid-1", "n1"),
        LeaseKept(1, SHAPE, "default", (Slot(0),), 1),
    ]


def test_a_message_that_comes_twice_is_obeyed_once() -> None:
    scene = Scene()
    scene.connect()
    lease = scene.envelope(Lease(1, SHAPE, (Slot(0),), "default"))
    assert scene.step(lease, lease).entries == [LeaseKept(1, SHAPE, "default", (Slot(0),), 1)]
    only(scene.step(lease))


def test_a_gap_ends_the_stream() -> None:
    scene = Scene()
    scene.connect()
    scene.number += 1
    outcome = only(scene.lease(), commands=True)
    assert outcome.commands == [CloseStream(1, "messages 2 to 2 of the session were lost")]
    only(scene.lease())


def test_messages_of_another_session_are_ignored() -> None:
    scene = Scene()
    scene.connect()
    lease = Lease(1, SHAPE, (Slot(0),), "default")
    only(scene.step(Received(Down(1, 9, 2, lease))))
    outcome = only(scene.step(Received(Down(1, 1, 2, lease))), entries=True)
    assert outcome.entries == [LeaseKept(1, SHAPE, "default", (Slot(0),), 1)]


def test_nothing_is_obeyed_before_the_welcome() -> None:
    scene = Scene()
    scene.step(StreamOpened(1, Inventory()))
    only(scene.step(Received(Down(1, 1, 2, Lease(1, SHAPE, (Slot(0),), "default")))))


def test_a_refusal_ends_the_stream_for_a_while_or_for_good() -> None:
    scene = Scene()
    scene.step(StreamOpened(1, Inventory()))
    outcome = scene.step(Received(Down(1, 1, 1, Refused("not the leader", 500, 1_000))))
    assert outcome.commands == [CloseStream(1, "the controller refused: not the leader", 500)]
    hello = scene.step(StreamOpened(2, Inventory())).messages[0]
    assert isinstance(hello, Hello)
    only(scene.step(Received(Down(1, 1, 1, Refused("of another Hello", 0, hello.sent_ms - 1)))))
    outcome = scene.step(Received(Down(1, 1, 1, Refused("a cloned directory", 0, hello.sent_ms))))
    assert outcome.commands == [CloseStream(2, "the controller refused: a cloned directory", final=True)]


def test_a_leader_with_older_records_sends_nobody_away_and_is_not_asked_again_at_once() -> None:
    scene = Scene()
    scene.connect()
    scene.step(StreamClosed())
    term = scene.machine.held.session.term
    hello = scene.step(StreamOpened(2, Inventory())).messages[0]
    assert isinstance(hello, Hello)
    only(scene.step(Received(Down(term - 1, 0, 1, Refused("of another Hello", 0, hello.sent_ms - 1)))))
    outcome = scene.step(Received(Down(term - 1, 0, 1, Refused("not known here", 0, hello.sent_ms))))
    (closed,) = outcome.commands
    assert isinstance(closed, CloseStream)
    assert (closed.final, closed.retry_ms) == (False, OLDER_RETRY_MS)
    assert "not known here; it has older records" in closed.reason


def test_silence_ends_the_stream() -> None:
    scene = Scene()
    scene.connect()
    beat_at_ms = scene.outcome.wake_at_ms
    assert beat_at_ms is not None
    assert 1_000 + 4_500 <= beat_at_ms <= 1_000 + 5_500
    assert scene.step(after_ms=5_500).messages == [Heartbeat(6_500, 0)]
    scene.down(HeartbeatAck(6_500))
    assert scene.step(after_ms=5_500).messages == [Heartbeat(12_000, 0)]
    scene.step(after_ms=5_500)
    assert scene.step(after_ms=3_999).commands == []
    assert scene.step(after_ms=1).commands == [CloseStream(1, "the controller has fallen silent")]


def test_an_unanswered_greeting_ends_the_stream() -> None:
    scene = Scene()
    outcome = scene.step(StreamOpened(1, Inventory()))
    assert outcome.wake_at_ms == 1_000 + GREETING_MS_MAX
    outcome = scene.step(after_ms=GREETING_MS_MAX)
    assert outcome.commands == [CloseStream(1, "the controller did not answer the greeting")]


def test_a_leader_that_knows_more_than_the_journal_is_no_leader_of_this_node() -> None:
    scene = Scene()
    scene.step(StreamOpened(1, Inventory()))
    outcome = only(scene.step(Received(Down(1, 1, 1, welcome(1_000, acknowledged=4)))), commands=True)
    (close,) = outcome.commands
    assert isinstance(close, CloseStream)
    assert close.final


def test_the_entries_of_a_step_are_one_report() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=2)
    scene.grant(((0, 3),))
    at_ms = WALL_MS + scene.now_ms
    assert reports(scene.spawned((10, 0, 1), (10, 1, 1))) == [
        Report("journal-1", 1, 2, (AllocationReport(10, started=((0, 1),)),))
    ]
    # While that one is on its way, entries wait for company.
    only(scene.exited((10, 1, 1), code=3), entries=True, commands=True)
    scene.step(scene.birth((10, 2, 1)))
    assert scene.outcome.wake_at_ms == scene.now_ms + REPORT_WAIT_MS_MAX
    outcome = scene.exited((10, 0, 1), (10, 2, 1), after_ms=REPORT_WAIT_MS_MAX)
    assert reports(outcome) == [
        Report(
            "journal-1",
            3,
            6,
            (
                AllocationReport(
                    10,
                    exits=columns_of(
                        [
                            Ended(index, Cause.EXIT, code, started_at_ms=at_ms, duration_ms=20)
                            for index, code in ((0, 0), (1, 3), (2, 0))
                        ]
                    ),
                ),
            ),
        )
    ]


def test_acknowledged_entries_are_forgotten() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=2)
    scene.grant(((0, 3),))
    scene.spawned((10, 0, 1), (10, 1, 1))
    assert scene.down(Ack(1)).entries == []
    assert scene.down(Ack(2)).entries == [Acknowledged(2)]
    assert scene.machine.held.unacknowledged == []


def test_an_acknowledgement_of_what_was_not_sent_ends_the_stream() -> None:
    scene = Scene()
    scene.connect()
    (close,) = scene.down(Ack(1)).commands
    assert isinstance(close, CloseStream)


def test_after_a_new_session_reports_go_on_behind_what_the_leader_knows() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=1)
    scene.grant(((0, 3),))
    scene.ran((10, 0, 1))
    scene.ran((10, 1, 1))
    scene.disconnect()
    only(scene.ran((10, 2, 1)), entries=True, commands=True)
    greeting = scene.connect(acknowledged=3)
    hello = greeting[0]
    assert isinstance(hello, Hello)
    assert hello.last_sequence == 6
    assert greeting[1:] == [
        Holding((HeldLease(1, (0,)),), (HeldAllocation(10, ((3, 3),), ()),)),
        HoldingEnd(1),
    ]
    (report,) = reports(scene.outcome)
    assert (report.first_sequence, report.last_sequence) == (4, 6)


def test_a_report_does_not_straddle_the_hello() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=2)
    scene.grant(((0, 3),))
    scene.disconnect()
    scene.spawned((10, 0, 1))
    scene.step(StreamOpened(2, Inventory()))
    scene.spawned((10, 1, 1))
    scene.session, scene.number = 2, 0
    first, second = reports(scene.down(welcome(1_001))) + reports(scene.step(after_ms=REPORT_WAIT_MS_MAX))
    assert (first.first_sequence, first.last_sequence) == (1, 1)
    assert (second.first_sequence, second.last_sequence) == (2, 2)


def test_few_reports_are_on_their_way_and_each_is_of_bounded_size() -> None:
    scene = Scene(check=False)
    scene.connect()
    scene.lease(slots=1)
    scene.grant(((0, 40_000),))
    scene.disconnect()
    for index in range(20_000):
        scene.ran((10, index, 1))
    scene.connect()
    sent = reports(scene.outcome)
    while len(sent) < REPORTS_IN_FLIGHT_MAX:
        sent += reports(scene.step(after_ms=REPORT_WAIT_MS_MAX))
    assert reports(scene.step(after_ms=1_000)) == []
    for report in sent:
        assert 0 < report.last_sequence - report.first_sequence < REPORT_ENTRIES_MAX
    assert sent[-1].last_sequence < 40_000
    scene.down(Ack(sent[0].last_sequence))
    assert reports(scene.outcome)[0].first_sequence == sent[-1].last_sequence + 1


def test_a_report_has_one_answer_for_each_allocation() -> None:
    scene = Scene()
    scene.connect()
    scene.down(Stop(10, 71, (), StopReason.CANCEL), Stop(10, 72, (), StopReason.CANCEL))
    (first,) = reports(scene.outcome)
    (second,) = reports(scene.step(after_ms=REPORT_WAIT_MS_MAX))
    assert [first.allocations[0].answers, second.allocations[0].answers] == [71, 72]


def test_large_holdings_come_in_pages() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=1)
    every_second = tuple((index, index) for index in range(0, 60_000, 2))
    scene.grant(every_second)
    scene.disconnect()
    pages = [message for message in scene.connect() if isinstance(message, Holding)]
    assert len(pages) > 1
    held = [part for page in pages for part in page.allocations]
    assert all(12 * len(part.waiting) < 200 * 1024 for part in held)
    assert tuple(pair for part in held for pair in part.waiting) == every_second


def test_resized_slots_are_told_of() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=3)
    assert reports(scene.down(Resize(1, 1))) == [Report("journal-1", 1, 1, (), (Resized(1, (1, 2)),))]


def test_a_journal_that_cannot_be_written_ends_the_stream_and_starts_nothing() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=1)
    scene.grant(((0, 3),))
    scene.spawned((10, 0, 1))
    outcome = scene.step(Storage(writable=False, message="no space left"))
    assert outcome.commands == [CloseStream(1, "the journal cannot be written: no space left")]
    only(scene.exited((10, 0, 1)), entries=True)
    outcome = scene.step(StreamOpened(2, Inventory()))
    assert outcome.commands == [CloseStream(2, "the journal cannot be written")]
    outcome = scene.step(Storage(writable=True))
    assert len(outcome.commands) == 1
    scene.connect()


@pytest.mark.parametrize("body", [Refused("gone", 10), Lease(1, SHAPE, (), "default")])
def test_a_closed_stream_is_deaf(body: Refused | Lease) -> None:
    scene = Scene()
    scene.connect()
    scene.disconnect()
    only(scene.down(body))


def test_nodes_that_began_together_do_not_beat_together() -> None:
    """Each heartbeat comes earlier or later by a tenth of the time between two, and no two nodes alike."""
    times: dict[int, list[int]] = {}
    for number in range(50):
        scene = Scene()
        scene.crash(boot_id=f"boot-{number}", journal_id=f"journal of {number}")
        scene.connect()
        for _ in range(3):
            beat_at_ms = scene.outcome.wake_at_ms
            assert beat_at_ms is not None
            times.setdefault(number, []).append(beat_at_ms - scene.now_ms)
            assert scene.step(after_ms=beat_at_ms - scene.now_ms).messages == [Heartbeat(beat_at_ms, 0)]
            scene.down(HeartbeatAck(beat_at_ms))
    every = [time_ms for of_node in times.values() for time_ms in of_node]
    assert 4_500 <= min(every) < 4_700
    assert 5_300 < max(every) <= 5_500
    assert len({tuple(of_node) for of_node in times.values()}) == len(times)


def test_after_many_ends_the_next_report_waits_for_more() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=1)
    given = runs(scene.grant(((0, 999),)))
    told: list[int] = []
    sent = 0
    while given:
        indices = [index for _, index, _ in given.pop()]
        outcome = scene.quick(10, *indices, after_ms=5)
        given = runs(outcome)
        for report in reports(outcome):
            sent += 1
            told += [index for part in report.allocations for index in columns.indices(part.exits)]
            scene.down(Ack(report.last_sequence))
    # The first few are told of one by one; then each report waits for the ends of BUSY_WAIT_MS_MAX.
    assert sent < 12
    for report in reports(scene.step(after_ms=BUSY_WAIT_MS_MAX)):
        told += [index for part in report.allocations for index in columns.indices(part.exits)]
    assert sorted(told) == list(range(1000))

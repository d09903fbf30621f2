"""After a crash a node goes on where its journal ends."""

from rota.core.model.protocol import (
    Device,
    Ended,
    HeldLease,
    Hello,
    Holding,
    Inventory,
    Lease,
    Pool,
    Recall,
    Resize,
    Slot,
)
from rota.core.model.resources import NOTHING, Resources
from rota.core.model.states import Cause
from rota.core.node.entries import Begin, Drop, End, Entry, Session, TemplateKept, Unacknowledged
from rota.core.node.entries import Resize as Resized
from rota.core.node.inputs import StreamOpened
from rota.core.node.recovery import recover
from tests.core.node.scene import POOLS, SHAPE, WALL_MS, Scene, reports, spawns


def test_an_empty_journal_is_begun() -> None:
    recovered = recover([], boot_id="b", journal_id="j", pools=POOLS)
    assert recovered.begun
    assert recovered.entries == [Begin("j", "b")]


def test_in_the_same_boot_intents_and_starts_end_as_agent_error_and_the_rest_goes_on() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=2)
    scene.grant(((0, 99),))
    scene.spawned((10, 0, 1))
    at_ms = WALL_MS + scene.now_ms
    before = len(scene.journal)
    scene.crash()
    ends = scene.journal[before:]
    assert ends[0] == End(10, Ended(0, Cause.AGENT_ERROR, message="the agent ended", started_at_ms=at_ms))
    assert len(ends) == 64
    assert all(
        isinstance(end, End) and end.ended.cause == Cause.AGENT_ERROR and not end.ended.started
        for end in ends[1:]
    )
    # Without a leader, too.
    assert spawns(scene.step()) == [(10, 64, 1), (10, 65, 1)]


def test_recovery_itself_may_be_cut_off_anywhere() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=2)
    scene.grant(((0, 9),))
    scene.spawned((10, 0, 1))
    less = (Pool(resources=SHAPE),)
    whole = recover(scene.journal, boot_id="boot-1", journal_id="x", pools=less).entries
    assert whole[-1] == Resized(1, (1,))
    for cut in range(len(whole)):
        again = recover(scene.journal + whole[:cut], boot_id="boot-1", journal_id="x", pools=less).entries
        assert whole[:cut] + again == whole


def test_another_boot_begins_a_journal_that_takes_over_what_the_leader_may_not_know() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=2)
    scene.grant(((0, 9),))
    scene.ran((10, 0, 1))
    scene.spawned((10, 1, 1))
    scene.down(Recall(10, 5, (), 1), Resize(1, 1))
    end = scene.journal[-3]
    assert isinstance(end, End)
    scene.crash(boot_id="boot-2")
    assert scene.journal == [
        Begin("journal-2", "boot-2", 0, 1),
        Session(1, 1, 1, "uuid-1", "n1"),
        Unacknowledged(end),
        Unacknowledged(Drop(10, ((9, 9),), 5)),
    ]
    greeting = scene.step(StreamOpened(2, Inventory())).messages
    hello = greeting[0]
    assert isinstance(hello, Hello)
    assert (hello.boot_id, hello.journal_id, hello.last_sequence) == ("boot-2", "journal-2", 2)
    assert len(greeting) == 2, "nothing is held"
    scene.connect()
    assert [report.last_sequence for report in reports(scene.outcome)] == [2]


def test_drops_cut_off_when_a_lease_went_are_made_up_for() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=1)
    scene.down(Resize(1, 0))
    scene.grant(((0, 9),))
    assert isinstance(scene.journal.pop(), Drop)
    scene.crash()
    assert scene.journal[-1] == Drop(10, ((0, 9),))


def test_what_has_no_template_is_ended_or_given_back_and_the_rest_goes_on() -> None:
    """Journals of earlier versions know allocations whose templates their snapshots forgot."""
    scene = Scene()
    scene.connect()
    scene.lease(slots=1)
    scene.grant(((0, 99),))
    scene.spawned((10, 0, 1))
    scene.grant(((0, 9),), allocation=11, job=8)
    scene.journal = [
        entry for entry in scene.journal if not (isinstance(entry, TemplateKept) and entry.template.job == 7)
    ]
    before = len(scene.journal)
    scene.crash()
    ends = scene.journal[before:-1]
    assert {end.ended.cause for end in ends if isinstance(end, End)} == {Cause.AGENT_ERROR}
    assert len(ends) == 64
    assert scene.journal[-1] == Drop(10, ((64, 99),))
    assert spawns(scene.step()) == [(11, 0, 1)]


def test_freed_slots_stay_freed() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=3)
    scene.down(Resize(1, 2))
    assert scene.journal[-1] == Resized(1, (2,))
    scene.crash()
    assert Holding((HeldLease(1, (0, 1)),)) in scene.connect()
    scene.lease(slots=3)
    assert list(scene.machine.held.leases[1].slots) == [0, 1]


def test_an_agent_that_starts_with_less_frees_slots_before_anything_starts() -> None:
    """The newest first, and of those only what asks for what is short."""
    scene = Scene()
    scene.connect()
    scene.lease(1, slots=2)
    scene.lease(2, slots=2, shape=Resources(memory=100))
    scene.lease(3, slots=3)
    scene.grant(((0, 99),), allocation=10, lease=1)
    scene.grant(((0, 99),), allocation=11, lease=3)
    scene.spawned(*((10, index, 1) for index in range(2)), *((11, index, 1) for index in range(3)))
    before = len(scene.journal)
    scene.pools = (Pool(resources=Resources(cpu=1000, memory=1000)),)
    scene.crash()
    freed = [entry for entry in scene.journal[before:] if isinstance(entry, Resized)]
    assert freed == [Resized(1, (1,)), Resized(3, (0, 1, 2))]
    assert [entry for entry in scene.journal[before:] if isinstance(entry, Drop)] == [Drop(11, ((64, 99),))]
    assert len(spawns(scene.step())) == 1
    assert scene.machine.held.leases[2].slots.keys() == {0, 1}


def test_slots_whose_device_or_unit_is_gone_are_freed() -> None:
    scene = Scene(pools=(Pool("gpus", devices=(Device("gpu", "a"), Device("gpu", "b")), units=2),))
    scene.connect()
    slots = (Slot(0, ("a",)), Slot(1, ("b",)))
    scene.down(
        Lease(1, NOTHING, slots, "default", "gpus", 0),
        Lease(2, NOTHING, slots, "default", "gpus", 1),
    )
    scene.pools = (Pool("gpus", devices=(Device("gpu", "b"),), units=1),)
    scene.crash()
    assert [entry for entry in scene.journal if isinstance(entry, Resized)] == [
        Resized(1, (0,)),
        Resized(2, (0, 1)),
    ]


def test_a_snapshot_is_a_journal() -> None:
    scene = Scene()
    scene.connect()
    scene.lease(slots=2)
    scene.grant(((0, 9),), lines=tuple(map(str, range(10))))
    scene.spawned((10, 0, 1))
    before: list[Entry] = recover(scene.journal, boot_id="boot-1", journal_id="x", pools=POOLS).entries
    scene.journal = list(scene.machine.snapshot())
    assert recover(scene.journal, boot_id="boot-1", journal_id="x", pools=POOLS).entries == before

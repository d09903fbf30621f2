"""Standard input whose feeder is gone."""

from rota.core.cluster.feeding import UNFED_MS_MAX
from rota.core.cluster.inputs import Fed, FromNode, Lead, StreamClosed
from rota.core.cluster.state import Job
from rota.core.cluster.step import Machine
from rota.core.model.protocol import (
    AllocationReport,
    Ended,
    Grant,
    Heartbeat,
    HeldAllocation,
    HeldLease,
    Holding,
    Input,
    InputTaken,
    Stop,
)
from rota.core.model.states import Cause, JobState
from tests.core.cluster.scene import Scene


class Story:
    """A task that reads input, and its node."""

    def __init__(self) -> None:
        self.scene = Scene()
        self.node = self.scene.node("n", 1)
        self.number = self.scene.submit(stdin=True)
        (self.grant,) = self.scene.sent(Grant)

    def job(self) -> Job:
        return self.scene.job(self.number)

    def start(self) -> None:
        self.scene.report(self.node, AllocationReport(self.grant.allocation, started=((0, 0),)))

    def wait(self, ms: int, *, fed: bool) -> list[Input]:
        """Time passes, in which the node is heard; what it is asked meanwhile."""
        asked = []
        for _ in range(ms // 5_000):
            self.scene.step(self.beat(), after_ms=5_000)
            asked += self.scene.sent(Input)
            if fed:
                self.scene.ask(Fed(0, self.number))
        return asked

    def beat(self) -> FromNode:
        return self.scene.said(self.node, Heartbeat(self.scene.now_ms, 0))

    def say(self, size: int, *, end: bool = False) -> list[Stop]:
        """The node says how much it has; what it is told to stop."""
        self.scene.step(self.scene.said(self.node, InputTaken(self.grant.allocation, 0, size, end=end)))
        return self.scene.sent(Stop)


def test_a_task_that_nobody_feeds_any_more_is_cancelled() -> None:
    story = Story()
    story.start()
    assert not story.wait(4 * UNFED_MS_MAX, fed=True)
    asked = story.wait(UNFED_MS_MAX + 5_000, fed=False)
    assert asked == [Input(story.grant.allocation, 0, 0, b"", False)]
    assert not story.job().ending, "the node may have the whole of it"
    assert story.say(7)
    assert story.job().ending
    assert "standard input" in story.job().status.reason
    end = AllocationReport(story.grant.allocation, ended=(_stopped(),))
    story.scene.report(story.node, end)
    assert story.job().status.state is JobState.CANCELLED


def _stopped() -> Ended:
    return Ended(0, Cause.STOPPED, started=True)


def test_a_task_that_has_all_of_its_input_is_let_alone() -> None:
    story = Story()
    story.start()
    assert len(story.wait(UNFED_MS_MAX, fed=False)) == 1
    assert not story.say(7, end=True)
    assert not story.wait(4 * UNFED_MS_MAX, fed=False)
    assert not story.job().ending


def test_who_feeds_again_in_time_ends_nothing() -> None:
    story = Story()
    story.start()
    assert story.wait(UNFED_MS_MAX, fed=False)
    story.scene.ask(Fed(0, story.number))
    assert not story.say(7), "an answer from before that"
    assert not story.job().ending


def test_a_task_that_waits_for_its_turn_may_be_fed_later() -> None:
    story = Story()
    assert not story.wait(4 * UNFED_MS_MAX, fed=False)
    story.start()
    assert not story.wait(UNFED_MS_MAX - 5_000, fed=False)
    assert not story.job().ending


def test_a_node_that_does_not_answer_is_asked_again() -> None:
    story = Story()
    story.start()
    story.scene.step(StreamClosed(story.node, 1))
    story.scene.wait(2 * UNFED_MS_MAX)
    assert not story.job().ending
    story.scene.machine = Machine(records=story.scene.machine.cluster.records.items())
    story.scene.step(Lead())
    held = HeldAllocation(story.grant.allocation, (), ((0, 0),))
    story.scene.hello(story.node, 1, Holding((HeldLease(story.grant.lease, (0,)),), (held,)))
    assert len(story.wait(UNFED_MS_MAX - 5_000, fed=False)) == 0, "a new leader begins to wait anew"
    assert len(story.wait(UNFED_MS_MAX + 5_000, fed=False)) == 2
    assert story.say(0)


def test_a_leader_that_was_stopped_hears_those_who_feed_first() -> None:
    story = Story()
    story.start()
    story.scene.step(story.beat(), after_ms=10 * UNFED_MS_MAX)
    assert not story.scene.sent(Input)
    story.scene.ask(Fed(0, story.number))
    assert not story.say(7)
    assert not story.job().ending

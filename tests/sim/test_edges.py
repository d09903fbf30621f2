"""The simulated node of `rota sim edges`: it obeys the protocol, and handles tasks by whole sets."""

from collections.abc import Iterable

import pytest

from rota.agent.link_identity import Identity
from rota.core.model.columns import exited
from rota.core.model.protocol import (
    MESSAGE_BYTES_MAX,
    Ack,
    Body,
    Down,
    Ended,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    Inventory,
    Lease,
    Report,
    Slot,
    Stop,
    Template,
    Up,
    Welcome,
)
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, StopReason
from rota.core.node.granting import FAILURES_MAX
from rota.core.node.inputs import Leave, Received, Shutdown, StreamOpened
from rota.sim.edges.check import sanity_check
from rota.sim.edges.edge import Edge
from rota.sim.edges.fleet import Fleet
from rota.sim.edges.memory import Ends, Memory
from rota.sim.edges.tasks import Drawn, said_ms
from rota.sim.runs import run_seeds
from rota.wire.link import up_to_message

WALL_MS = 1_700_000_000_000
TASKS = 100_000


class Stage:
    """An edge with one lease, and a leader that says what it is told to."""

    def __init__(self, tasks: Drawn, *, slots: int = 4) -> None:
        self.edge = Edge(Memory("boot", "journal"), "", tasks)
        self.now_ms = 0
        self.number = 0
        self.grants = 0
        hello, *_ = self.step(StreamOpened(1, Inventory()))
        assert isinstance(hello, Hello)
        self.say(Welcome("id", "edge-0", "", 0, 0, 5_000, 300_000, hello.sent_ms))
        self.say(Lease(1, Resources(cpu=1000), tuple(Slot(number) for number in range(slots)), "default"))

    def step(self, *inputs: StreamOpened | Received | Shutdown) -> list[Up]:
        outcome = self.edge.step(inputs, self.now_ms, WALL_MS + self.now_ms)
        self.commands = outcome.commands
        sanity_check(self.edge)
        return outcome.messages

    def say(self, body: Body) -> list[Up]:
        self.number += 1
        return self.step(Received(Down(1, 1, self.number, body)))

    def grant(self, count: int, spec: JobSpec) -> list[Up]:
        """`count` tasks, as allocation 7 of job 1."""
        self.grants += 1
        self.say(Template(1, 1, spec, count, "ada"))
        return self.say(Grant(7, 1, 1, 1, self.grants, 1, ((0, count - 1),)))

    def until_acknowledged(self, messages: Iterable[Up]) -> list[Report]:
        """All reports, each acknowledged."""
        found = []
        waiting = [message for message in messages if isinstance(message, Report)]
        while waiting:
            one = waiting.pop(0)
            found.append(one)
            self.now_ms += 10
            waiting += [new for new in self.say(Ack(one.last_sequence)) if isinstance(new, Report)]
        return found

    def after(self, time_ms: int) -> list[Report]:
        self.now_ms += time_ms
        return [message for message in self.step() if isinstance(message, Report)]


def exits(reports: Iterable[Report]) -> list[Ended]:
    """All that exited, as it was told, in the order of the tasks."""
    found = [one for report in reports for part in report.allocations for one in exited(part.exits)]
    return sorted(found, key=lambda one: one.index)


def test_a_hundred_thousand_tasks_of_no_work_are_a_few_sets_each_told_once() -> None:
    stage = Stage(Drawn(failing=0.01, code=3))
    messages = stage.grant(TASKS, JobSpec(command=("true",)))
    # What is counted is the structure: an entry for many tasks, and no object for each.
    assert stage.edge.held.sequence < 10
    assert all(isinstance(happened, Ends) for happened in stage.edge.happened)
    reports = stage.until_acknowledged(messages)
    assert len(reports) < 10
    assert all(up_to_message(report).ByteSize() <= MESSAGE_BYTES_MAX for report in reports)
    told = exits(reports)
    assert [one.index for one in told] == list(range(TASKS))
    assert {one.code for one in told} == {0, 3}
    assert 0.005 < sum(one.code == 3 for one in told) / TASKS < 0.02
    assert stage.edge.held.allocations == {}


def test_tasks_of_no_work_end_in_random_order() -> None:
    stage = Stage(Drawn(seed=1))
    first, *_ = stage.until_acknowledged(stage.grant(TASKS, JobSpec(command=("true",))))
    among = exits([first])
    assert among[0].index < TASKS / 100
    assert among[-1].index > TASKS * 99 / 100


def test_tasks_take_their_time_on_as_many_slots_as_there_are() -> None:
    stage = Stage(Drawn((2_000, 2_000)))
    (begun,) = stage.until_acknowledged(stage.grant(6, JobSpec(command=("true",))))
    assert begun.allocations[0].started == ((0, 3),)
    assert stage.after(1_980) == []
    ended = exits(stage.after(10))
    assert [one.index for one in ended] == [0, 1, 2, 3]
    assert [one.duration_ms for one in ended] == [2_000] * 4
    assert stage.edge.busy == 2


@pytest.mark.parametrize(
    ("command", "time_ms"),
    [
        (("sleep", "2"), 2_000),
        (("/bin/sleep", "0.5m"), 30_000),
        (("sleep", "1m", "1s"), 61_000),
        (("sleep",), 0),
        (("sleep", "{index}"), 0),
        (("true",), 0),
    ],
)
def test_without_a_time_a_command_says_how_long_it_takes(command: tuple[str, ...], time_ms: int) -> None:
    assert said_ms(JobSpec(command=command)) == time_ms


def test_a_time_limit_ends_a_task_that_would_take_longer() -> None:
    stage = Stage(Drawn((60_000, 60_000)))
    stage.until_acknowledged(stage.grant(1, JobSpec(command=("true",), time_limit=1_000)))
    (report,) = stage.after(1_000)
    (ended,) = report.allocations[0].ended
    assert (ended.cause, ended.duration_ms) == (Cause.TIME_LIMIT, 1_000)


def test_a_stop_ends_what_runs_and_gives_back_what_waits() -> None:
    stage = Stage(Drawn((60_000, 60_000)), slots=2)
    stage.until_acknowledged(stage.grant(5, JobSpec(command=("true",))))
    (report,) = (one for one in stage.say(Stop(7, 9, (), StopReason.CANCEL)) if isinstance(one, Report))
    (told,) = report.allocations
    assert [(ended.index, ended.cause) for ended in told.ended] == [(0, Cause.STOPPED), (1, Cause.STOPPED)]
    assert (told.dropped, told.answers) == (((2, 4),), 9)


def test_a_job_that_fails_too_often_in_a_row_is_given_back() -> None:
    stage = Stage(Drawn(failing=1.0))
    reports = stage.until_acknowledged(stage.grant(1_000, JobSpec(command=("false",))))
    assert len(exits(reports)) == FAILURES_MAX
    assert any(one.stalled and one.dropped for report in reports for one in report.allocations)


def test_a_grant_that_is_old_news_starts_nothing() -> None:
    stage = Stage(Drawn())
    stage.until_acknowledged(stage.grant(3, JobSpec(command=("true",))))
    assert stage.say(Grant(7, 1, 1, 1, 1, 1, ((0, 2),))) == []


def test_who_is_asked_to_end_stops_its_tasks_and_says_goodbye_when_that_is_known() -> None:
    stage = Stage(Drawn((60_000, 60_000)), slots=1)
    stage.until_acknowledged(stage.grant(2, JobSpec(command=("true",))))
    said = stage.step(Shutdown(0))
    assert any(isinstance(message, Heartbeat) and message.leaving for message in said)
    (report,) = (message for message in said if isinstance(message, Report))
    (told,) = report.allocations
    assert [ended.cause for ended in told.ended] == [Cause.PREEMPTED]
    assert report.resized[0].freed == (0,)
    last = stage.say(Ack(report.last_sequence))
    assert isinstance(last[-1], Goodbye)
    assert any(isinstance(command, Leave) for command in stage.commands)


class Call:
    """A stream on which nothing gets through."""

    def cancel(self) -> None:
        pass

    async def write(self, data: bytes) -> None:
        raise AssertionError(data)


async def test_a_node_that_was_about_to_say_something_as_its_stream_ended_can_speak_on_the_next() -> None:
    def told(node: str, why: str) -> None:
        raise AssertionError(node, why)

    identity = Identity("uuid", "edge-0", ("127.0.0.1:1",), b"", b"", b"")
    fleet = Fleet("", [identity], Inventory(), Drawn(), told, told)
    (member,) = fleet._members
    member.call = Call()
    fleet._say(member, [Heartbeat(0, 0)])
    assert member.writer is not None
    await fleet._hang_up(member)
    assert fleet._members[0].writer is None
    assert fleet._members[0].waiting == []


@pytest.mark.timeout(240)
def test_edges_break_no_promise_in_the_simulator() -> None:
    """The scenarios and the checkers are those of the real node."""
    broken = [found for found in run_seeds(range(1, 31), edges=True) if found.invariant]
    assert broken == []


@pytest.mark.ci
@pytest.mark.timeout(240)
def test_edges_break_no_promise_in_many_seeds() -> None:
    broken = [found for found in run_seeds(range(31, 331), edges=True) if found.invariant]
    assert broken == []

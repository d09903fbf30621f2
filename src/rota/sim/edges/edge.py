"""One simulated node: everything of the node protocol, and tasks that only take time, or none.

It obeys as `rota.core.node` does, whose talk with the leader it has (sessions, terms, heartbeats, reports
until they are acknowledged); what it holds and runs are whole sets. A task that takes no time begins and ends
in the step that finds a slot for it, so a million of them cost a few arrays. A task that is stopped ends at
once, and nothing of it is left.

The law of whoever runs it is the machine's: do an outcome's commands, then send its messages. `happened` is
what began and ended in the last step, in that order, for those who check it.
"""

import heapq
from collections.abc import Iterable
from typing import assert_never

import numpy as np
from pyroaring import BitMap

from rota.core.cluster.rows import Numbers, array, bitmap
from rota.core.model.indexset import from_ranges, take_first, to_ranges
from rota.core.model.protocol import (
    Ack,
    Body,
    Down,
    Drain,
    Ended,
    Forget,
    Grant,
    HeartbeatAck,
    Input,
    InputTaken,
    ReadOutput,
    Recall,
    Refused,
    Resize,
    Stop,
    Template,
    Welcome,
)
from rota.core.model.protocol import Lease as LeaseMessage
from rota.core.model.states import Cause, OnNodeLoss, StopReason
from rota.core.node.book import Book
from rota.core.node.entries import Drop, End
from rota.core.node.entries import Resize as Resized
from rota.core.node.granting import (
    CAUSE_OF_STOP,
    DROP_RANGES_MAX,
    FAILURES_MAX,
    FAILURES_PER_SLOT_MAX,
    STREAKS_COUNT_MAX,
)
from rota.core.node.held import TEMPLATES_COUNT_MAX
from rota.core.node.inputs import Leave, Outcome, Received, SendOutput, Shutdown, StreamClosed, StreamOpened
from rota.core.node.machine import GOODBYE_MS_MAX
from rota.core.node.talking import Talk
from rota.sim.edges.memory import ENDS_COUNT_MAX, Allocation, Begun, Ends, Lease, Memory, Running
from rota.sim.edges.tasks import Tasks

SIGKILL, SIGTERM = 9, 15

Happened = Begun | Ends | End


class Edge:
    """A node. `cluster` is the one that it enrolled with, empty for any."""

    def __init__(self, memory: Memory, cluster: str, tasks: Tasks) -> None:
        self.held = memory
        self.book = Book(memory)
        self.talk = Talk(self.book, cluster, memory.holding, memory.report)
        self.happened: list[Happened] = []
        self._tasks = tasks
        # The ends to come: (boot-clock milliseconds, allocation, index), and of what was stopped meanwhile.
        self._ends: list[tuple[int, int, int]] = []
        # Leases to look at when the step ends.
        self._changed: dict[int, None] = {}
        # Failures in a row by job; jobs that were given back for it, and the entry that said so.
        self._streaks: dict[int, int] = {}
        self._stalled: dict[int, int] = {}
        # How much of a task's standard input has come, and whether it was all.
        self._inputs: dict[tuple[int, int], tuple[int, bool]] = {}
        self._ran_out = False
        self._draining = False
        self._leaving = False
        self._left = False
        self._idle_since_ms: int | None = None

    def step(
        self,
        inputs: Iterable[StreamOpened | StreamClosed | Received | Shutdown],
        now_ms: int,
        wall_ms: int,
    ) -> Outcome:
        """Takes what happened, in order, and the time: boot-clock and wall-clock milliseconds."""
        self.book.open(now_ms, wall_ms)
        self.happened = []
        # Before anything renews the contact: what ran out has run out.
        self._mind_fence()
        self._end_due()
        for news in inputs:
            match news:
                case Received():
                    self._received(news.down)
                case StreamOpened():
                    self.talk.opened(news.stream, news.inventory)
                case StreamClosed():
                    self.talk.closed()
                case Shutdown():
                    self._shut_down()
                case _:
                    assert_never(news)
        self._mind_fence()
        self._settle()
        self.talk.say()
        self._leave()
        return self.book.close(self._wake_at_ms())

    @property
    def busy(self) -> int:
        """How many tasks run."""
        return sum(len(held.running) for held in self.held.allocations.values())

    # ------------------------------------------------------------ what comes

    def _received(self, down: Down) -> None:
        body = self.talk.accept(down)
        # After Goodbye what comes is not for this node any more: the leader has given it to others.
        if body is not None and not self._left:
            self._obey(body)

    def _obey(self, body: Body) -> None:  # noqa: C901 - a table
        match body:
            case Welcome():
                # Said again in each session, where it holds.
                self._draining = False
                self._look_at_all()
                self._know(body.acknowledged)
                self._tell_inputs()
            case HeartbeatAck():
                self.talk.heard(body.sent_ms)
                if self._ran_out and self._in_contact:
                    self._ran_out = False
                    self._look_at_all()
            case Ack():
                self.talk.acknowledge(body.sequence)
                self._know(body.sequence)
            case Template():
                self._keep(body)
            case LeaseMessage():
                self._lease(body)
            case Resize():
                self._resize(body)
            case Grant():
                trouble = self._grant(body)
                if trouble:
                    self.talk.hang_up(trouble)
            case Recall():
                self._recall(body)
            case Stop():
                self._stop(body)
            case Drain():
                self._draining = body.draining
                self._look_at_all()
                if body.draining:
                    self._drop_all()
            case ReadOutput():
                held = self.held.allocations.get(body.allocation)
                live = held is not None and (body.index in held.waiting or body.index in held.running)
                self.book.command(SendOutput(body, live))
            case Input():
                self._input(body)
            case Forget():
                # There is no output.
                pass
            case Refused():
                raise AssertionError(body)
            case _:
                assert_never(body)

    def _look_at_all(self) -> None:
        self._changed.update(dict.fromkeys(self.held.leases))

    def _know(self, sequence: int) -> None:
        """The leader knows all up to here: of these stalled jobs it grants nothing by mistake."""
        for job in [job for job, said in self._stalled.items() if said <= sequence]:
            del self._stalled[job]

    def _keep(self, template: Template) -> None:
        templates = self.held.templates
        templates[template.job, template.version] = template
        if len(templates) > TEMPLATES_COUNT_MAX:
            # A grant that needs it ends the stream, and in the next session it comes again.
            del templates[next(iter(templates))]

    # ------------------------------------------------------------ leases

    def _lease(self, message: LeaseMessage) -> None:
        """Takes the slots that are new, and marks those for leaving that the leader does not know."""
        lease = self.held.leases.get(message.lease)
        if lease is None:
            if not message.slots:
                return
            lease = self.held.leases[message.lease] = Lease(message.lease, message.shape)
        fresh = {slot.slot: slot for slot in message.slots if slot.slot >= lease.next_slot}
        lease.surplus = frozenset(lease.slots) - {slot.slot for slot in message.slots}
        lease.slots.update(fresh)
        if fresh:
            lease.next_slot = max(fresh) + 1
            lease.gone_sequence = 0
        lease.free.extend(fresh)
        lease.target = 0 if self._leaving else message.target
        self._changed[lease.lease] = None

    def _resize(self, message: Resize) -> None:
        """Slots above the target go as they become idle."""
        lease = self.held.leases.get(message.lease)
        if lease is not None:
            lease.target = 0 if self._leaving else message.target
            self._changed[lease.lease] = None

    def _settle(self) -> None:
        """Frees what is to go, and starts what can start, on every lease that was touched."""
        while self._changed:
            number, _ = self._changed.popitem()
            lease = self.held.leases.get(number)
            if lease is not None and lease.slots:
                self._trim(lease)
                self._fill(lease)
            # Tasks may have taken no time.
            self._end_due()

    def _trim(self, lease: Lease) -> None:
        if lease.target is None and not lease.surplus:
            return
        idle = sorted(lease.free, key=lambda slot: (slot not in lease.surplus, -slot))
        freed = [slot for slot in idle if slot in lease.surplus]
        if lease.target is not None:
            freed = idle[: max(len(freed), len(lease.slots) - lease.target)]
        if not freed:
            return
        if len(freed) == len(lease.slots):
            for number in list(lease.waiting):
                self._drop(number, self.held.allocations[number].waiting)
        gone = frozenset(freed)
        lease.free = [slot for slot in lease.free if slot not in gone]
        lease.surplus -= gone
        for slot in freed:
            del lease.slots[slot]
        self.held.tell(Resized(lease.lease, tuple(sorted(freed))))
        if not lease.slots:
            # Remembered until the leader knows it, for until then it may send the slots again.
            lease.gone_sequence = self.held.sequence

    # ------------------------------------------------------------ grants

    def _grant(self, message: Grant) -> str:
        """Takes indices to run; a reason why the stream must end where that cannot be.

        A grant number that is not above all seen is old news, and a held allocation takes only the
        indices that it never had.
        """
        if message.grant <= self.held.grant:
            return ""
        template = self.held.templates.get((message.job, message.version))
        if template is None:
            return f"allocation {message.allocation} came without the template of job {message.job}"
        self.held.grant = message.grant
        held = self.held.allocations.get(message.allocation)
        if held is None:
            held = Allocation(message.allocation, message.lease, template, message.never_stall)
        held.never_stall = message.never_stall
        fresh = from_ranges(message.indices) - held.granted
        held.granted |= fresh
        held.waiting |= fresh
        if not held.waiting and not held.running:
            return ""
        self.held.allocations[held.allocation] = held
        stalled = message.job in self._stalled and not message.never_stall
        lease = self.held.leases.get(held.lease)
        if lease is not None and lease.slots and held.waiting:
            lease.waiting[held.allocation] = None
        if self._draining or self._leaving or stalled or lease is None or not lease.slots:
            self._drop(held.allocation, held.waiting, stalled=stalled)
        else:
            self._changed[held.lease] = None
        return ""

    def _recall(self, message: Recall) -> None:
        """Gives back what has not started: the indices named, or the last `count`."""
        held = self.held.allocations.get(message.allocation)
        given = BitMap()
        if held is not None and message.indices:
            given = held.waiting & from_ranges(message.indices)
        elif held is not None:
            kept = max(len(held.waiting) - message.count, 0)
            given = held.waiting - take_first(held.waiting, kept)
        self._drop(message.allocation, given, answers=message.recall)

    def _stop(self, message: Stop) -> None:
        """Gives back what has not started, and ends what runs."""
        held = self.held.allocations.get(message.allocation)
        if held is None:
            self._drop(message.allocation, BitMap(), answers=message.stop)
            return
        asked = from_ranges(message.indices) if message.indices else held.granted
        self._drop(message.allocation, held.waiting & asked, answers=message.stop)
        signal = SIGKILL if message.reason == StopReason.SUPERSEDED else SIGTERM
        for index in [index for index in held.running if index in asked]:
            self._cut_short(held, index, CAUSE_OF_STOP[message.reason], signal)
        self._close_if_over(held)

    def _drop(self, number: int, indices: BitMap, *, answers: int = 0, stalled: bool = False) -> None:
        """Gives indices back, in pieces where they are many; the last is the answer, which may be empty."""
        held = self.held.allocations.get(number)
        ranges = to_ranges(indices)
        if held is not None and indices:
            gone = indices.copy()
            held.granted -= gone
            self._unqueue(held, gone)
            self._close_if_over(held)
        while len(ranges) > DROP_RANGES_MAX:
            self.held.tell(Drop(number, ranges[:DROP_RANGES_MAX], 0, stalled))
            ranges = ranges[DROP_RANGES_MAX:]
        if ranges or answers or stalled:
            self.held.tell(Drop(number, ranges, answers, stalled))

    def _drop_all(self) -> None:
        for held in list(self.held.allocations.values()):
            self._drop(held.allocation, held.waiting)

    def _unqueue(self, held: Allocation, indices: BitMap) -> None:
        held.waiting -= indices
        if not held.waiting and held.lease in self.held.leases:
            self.held.leases[held.lease].waiting.pop(held.allocation, None)

    def _close_if_over(self, held: Allocation) -> None:
        if not held.waiting and not held.running:
            self.held.allocations.pop(held.allocation, None)

    # ------------------------------------------------------------ running

    def _fill(self, lease: Lease) -> None:
        """Begins what comes next on the lease, until no slot is free or nothing waits."""
        if self._draining or self._leaving:
            return
        for number in list(lease.waiting):
            if not lease.free:
                return
            held = self.held.allocations[number]
            job, spec = held.template.job, held.template.spec
            if spec.on_node_loss == OnNodeLoss.RERUN_FENCED and not self._in_contact:
                continue
            if self._tasks.at_once(job, spec):
                self._run_at_once(held, lease)
            else:
                self._begin(held, lease)

    def _run_at_once(self, held: Allocation, lease: Lease) -> None:
        """All that waits, one after the other in no time."""
        job = held.template.job
        waiting = array(held.waiting)
        codes = self._tasks.codes(job, len(waiting))
        if len(waiting) > ENDS_COUNT_MAX:
            waiting = self._tasks.shuffled(waiting)
        # They end in the order of the codes, in which any order of the indices is as good.
        stalled_after = self._until_stalled(held, codes)
        ran = len(codes) if stalled_after is None else stalled_after
        for cut in range(0, ran, ENDS_COUNT_MAX):
            index = np.sort(waiting[cut : min(cut + ENDS_COUNT_MAX, ran)])
            code = codes[cut : cut + len(index)]
            times = np.full(len(index), self.book.wall_ms, np.int64)
            ends = Ends(held.allocation, index, code, times, np.zeros(len(index), np.int64), lease.free[-1])
            self._tell(ends)
            self._unqueue(held, bitmap(index))
        self._close_if_over(held)
        if stalled_after is not None:
            self._stall(held)

    def _begin(self, held: Allocation, lease: Lease) -> None:
        """As many as there are free slots."""
        job, spec = held.template.job, held.template.spec
        begun = take_first(held.waiting, len(lease.free))
        times_ms = self._tasks.times_ms(job, spec, len(begun))
        codes = self._tasks.codes(job, len(begun)).tolist()
        now_ms = self.book.now_ms
        slots = lease.free[: -len(begun) - 1 : -1]
        del lease.free[-len(begun) :]
        for index, slot, time_ms, code in zip(begun, slots, times_ms, codes, strict=True):
            over = 0 < spec.time_limit < time_ms
            ends_at_ms = now_ms + (spec.time_limit if over else time_ms)
            held.running[index] = Running(slot, ends_at_ms, now_ms, self.book.wall_ms, code, over_limit=over)
            heapq.heappush(self._ends, (ends_at_ms, held.allocation, index))
        self._unqueue(held, begun)
        self._tell(Begun(held.allocation, begun, slots))

    def _end_due(self) -> None:
        """Ends what has taken its time: all of an allocation together."""
        due: dict[int, tuple[Allocation, list[tuple[int, Running]]]] = {}
        while self._ends and self._ends[0][0] <= self.book.now_ms:
            ends_at_ms, number, index = heapq.heappop(self._ends)
            held = self.held.allocations.get(number)
            running = held.running.get(index) if held is not None else None
            # What was stopped meanwhile has ended already.
            if held is None or running is None or running.ends_at_ms != ends_at_ms:
                continue
            due.setdefault(number, (held, []))
            if running.over_limit:
                self._cut_short(held, index, Cause.TIME_LIMIT, SIGTERM)
                if self._until_stalled(held, np.ones(1, np.int64)) is not None:
                    self._stall(held)
            else:
                self._release(held, index)
                due[number][1].append((index, running))
        for held, ended in due.values():
            if ended:
                self._exited(held, ended)
            self._close_if_over(held)

    def _exited(self, held: Allocation, ended: list[tuple[int, Running]]) -> None:
        # In the order of their ends, which is that of the failures.
        codes = np.array([running.code for _, running in ended], np.int64)
        ended.sort(key=lambda one: one[0])
        started = [running.began_wall_ms for _, running in ended]
        times = [running.ends_at_ms - running.began_ms for _, running in ended]
        self._tell(
            Ends(
                held.allocation,
                np.array([index for index, _ in ended], np.int64),
                np.array([running.code for _, running in ended], np.int64),
                np.array(started, np.int64),
                np.array(times, np.int64),
            )
        )
        if self._until_stalled(held, codes) is not None:
            self._stall(held)

    def _release(self, held: Allocation, index: int) -> Running:
        """A running task is over, and its slot is free."""
        running = held.running.pop(index)
        lease = self.held.leases[held.lease]
        lease.free.append(running.slot)
        self._changed[lease.lease] = None
        self._inputs.pop((held.allocation, index), None)
        return running

    def _cut_short(self, held: Allocation, index: int, cause: Cause, signal: int) -> None:
        """Ends a running task before its time."""
        running = self._release(held, index)
        self._tell(
            End(
                held.allocation,
                Ended(
                    index,
                    cause,
                    signal,
                    started_at_ms=running.began_wall_ms,
                    duration_ms=min(self.book.now_ms, running.ends_at_ms) - running.began_ms,
                ),
            )
        )

    def _tell(self, entry: Happened) -> None:
        self.held.tell(entry)
        self.happened.append(entry)

    # ------------------------------------------------------------ failures in a row

    def _until_stalled(self, held: Allocation, codes: Numbers) -> int | None:
        """After how many of these ends a job has failed too often in a row; None if never."""
        if held.never_stall:
            return None
        job = held.template.job
        slot_count = len(self.held.leases[held.lease].slots)
        most = max(FAILURES_MAX, FAILURES_PER_SLOT_MAX * slot_count)
        before = self._streaks.pop(job, 0)
        # The failures ahead of each success, and behind the last.
        bounds = np.concatenate(([-1 - before], np.flatnonzero(codes == 0), [len(codes)]))
        streaks = np.diff(bounds) - 1
        long = np.flatnonzero(streaks >= most)
        if len(long):
            return int(bounds[long[0]]) + 1 + most
        if streaks[-1]:
            self._streaks[job] = int(streaks[-1])
            if len(self._streaks) > STREAKS_COUNT_MAX:
                del self._streaks[next(iter(self._streaks))]
        return None

    def _stall(self, failed: Allocation) -> None:
        """Gives back what is left of the job; the one that failed says so even where that is nothing."""
        job = failed.template.job
        for held in list(self.held.allocations.values()):
            if held.template.job == job and held is not failed and not held.never_stall and held.waiting:
                self._drop(held.allocation, held.waiting, stalled=True)
        self._drop(failed.allocation, failed.waiting, stalled=True)
        self._stalled[job] = self.held.sequence

    # ------------------------------------------------------------ contact

    @property
    def _in_contact(self) -> bool:
        """Whether the leader has been heard of so lately that it does not call this node lost."""
        fence_ms = self.talk.fence_ms
        return fence_ms is not None and self.book.now_ms < fence_ms

    def _mind_fence(self) -> None:
        """What may not run twice ends, and is given back, when another attempt may begin elsewhere."""
        said, self._ran_out = self._ran_out, not self._in_contact
        if not self._ran_out or said:
            return
        for held in list(self.held.allocations.values()):
            if held.template.spec.on_node_loss == OnNodeLoss.RERUN_FENCED:
                for index in list(held.running):
                    self._cut_short(held, index, Cause.NODE_LOST, SIGKILL)
                self._drop(held.allocation, held.waiting)
                self._close_if_over(held)

    # ------------------------------------------------------------ standard input

    def _input(self, message: Input) -> None:
        """It is taken, and read by nobody."""
        held = self.held.allocations.get(message.allocation)
        if held is None or message.index not in held.granted:
            return
        key = (message.allocation, message.index)
        size, end = self._inputs.get(key, (0, False))
        if message.offset <= size and not end:
            size = max(size, message.offset + len(message.data))
            end = message.end and message.offset + len(message.data) == size
            self._inputs[key] = size, end
        self.book.say(InputTaken(message.allocation, message.index, size, end))

    def _tell_inputs(self) -> None:
        """A new session does not know what the last one lost."""
        for held in self.held.allocations.values():
            if held.template.spec.stdin:
                for index in held.running:
                    size, end = self._inputs.get((held.allocation, index), (0, False))
                    self.book.say(InputTaken(held.allocation, index, size, end, again=True))

    # ------------------------------------------------------------ the end

    def _shut_down(self) -> None:
        """What has not started is given back, and what runs is stopped, to run elsewhere."""
        if self._leaving:
            return
        self._leaving = True
        self.talk.leave()
        self._drop_all()
        for held in list(self.held.allocations.values()):
            for index in list(held.running):
                self._cut_short(held, index, Cause.PREEMPTED, SIGTERM)
            self._close_if_over(held)
        for lease in self.held.leases.values():
            lease.target = 0
            self._changed[lease.lease] = None

    def _leave(self) -> None:
        """Says goodbye once everything is told, or nobody listens."""
        if not self._leaving or self._left:
            return
        if self._idle_since_ms is None:
            self._idle_since_ms = self.book.now_ms
        if self.talk.settled or self.book.now_ms >= self._idle_since_ms + GOODBYE_MS_MAX:
            self._left = True
            self.talk.say_goodbye("the agent was asked to end")
            self.book.command(Leave())

    def _wake_at_ms(self) -> int | None:
        times = [self.talk.next_ms()]
        if self._ends:
            times.append(self._ends[0][0])
        if self._in_contact and any(
            held.template.spec.on_node_loss == OnNodeLoss.RERUN_FENCED
            for held in self.held.allocations.values()
        ):
            times.append(self.talk.fence_ms)
        if self._idle_since_ms is not None and not self._left:
            times.append(self._idle_since_ms + GOODBYE_MS_MAX)
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

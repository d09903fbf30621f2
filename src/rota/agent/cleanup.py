"""Ends what a dead supervisor left running.

Called by the link when it sees the supervisor die, and by a new supervisor before it says anything:
afterwards no process of any task in the journal lives.
"""

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rota.agent import cgroups, journal, tree
from rota.agent.facts import boot_id
from rota.core.node.entries import Start
from rota.core.node.held import Held

WAIT_S_MAX = 30.0
PIDS_COUNT_MAX = 10
_PAUSE_S = 0.01


@dataclass(slots=True)
class Killed:
    """How many processes were killed, and those that had not ended after WAIT_S_MAX."""

    count: int = 0
    left: frozenset[int] = frozenset()


def kill_journaled_trees(home: Path, *, holds_journal: bool = False) -> Killed:
    """Kills every process of every attempt that the journal says runs, or may run.

    By their cgroups where there are any, with the spawners that are in them. Else by pid and start
    time, so that another process that has the pid by now is left alone, with all below it; and by
    ROTA_NODE_ID, ROTA_JOB_ID, ROTA_TASK_INDEX and ROTA_ATTEMPT in the environment, for those whose START
    was not written any more or whose parents are gone. With any of them goes its whole session. Of a
    journal of another boot nothing can run any more, and nothing is killed. Returns when all are gone, or
    after WAIT_S_MAX; and, unless the caller `holds_journal`, as soon as a new supervisor does, which does
    the same itself.
    """
    killed: set[int] = set()
    left: set[int] = set()
    if not holds_journal and journal.in_use(home):
        return Killed()
    search = _Search(home)
    group = cgroups.recorded(home)
    deadline_s = time.monotonic() + WAIT_S_MAX
    while time.monotonic() < deadline_s:
        if not holds_journal and journal.in_use(home):
            # The group is the new one's.
            return Killed(len(killed))
        inside = _kill_group(group) if group is not None else set()
        found = search.find()
        for pid in found:
            tree.send(pid, signal.SIGKILL)
        killed |= found
        left = found | inside
        if not left:
            break
        time.sleep(_PAUSE_S)
    if group is not None:
        cgroups.remove(group)
    return Killed(len(killed), frozenset(left))


def pids_text(pids: Iterable[int]) -> str:
    """Some of them, for people."""
    numbers = sorted(pids)
    more = f" and {len(numbers) - PIDS_COUNT_MAX} more" if len(numbers) > PIDS_COUNT_MAX else ""
    return ", ".join(map(str, numbers[:PIDS_COUNT_MAX])) + more


def _kill_group(group: Path) -> set[int]:
    """What was in the spawners' cgroups."""
    if not group.is_dir() or cgroups.empty(group):
        return set()
    inside: set[int] = set()
    for rooms in group.iterdir():
        if rooms.is_dir() and not cgroups.empty(rooms):
            inside.update(cgroups.pids(rooms))
            cgroups.kill(rooms)
    return inside


class _Search:
    """Looks for the processes of a journal's tasks."""

    def __init__(self, home: Path) -> None:
        held = Held()
        for entry in journal.read(home):
            held.apply(entry)
        # Where the main processes were, and what stands in the environments.
        self._starts: list[Start] = []
        self._marks: set[tuple[bytes, bytes, bytes, bytes]] = set()
        # Sessions that had been theirs when it was last looked.
        self._sessions: set[int] = set()
        if held.boot_id != boot_id():
            # Its pids, and even their start times, may be those of others in this boot.
            return
        # Its UUID: nodes of two clusters may have one name, and run jobs of one number, on one machine.
        node = held.session.node_id.encode()
        for allocation in held.allocations.values():
            self._starts += allocation.live.values()
            for index in (*allocation.live, *allocation.intended):
                self._marks.add(
                    (node, b"%d" % allocation.job, b"%d" % index, b"%d" % allocation.first_attempt)
                )

    def find(self) -> set[int]:
        """Those that live now."""
        if not self._marks:
            return set()
        # Itself it cannot be: an agent may run as another agent's task.
        table = {one.pid: one for one in tree.processes() if one.pid != os.getpid()}
        roots = {
            start.pid
            for start in self._starts
            if start.pid in table and table[start.pid].start_ticks == start.start_ticks
        }
        roots |= {one.pid for one in table.values() if _mark(one.pid) in self._marks}
        # A session has its leader's pid, which is not given away while any member lives. One without a member
        # that is known may be a later process's that got the pid.
        sessions = {table[pid].session for pid in roots} & {start.pid for start in self._starts}
        sessions |= self._sessions
        roots |= {one.pid for one in table.values() if one.session in sessions}
        roots |= {one.pid for one in tree.below(roots, table.values())}
        found = {pid for pid in roots if not table[pid].zombie}
        self._sessions = {table[pid].session for pid in found} & sessions
        return found


def _mark(pid: int) -> tuple[bytes, bytes, bytes, bytes] | None:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    values = dict(pair.partition(b"=")[::2] for pair in environment.split(b"\0"))
    try:
        return (
            values[b"ROTA_NODE_ID"],
            values[b"ROTA_JOB_ID"],
            values[b"ROTA_TASK_INDEX"],
            values[b"ROTA_ATTEMPT"],
        )
    except KeyError:
        return None

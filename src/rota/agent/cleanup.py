"""Ends what a dead supervisor left running.

Called by the link when it sees the supervisor die, and by a new supervisor before it says anything:
afterwards no process of any task in the journal lives.
"""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from rota.agent import cgroups, journal, tree
from rota.core.node.entries import Start
from rota.core.node.held import Held

WAIT_S_MAX = 30.0
_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What tells a task's processes: where its main process was, and what stands in its environment."""

    starts: tuple[Start, ...]
    marks: frozenset[tuple[bytes, bytes, bytes, bytes]]


def kill_journaled_trees(home: Path, *, holds_journal: bool = False) -> int:
    """Kills every process of every attempt that the journal says runs, or may run; how many there were.

    By the slots' cgroups where there are any. Else by pid and start time, so that another process
    that has the pid by now is left alone, with all below and in its session; and by ROTA_NODE_ID,
    ROTA_JOB_ID, ROTA_TASK_INDEX and ROTA_ATTEMPT in the environment, for those whose START was not
    written any more or whose parents are gone. Returns when all are gone, or after WAIT_S_MAX; and,
    unless the caller `holds_journal`, as soon as a new supervisor does, which does the same itself.
    """
    if not holds_journal and journal.in_use(home):
        return 0
    wanted = _wanted(home)
    group = cgroups.recorded(home)
    killed: set[int] = set()
    deadline_s = time.monotonic() + WAIT_S_MAX
    while time.monotonic() < deadline_s:
        if not holds_journal and journal.in_use(home):
            return len(killed)
        busy = _kill_group(group) if group is not None else False
        found = _find(wanted)
        for pid in found:
            tree.send(pid, signal.SIGKILL)
        killed |= found
        if not found and not busy:
            break
        time.sleep(_PAUSE_S)
    if group is not None:
        cgroups.remove(group)
    return len(killed)


def _kill_group(group: Path) -> bool:
    """Whether anything was in a slot's cgroup."""
    if not group.is_dir() or cgroups.empty(group):
        return False
    for slot in group.iterdir():
        if slot.is_dir() and not cgroups.empty(slot):
            cgroups.kill(slot)
    return True


def _wanted(home: Path) -> _Wanted:
    held = Held()
    for entry in journal.read(home):
        held.apply(entry)
    starts: list[Start] = []
    marks: set[tuple[bytes, bytes, bytes, bytes]] = set()
    # Its UUID: nodes of two clusters may have one name, and run jobs of one number, on one machine.
    node = held.session.node_id.encode()
    for allocation in held.allocations.values():
        starts += allocation.live.values()
        for index in (*allocation.live, *allocation.intended):
            marks.add((node, b"%d" % allocation.job, b"%d" % index, b"%d" % allocation.first_attempt))
    return _Wanted(tuple(starts), frozenset(marks))


def _find(wanted: _Wanted) -> set[int]:
    if not wanted.marks:
        return set()
    # Itself it cannot be: an agent may run as another agent's task.
    table = {one.pid: one for one in tree.processes() if not one.zombie and one.pid != os.getpid()}
    roots = {
        start.pid
        for start in wanted.starts
        if start.pid in table and table[start.pid].start_ticks == start.start_ticks
    }
    sessions = roots | {start.pid for start in wanted.starts if start.pid not in table}
    roots |= {one.pid for one in table.values() if one.session in sessions or _mark(one.pid) in wanted.marks}
    return roots | {one.pid for one in tree.below(roots, table.values())}


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

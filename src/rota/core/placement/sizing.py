"""How much work a lease is given at once (design: idea 3).

Enough that slots never wait for the leader, so little that work can still go where room appears.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """What is known of a job's tasks. Durations in milliseconds."""

    successes: int
    mean_ms: float
    # Two attempts at a task must not be: `rerun_fenced`, `hold`.
    once: bool
    pending: int
    # Slots that work on the job or could, everywhere.
    slots_all: int


def backlog_wanted(pace: Pace, slots: int, ahead_ms: int, long_ms: int) -> int:
    """Tasks that a lease of so many slots should hold, the running ones included.

    Until twice as many successes as slots are known, one a slot; so too for tasks that are long or
    must not be started twice. Else `ahead_ms` worth of work, at least one a slot, at most half of
    the lease's share of what is pending.
    """
    if pace.successes < 2 * pace.slots_all or pace.once or pace.mean_ms > long_ms:
        return slots
    ahead = int(slots * ahead_ms / max(pace.mean_ms, 0.5))
    share = pace.pending * slots // max(2 * pace.slots_all, 1)
    return max(slots, min(ahead, share))


def recall_count(waiting: int, slots: int, mean_ms: float, backlog_ms_max: int) -> int:
    """How much of a lease's waiting work is asked back for an idle slot elsewhere: half, or none."""
    if waiting <= 0 or waiting * mean_ms / max(slots, 1) <= backlog_ms_max:
        return 0
    return (waiting + 1) // 2

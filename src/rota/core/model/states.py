"""States, and the moves between them.

The numbers are those of the contract (`proto/rota/v1`); a test compares them.
"""

from enum import IntEnum


class JobKind(IntEnum):
    BATCH = 1
    SERVICE = 2


class OnNodeLoss(IntEnum):
    RERUN = 1
    RERUN_FENCED = 2
    HOLD = 3
    CANCEL = 4


class DependencyWhen(IntEnum):
    SUCCEEDED = 1
    FINISHED = 2
    FAILED = 3


class JobState(IntEnum):
    PENDING = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5


class TaskState(IntEnum):
    PENDING = 1
    ALLOCATED = 2
    RUNNING = 3
    SUCCEEDED = 4
    FAILED = 5
    CANCELLED = 6


class PendingReason(IntEnum):
    QUEUED = 1
    BACKOFF = 2
    DEPENDENCY = 3
    HELD = 4
    NO_NODE = 5
    NODES_UNAVAILABLE = 6
    TOO_LARGE = 7
    MAX_RUNNING = 8
    QUOTA = 9
    NO_ROOM = 10


class Cause(IntEnum):
    """Why an attempt ended; never a text to parse."""

    EXIT = 1
    SIGNAL = 2
    OOM = 3
    TIME_LIMIT = 4
    DEADLINE = 5
    PREEMPTED = 6
    NODE_LOST = 7
    NODE_REBOOT = 8
    AGENT_ERROR = 9
    START_FAILED = 10
    DEPENDENCY = 11
    STOPPED = 12
    POISON = 13


class NodeState(IntEnum):
    READY = 1
    SUSPECT = 2
    DISCONNECTED = 3
    LOST = 4
    GONE = 5


class StopReason(IntEnum):
    CANCEL = 1
    PREEMPT = 2
    DEADLINE = 3
    SUPERSEDED = 4


class EventKind(IntEnum):
    JOB_SUBMITTED = 1
    JOB_STARTED = 2
    JOB_ENDED = 3
    JOB_HELD = 4
    JOB_RELEASED = 5
    JOB_CANCEL_REQUESTED = 6
    JOB_RETRIED = 7
    JOB_REMOVED = 8
    JOB_STALLED = 9
    ATTEMPT_ENDED = 20
    TASK_HELD = 21
    TASK_CANCELLED = 22
    NODE_REGISTERED = 40
    NODE_READY = 41
    NODE_SUSPECT = 42
    NODE_DISCONNECTED = 43
    NODE_LOST = 44
    NODE_GONE = 45
    NODE_CHANGED = 46
    NODE_REFUSED = 47
    LEASE_OPENED = 60
    LEASE_CLOSED = 61
    QUEUE_CHANGED = 70
    TOKEN_CHANGED = 71
    LEADER_CHANGED = 80
    ALARM = 90


class TokenKind(IntEnum):
    NODE = 1
    CONTROLLER = 2
    USER = 3


JOB_ENDS = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
TASK_ENDS = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})

# Ends that are the node's fault or the cluster's wish: the task runs again without cost to its retries.
NOT_THE_TASKS_FAULT = frozenset({Cause.PREEMPTED, Cause.NODE_LOST, Cause.NODE_REBOOT, Cause.AGENT_ERROR})

# Where a state may go in one step; the ends of a job and a task are left by `retry` alone.
JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.RUNNING, *JOB_ENDS}),
    JobState.RUNNING: frozenset({JobState.PENDING, *JOB_ENDS}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset({JobState.PENDING}),
    JobState.CANCELLED: frozenset({JobState.PENDING}),
}
TASK_MOVES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.PENDING: frozenset({TaskState.ALLOCATED, TaskState.CANCELLED}),
    TaskState.ALLOCATED: frozenset({TaskState.RUNNING, TaskState.PENDING, *TASK_ENDS}),
    TaskState.RUNNING: frozenset({TaskState.PENDING, *TASK_ENDS}),
    TaskState.SUCCEEDED: frozenset(),
    TaskState.FAILED: frozenset({TaskState.PENDING}),
    TaskState.CANCELLED: frozenset({TaskState.PENDING}),
}
NODE_MOVES: dict[NodeState, frozenset[NodeState]] = {
    NodeState.READY: frozenset({NodeState.SUSPECT, NodeState.GONE}),
    NodeState.SUSPECT: frozenset({NodeState.READY, NodeState.DISCONNECTED, NodeState.GONE}),
    NodeState.DISCONNECTED: frozenset({NodeState.READY, NodeState.LOST, NodeState.GONE}),
    NodeState.LOST: frozenset({NodeState.READY, NodeState.GONE}),
    NodeState.GONE: frozenset(),
}

"""Who may do what: one function, and what is not named here is denied.

| role | may |
|---|---|
| `viewer` | see everything |
| `submitter` | also submit, and change the own jobs |
| `operator` | also change all jobs, nodes and queues |
| `admin` | also make and revoke tokens |
"""

from dataclasses import dataclass
from enum import Enum

import grpc

from rota.controller.api.errors import error

ADMIN = "admin"


class Action(Enum):
    """What a request does, for the question whether it may."""

    SEE = "see"
    SUBMIT = "submit jobs"
    CHANGE_JOB = "change this job"
    CHANGE_NODE = "change nodes"
    CHANGE_QUEUE = "change queues"
    MANAGE_TOKENS = "manage tokens"


_VIEWER = {Action.SEE}
_SUBMITTER = {*_VIEWER, Action.SUBMIT, Action.CHANGE_JOB}
_OPERATOR = {*_SUBMITTER, Action.CHANGE_NODE, Action.CHANGE_QUEUE}
ROLES: dict[str, frozenset[Action]] = {
    "viewer": frozenset(_VIEWER),
    "submitter": frozenset(_SUBMITTER),
    "operator": frozenset(_OPERATOR),
    ADMIN: frozenset({*_OPERATOR, Action.MANAGE_TOKENS}),
}

# By service and method; an RPC that is missing is denied to all.
ACTIONS: dict[str, Action] = {
    "JobService.SubmitJobs": Action.SUBMIT,
    "JobService.ListJobs": Action.SEE,
    "JobService.GetJob": Action.SEE,
    "JobService.WatchJob": Action.SEE,
    "JobService.ListTasks": Action.SEE,
    "JobService.GetTask": Action.SEE,
    "JobService.ListFailures": Action.SEE,
    "JobService.CancelJob": Action.CHANGE_JOB,
    "JobService.HoldJob": Action.CHANGE_JOB,
    "JobService.ReleaseJob": Action.CHANGE_JOB,
    "JobService.RetryJob": Action.CHANGE_JOB,
    "JobService.ReadOutput": Action.SEE,
    "JobService.ReadOutputs": Action.SEE,
    "JobService.WriteInput": Action.CHANGE_JOB,
    "NodeService.ListNodes": Action.SEE,
    "NodeService.GetNode": Action.SEE,
    "NodeService.CordonNode": Action.CHANGE_NODE,
    "NodeService.DrainNode": Action.CHANGE_NODE,
    "NodeService.ResumeNode": Action.CHANGE_NODE,
    "NodeService.LabelNode": Action.CHANGE_NODE,
    "NodeService.RemoveNode": Action.CHANGE_NODE,
    "QueueService.CreateQueue": Action.CHANGE_QUEUE,
    "QueueService.ListQueues": Action.SEE,
    "QueueService.DeleteQueue": Action.CHANGE_QUEUE,
    "TokenService.CreateToken": Action.MANAGE_TOKENS,
    "TokenService.ListTokens": Action.MANAGE_TOKENS,
    "TokenService.RevokeToken": Action.MANAGE_TOKENS,
    "EventService.ListEvents": Action.SEE,
    "ClusterService.GetCluster": Action.SEE,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `account`: the account on the nodes that the caller's tasks run as. `address`: where from."""

    name: str
    role: str
    account: str
    address: str = ""


def authorize(caller: Caller, action: Action | None, owner: str | None = None) -> None:
    """Raises ApiError unless the caller may do this (to something of `owner`, where it has one)."""
    if action not in ROLES.get(caller.role, frozenset()):
        what = action.value if action is not None else "do this"
        raise error(
            grpc.StatusCode.PERMISSION_DENIED, f"'{caller.name}' may not {what} as {caller.role or 'nobody'}"
        )
    if action is Action.CHANGE_JOB and caller.role == "submitter" and owner not in (None, caller.name):
        raise error(
            grpc.StatusCode.PERMISSION_DENIED,
            f"'{caller.name}' may not change a job of '{owner}' as submitter",
        )

"""A node falls silent under a running task: the four `on_node_loss`, with real processes and short limits."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from rota.client.client import Client
from rota.client.context import load_context
from rota.client.messages import NodeState, TaskState
from tests.e2e.conftest import Cluster
from tests.support.files import Gate, until_there, words
from tests.support.processes import alive, until_gone

LOST_AFTER = "6s"
pytestmark = pytest.mark.ci


@pytest.fixture
def two_nodes(new_home: Cluster) -> Cluster:
    new_home.ok("up", "--detach", "--nodes", "2", "--cpu", "1", "--lost-after", LOST_AFTER)
    return new_home


def start(cluster: Cluster, gate: Gate, policy: str, *options: str) -> str:
    """A task that says its attempt and pid, whether the first attempt lives, and waits at the gate."""
    script = (
        "if [ -e pid1 ] && kill -0 $(cat pid1) 2>/dev/null; then echo two-live >> said; fi; "
        "echo $$ > pid$ROTA_ATTEMPT.new; mv pid$ROTA_ATTEMPT.new pid$ROTA_ATTEMPT; "
        f"echo $ROTA_ATTEMPT >> said; {gate.wait}"
    )
    job = cluster.submit("--on-node-loss", policy, *options, "--", "sh", "-c", script)
    until_task(cluster, job, TaskState.TASK_STATE_RUNNING)
    until_there(cluster.place / "pid1")
    return job


def task(cluster: Cluster, job: str) -> dict[str, Any]:
    shown: dict[str, Any] = cluster.json("show", f"{job}/0")
    return shown


def pid_of(cluster: Cluster, attempt: int) -> int:
    return int((cluster.place / f"pid{attempt}").read_text())


def agent_of(cluster: Cluster, job: str) -> int:
    """The number of the agent that runs the task: the names are those of the nodes in their order."""
    names = [node["name"] for node in cluster.json("node", "ls")["nodes"]]
    name = task(cluster, job)["attempts"][-1]["node"]
    return names.index(name)


@contextmanager
def frozen(cluster: Cluster, *processes: str) -> Iterator[None]:
    """SIGSTOP, and SIGCONT in any case."""
    pids = [cluster.pid(process) for process in processes]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def agent_frozen(cluster: Cluster, job: str) -> Any:
    number = agent_of(cluster, job)
    return frozen(cluster, f"agent-{number}", f"link-{number}")


def until_task(cluster: Cluster, job: str, state: TaskState.ValueType) -> None:
    """Looks whenever the job has changed."""
    with Client(load_context(cluster.home)) as rota:
        assert any(rota.task(int(job), 0).state == state for _ in rota.watch(int(job)))


def until_lost(cluster: Cluster) -> None:
    """Looks at the nodes whenever something has happened."""
    with Client(load_context(cluster.home)) as rota:
        events = rota.events(follow=True)
        while NodeState.NODE_STATE_LOST not in [node.state for node in rota.nodes()]:
            next(events)


def until_second_attempt(cluster: Cluster) -> None:
    until_there(cluster.place / "pid2")


def test_rerun_goes_on_elsewhere_and_the_old_attempt_never_counts(two_nodes: Cluster, gate: Gate) -> None:
    job = start(two_nodes, gate, "rerun")
    with agent_frozen(two_nodes, job):
        until_second_attempt(two_nodes)
        assert alive(pid_of(two_nodes, 1))
    until_gone(pid_of(two_nodes, 1))
    gate.open()
    until_task(two_nodes, job, TaskState.TASK_STATE_SUCCEEDED)
    lost, rerun = task(two_nodes, job)["attempts"]
    assert (lost["cause"], rerun["cause"]) == ("CAUSE_NODE_LOST", "CAUSE_EXIT")
    assert 0 < int(lost["started_at_ms"]) < int(rerun["started_at_ms"])


def test_a_node_that_is_back_in_time_keeps_its_task(two_nodes: Cluster, gate: Gate) -> None:
    """No other node may run it, so no other attempt has started."""
    name = two_nodes.json("node", "ls")["nodes"][0]["name"]
    job = start(two_nodes, gate, "rerun", "--node", name)
    with agent_frozen(two_nodes, job):
        until_lost(two_nodes)
        until_task(two_nodes, job, TaskState.TASK_STATE_PENDING)
    until_task(two_nodes, job, TaskState.TASK_STATE_RUNNING)
    assert alive(pid_of(two_nodes, 1))
    gate.open()
    until_task(two_nodes, job, TaskState.TASK_STATE_SUCCEEDED)
    assert words(two_nodes.place / "said") == ["1"]


@pytest.mark.parametrize("process", ["link", "agent"])
def test_fenced_is_never_live_twice(process: str, two_nodes: Cluster, gate: Gate) -> None:
    """The link is frozen, and the supervisor must end the task by itself; or the other way round."""
    job = start(two_nodes, gate, "rerun_fenced")
    with frozen(two_nodes, f"{process}-{agent_of(two_nodes, job)}"):
        until_second_attempt(two_nodes)
        assert not alive(pid_of(two_nodes, 1))
    gate.open()
    until_task(two_nodes, job, TaskState.TASK_STATE_SUCCEEDED)
    assert words(two_nodes.place / "said") == ["1", "2"]


def test_hold_waits_for_the_node(two_nodes: Cluster, gate: Gate) -> None:
    job = start(two_nodes, gate, "hold")
    with agent_frozen(two_nodes, job):
        until_lost(two_nodes)
        until_task(two_nodes, job, TaskState.TASK_STATE_PENDING)
        assert task(two_nodes, job)["pending_reason"] == "PENDING_REASON_HELD"
    until_task(two_nodes, job, TaskState.TASK_STATE_RUNNING)
    gate.open()
    until_task(two_nodes, job, TaskState.TASK_STATE_SUCCEEDED)
    assert words(two_nodes.place / "said") == ["1"]


def test_a_held_task_is_released_by_an_operator(two_nodes: Cluster, gate: Gate) -> None:
    job = start(two_nodes, gate, "hold")
    with agent_frozen(two_nodes, job):
        until_lost(two_nodes)
        assert not (two_nodes.place / "pid2").exists()
        two_nodes.ok("release", job)
        until_second_attempt(two_nodes)
    until_gone(pid_of(two_nodes, 1))
    gate.open()
    until_task(two_nodes, job, TaskState.TASK_STATE_SUCCEEDED)
    ends = [(attempt["cause"], attempt["message"]) for attempt in task(two_nodes, job)["attempts"]]
    assert ends == [("CAUSE_NODE_LOST", "given up by an operator"), ("CAUSE_EXIT", "")]


def test_cancel_ends_with_the_node(two_nodes: Cluster, gate: Gate) -> None:
    job = start(two_nodes, gate, "cancel")
    with agent_frozen(two_nodes, job):
        until_task(two_nodes, job, TaskState.TASK_STATE_CANCELLED)
        assert task(two_nodes, job)["attempts"][0]["cause"] == "CAUSE_NODE_LOST"
    until_gone(pid_of(two_nodes, 1))

"""A node falls silent under a running task: the four `on_node_loss`, with real processes and short limits."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Cluster
from tests.e2e.waiting import gone, wait_until, words

LOST_AFTER = "6s"
pytestmark = pytest.mark.ci


@pytest.fixture
def two_nodes(new_home: Cluster) -> Cluster:
    new_home.ok("up", "--detach", "--nodes", "2", "--cpu", "1", "--lost-after", LOST_AFTER)
    return new_home


def start(cluster: Cluster, policy: str, *options: str) -> str:
    """A task that says its attempt and pid, whether the first attempt lives, and waits for the file `go`."""
    script = (
        "if [ -e pid1 ] && kill -0 $(cat pid1) 2>/dev/null; then echo two-live >> said; fi; "
        "echo $$ > pid$ROTA_ATTEMPT.new; mv pid$ROTA_ATTEMPT.new pid$ROTA_ATTEMPT; "
        "echo $ROTA_ATTEMPT >> said; while [ ! -e go ]; do sleep 0.05; done"
    )
    job = cluster.submit("--on-node-loss", policy, *options, "--", "sh", "-c", script)
    wait_until(lambda: task(cluster, job)["state"] == "TASK_STATE_RUNNING", "the task to run")
    wait_until(lambda: pid_of(cluster, 1), "the task's first word")
    return job


def task(cluster: Cluster, job: str) -> dict[str, Any]:
    shown: dict[str, Any] = cluster.json("show", f"{job}/0")
    return shown


def pid_of(cluster: Cluster, attempt: int) -> int:
    said = words(cluster.place / f"pid{attempt}")
    return int(said[0]) if said else 0


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
            os.kill(pid, signal.SIGCONT)


def agent_frozen(cluster: Cluster, job: str) -> Any:
    number = agent_of(cluster, job)
    return frozen(cluster, f"agent-{number}", f"link-{number}")


def until(cluster: Cluster, job: str, state: str) -> None:
    wait_until(lambda: task(cluster, job)["state"] == f"TASK_STATE_{state}", f"task {job}/0 to be {state}")


def until_lost(cluster: Cluster) -> None:
    def lost() -> bool:
        return any(node["state"] == "NODE_STATE_LOST" for node in cluster.json("node", "ls")["nodes"])

    wait_until(lost, "a node to be lost")


def go(place: Path) -> None:
    (place / "go").touch()


def test_rerun_goes_on_elsewhere_and_the_old_attempt_never_counts(two_nodes: Cluster) -> None:
    job = start(two_nodes, "rerun")
    with agent_frozen(two_nodes, job):
        wait_until(lambda: pid_of(two_nodes, 2), "a second attempt")
        assert not gone(pid_of(two_nodes, 1))
    wait_until(lambda: gone(pid_of(two_nodes, 1)), "the first attempt to be killed")
    go(two_nodes.place)
    until(two_nodes, job, "SUCCEEDED")
    causes = [attempt["cause"] for attempt in task(two_nodes, job)["attempts"]]
    assert causes == ["CAUSE_NODE_LOST", "CAUSE_EXIT"]


def test_a_node_that_is_back_in_time_keeps_its_task(two_nodes: Cluster) -> None:
    """No other node may run it, so no other attempt has started."""
    name = two_nodes.json("node", "ls")["nodes"][0]["name"]
    job = start(two_nodes, "rerun", "--node", name)
    with agent_frozen(two_nodes, job):
        until_lost(two_nodes)
        until(two_nodes, job, "PENDING")
    until(two_nodes, job, "RUNNING")
    assert not gone(pid_of(two_nodes, 1))
    go(two_nodes.place)
    until(two_nodes, job, "SUCCEEDED")
    assert words(two_nodes.place / "said") == ["1"]


def test_fenced_is_never_live_twice(two_nodes: Cluster) -> None:
    """The link is frozen and the supervisor is not: it must end the task by itself."""
    job = start(two_nodes, "rerun_fenced")
    with frozen(two_nodes, f"link-{agent_of(two_nodes, job)}"):
        wait_until(lambda: pid_of(two_nodes, 2), "a second attempt")
        assert gone(pid_of(two_nodes, 1))
    go(two_nodes.place)
    until(two_nodes, job, "SUCCEEDED")
    assert words(two_nodes.place / "said") == ["1", "2"]


def test_hold_waits_for_the_node(two_nodes: Cluster) -> None:
    job = start(two_nodes, "hold")
    with agent_frozen(two_nodes, job):
        until_lost(two_nodes)
        until(two_nodes, job, "PENDING")
        assert task(two_nodes, job)["pending_reason"] == "PENDING_REASON_HELD"
    until(two_nodes, job, "RUNNING")
    go(two_nodes.place)
    until(two_nodes, job, "SUCCEEDED")
    assert words(two_nodes.place / "said") == ["1"]


def test_a_held_task_is_released_by_an_operator(two_nodes: Cluster) -> None:
    job = start(two_nodes, "hold")
    with agent_frozen(two_nodes, job):
        until_lost(two_nodes)
        two_nodes.ok("release", job)
        wait_until(lambda: pid_of(two_nodes, 2), "a second attempt")
    wait_until(lambda: gone(pid_of(two_nodes, 1)), "the first attempt to be killed")
    go(two_nodes.place)
    until(two_nodes, job, "SUCCEEDED")


def test_cancel_ends_with_the_node(two_nodes: Cluster) -> None:
    job = start(two_nodes, "cancel")
    with agent_frozen(two_nodes, job):
        until(two_nodes, job, "CANCELLED")
        assert task(two_nodes, job)["attempts"][0]["cause"] == "CAUSE_NODE_LOST"
    wait_until(lambda: gone(pid_of(two_nodes, 1)), "the attempt to be killed when the node is back")

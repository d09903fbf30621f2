"""`rota sim edges`: simulated nodes of a real controller, over the real protocol."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rota.client.client import Client
from rota.client.context import load_context
from tests.e2e.conftest import Cluster, make, stop

END_S_MAX = 20


@pytest.fixture(scope="module")
def controller() -> Iterator[Cluster]:
    """A cluster without a node of its own."""
    made = make()
    try:
        made.ok("up", "--detach", "--nodes", "0")
        yield made
    finally:
        stop(made)
        made.home.parent.rmdir()


@contextmanager
def edges(cluster: Cluster, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The command, ended as Ctrl-C ends it."""
    process = cluster.begin("sim", "edges", *options)
    try:
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(END_S_MAX) == 0, process.communicate()
    finally:
        process.kill()
        process.communicate()


def until_ready(cluster: Cluster, count: int) -> list[dict[str, Any]]:
    """The nodes, once so many can take work; looks whenever something has happened."""
    with Client(load_context(cluster.home)) as rota:
        events = rota.events(follow=True)
        while True:
            nodes: list[dict[str, Any]] = cluster.json("node", "ls")["nodes"]
            if sum(node["state"] == "NODE_STATE_READY" for node in nodes) == count:
                return nodes
            next(events)


def test_they_join_work_and_come_back_as_the_same_nodes(controller: Cluster) -> None:
    options = ("--count", "5", "--name", "edge-{}", "--cpu", "2", "--resource", "power=10")
    with edges(controller, *options, "--fail", "1%", "--exit-code", "3", "--seed", "1"):
        nodes = until_ready(controller, 5)
        assert [node["name"] for node in nodes] == [f"edge-{number}" for number in range(5)]
        job = controller.submit("--array", "0-19999", "--", "true")
        assert controller("wait", job).returncode == 1
        tasks = controller.json("show", job)["tasks"]
        assert int(tasks["succeeded"]) + int(tasks["failed"]) == 20_000
        assert 100 < int(tasks["failed"]) < 300
        failed = controller.json("show", job, "--failed")
        index = re.search(r'"indices": "(\d+)', str(failed).replace("'", '"'))
        assert index is not None, failed
        (attempt,) = controller.json("show", f"{job}/{index[1]}")["attempts"]
        assert (attempt["cause"], attempt["code"]) == ("CAUSE_EXIT", 3)
    # They said goodbye, and are none the less the same when they come again.
    assert {node["state"] for node in controller.json("node", "ls")["nodes"]} == {"NODE_STATE_DISCONNECTED"}
    with edges(controller, *options):
        again = until_ready(controller, 5)
        assert [node["id"] for node in again] == [node["id"] for node in nodes]
        # What its command says that it takes; there is no output, and nobody waits for any.
        done = controller("run", "--", "sleep", "0.3")
        assert (done.returncode, done.stdout) == (0, "")


def test_they_come_back_to_a_controller_that_was_started_again(controller: Cluster) -> None:
    """And what they run goes on: no task is begun twice."""
    with edges(controller, "--count", "8", "--name", "back-{}", "--cpu", "1"):
        until_ready(controller, 8)
        job = controller.submit("--array", "0-7", "--", "sleep", "4")
        with Client(load_context(controller.home)) as rota:
            next(each for each in rota.watch(int(job)) if each.tasks.running == 8)
        controller.ok("down")
        controller.ok("up", "--detach", "--nodes", "0")
        until_ready(controller, 8)
        assert controller("wait", job).returncode == 0
        attempts = [controller.json("show", f"{job}/{index}")["attempts"] for index in range(8)]
        assert [len(of_task) for of_task in attempts] == [1] * 8


def test_a_second_process_of_the_same_nodes_says_why_it_waits_and_ends_at_once(controller: Cluster) -> None:
    options = ("--count", "2", "--name", "twin-{}")
    with edges(controller, *options):
        nodes = until_ready(controller, 2)
        second = controller.begin("sim", "edges", *options)
        assert second.stderr is not None
        assert b" to wait" in second.stderr.readline()
        second.send_signal(signal.SIGTERM)
        _, err = second.communicate(timeout=END_S_MAX)
        assert second.returncode == 0
        assert b"0 of 2 nodes connected" in err.splitlines()[-1]
        assert not any(b"are connected" in line for line in err.splitlines())
        assert [node["id"] for node in until_ready(controller, 2)] == [node["id"] for node in nodes]


def test_the_token_made_for_them_is_ended(controller: Cluster) -> None:
    with edges(controller, "--count", "2", "--name", "short-{}"):
        until_ready(controller, 2)
        tokens = controller.json("token", "ls", "--all")["tokens"]
        assert tokens
        assert all(token["revoked"] for token in tokens), tokens


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--count", "2", "--name", "edge"), 2, "'edge' is one name for 2 nodes; try edge-{}"),
        (("--count", "1", "--name", "no_"), 2, "--name: "),
        (("--count", "1", "--cpu", "many", "--label", "x"), 2, "--cpu: "),
        (("--count", "1", "--cpu", "0"), 2, "--cpu: '0' is no core"),
        (("--count", "1", "--resource", "cpu=3"), 2, "'cpu' has an option of its own: --cpu 3"),
        (("--count", "1", "--resource", "power=1", "--resource", "power=2"), 2, "'power' is given twice"),
        (("--count", "1", "--resource", "power="), 2, "--resource power=: '' is not a number"),
        (("--count", "1", "--task-time", "5s..1s"), 2, "upside down; try 1s..5s"),
        (("--count", "1", "--fail", "2"), 2, "'2' is no share; try 1%"),
        (
            ("--count", "1", "--name", "no", "--token", "rota1_x", "--join", "127.0.0.1:1"),
            2,
            "this is no join token",
        ),
        (("--count", "1", "--name", "no", "--token", "rota1_x"), 2, "--token needs --join"),
        (("--count", "100000"), 4, "open files"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    options: tuple[str, ...], code: int, says: str, controller: Cluster
) -> None:
    done = controller("sim", "edges", *options)
    assert done.returncode == code, done
    assert says in done.stderr


def test_without_a_controller_that_is_said(new_home: Cluster) -> None:
    done = new_home("sim", "edges", "--count", "1")
    assert done.returncode == 5, done
    assert len(done.stderr.splitlines()) == 1

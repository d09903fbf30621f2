"""Nodes, queues, tokens, the cluster in numbers, and what the shell completes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Cluster

# ---------------------------------------------------------------- nodes, queues, tokens, the cluster


def test_nodes_are_cordoned_drained_resumed_and_labelled(cluster: Cluster) -> None:
    names = cluster.ok("node", "ls", "-o", "name").split()
    assert len(names) == 2
    assert cluster.ok("node", "cordon", names[0]) == f"node {names[0]} is cordoned\n"
    assert cluster.unchanged("node", "cordon", names[0]) == f"node {names[0]} is already cordoned"
    number = cluster.submit("--wait", "--array", "0-3", "--", "sh", "-c", "echo $ROTA_NODE_NAME")
    assert cluster.ok("logs", number) == "".join(f"[{index}] {names[1]}\n" for index in range(4))
    assert "cordoned" in cluster.ok("node", "ls")
    cluster.ok("node", "drain", names[0], "--deadline", "1m")
    draining = cluster.json("node", "show", names[0])
    assert draining["draining"] is True
    assert 0 < int(draining["drain_deadline_ms"]) <= 60_000
    assert "what runs is stopped in " in cluster.ok("node", "show", names[0])
    assert draining["address"].startswith("127.0.0.1:")
    cluster.ok("node", "drain", names[0])
    assert cluster.unchanged("node", "drain", names[0]) == f"node {names[0]} is already draining"
    done = cluster("node", "resume", *names)
    assert (done.returncode, done.stdout) == (0, f"node {names[0]} takes work again\n")
    assert done.stderr == f"rota: node {names[1]} is not cordoned: nothing to resume\n"
    assert "disk=ssd" in cluster.ok("node", "label", names[0], "disk=ssd")
    assert "disk=ssd" in cluster.ok("node", "show", names[0])
    assert "no labels" in cluster.ok("node", "label", names[0], "disk=-")


def test_a_connected_node_is_not_removed_by_mistake(cluster: Cluster) -> None:
    name = cluster.ok("node", "ls", "-o", "name").split()[0]
    done = cluster("node", "rm", name)
    assert done.returncode == 4
    assert "--force" in done.stderr


def test_queues(cluster: Cluster) -> None:
    cluster.ok("queue", "create", "video", "--weight", "3", "--quota", "cpu=2", "--quota", "memory=1GiB")
    again = cluster("queue", "create", "video")
    assert again.returncode == 4
    assert "rota queue update video" in again.stderr
    cluster.ok("queue", "update", "video", "--weight", "5", "--quota", "memory=-", "--priority-min", "-5")
    cluster.ok("queue", "update", "video", "--priority-max", "9")
    (video,) = [queue for queue in cluster.json("queue", "ls")["queues"] if queue["name"] == "video"]
    assert (video["weight"], video["quota"]["cpu"], video["quota"]["memory"]) == (5, "2000", "0")
    assert (video["priority_min"], video["priority_max"]) == (-5, 9)
    number = cluster.submit("--queue", "video", "--priority", "7", "--", "true")
    cluster.ok("wait", number)
    for command in (["submit", "--queue", "nobodys", "--", "true"], ["ls", "--queue", "nobodys"]):
        done = cluster(*command)
        says = "rota: --queue: there is no queue 'nobodys'; known are default, video\n"
        assert (done.returncode, done.stderr) == (2, says)
    cluster.ok("queue", "rm", "video")
    assert "video" not in cluster.ok("queue", "ls", "-o", "name").split()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["rm", "default"], 4, "queue 'default' is always there; to change it: rota queue update default"),
        (["create", "default"], 4, "queue 'default' exists; to change it: rota queue update default"),
        (
            ["create", "q", "--quota", "cpus=3"],
            2,
            "quota cpus: no node has such a resource; did you mean cpu?",
        ),
        (
            ["create", "q", "--quota", "power=3"],
            2,
            "quota power: no node has such a resource; known are cpu, ",
        ),
        (["create", "q", "--quota", "gpu=0"], 2, "--quota gpu=0 would be no limit: say gpu=-, or at least 1"),
    ],
)
def test_a_queue_that_cannot_be_is_refused(
    arguments: list[str], code: int, says: str, cluster: Cluster
) -> None:
    done = cluster("queue", *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done
    assert says in done.stderr
    assert cluster.ok("queue", "ls", "-o", "name").split() == ["default"]


def test_a_queue_with_work_is_not_removed(cluster: Cluster) -> None:
    cluster.ok("queue", "create", "busy", "--quota", "cpu=1")
    number = cluster.submit("--queue", "busy", "--array", "0-1", "--", "sleep", "60")
    done = cluster("queue", "rm", "busy")
    says = f"rota: queue 'busy' has a job that has not ended (job {number}); see: rota ls --queue busy\n"
    assert (done.returncode, done.stderr) == (4, says)
    cluster.ok("cancel", number)
    cluster("wait", number)
    cluster.ok("queue", "rm", "busy")


def test_tokens(cluster: Cluster) -> None:
    done = cluster("token", "create", "--ttl", "1h", "--uses", "2")
    assert done.stdout.startswith("rota1_")
    assert "rota agent --join 127.0.0.1:" in done.stderr
    assert cluster.ok("token", "create", "-o", "name").startswith("rota1_")
    made = cluster.json("token", "create")
    number = made["token"]["id"]
    assert number in cluster.ok("token", "ls", "-o", "name").split()
    # Those that this machine's nodes joined with are used up.
    usable, every = (cluster.ok("token", "ls", *more) for more in ((), ("--all",)))
    assert "used up" not in usable
    assert every.count("used up") == 2
    assert made["secret"] not in cluster.ok("token", "ls", "-o", "json")
    assert cluster.json("token", "revoke", number)["revoked"] is True
    assert number not in cluster.ok("token", "ls", "-o", "name").split()
    assert "revoked" in cluster.ok("token", "ls", "--all")


def test_the_cluster_in_numbers(cluster: Cluster) -> None:
    info = cluster.json("cluster", "info")
    assert (info["nodes"], info["nodes_ready"], info["principal"]) == (2, 2, "admin")
    assert "2 ready of 2" in cluster.ok("cluster", "info")


def test_bash_completes_what_the_cluster_has(cluster: Cluster) -> None:
    """As a user has it: the script is read, and the shell asks it."""
    open_, ended = cluster.submit("--name", "open", "--", "sleep", "60"), cluster.submit("--", "true")
    cluster.ok("wait", ended)
    nodes = cluster.ok("node", "ls", "-o", "name").split()
    ask = """
        eval "$(rota completion bash)"
        ask() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _rota_completion rota
            echo "${COMPREPLY[@]}"
        }
        ask rota show ""
        ask rota cancel ""
        ask rota node drain ""
        ask rota submit --node ""
        ask rota ls --queue d
        ask rota submit --after ""
    """
    path = f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", ask],
        env={**cluster.environment, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    shown, cancelled, drained, named, queues, waited = (line.split() for line in done.stdout.splitlines())
    assert {open_, ended} <= set(shown) & set(waited)
    assert open_ in cancelled
    assert ended not in cancelled
    assert drained == named == nodes
    assert queues == ["default"]
    cluster.ok("cancel", open_)

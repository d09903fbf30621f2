"""Every example runs, and does what it says."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rota.client.client import Client
from rota.client.context import load_context
from rota.client.messages import JobSpec, NodeState, Resources
from tests.e2e.conftest import CALL_S_MAX, Cluster, running

EXAMPLES = Path(__file__).parents[2] / "examples"

Check = Callable[[Cluster, list[str]], None]
CHECKS: dict[str, Check] = {}


def example(name: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return add


@example("array.yaml")
def _array(cluster: Cluster, ids: list[str]) -> None:
    assert cluster.ok("logs", ids[0]).splitlines() == [
        f"[{index}] {index} squared is {index * index}" for index in range(10)
    ]


@example("lines.yaml")
def _lines(cluster: Cluster, ids: list[str]) -> None:
    assert cluster.ok("logs", ids[0]).splitlines() == [
        "[0] HELLO",
        "[1] EVERY LINE IS A TASK",
        '[2] A LINE MAY HOLD "QUOTES" AND $SIGNS',
    ]


@example("retries.yaml")
def _retries(cluster: Cluster, ids: list[str]) -> None:
    attempts = cluster.json("show", f"{ids[0]}/0")["attempts"]
    assert [attempt["code"] for attempt in attempts] == [1, 0]


@example("after.yaml")
def _after(cluster: Cluster, ids: list[str]) -> None:
    assert cluster.ok("logs", ids[1]) == "10\n"
    assert not (cluster.place / "counts").exists()


@example("resources.yaml")
def _resources(cluster: Cluster, ids: list[str]) -> None:
    spec = cluster.json("show", ids[0])["spec"]["resources"]
    assert (spec["cpu"], spec["memory"]) == ("500", str(64 * 2**20))


@example("max_failures.yaml")
def _max_failures(cluster: Cluster, ids: list[str]) -> None:
    counts = cluster.json("show", ids[0])["tasks"]
    assert int(counts["failed"]) > 2
    assert int(counts["cancelled"]) == 1_000 - int(counts["failed"])


@example("gpu.yaml")
def _gpu(cluster: Cluster, ids: list[str]) -> None:
    assert cluster.ok("logs", ids[0]).startswith("GPU: ")
    assert cluster.ok("logs", ids[1]).splitlines() == [f"[{index}] half {index}" for index in range(4)]


@example("named.yaml")
def _named(cluster: Cluster, ids: list[str]) -> None:
    nodes = {f"heating with {node['name']}" for node in cluster.json("node", "ls")["nodes"]}
    assert {line.partition("] ")[2] for line in cluster.ok("logs", ids[0]).splitlines()} <= nodes
    refused = cluster("submit", "--resource", "power=101", "--", "true")
    assert (refused.returncode, "asks 101; the largest node has 100" in refused.stderr) == (2, True)


@example("script.yaml")
def _script_in_yaml(cluster: Cluster, ids: list[str]) -> None:
    assert cluster.ok("logs", ids[0]) == "got one\ngot two\n"


@example("node.yaml")
def _node(cluster: Cluster, ids: list[str]) -> None:
    assert [len(cluster.ok("logs", number).splitlines()) for number in ids] == [10, 3]
    assert {cluster.json("show", number)["nodes"][0]["node"] for number in ids} == {"scripts"}
    done = cluster("run", "--node", "scripts", "--", "true")
    assert (done.returncode, "and the agent on node scripts runs nothing else" in done.stderr) == (125, True)


@example("retention.yaml")
def _retention(cluster: Cluster, ids: list[str]) -> None:
    assert cluster.json("show", ids[0])["spec"]["retention"] == str(5 * 60 * 1000)


@example("env.yaml")
def _env(cluster: Cluster, ids: list[str]) -> None:
    assert cluster.ok("logs", ids[0]).splitlines() == [
        f"[{index}] hello from /tmp, task {index} of 2 in job {ids[0]}" for index in range(2)
    ]


@example("script.sh")
def _script(cluster: Cluster, ids: list[str]) -> None:
    assert cluster.ok("logs", ids[0]).splitlines() == [
        f"[{index}] task {index}: blue, 0 arguments: " for index in range(3)
    ]


@example("time_limit.yaml")
def _time_limit(cluster: Cluster, ids: list[str]) -> None:
    assert cluster.ok("logs", ids[0]) == "saving at the signal\n"


@example("on_node_loss.yaml")
def _on_node_loss(cluster: Cluster, ids: list[str]) -> None:
    found = [cluster.json("show", number)["spec"]["on_node_loss"] for number in ids]
    assert found == [f"ON_NODE_LOSS_{word}" for word in ("RERUN", "RERUN_FENCED", "HOLD", "CANCEL")]


@example("queue.yaml")
def _queue(cluster: Cluster, ids: list[str]) -> None:
    assert {cluster.json("show", number)["spec"]["queue"] for number in ids} == {"video"}


@example("labels.yaml")
def _labels(cluster: Cluster, ids: list[str]) -> None:
    found = cluster.ok("ls", "--label", "team=video", "--label", "stage=test", "-o", "name")
    assert found.split() == ids


@example("stdout.yaml")
def _stdout(cluster: Cluster, ids: list[str]) -> None:
    assert cluster.ok("logs", ids[1]) == "output of 0\noutput of 1\n"
    assert list(cluster.place.glob("own-output-*")) == [], "it leaves nothing behind"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """What the examples want: a queue, a resource, and GPUs, which are counted alone where there are none."""
    with running("--gpu", "1", "--resource", "power=100") as made:
        made.ok("queue", "create", "video", "--weight", "3", "--quota", "cpu=64")
        yield made


@contextmanager
def node_for_scripts(cluster: Cluster) -> Iterator[None]:
    """The one of node.yaml."""
    token = cluster.ok("token", "create").strip()
    join = json.loads((cluster.home / "ports.json").read_text())["join"]
    with cluster.begin(
        *("agent", "--home", cluster.home / "scripts", "--join", f"127.0.0.1:{join}", "--token", token),
        *("--name", "scripts", "--scripts-dir", EXAMPLES / "scripts"),
        stdout=None,
        stderr=subprocess.DEVNULL,
    ) as agent:
        try:
            with Client(load_context(cluster.home)) as rota:
                events = rota.events(follow=True)
                ready = ("scripts", NodeState.NODE_STATE_READY)
                while ready not in [(node.name, node.state) for node in rota.nodes()]:
                    next(events)
            yield
        finally:
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(CALL_S_MAX) == 0


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_does_what_it_says(name: str, cluster: Cluster) -> None:
    in_its_folder = replace(cluster, place=EXAMPLES) if name == "node.yaml" else cluster
    with node_for_scripts(cluster) if name == "node.yaml" else nullcontext():
        done = in_its_folder("submit", "--wait", "-o", "name", EXAMPLES / name)
        assert done.returncode == (1 if name == "max_failures.yaml" else 0), done
        CHECKS[name](cluster, done.stdout.split())


def test_every_example_is_run_and_listed() -> None:
    files = {file.name for file in EXAMPLES.iterdir() if file.is_file()} - {"README.md"}
    assert files == set(CHECKS)
    listed = set(re.findall(r"\]\(([a-z_./]+)\)", (EXAMPLES / "README.md").read_text()))
    assert listed == files | {"demo"}


# What a job file does not say: no services are run yet, and input comes from `rota run`.
NOT_SHOWN = {"kind", "replicas", "stdin"}


def test_every_key_of_a_job_is_in_an_example() -> None:
    shown = {"name"}
    for file in EXAMPLES.glob("*.yaml"):
        said: dict[str, Any] = yaml.safe_load(file.read_text())
        for job in said.get("jobs", [said]):
            shown |= {*job, *job.get("resources", {})}
    keys = {field.name for message in (JobSpec, Resources) for field in message.DESCRIPTOR.fields}
    assert keys - NOT_SHOWN == shown


@pytest.mark.ci
def test_the_demo_parses_every_module() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo" / "run.py"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done
    count = re.search(r"([0-9,]+) modules of Python", done.stdout)
    assert count is not None
    assert f"{count[1]} tasks: {count[1]} succeeded" in done.stdout
    assert re.search(rf"^all +{count[1]} ", done.stdout, re.MULTILINE)
    home = re.search(r"home (/\S+)", done.stdout)
    assert home is not None
    assert not Path(home[1]).exists()

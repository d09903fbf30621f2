"""Every example runs, and does what it says."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Cluster

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
    assert found == ["ON_NODE_LOSS_RERUN", "ON_NODE_LOSS_RERUN_FENCED"]


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


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_does_what_it_says(name: str, cluster: Cluster) -> None:
    if name == "queue.yaml":
        cluster.ok("queue", "create", "video", "--weight", "3", "--quota", "cpu=64")
    ids = cluster.ok("submit", "--wait", "-o", "name", EXAMPLES / name).split()
    assert ids
    CHECKS[name](cluster, ids)


def test_every_example_is_run_and_listed() -> None:
    files = {file.name for file in EXAMPLES.iterdir() if file.is_file()} - {"README.md"}
    assert files == set(CHECKS)
    listed = set(re.findall(r"\]\(([a-z_./]+)\)", (EXAMPLES / "README.md").read_text()))
    assert listed == files | {"demo"}


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

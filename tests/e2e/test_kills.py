"""Processes of a cluster are killed while it works: what ran once, twice, never."""

import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.conftest import CALL_S_MAX, Cluster
from tests.support.files import until, words
from tests.support.processes import kill as kill_process

TASK_COUNT = 1_000
KILL_COUNT = 12
SEED = 20_261_121


def until_run(ran: Path, count: int) -> None:
    until(lambda: len(words(ran)) >= count, f"fewer than {count} tasks have run", ran.parent)


def kill(cluster: Cluster, process: str) -> None:
    """SIGKILL; whoever watches it starts it again, or `rota up` does."""
    pid = cluster.pid(process)
    kill_process(pid)
    if process != "link-0":
        cluster.ok("up", "--detach")

    def is_back() -> bool:
        return cluster_pid(cluster, process) not in (0, pid)

    until(is_back, f"{process} is not back", cluster.home / "run")


def cluster_pid(cluster: Cluster, process: str) -> int:
    try:
        return cluster.pid(process)
    except (FileNotFoundError, ValueError):
        return 0


def run_under_kills(cluster: Cluster, victims: list[str], seed: int) -> tuple[Counter[str], list[str]]:
    """The array, while one of the victims is killed whenever so many tasks have run."""
    chance = random.Random(seed)
    ran = cluster.place / "ran"
    cluster.ok("up", "--detach", "--cpu", "8")
    job = cluster.submit(
        "--array",
        f"0-{TASK_COUNT - 1}",
        "--cpu",
        "1",
        "--",
        "sh",
        "-c",
        f"echo {{index}} >> {ran}; sleep 0.01",
    )
    said = [f"seed {seed}"]
    for count in sorted(chance.sample(range(1, TASK_COUNT - 50), KILL_COUNT)):
        until_run(ran, count)
        victim = chance.choice(victims)
        said.append(f"{len(words(ran))}: {victim}")
        kill(cluster, victim)
    done = cluster("wait", job)
    counts = cluster.json("show", job)["tasks"]
    poisoned = TASK_COUNT - int(counts["succeeded"])
    if "agent-0" in victims and poisoned:
        # Under which the agent died three times: on a slow machine it dies again as soon as it is back.
        assert f"{poisoned} by POISON" in done.stdout, (done, said)
    else:
        assert (done.returncode, poisoned) == (0, 0), (done, cluster("show", job), said)
    return Counter(words(ran)), said


def figures(ran: Counter[str], said: list[str]) -> str:
    times = Counter(ran[str(index)] for index in range(TASK_COUNT))
    return f"{dict(sorted(times.items()))} (times run: tasks); killed when so many had run: {', '.join(said)}"


@pytest.mark.ci
@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_controller_and_link_killed_every_task_runs_once(new_home: Cluster, seed: int) -> None:
    ran, said = run_under_kills(new_home, ["controller", "link-0"], seed)
    print(figures(ran, said))
    assert ran == Counter(str(index) for index in range(TASK_COUNT)), figures(ran, said)


@pytest.mark.ci
def test_supervisor_killed_every_task_runs(new_home: Cluster) -> None:
    """What ran when it died, or had just ended, may run again, and nothing else: two a slot and kill."""
    ran, said = run_under_kills(new_home, ["agent-0"], SEED)
    print(figures(ran, said))
    assert set(ran) == {str(index) for index in range(TASK_COUNT)}, figures(ran, said)
    again = sum(times - 1 for times in ran.values())
    assert again <= 2 * 8 * KILL_COUNT, figures(ran, said)


@pytest.mark.ci
def test_an_input_arrives_whole_while_what_carries_it_is_killed(new_home: Cluster) -> None:
    chance = random.Random(SEED)
    pieces = [chance.randbytes(50_000) for _ in range(200)]
    new_home.ok("up", "--detach")
    victims = {20: "link-0", 60: "controller", 100: "link-0", 140: "controller", 199: "link-0"}
    command = ("run", "--", "tee", str(new_home.place / "copy"))
    with new_home.begin(*command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        for number, piece in enumerate(pieces):
            process.stdin.write(piece)
            process.stdin.flush()
            if number in victims:
                kill(new_home, victims[number])
        process.stdin.close()
        assert process.wait(CALL_S_MAX) == 0
    assert (new_home.place / "copy").read_bytes() == b"".join(pieces)

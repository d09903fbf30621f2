"""`rota run`: as if the command ran here."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import CALL_S_MAX, Cluster
from tests.support.files import Gate


def first_line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def test_output_and_errors_go_to_the_same_streams(cluster: Cluster) -> None:
    done = cluster("run", "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_output_is_passed_on_to_the_byte(cluster: Cluster) -> None:
    script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4096 + b'no newline')"
    done = cluster.raw("run", "--", "python3", "-c", script)
    assert done.stdout == bytes(range(256)) * 4096 + b"no newline"


@pytest.mark.parametrize(
    ("options", "command", "code", "said"),
    [
        ([], ["true"], 0, ""),
        ([], ["sh", "-c", "exit 3"], 3, ""),
        ([], ["sh", "-c", "kill -USR1 $$"], 128 + signal.SIGUSR1, "ended by SIGNAL 10"),
        (["--time-limit", "200ms"], ["sleep", "60"], 124, "ended by TIME_LIMIT"),
        ([], ["no-such-program"], 125, "ended by START_FAILED: no program 'no-such-program' on node"),
        (
            ["--cwd", "/no/such/place"],
            ["true"],
            125,
            "ended by START_FAILED: no directory /no/such/place on node",
        ),
        (["--cpu", "1000"], ["true"], 2, "--cpu: asks 1000; the largest node has 4"),
    ],
)
def test_it_exits_as_the_task_does(
    options: list[str], command: list[str], code: int, said: str, cluster: Cluster
) -> None:
    done = cluster("run", *options, "--", *command)
    assert done.returncode == code, done
    assert done.stdout == ""
    if said:
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    else:
        assert done.stderr == ""


def test_the_first_words_that_are_no_options_are_the_command(cluster: Cluster) -> None:
    assert cluster.ok("run", "--cpu", "2", "echo", "--cpu", "x", "--", "-v") == "--cpu x -- -v\n"


def test_an_arrays_lines_have_their_index(cluster: Cluster) -> None:
    done = cluster("run", "--array", "0-4,7", "--", "sh", "-c", "echo a{index}; echo b >&2; printf c")
    assert done.returncode == 0
    indices = [0, 1, 2, 3, 4, 7]
    wanted = [line for index in indices for line in (f"[{index}] a{index}", f"[{index}] c")]
    assert sorted(done.stdout.splitlines()) == sorted(wanted)
    assert sorted(done.stderr.splitlines()) == sorted(f"[{index}] b" for index in indices)


def test_an_array_larger_than_the_readers_is_printed_whole(cluster: Cluster) -> None:
    done = cluster("run", "--array", "0-299", "--cpu", "0.1", "--", "echo", "{index}")
    assert sorted(done.stdout.splitlines()) == sorted(f"[{index}] {index}" for index in range(300))


def test_an_arrays_failures_are_summed_up(cluster: Cluster) -> None:
    done = cluster("run", "--array", "0-3", "--", "sh", "-c", "test {index} -lt 2 || exit {index}")
    assert done.returncode == 2, "the code of the first that failed"
    assert (
        "2 of 4 tasks failed (1 by EXIT 2, 1 by EXIT 3)" in done.stderr
        or "1 by EXIT 3, 1 by EXIT 2" in done.stderr
    )


def test_all_attempts_are_printed(cluster: Cluster) -> None:
    done = cluster(
        "run", "--retries", "3", "--", "sh", "-c", "echo try $ROTA_ATTEMPT; test $ROTA_ATTEMPT = 3"
    )
    assert (done.returncode, done.stdout) == (0, "try 1\ntry 2\ntry 3\n")


def test_output_comes_while_the_task_runs(cluster: Cluster, gate: Gate) -> None:
    script = f"echo first; {gate.wait}; echo last"
    with cluster.begin("run", "--", "sh", "-c", script) as process:
        assert first_line(process) == b"first\n"
        assert process.poll() is None
        gate.open()
        out, err = process.communicate(timeout=CALL_S_MAX)
    assert (process.returncode, out, err) == (0, b"last\n", b"")


# ---------------------------------------------------------------- standard input


def test_a_piped_input_goes_along(cluster: Cluster) -> None:
    data = os.urandom(1 << 20) * 3
    out = cluster.ok("run", "--", "sha256sum", stdin=data)
    assert out.split()[0] == hashlib.sha256(data).hexdigest()


def test_an_empty_input_is_an_empty_input(cluster: Cluster) -> None:
    assert cluster.ok("run", "--", "wc", "-c", stdin=b"").strip() == "0"


def test_input_comes_as_it_is_written(cluster: Cluster) -> None:
    with cluster.begin("run", "--", "cat", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert first_line(process) == line
        process.stdin.close()
        assert process.wait(CALL_S_MAX) == 0


def test_a_task_need_not_read_its_input(cluster: Cluster) -> None:
    done = cluster("run", "--", "true", stdin=b"x" * 3_000_000)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("options", [["-n"], ["--array", "0-1"]])
def test_input_is_not_read_where_it_is_not_wanted(options: list[str], cluster: Cluster) -> None:
    out = cluster.ok("run", *options, "--", "wc", "-c", stdin=b"not read")
    assert {line.split()[-1] for line in out.splitlines()} == {"0"}


# ---------------------------------------------------------------- what a task finds


def test_the_environment_is_the_nodes_and_what_is_named(cluster: Cluster) -> None:
    given = ["--env", "GIVEN=a=b", "--env", "TAKEN"]
    out = cluster.ok("run", *given, "--", "/usr/bin/env", "-0", TAKEN="t", OTHER="o")
    found = dict(entry.split("=", 1) for entry in out.split("\0") if entry)
    assert found["GIVEN"] == "a=b"
    assert found["TAKEN"] == "t"
    assert "OTHER" not in found
    assert "ROTA_HOME" not in found
    assert "ROTA_TOKEN" not in found
    assert (found["ROTA_TASK_INDEX"], found["ROTA_TASK_COUNT"], found["ROTA_ATTEMPT"]) == ("0", "1", "1")
    assert found["ROTA_JOB_ID"].isdecimal()
    assert found["ROTA_NODE_NAME"] in {node["name"] for node in cluster.json("node", "ls")["nodes"]}
    allowed = {"PATH", "HOME", "USER", "LANG", "GIVEN", "TAKEN"}
    assert {name for name in found if not name.startswith("ROTA_")} <= allowed


def test_it_runs_in_the_directory_it_was_called_from(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.ok("run", "--", "pwd").strip() == str(cluster.place)
    (cluster.place / "below").mkdir()
    assert cluster.ok("run", "--cwd", "below", "--", "pwd").strip() == str(cluster.place / "below")
    assert cluster.ok("run", "--cwd", tmp_path, "--", "pwd").strip() == str(tmp_path)


def test_a_node_an_executable_and_a_path(cluster: Cluster) -> None:
    node = cluster.json("node", "ls")["nodes"][1]["name"]
    (cluster.place / "scripts").mkdir()
    (cluster.place / "scripts" / "count.sh").write_text('echo "$0 $# on $ROTA_NODE_NAME"\n')
    out = cluster.ok("run", "--node", node, "--path", "scripts/count.sh", "--", "sh")
    assert out == f"scripts/count.sh 0 on {node}\n"


# ---------------------------------------------------------------- interruptions


def newest(cluster: Cluster) -> dict[str, object]:
    found: dict[str, object] = cluster.json("ls", "--limit", "1")["jobs"][0]
    return found


@contextmanager
def running(cluster: Cluster, script: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A run of a shell script that has said `up`."""
    with cluster.begin("run", "--", "sh", "-c", f"{script}") as process:
        assert first_line(process) == b"up\n"
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cancels(number: signal.Signals, cluster: Cluster) -> None:
    with running(cluster, "echo up; sleep 60") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=CALL_S_MAX)
    job = newest(cluster)
    assert process.returncode == 130
    assert out == b""
    assert f"rota: cancelling job {job['id']}; Ctrl-C again" in err.decode()
    assert job["state"] == "JOB_STATE_CANCELLED"


def test_what_a_task_says_at_the_end_is_still_printed(cluster: Cluster) -> None:
    with running(cluster, "trap 'echo goodbye; exit 7' TERM; echo up; sleep 60 & wait") as process:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=CALL_S_MAX)
    assert out == b"goodbye\n"
    assert process.returncode == 130


def test_a_second_ctrl_c_leaves_the_job_alone(cluster: Cluster, gate: Gate) -> None:
    patient = f"{gate.wait}; exit 0"
    with running(cluster, f"trap '{patient}' TERM; echo up; {patient}") as process:
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        assert b"cancelling" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(CALL_S_MAX) == 130
        assert b"leaving job" in process.stderr.read()
    job = newest(cluster)
    assert job["state"] == "JOB_STATE_RUNNING"
    gate.open()
    cluster("wait", str(job["id"]))
    assert newest(cluster)["state"] == "JOB_STATE_CANCELLED"


def test_a_reader_that_goes_away_ends_the_job(cluster: Cluster) -> None:
    with cluster.begin("run", "--", "yes") as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(CALL_S_MAX) == 141
    job = newest(cluster)
    cluster("wait", str(job["id"]))
    assert newest(cluster)["state"] == "JOB_STATE_CANCELLED"

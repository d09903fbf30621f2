"""`rota run`: as if the command ran here."""

import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from rota.cli import app
from rota.main.cli import root
from tests.e2e.conftest import CALL_S_MAX, ROTA, Cluster
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


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["echo hi"], "the command is one word with spaces in it; try -- echo hi, or sh -c 'echo hi'"),
        (["a | b", "c"], "the command is one word with spaces in it; try -- sh -c 'a | b c'"),
        (["cd", "/tmp"], "'cd' is the shell's own; try --cwd DIR, or sh -c 'cd /tmp'"),
        (["A=1", "env"], "a variable is given by an option: --env A=1"),
        ([" "], "the name of the program is blank: is a variable not set?"),
        (["program"], "for the file in this directory try ./program"),
    ],
)
def test_what_may_have_been_meant_is_said(command: list[str], hint: str, cluster: Cluster) -> None:
    (cluster.place / "program").write_text("#!/bin/sh\n")
    (cluster.place / "program").chmod(0o755)
    done = cluster("run", "--", *command)
    assert done.returncode == 125
    failed, said = done.stderr.splitlines()
    assert "ended by START_FAILED" in failed
    assert said == f"rota: {hint}"


def test_a_file_that_cannot_be_opened_is_not_said_to_have_the_output(cluster: Cluster) -> None:
    done = cluster("run", "--stdout", "/no/such/file", "--", "true")
    (line,) = done.stderr.splitlines()
    assert "ended by START_FAILED: cannot use /no/such/file on node" in line


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


def test_a_large_arrays_attempts_are_all_printed(cluster: Cluster) -> None:
    # More tasks than are followed one by one, with an end that has no newline.
    fail = "test {index} -gt 1 || exit $((2 - ROTA_ATTEMPT))"
    script = f"printf 'out {{index}} %s' $ROTA_ATTEMPT; echo err {{index}} >&2; {fail}"
    done = cluster("run", "--array", "0-99", "--cpu", "0.1", "--retries", "1", "--", "sh", "-c", script)
    assert done.returncode == 0
    out = [f"[{index}] out {index} 1" for index in range(100)] + [
        f"[{index}] out {index} 2" for index in (0, 1)
    ]
    assert sorted(done.stdout.splitlines()) == sorted(out)
    lines = done.stderr.splitlines()
    again = [line for line in lines if line.startswith("rota: task ")]
    assert len(again) == 2
    assert sorted(set(lines) - set(again)) == sorted({f"[{index}] err {index}" for index in range(100)})
    assert len(lines) == 102 + len(again)


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
    says = [re.sub(r"task \d+/", "task N/", line) for line in done.stderr.splitlines()]
    assert says == [
        f"rota: task N/0 starts again, as attempt {attempt}: attempt {attempt - 1} ended by EXIT 1"
        for attempt in (2, 3)
    ]


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


def test_a_devices_input_goes_along(cluster: Cluster) -> None:
    with Path("/dev/zero").open("rb") as zero:
        process = cluster.begin("run", "--", "head", "-c", "10", stdin=zero)
    assert process.communicate(timeout=CALL_S_MAX) == (bytes(10), b"")
    assert process.returncode == 0


def test_a_task_need_not_read_its_input(cluster: Cluster) -> None:
    done = cluster("run", "--", "true", stdin=b"x" * 3_000_000)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["run", "-n"], ""),
        (
            ["run", "--array", "0-1"],
            "rota: standard input is not read: it goes along with a job of one task alone ('-n' says so)\n",
        ),
    ],
)
@pytest.mark.parametrize("piped", [True, False], ids=["pipe", "file"])
def test_input_is_not_read_where_it_is_not_wanted(
    options: list[str], said: str, piped: bool, cluster: Cluster, tmp_path: Path
) -> None:
    done = call_with_input(cluster, tmp_path, [*options, "--", "wc", "-c"], piped=piped)
    assert {line.split()[-1] for line in done.stdout.decode().splitlines()} == {"0"}
    assert done.stderr.decode() == said


def call_with_input(
    cluster: Cluster, place: Path, arguments: list[str], *, piped: bool
) -> "subprocess.CompletedProcess[bytes]":
    """With an input that is there from the beginning."""
    (place / "input").write_bytes(b"not read")
    reading = os.open(place / "input", os.O_RDONLY)
    if piped:
        os.close(reading)
        reading, writing = os.pipe()
        os.write(writing, b"not read")
        os.close(writing)
    process = cluster.begin(*arguments, stdin=reading)
    os.close(reading)
    out, err = process.communicate(timeout=CALL_S_MAX)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def test_a_submission_says_that_it_reads_no_input(cluster: Cluster, tmp_path: Path) -> None:
    for piped in (True, False):
        done = call_with_input(cluster, tmp_path, ["submit", "-o", "name", "--", "true"], piped=piped)
        assert done.stderr.startswith(b"rota: standard input is not read by 'rota submit'")
        assert done.stdout.strip().isdigit()
    lines = cluster.place / "lines"
    lines.write_text("a\nb\n")
    loop = f"while read -r line; do {shlex.join(ROTA)} submit -o name -- echo $line; done < {lines}"
    done = subprocess.run(
        ["bash", "-c", loop], env=cluster.environment, cwd=cluster.place, capture_output=True, check=True
    )
    assert len(done.stdout.split()) == 2
    assert done.stderr == b"", "the input is the loop's"


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


def test_a_task_has_no_descriptors_but_its_own(cluster: Cluster) -> None:
    out = cluster.ok("run", "--", "ls", "/proc/self/fd")
    assert out.split() == ["0", "1", "2", "3"], "the last is that of the listing"


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
    assert cluster.ok("run", "--node", node, "--path", "", "--", "echo", "alone") == "alone\n"


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


@pytest.mark.parametrize(
    ("number", "writer_ends"), [(signal.SIGHUP, True), (signal.SIGHUP, False), (signal.SIGQUIT, False)]
)
def test_a_job_whose_input_ends_with_the_terminal_is_cancelled(
    number: signal.Signals, writer_ends: bool, cluster: Cluster
) -> None:
    command = ["sh", "-c", "cat; exec sleep 600"]
    with cluster.begin("run", "--", *command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"half\n")
        process.stdin.flush()
        assert first_line(process) == b"half\n"
        if writer_ends:
            process.stdin.close()
        process.send_signal(number)
        assert process.wait(CALL_S_MAX) == -number
        job = str(newest(cluster)["id"])
        said = process.stderr.read().decode()
        assert said == f"rota: cancelling job {job}, whose standard input ends here\n"
        assert cluster("wait", job).stdout == f"job {job} CANCELLED: 1 task: 1 cancelled\n"


def test_a_job_that_has_all_of_its_input_goes_on_without_a_terminal(cluster: Cluster, gate: Gate) -> None:
    whole = cluster.place / "whole"
    whole.write_text("whole\n")
    with (
        whole.open() as file,
        cluster.begin("run", "--", "sh", "-c", f"cat; {gate.wait}; echo done", stdin=file) as process,
    ):
        assert first_line(process) == b"whole\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(CALL_S_MAX) == -signal.SIGHUP
    gate.open()
    number = str(newest(cluster)["id"])
    cluster.ok("wait", number)
    assert cluster.ok("logs", number) == "whole\ndone\n"


def test_quit_leaves_the_job_and_names_it(cluster: Cluster, gate: Gate) -> None:
    with running(cluster, f"echo up; {gate.wait}") as process:
        process.send_signal(signal.SIGQUIT)
        _, err = process.communicate(timeout=CALL_S_MAX)
    assert process.returncode == -signal.SIGQUIT
    number = newest(cluster)["id"]
    assert err.decode() == (
        f"rota: leaving job {number}, which goes on; 'rota logs -f {number}' shows what it prints\n"
    )
    gate.open()
    cluster.ok("wait", str(number))


def client_of(cluster: Cluster, listener: socket.socket, home: Path) -> None:
    """Makes a client's home that takes a listener for the cluster's controller."""
    shutil.copytree(cluster.home / "client", home / "client")
    context = json.loads((home / "client" / "context.json").read_text())
    context["address"] = f"127.0.0.1:{listener.getsockname()[1]}"
    (home / "client" / "context.json").write_text(json.dumps(context))


@pytest.mark.parametrize("command", ["run", "submit"])
def test_an_interrupted_submission_tells_how_to_ask_again(
    command: str, cluster: Cluster, tmp_path: Path
) -> None:
    # A controller that takes connections and never says a word.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client_of(cluster, silent, tmp_path)
        with cluster.begin("--home", tmp_path, command, "--", "true") as process:
            silent.accept()[0].close()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=CALL_S_MAX)
    assert (process.returncode, out) == (130, b"")
    line = err.decode().strip().splitlines()[-1]
    key = re.findall(r"'--idempotency-key ([0-9a-f-]{36})'", line)[0]
    again = ("submit", "--idempotency-key", key, "--", "true")
    assert "the same request" not in cluster.ok(*again)
    assert "the same request" in cluster.ok(*again)


def test_an_interrupted_submission_of_run_is_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(listener: socket.socket) -> None:
        with suppress(OSError), ExitStack() as open_:
            while True:
                mine = open_.enter_context(listener.accept()[0])
                theirs = open_.enter_context(socket.create_connection(("127.0.0.1", api)))
                for pair in ((mine, theirs), (theirs, mine)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    api = json.loads((cluster.home / "ports.json").read_text())["api"]
    with ExitStack() as held:
        between = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        client_of(cluster, between, tmp_path)
        command = ("run", "--name", "interrupted", "--", "sleep", "1000")
        process = held.enter_context(cluster.begin("--home", tmp_path, *command))
        between.accept()[0].close()
        process.send_signal(signal.SIGINT)
        # Only now the controller can be reached.
        threading.Thread(target=serve, args=(between,), daemon=True).start()
        out, err = process.communicate(timeout=CALL_S_MAX)
        between.shutdown(socket.SHUT_RDWR)
    (job,) = cluster.json("ls", "--name", "interrupted")["jobs"]
    says = f"rota: interrupted while submitting: job {job['id']} is cancelled"
    assert (process.returncode, out, err.decode().strip()) == (130, b"", says)
    cluster("wait", job["id"])
    (job,) = cluster.json("ls", "--name", "interrupted")["jobs"]
    assert job["state"] == "JOB_STATE_CANCELLED"


def test_a_job_that_has_to_wait_says_why_without_a_terminal_too(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    go_on = tmp_path / "go-on"
    first = cluster.submit("--", "sh", "-c", f"until test -e {go_on}; do sleep 0.02; done")
    said = []

    def say(text: str) -> None:
        said.append(text)
        go_on.touch()

    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in caught}
    monkeypatch.setattr("rota.cli.run.PATIENT_IN_LOG_S", 0.1)
    monkeypatch.setattr("rota.cli.app.say", say)
    monkeypatch.setenv("ROTA_HOME", str(cluster.home))
    try:
        code = app.run(root, ["run", "-n", "--after", first, "--", "echo", "hello"])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (code, capfd.readouterr().out) == (0, "hello\n")
    (line,) = said
    assert f"waits for job {first} to succeed" in line


def test_output_that_cannot_be_read_is_no_success(new_home: Cluster) -> None:
    new_home.ok("up", "--detach")
    link, before = new_home.pid("link-0"), resource.getrlimit(resource.RLIMIT_NOFILE)
    # It can open no file, and no inotify instance.
    resource.prlimit(link, resource.RLIMIT_NOFILE, (3, before[1]))
    done = new_home("run", "--", "echo", "said")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.splitlines() == [
        "rota: the output cannot be read: Too many open files",
        "rota: job 1 succeeded, but not all of its output could be read; try 'rota logs 1'",
    ]
    assert new_home("run", "--", "sh", "-c", "echo said; exit 3").returncode == 3
    assert new_home("run", "--stdout", "none", "--stderr", "none", "--", "echo", "said").returncode == 0
    missed = "rota: not all of the output could be read"
    for command in (("logs", "1"), ("logs", "-f", "1")):
        done = new_home(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines() == ["rota: the output cannot be read: Too many open files", missed]
    resource.prlimit(link, resource.RLIMIT_NOFILE, before)
    assert new_home.ok("logs", "1") == "said\n"
    new_home.ok("node", "rm", "--force", new_home.ok("node", "ls", "-o", "name").strip())
    for command in (("logs", "1"), ("logs", "-f", "1")):
        done = new_home(*command)
        assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (1, "", missed)
        assert "which kept the output, is gone" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("node", "ls"), ("submit", "--help"), ("run", "--", "sh", "-c", "echo out; exec sleep 600")]
)
def test_output_that_cannot_be_written_is_said_in_a_line(
    arguments: tuple[str, ...], cluster: Cluster
) -> None:
    with Path("/dev/full").open("wb") as full, cluster.begin(*arguments, stdout=full) as process:
        _, err = process.communicate(timeout=CALL_S_MAX)
    line = b"rota: cannot write to standard output: No space left on device\n"
    assert (process.returncode, err) == (1, line)
    newest = cluster.json("ls", "--limit", "1")["jobs"]
    assert not newest or newest[0]["cancelled"] or newest[0]["state"] != "RUNNING"


def test_what_is_not_kept_is_said_and_is_not_in_the_data(cluster: Cluster) -> None:
    done = cluster.raw("run", "--", "sh", "-c", "yes 0123456789 | head -c 150000000")
    assert done.returncode == 0
    assert len(done.stdout) < 150_000_000
    assert b"rota" not in done.stdout
    *marks, hint = done.stderr.decode().splitlines()
    missing = sum(int(mark.split()[1].replace(",", "")) for mark in marks)
    assert len(done.stdout) + missing == 150_000_000
    assert hint == "rota: not all of the output was kept; to keep more: --stdout PATH"

"""`rota up` and `rota down`, parts by hand, and what happens when parts die."""

import json
import os
import pty
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from rota.agent.log import LOG_BYTES_MAX
from rota.client.client import Client
from rota.client.context import load_context
from rota.client.errors import Unreachable
from rota.controller.audit import FILE_BYTES_MAX
from tests.e2e.conftest import CALL_S_MAX, ROTA, Cluster, processes_of
from tests.support.files import Gate, until, until_there
from tests.support.processes import kill, until_gone

# ---------------------------------------------------------------- up and down


def test_up_can_be_called_at_any_time(new_home: Cluster) -> None:
    said = new_home.ok("up", "--detach")
    assert re.search(r"rota is up: controller at 127\.0\.0\.1:\d+, 1 node ready, home ", said)
    assert "try: rota run -- echo hello" in said
    assert new_home.ok("run", "--", "echo", "hello") == "hello\n"
    pids = {name: new_home.pid(name) for name in ("controller", "agent-0", "link-0")}
    new_home.ok("up", "--detach")
    assert {name: new_home.pid(name) for name in pids} == pids, "what ran was left alone"
    # In the foreground it has nothing to stay for, and says so.
    assert new_home.ok("up").splitlines()[1:] == [
        "all of it runs already, in the background: 'rota down' stops it"
    ]
    done = new_home("up", "--detach", "--nodes", "3", "--label", "rack=7")
    assert {name: new_home.pid(name) for name in pids} == pids
    first, second, third = new_home.json("node", "ls")["nodes"]
    assert ("rack" in first["labels"], second["labels"]["rack"], third["labels"]["rack"]) == (False, "7", "7")
    assert int(second["capacity"]["memory"]) == int(third["capacity"]["memory"])
    assert int(second["capacity"]["memory"]) * 2.9 < int(first["capacity"]["memory"])
    name = first["name"]
    assert done.stderr.splitlines() == [
        f"rota: {name} goes on as it was started: {what} takes effect after 'rota down' and 'rota up'"
        for what in ("--label", "the share of the machine with --nodes 3")
    ]
    # What runs is no reason to take nonsense.
    done = new_home("up", "--detach", "--cpu", "0", "--label", "=")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 2)
    # The controller dies: the nodes are not ready at once, and that is waited for.
    kill(new_home.pid("controller"))
    assert ", 3 nodes ready, " in new_home.ok("up", "--detach")
    assert new_home.pid("agent-0") == pids["agent-0"]


def test_the_home_is_for_its_owner_alone(new_home: Cluster) -> None:
    new_home.ok("up", "--detach")
    assert stat.S_IMODE(new_home.home.stat().st_mode) == 0o700
    for secret in ("client/user.key", "tls/ca.key", "agent-0/tls/node.key"):
        assert stat.S_IMODE((new_home.home / secret).stat().st_mode) == 0o600, secret


def test_down_says_how_many_tasks_ran_and_they_run_again(
    new_home: Cluster, tmp_path: Path, gate: Gate
) -> None:
    new_home.ok("up", "--detach", "--cpu", "4")
    # One ends in good order when it is asked to, which does not mean that its work is done.
    ends_well = 'test $ROTA_TASK_INDEX != 1 || trap "exit 0" TERM'
    says = "test $ROTA_ATTEMPT != 1 || echo began"
    script = f"{ends_well}; {says}; echo x >> {tmp_path}/started-$ROTA_TASK_INDEX; {gate.wait}"
    number = new_home.submit("--array", "0-2", "--", "sh", "-c", script)
    reads = f"cat; touch {tmp_path}/read; {gate.wait}"
    with new_home.begin("run", "--", "sh", "-c", reads, stdin=subprocess.PIPE) as reader:
        assert reader.stdin is not None
        reader.stdin.close()
        until_there(tmp_path / "read", *(tmp_path / f"started-{index}" for index in range(3)))
        pids = [new_home.pid(name) for name in ("controller", "agent-0", "link-0")]
        said = new_home.ok("down")
        assert reader.stderr is not None
        assert reader.wait(CALL_S_MAX) == 125
        why = "PREEMPTED: it had read its input, which is gone"
        assert reader.stderr.read().decode().splitlines()[-1].endswith(why)
    assert said == (
        "stopped 1 agent and the controller; 4 tasks were running, "
        "3 start again at the next 'rota up', 1 is lost: the input that was read is gone\n"
    )
    until_gone(*pids)
    assert processes_of(new_home.home) == []
    assert [file.name for file in (new_home.home / "run").iterdir()] == ["lock"]
    # A job is kept with all its attempts, however old they are; a job that is forgotten is not.
    database = new_home.home / "store" / "rota.db"
    with closing(sqlite3.connect(database)) as store, store:
        store.execute("UPDATE blocks SET at_ms = at_ms - ?", (8 * 86_400_000,))
        forgotten = (
            "INSERT INTO blocks (job, first, last, at_ms, data) SELECT 99, 0, 0, at_ms, data FROM blocks"
        )
        assert store.execute(forgotten).rowcount
    gate.open()
    new_home.ok("up", "--detach")
    new_home.ok("wait", number)
    with closing(sqlite3.connect(database)) as store:
        old = "SELECT * FROM blocks WHERE job = 99"
        until(lambda: not store.execute(old).fetchall(), "forgotten attempts to go", database.parent)
    task = new_home.json("show", f"{number}/1")
    assert [attempt["cause"] for attempt in task["attempts"]] == ["CAUSE_PREEMPTED", "CAUSE_EXIT"]
    assert len((tmp_path / "started-1").read_text().split()) == 2
    assert new_home.ok("logs", f"{number}/1", "--attempt", "1") == "began\n"


def test_down_where_nothing_runs(new_home: Cluster) -> None:
    done = new_home("down")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"nothing runs in {new_home.home}\n"


@pytest.mark.timeout(180)
def test_up_again_brings_back_what_there_was(new_home: Cluster) -> None:
    new_home.ok("up", "--detach", "--nodes", "2", "--cpu", "3", "--resource", "licences=1")
    before = {node["id"]: node["capacity"] for node in new_home.json("node", "ls")["nodes"]}
    one, other = (node["name"] for node in new_home.json("node", "ls")["nodes"])
    address = new_home.json("cluster", "info")["leader"]
    new_home.ok("down")
    said = new_home.ok("up", "--detach")
    assert len(said.splitlines()) == 1, "what a new user has to know is said once"
    after = {node["id"]: node["capacity"] for node in new_home.json("node", "ls")["nodes"]}
    assert after.keys() == before.keys()
    assert [(each["cpu"], each["named"]) for each in after.values()] == [("3000", {"licences": "1000"})] * 2
    assert new_home.json("cluster", "info")["leader"] == address, "ports are kept"
    # Fewer than before: those that run are left alone, and those that do not are named.
    done = new_home("up", "--detach", "--nodes", "1", "--cpu", "")
    assert f"rota: {other} is left running: 'rota down' stops all nodes of this home" in done.stderr
    new_home.ok("down")
    done = new_home("up", "--detach", "--nodes", "1")
    assert done.stderr.splitlines() == [
        f"rota: {other} is not started: 'rota up --nodes 2' does, 'rota node rm NAME' forgets a node for good"
    ]
    new_home.ok("down")
    assert ", 1 node ready, " in new_home.ok("up", "--detach")
    new_home.ok("down")
    new_home.ok("up", "--detach", "--nodes", "0")
    new_home.ok("down")
    done = new_home("up", "--detach")
    assert ", 0 nodes ready, " in done.stdout
    assert f"rota: {one}, {other} are not started: 'rota up --nodes 2' does" in done.stderr
    new_home.ok("up", "--detach", "--nodes", "1")
    capacity = new_home.json("node", "show", one)["capacity"]
    assert capacity["cpu"] == str(1000 * len(os.sched_getaffinity(0))), "--cpu '' took back what was said"
    done = new_home("up", "--detach", "--nodes", "2", "--memory", "1PiB")
    says = "rota: 2 nodes declare 1PiB of memory each, the machine has "
    assert any(line.startswith(says) for line in done.stderr.splitlines()), done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_ctrl_c_is_down(number: signal.Signals, new_home: Cluster) -> None:
    with new_home.begin("up") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().decode() for _ in range(4)]
        assert lines[0].startswith("rota is up: ")
        assert lines[3].startswith("Ctrl-C stops it")
        assert new_home.ok("run", "--", "echo", "hello") == "hello\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=CALL_S_MAX)
    assert process.returncode == 0
    assert out.decode().splitlines()[-1] == "stopped 1 agent and the controller; no task was running"
    assert err == b""
    assert processes_of(new_home.home) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_in_the_foreground_nothing_is_left_of_an_interrupted_start(
    number: signal.Signals, new_home: Cluster
) -> None:
    (new_home.home / "run").mkdir(parents=True)
    with new_home.begin("up") as process:
        until_there(new_home.home / "run" / "controller.pid")
        process.send_signal(number)
        _, err = process.communicate(timeout=CALL_S_MAX)
    assert process.returncode == 130
    assert err.startswith(b"rota: interrupted; ending what has been started\n")
    assert processes_of(new_home.home) == []


def test_a_closed_terminal_is_down_and_quit_leaves_it_running(new_home: Cluster) -> None:
    main, terminal = pty.openpty()
    with new_home.begin(
        "up", stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    ) as process:
        os.close(terminal)
        text = b""
        while b"Ctrl-C" not in text:
            text += os.read(main, 4096)
        process.send_signal(signal.SIGQUIT)
        assert process.wait(CALL_S_MAX) == 0
    assert new_home.ok("run", "--", "echo", "hello") == "hello\n"
    os.close(main)
    kill(new_home.pid("agent-0"))
    main, terminal = pty.openpty()
    with new_home.begin(
        "up", stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=partial(os.login_tty, terminal)
    ) as process:
        os.close(terminal)
        text = b""
        while b"Ctrl-C" not in text:
            text += os.read(main, 4096)
        os.close(main)
        assert process.wait(CALL_S_MAX) == 0
    assert processes_of(new_home.home) == []


def test_once_more_ctrl_c_ends_the_patience_of_down(new_home: Cluster, tmp_path: Path) -> None:
    new_home.ok("up", "--detach")
    trap = f"trap 'echo asked >> {tmp_path}/asked' TERM"
    script = f"{trap}; touch {tmp_path}/ready; while :; do sleep 1000 & wait; done"
    new_home.submit("--grace", "1h", "--", "sh", "-c", script)
    until_there(tmp_path / "ready")
    with new_home.begin("down", "--timeout", "1h") as process:
        until_there(tmp_path / "asked")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=CALL_S_MAX)
    assert process.returncode == 0
    assert err == b"rota: killing what still runs\n"
    assert out.startswith(b"stopped 1 agent and the controller; 1 task was running")
    assert processes_of(new_home.home) == []


def test_in_the_foreground_a_part_that_ends_is_noticed(new_home: Cluster) -> None:
    with new_home.begin("up") as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith(b"Ctrl-C"):
            pass
        kill(new_home.pid("agent-0"))
        _, err = process.communicate(timeout=CALL_S_MAX)
    assert process.returncode == 1
    assert b"ended; 'rota up' starts it again" in err


def test_two_homes_do_not_disturb_each_other(new_home: Cluster, cluster: Cluster) -> None:
    new_home.ok("up", "--detach")
    assert new_home.ok("run", "--", "echo", "here") == "here\n"
    assert new_home.json("cluster", "info")["uuid"] != cluster.json("cluster", "info")["uuid"]
    new_home.ok("down")
    assert cluster.ok("run", "--", "echo", "still here") == "still here\n"


def test_what_runs_in_a_home_that_was_removed_ends(new_home: Cluster, tmp_path: Path) -> None:
    new_home.ok("up", "--detach")
    new_home.ok("submit", "--", "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "it does not run", tmp_path)
    old = {name: new_home.pid(name) for name in ("controller", "agent-0", "link-0")}
    logs = {name: new_home.home / "log" / f"{name}.log" for name in ("controller", "agent-0")}
    with ExitStack() as held:
        open_logs = {name: held.enter_context(log.open()) for name, log in logs.items()}
        subprocess.run(["rm", "-rf", new_home.home], check=True)
        new_home.ok("up", "--detach")
        until_gone(int((tmp_path / "pid").read_text()), *old.values())
        for name, log in open_logs.items():
            assert f"{new_home.home}" in log.read().partition(" was removed or replaced while")[0], name
    assert new_home.ok("run", "--", "echo", "hello") == "hello\n"
    assert set(old.values()).isdisjoint(new_home.pid(name) for name in old)


def test_two_ups_at_once_start_one_cluster(new_home: Cluster) -> None:
    with new_home.begin("up", "--detach") as one, new_home.begin("up", "--detach") as two:
        for process in (one, two):
            out, err = process.communicate(timeout=CALL_S_MAX)
            assert process.returncode == 0, err
            assert b"1 node ready" in out
    controllers = [pid for pid in processes_of(new_home.home) if _is(pid, b"controller")]
    assert len(controllers) == 1


def _is(pid: int, word: bytes) -> bool:
    return word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def test_logs_do_not_grow_for_ever(new_home: Cluster) -> None:
    new_home.ok("up", "--detach")
    log, old = new_home.home / "log" / "agent-0.log", new_home.home / "log" / "agent-0.log.1"
    audit = new_home.home / "audit.log"
    # As after a long time: full, but for a line.
    os.truncate(log, LOG_BYTES_MAX)
    os.truncate(audit, FILE_BYTES_MAX - 1)
    for number in range(1, 10):
        audit.with_name(f"audit.log.{number}").write_text(f"{number}")
    link = new_home.pid("link-0")
    kill(link)
    until(
        lambda: old.exists() and log.exists() and log.stat().st_size < LOG_BYTES_MAX,
        "no room was made",
        log.parent,
    )
    assert old.read_text().rstrip().endswith("died")
    until(lambda: new_home.pid("link-0") != link, "there is no new link", new_home.home / "run")
    kill(new_home.pid("link-0"))
    until(lambda: "died" in log.read_text(), "it was not written on", log.parent)
    new_home.ok("token", "create")
    assert [path.name for path in sorted(new_home.home.glob("audit.log*"))] == [
        "audit.log",
        *(f"audit.log.{number}" for number in range(1, 10)),
    ]
    assert audit.with_name("audit.log.1").read_bytes().endswith(b'"outcome": "done"}\n')
    assert audit.with_name("audit.log.9").read_text() == "8", "the oldest is gone"
    new_home.ok("token", "create")
    assert len(audit.read_text().splitlines()) == 1
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600


# ---------------------------------------------------------------- what can be wrong


def test_a_stale_pid_file_is_no_process(new_home: Cluster) -> None:
    new_home.ok("up", "--detach")
    new_home.ok("down")
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        for name in ("controller", "agent-0"):
            file = new_home.home / "run" / f"{name}.pid"
            file.write_text(f"{bystander.pid}\n")
            # Written long before the process that has the number now began.
            os.utime(file, (time.time() - 3600, time.time() - 3600))
        new_home.ok("up", "--detach")
        assert new_home.ok("run", "--", "echo", "hello") == "hello\n"
        new_home.ok("down")
        assert bystander.poll() is None, "somebody else's process was left alone"
    finally:
        bystander.kill()
        bystander.wait()


def test_down_waits_for_what_has_put_its_pid_file_away(new_home: Cluster) -> None:
    """As an agent does that has little left to do, on a machine that has much."""
    run = new_home.home / "run"
    run.mkdir(parents=True)
    # The first is waited for while the second puts its file away; that one takes longer to end.
    endings = {"agent-0": "sleep 0.5", "agent-1": f"rm {run}/agent-1.pid; sleep 1"}
    with ExitStack() as ended:
        slow = []
        for name, ending in endings.items():
            script = (
                f"trap '{ending}; exit' TERM; echo $$ > {run}/{name}.pid; echo; while :; do sleep 0.1; done"
            )
            process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
            slow.append(ended.enter_context(process))
            assert process.stdout is not None
            process.stdout.readline()
        assert new_home.ok("down") == "stopped 2 agents\n"
        assert [process.poll() for process in slow] == [0, 0]


@pytest.mark.parametrize("text", ["", "x", "99999999", "-1"])
def test_a_damaged_pid_file_is_no_process(text: str, new_home: Cluster) -> None:
    (new_home.home / "run").mkdir(parents=True)
    (new_home.home / "run" / "controller.pid").write_text(text)
    assert new_home("down").stderr == f"nothing runs in {new_home.home}\n"


def test_a_home_that_cannot_be_made_is_said_in_a_line(new_home: Cluster) -> None:
    new_home.home.write_text("a file in the way")
    done = new_home("up", "--detach")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "cannot be made" in line
    assert "--home" in line
    new_home.home.unlink()


def test_a_port_in_use_is_said_in_a_line(new_home: Cluster) -> None:
    new_home.ok("up", "--detach", "--nodes", "0")
    port = int(new_home.json("cluster", "info")["leader"].rpartition(":")[2])
    new_home.ok("down")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = new_home("up", "--detach")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert f"if none has joined yet, remove {new_home.home / 'ports.json'}" in line
    (new_home.home / "ports.json").unlink()
    new_home.ok("up", "--detach")


def test_a_full_disk_is_said_in_a_line(new_home: Cluster) -> None:
    new_home.home.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "rota-test", str(new_home.home)], check=True
    )
    try:
        done = new_home("up", "--detach")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "Traceback" not in line
        assert "full" in line.lower() or "space" in line.lower()
    finally:
        new_home("down")
        subprocess.run(["umount", str(new_home.home)], check=True)


# ---------------------------------------------------------------- by hand, and over several machines


@contextmanager
def controller_as_of_systemd(cluster: Cluster) -> "Iterator[subprocess.Popen[bytes]]":
    """A controller that has said that it is ready, as it says it to systemd."""
    path = cluster.place / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(CALL_S_MAX)
        with subprocess.Popen(
            [*ROTA, "controller", "--listen", "127.0.0.1:0"],
            env={**cluster.environment, "NOTIFY_SOCKET": str(path)},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as controller:
            assert listener.recv(100) == b"READY=1"
            yield controller


def test_systemd_does_not_begin_a_new_cluster_where_a_home_was_removed(new_home: Cluster) -> None:
    with controller_as_of_systemd(new_home) as controller:
        subprocess.run(["rm", "-rf", new_home.home], check=True)
        code = controller.wait(CALL_S_MAX)
    assert not new_home.home.exists()
    unit = (Path(__file__).parents[2] / "deploy" / "rota-controller.service").read_text()
    (given_up,) = re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert str(code) in given_up.split()


def test_a_controller_and_an_agent_by_hand(new_home: Cluster) -> None:
    with controller_as_of_systemd(new_home) as controller:
        assert new_home("cluster", "info").returncode == 0
        secret = new_home.ok("token", "create", "--uses", "1").strip()
        join = re.search(r'"join": (\d+)', (new_home.home / "ports.json").read_text())
        assert join is not None
        other = new_home.home / "elsewhere"
        arguments = ["--home", str(other), "--join", f"127.0.0.1:{join[1]}", "--name", "by-hand"]
        machine = ["--cpu", "1.5", "--memory", "1GiB", "--resource", "power=10", "--label", "rack=7"]
        with new_home.begin(
            "agent", *arguments, *machine, "--token", secret, stderr=subprocess.DEVNULL
        ) as agent:
            assert new_home.ok("run", "--", "sh", "-c", "echo $ROTA_NODE_NAME") == "by-hand\n"
            (node,) = new_home.json("node", "ls")["nodes"]
            capacity = node["capacity"]
            assert (capacity["cpu"], capacity["memory"], capacity["named"]) == (
                "1500",
                str(2**30),
                {"power": "10000"},
            )
            assert node["labels"]["rack"] == "7"
            assert int((other / "run" / "agent-0.pid").read_text()) == agent.pid
            refused = new_home("agent", "--home", new_home.home / "third", *arguments[2:], "--token", secret)
            assert refused.returncode == 4, refused
            assert len(refused.stderr.splitlines()) == 1
            for process in (controller, agent):
                # As when their terminal is closed, which does not end them.
                process.send_signal(signal.SIGHUP)
            assert new_home.ok("run", "--", "echo", "still here") == "still here\n"
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(CALL_S_MAX) == 0
        # It is a node for good: the token, used up, is not needed again.
        with new_home.begin("agent", "--home", other, "--token", secret) as agent:
            assert agent.stderr is not None
            says = agent.stderr.readline().decode()
            assert says == f"rota: {other} is node by-hand already: the token was not used\n"
            assert new_home.ok("run", "--", "echo", "again") == "again\n"
            agent.send_signal(signal.SIGINT)
            assert agent.wait(CALL_S_MAX) == 0
        controller.send_signal(signal.SIGQUIT)
        assert controller.wait(CALL_S_MAX) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "this is no node yet"),
        (["--join", "127.0.0.1"], 2, "'127.0.0.1' is no address; try 10.0.0.1:7071"),
        (["--join", "127.0.0.1:1", "--token", "x"], 2, "no join token"),
    ],
)
def test_an_agent_that_cannot_join_says_why(
    arguments: list[str], code: int, says: str, new_home: Cluster
) -> None:
    done = new_home("agent", *arguments)
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert says in line


def test_an_agent_that_may_not_join_says_why(cluster: Cluster, tmp_path: Path) -> None:
    ports = json.loads((cluster.home / "ports.json").read_text())
    (taken, *_) = (node["name"] for node in cluster.json("node", "ls")["nodes"])
    token = cluster.ok("token", "create", "--uses", "1").strip()
    revoked = cluster.ok("token", "create").strip()
    cluster.ok("token", "revoke", revoked.removeprefix("rota1_").partition("_")[0])

    def says(port: int, secret: str, *more: str) -> str:
        joining = ("--join", f"127.0.0.1:{port}", "--token", secret, *more)
        done = cluster("agent", "--home", tmp_path / "home", *joining)
        assert done.returncode == 4, done
        (line,) = done.stderr.splitlines()
        return line

    assert "is a controller, but not its join port" in says(ports["api"], token)
    assert says(ports["join"], token, "--name", "a b").startswith("rota: --name: 'a b' is not allowed")
    assert "take another name with --name" in says(ports["join"], token, "--name", taken)
    assert "was revoked; make one with: rota token create" in says(ports["join"], revoked)
    done = cluster("agent", "--number", "0", "--name", "other")
    assert done.returncode == 2
    assert f"is node {taken} already; give node other a home of its own (--home)" in done.stderr


def test_a_node_that_was_removed_can_join_again(new_home: Cluster) -> None:
    new_home.ok("up", "--detach", "--nodes", "2")
    (node, _) = new_home.json("node", "ls")["nodes"]
    assert (
        (new_home.home / "log" / "agent-0.log")
        .read_text()
        .startswith(f"rota: joined as node {node['name']}\n")
    )
    warned = any("--map-user root=" in warning for warning in node["inventory"]["warnings"])
    assert warned == (os.geteuid() == 0), "tasks of root run as root"
    agent = new_home.pid("agent-0")
    new_home.ok("node", "rm", "--force", node["name"])
    until_gone(agent)
    done = new_home("up", "--detach")
    assert done.returncode == 1
    assert ", 1 node ready, " in done.stdout, "what runs is said all the same"
    (line,) = done.stderr.splitlines()
    folder = new_home.home / "agent-0"
    assert line.endswith(
        f"is not known to the controller any more: 'rota down', remove {folder}, "
        "and 'rota up' makes it a new node"
    )
    shutil.rmtree(folder)
    new_home.ok("up", "--detach")
    again = {each["name"]: each["id"] for each in new_home.json("node", "ls")["nodes"]}
    assert (len(again), again[node["name"]] != node["id"]) == (2, True)


def test_what_an_agent_declares_is_checked(cluster: Cluster) -> None:
    # Enrolled as one of the cluster's, so that nothing is left to be refused but this.
    done = cluster(
        *("agent", "--number", "0", "--memory", "2GBs", "--cpu", "x", "--resource", "power", "--label", "="),
        *("--map-user", "ada=no-such-account", "--scripts-dir", "/not/there", "--grace", "soon"),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "rota: --cpu: 'x' is not a number; try 2 or 0.5",
        "rota: --memory: '2GBs' is not a size; try 2GB or 2GiB",
        "rota: --resource: 'power' has no name and value; try power=100",
        "rota: --label: '=' has no name and value; try rack=7",
        "rota: --map-user: there is no account 'no-such-account' on this machine",
        "rota: --scripts-dir: there is no directory /not/there",
        "rota: --grace: 'soon' is not a duration; try 90s, 1h30m or 2d",
    ]
    # What the controller would refuse each time that the agent says it hides nothing, and is not hidden.
    wrong = ("--resource", "Power=3", "--label", "k=" + "x" * 300, "--memory", "2GBs")
    done = cluster("agent", "--number", "0", *wrong)
    assert [line.partition(": ")[2].partition(":")[0] for line in done.stderr.splitlines()] == [
        "--memory",
        "--label",
        "--resource",
    ]


# ---------------------------------------------------------------- parts die


def test_a_run_survives_controller_and_link(new_home: Cluster, tmp_path: Path) -> None:
    new_home.ok("up", "--detach")
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(Gate(tmp_path / name)) for name in "abc")
        script = f"echo 1; {first.wait}; echo 2; {second.wait}; echo 3; {third.wait}; exit 5"
        process = stack.enter_context(new_home.begin("run", "--", "sh", "-c", script))
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        kill(new_home.pid("controller"))
        first.open()
        new_home.ok("up", "--detach")
        assert process.stdout.readline() == b"2\n"
        kill(new_home.pid("link-0"))
        second.open()
        assert process.stdout.readline() == b"3\n"
        third.open()
        out, _ = process.communicate(timeout=CALL_S_MAX)
    assert (process.returncode, out) == (5, b"")


def test_up_starts_an_agent_that_was_killed_and_its_task_runs_again(new_home: Cluster, gate: Gate) -> None:
    new_home.ok("up", "--detach")
    script = f"echo $ROTA_ATTEMPT; {gate.wait}"
    with new_home.begin("run", "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        link = new_home.pid("link-0")
        kill(new_home.pid("agent-0"))
        until_gone(link)
        assert not [
            pid for pid in _all_pids() if script.encode() in _cmdline(pid)[:-1] and pid != process.pid
        ]
        gate.open()
        new_home.ok("up", "--detach")
        out, err = process.communicate(timeout=CALL_S_MAX)
    assert (process.returncode, out) == (0, b"2\n")
    assert err == b"rota: task 1/0 starts again, as attempt 2: attempt 1 ended by AGENT_ERROR\n"


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _cmdline(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def test_an_unreachable_controller_is_tried_again_for_a_while(new_home: Cluster) -> None:
    new_home.ok("up", "--detach", "--nodes", "0")
    kill(new_home.pid("controller"))
    context = load_context(new_home.home)
    with Client(context, patience_s=0.5) as rota:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="no controller answers at"):
            rota.cluster()
        assert 0.5 <= time.monotonic() - began < 5
    with new_home.begin("cluster", "info", "-o", "name") as process:
        new_home.ok("up", "--detach", "--nodes", "0")
        out, _ = process.communicate(timeout=CALL_S_MAX)
    assert process.returncode == 0
    assert len(out.strip()) == 36


def test_an_unreachable_controller_is_given_up_soon_if_it_was_stopped(new_home: Cluster) -> None:
    new_home.ok("up", "--detach", "--nodes", "0")
    kill(new_home.pid("controller"))
    for seconds_min, seconds_max in ((9.5, 15), (0.9, 5)):
        began = time.monotonic()
        done = new_home("ls")
        assert done.returncode == 5
        assert seconds_min < time.monotonic() - began < seconds_max
        (line,) = done.stderr.splitlines()
        assert line.endswith("(connection refused); is it running? 'rota up' starts it")
        # One that was stopped in good order is not waited for.
        new_home.ok("down")


def test_a_clients_home_is_left_to_its_cluster(new_home: Cluster, tmp_path: Path) -> None:
    new_home.ok("up", "--detach", "--nodes", "0")
    address = new_home.json("cluster", "info")["leader"]
    desk = tmp_path / "desk"
    shutil.copytree(new_home.home / "client", desk / "client")
    before = {file: file.read_bytes() for file in (desk / "client").iterdir()}
    done = new_home("up", "--detach", "--home", desk)
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"rota: {desk} is a client of the cluster at {address}; ")
    assert "--home" in line
    assert list(desk.iterdir()) == [desk / "client"]
    assert {file: file.read_bytes() for file in (desk / "client").iterdir()} == before
    new_home.ok("down")
    with Client(load_context(desk), patience_s=0.1) as rota, pytest.raises(Unreachable) as away:
        rota.cluster()
    assert f"no controller answers at {address}" in str(away.value)
    assert "rota up" not in str(away.value)

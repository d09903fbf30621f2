"""Tasks as real processes under a real supervisor: what they are given, and what is said of them."""

import json
import os
import pwd
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rota.core.model.columns import exited
from rota.core.model.protocol import Ended, Forget, Input, InputTaken, Stop
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.core.model.states import Cause, StopReason
from tests.shell.agent.harness import Agent, agent
from tests.support.files import until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
NOBODY = "nobody"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Agent]:
    with agent(tmp_path / "home", environment={"LANG": "C.UTF-8", "SECRET": "1"}) as made:
        yield made


def _failed(node: Agent, spec: JobSpec, allocation: int = 10, account: str = "") -> Ended:
    ended = node.run(spec, allocation=allocation, account=account)
    assert ended is not None
    return ended


# ---------------------------------------------------------------- ends


def test_success(node: Agent) -> None:
    assert node.run(JobSpec(command=("true",))) is None
    (report,) = [part for part in node.reports if part.exits.index]
    (one,) = exited(report.exits)
    assert abs(one.started_at_ms / 1000 - time.time()) < 3_600
    assert not (node.home / "out" / "10" / "10" / "0" / "0.1.out").exists(), "empty files are removed"


def test_exit_codes_and_signals(node: Agent) -> None:
    ended = _failed(node, JobSpec(command=("sh", "-c", "exit 41")))
    assert (ended.cause, ended.code, ended.started) == (Cause.EXIT, 41, True)
    ended = _failed(node, JobSpec(command=("sh", "-c", "kill -SEGV $$")), allocation=11)
    assert (ended.cause, ended.code) == (Cause.SIGNAL, signal.SIGSEGV)


def test_what_was_used_is_told(node: Agent) -> None:
    code = (
        "x = bytearray(60_000_000)\nimport time\nwhile time.process_time() < 0.2: pass\nraise SystemExit(1)"
    )
    ended = _failed(node, JobSpec(command=(sys.executable, "-S", "-c", code)))
    assert ended.duration_ms >= 200
    assert ended.cpu_user_ms + ended.cpu_system_ms >= 190
    assert 58_000 < ended.memory_peak_kib < 200_000


def test_a_time_limit(node: Agent) -> None:
    traps = 'trap "echo warned" USR1; trap "echo term; exit 9" TERM'
    script = f"{traps}; echo up; while :; do sleep 1000 & wait; done"
    spec = JobSpec(command=("sh", "-c", script), time_limit=700, signal="USR1@400ms", grace=5_000)
    ended = _failed(node, spec)
    assert (ended.cause, ended.code) == (Cause.TIME_LIMIT, 9)
    assert node.output() == "up\nwarned\nterm\n"
    assert 650 <= ended.duration_ms < 5_000


def test_two_thousand_times_true(node: Agent) -> None:
    node.grant(JobSpec(command=("/bin/true",)), ((0, 1_999),))
    node.until(lambda: len(node.succeeded) == 2_000)
    assert not node.ended


# ---------------------------------------------------------------- arguments, environment, files


def _seen(node: Agent, spec: JobSpec, index: int = 0, lines: tuple[str, ...] = ()) -> dict[str, object]:
    """What a task sees of itself."""
    code = (
        "import json,os,signal,sys\n"
        "fds = sorted(int(f) for f in os.listdir('/proc/self/fd'))\n"
        "fds = [f for f in fds if os.path.exists('/proc/self/fd/%d' % f)]\n"
        "status = dict(l.split(':', 1) for l in open('/proc/self/status'))\n"
        "json.dump(dict(argv=sys.argv[1:], env=dict(os.environ), cwd=os.getcwd(), fds=fds, uid=os.getuid(),\n"
        "  groups=os.getgroups(), sid=os.getsid(0) == os.getpid(), stdin=os.readlink('/proc/self/fd/0'),\n"
        "  blocked=status['SigBlk'].strip(), ignored=status['SigIgn'].strip()), sys.stdout)\n"
    )
    program = (sys.executable, "-S", "-E", "-c", code)
    node.grant(replace(spec, command=(*program, *spec.command)), ((index, index),), lines=lines)
    node.until(lambda: (10, index) in node.succeeded or (10, index) in node.ended)
    assert (10, index) in node.succeeded, node.ended
    seen = json.loads(node.output(index=index))
    assert isinstance(seen, dict)
    return seen


def test_the_environment_is_what_was_promised(node: Agent) -> None:
    spec = JobSpec(command=("a b", "{index}", "{line}", "{other}"), env=(("X", "1"), ("LANG", "C")))
    seen = _seen(node, spec, 1_007, ("the {index} line",))
    assert seen["argv"] == ["a b", "1007", "the {index} line", "{other}"]
    environment = seen["env"]
    assert isinstance(environment, dict)
    environment.pop("LC_CTYPE", None)
    assert environment == {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "USER": os.environ.get("USER", pwd.getpwuid(os.geteuid()).pw_name),
        "LANG": "C",
        "X": "1",
        "ROTA_JOB_ID": "10",
        "ROTA_TASK_INDEX": "1007",
        "ROTA_TASK_COUNT": "1008",
        "ROTA_ATTEMPT": "1",
        "ROTA_NODE_NAME": node.name,
        "ROTA_NODE_ID": node.node_id,
        "ROTA_LINE": "the {index} line",
    }


def test_an_agent_that_was_given_no_home_and_user_has_those_of_its_account(tmp_path: Path) -> None:
    with agent(tmp_path / "home", prefix=("env", "-u", "HOME", "-u", "USER")) as node:
        assert node.run(JobSpec(command=("sh", "-c", 'echo "$HOME $USER"'))) is None
        account = pwd.getpwuid(os.geteuid())
        assert node.output() == f"{account.pw_dir} {account.pw_name}\n"


def test_a_task_begins_with_nothing_of_the_agents(node: Agent, tmp_path: Path) -> None:
    seen = _seen(node, JobSpec(cwd=str(tmp_path)))
    assert seen["fds"] == [0, 1, 2]
    assert seen["cwd"] == str(tmp_path)
    assert seen["stdin"] == "/dev/null"
    assert seen["sid"] is True
    assert (seen["blocked"], seen["argv"]) == ("0" * 16, [])
    # What Python itself ignores, SIGPIPE (13) and SIGXFSZ (25), and the C library, 32 and 33.
    assert int(str(seen["ignored"]), 16) & ~sum(1 << number - 1 for number in (13, 25, 32, 33)) == 0


def test_output_goes_where_it_was_asked(node: Agent, tmp_path: Path) -> None:
    spec = JobSpec(
        command=("sh", "-c", "echo out; echo err >&2"),
        cwd=str(tmp_path),
        stdout="to-{index}.txt",
        stderr="none",
    )
    assert node.run(spec) is None
    assert (tmp_path / "to-0.txt").read_text() == "out\n"
    assert node.run(JobSpec(command=("sh", "-c", "echo out; echo err >&2")), allocation=11) is None
    assert node.output(11) == "out\n"
    assert node.output(11, stream="err") == "err\n"


def test_a_task_is_told_which_gpus_are_its_own(node: Agent) -> None:
    node.lease(lease=2, shape=Resources(cpu=1000, gpu=2000), devices=("GPU-a", "GPU-b"))
    show = ("sh", "-c", 'echo "$ROTA_GPUS; ${CUDA_VISIBLE_DEVICES-not said}"')
    node.grant(JobSpec(command=show), lease=2)
    node.until(lambda: (10, 0) in node.succeeded)
    assert node.output() == "GPU-a,GPU-b; GPU-a,GPU-b\n"
    # Whatever the job says.
    node.grant(JobSpec(command=show, env=(("CUDA_VISIBLE_DEVICES", "7"),)), allocation=13, lease=2)
    node.until(lambda: (13, 0) in node.succeeded)
    assert node.output(13) == "GPU-a,GPU-b; GPU-a,GPU-b\n"
    # Where there are none nothing is said, and a job may say it itself.
    assert node.run(JobSpec(command=show), allocation=11) is None
    assert node.output(11) == "; not said\n"
    assert node.run(JobSpec(command=show, env=(("CUDA_VISIBLE_DEVICES", "7"),)), allocation=12) is None
    assert node.output(12) == "; 7\n"


def test_a_script_runs_by_its_first_line(node: Agent) -> None:
    script = f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n"
    assert node.run(JobSpec(script=script, command=("x", "{index}"))) is None
    assert node.output() == "['x', '0']\n"
    assert node.run(JobSpec(script='echo "$0: $1"', command=("y",)), allocation=11) is None
    assert node.output(11) == f"{node.home}/scripts/11.1/script: y\n"
    # It is called as the job is.
    assert node.run(JobSpec(name="count.sh", script='basename "$0"'), allocation=12) is None
    assert node.output(12) == "count.sh\n"
    node.down(Forget((12,)))
    scripts = node.home / "scripts"
    until(lambda: not (scripts / "12.1").exists(), "it was not deleted", scripts)


def test_a_path_is_one_more_argument(node: Agent, tmp_path: Path) -> None:
    (tmp_path / "count.sh").write_text("echo counted\n")
    assert node.run(JobSpec(command=("bash",), path="count.sh", cwd=str(tmp_path))) is None
    assert node.output() == "counted\n"


def test_input_reaches_the_task_as_it_comes(node: Agent) -> None:
    node.grant(JobSpec(command=("cat",), stdin=True))
    text = os.urandom(300_000).hex()
    data = text.encode()
    node.until(lambda: (10, 0) in node.started)
    for offset in range(0, len(data), 100_000):
        node.down(Input(10, 0, offset, data[offset : offset + 100_000], False))
        # A piece may come twice, and a later one too early.
        node.down(Input(10, 0, offset, data[offset : offset + 100_000], False))
        node.down(Input(10, 0, offset + 500_000, b"x", False))
    node.down(Input(10, 0, len(data), b"", True))
    node.until(lambda: (10, 0) in node.succeeded)
    assert node.output() == text
    assert not list(node.home.glob("out/10/10/0/*.in*"))


def test_input_may_come_before_the_task_and_need_not_be_read(node: Agent) -> None:
    node.grant(JobSpec(command=("sleep", "1000")), ((0, 1),))
    node.grant(JobSpec(command=("true",), stdin=True), allocation=11)
    node.down(Input(11, 0, 0, b"y" * 200_000, True))
    node.down(Stop(10, 1, (), StopReason.CANCEL, 0))
    node.until(lambda: (11, 0) in node.succeeded)


def test_input_that_cannot_be_read_ends_the_task(node: Agent, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    gate = os.open(tmp_path / "gate", os.O_RDWR)
    node.grant(JobSpec(command=("sh", "-c", "read x < gate; exec cat"), cwd=str(tmp_path), stdin=True))
    # More than its pipe holds.
    node.down(Input(10, 0, 0, b"y" * 200_000, True))
    node.until(lambda: InputTaken(10, 0, 200_000, True, False) in node.said)
    (spool,) = node.home.glob("out/10/10/0/*.in")
    os.truncate(spool, 0)
    os.write(gate, b"\n")
    ended = node.until(lambda: node.ended.get((10, 0)))
    os.close(gate)
    assert (ended.cause, ended.started) == (Cause.AGENT_ERROR, True)
    assert ended.message == "its standard input cannot be read on the node: it is shorter than it was"


def test_input_that_cannot_be_kept_ends_the_task(node: Agent) -> None:
    node.grant(JobSpec(command=("cat",), stdin=True))
    node.until(lambda: (10, 0) in node.started)
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
    for number in range(3):
        node.down(Input(10, 0, number * 100_000, b"y" * 100_000, False))
    ended = node.until(lambda: node.ended.get((10, 0)))
    assert (ended.cause, ended.started) == (Cause.AGENT_ERROR, True)
    assert ended.message == "its standard input could not be kept on the node: File too large"


def test_output_that_is_lost_is_said_of_the_task_and_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with agent(tmp_path / "home") as node:
        (node.home / "out").mkdir(exist_ok=True)
        (node.home / "out" / "10").touch()
        node.grant(JobSpec(command=("echo", "hello")))
        node.until(lambda: (10, 0) in node.succeeded)
        (ended,) = node.reports[-1].ended
    lost = f"its output is lost, {node.home}/out/10/10/0/0.1.out cannot be made: Not a directory"
    assert ended.message == lost
    assert f"task 0 of allocation 10: {lost}" in capfd.readouterr().err


# ---------------------------------------------------------------- what cannot be started


def test_what_is_missing_is_named(node: Agent, tmp_path: Path) -> None:
    ended = _failed(node, JobSpec(command=("true",), cwd="/not/there"))
    assert (ended.cause, ended.started) == (Cause.START_FAILED, False)
    assert ended.message == f"no directory /not/there on node {node.name}"
    ended = _failed(node, JobSpec(command=("no-such-program",), env=(("PATH", "/bin"),)), allocation=11)
    assert ended.message == f"no program 'no-such-program' on node {node.name}; looked in /bin"
    ended = _failed(node, JobSpec(command=("./there",), cwd=str(tmp_path)), allocation=12)
    assert ended.message == f"no program ./there on node {node.name}, seen from " + str(tmp_path)
    (tmp_path / "plain").write_text("text")
    ended = _failed(node, JobSpec(command=("./plain",), cwd=str(tmp_path)), allocation=13)
    assert ended.message == f"./plain on node {node.name} is not executable; try: chmod +x {tmp_path}/plain"
    (tmp_path / "plain").chmod(0o755)
    ended = _failed(node, JobSpec(command=("./plain",), cwd=str(tmp_path)), allocation=14)
    assert ended.message == f"./plain on node {node.name} is no program: it has no #! line"
    (tmp_path / "plain").write_text("#!/not/there\n")
    ended = _failed(node, JobSpec(command=("./plain",), cwd=str(tmp_path)), allocation=15)
    assert ended.message == (
        f"./plain on node {node.name} names the interpreter /not/there in its #! line, which is not there"
    )
    ended = _failed(node, JobSpec(command=("true",), stdout="/not/there/x"), allocation=16)
    assert ended.message == f"cannot use /not/there/x on node {node.name}: No such file or directory"
    ended = _failed(node, JobSpec(command=("true", "x" * 200_000)), allocation=17)
    assert ended.message == f"arguments and environment are too large for /usr/bin/true on node {node.name}"
    ended = _failed(node, JobSpec(name="w.sh", script="#!/bin/sh\r\necho x\r\n"), allocation=18)
    assert ended.message == (
        f"w.sh on node {node.name} has Windows line ends, so its #! line names no interpreter; "
        "try: sed -i 's/\\r$//'"
    )
    ended = _failed(node, JobSpec(command=("true",), cwd=str(tmp_path / "plain")), allocation=19)
    assert ended.message == f"{tmp_path}/plain on node {node.name} is no directory"
    ended = _failed(node, JobSpec(command=("..",), cwd=str(tmp_path)), allocation=20)
    assert ended.message.startswith(f"no program '..' on node {node.name}; looked in ")
    ended = _failed(node, JobSpec(command=("./..",), cwd=str(tmp_path)), allocation=21)
    assert ended.message == f"./.. on node {node.name} is a directory"
    ended = _failed(node, JobSpec(command=("plain-2",), cwd=str(tmp_path)), allocation=22)
    assert "there is a" not in ended.message
    (tmp_path / "plain-2").write_bytes(b"\x7fELF, or not")
    ended = _failed(node, JobSpec(command=("plain-2",), cwd=str(tmp_path)), allocation=23)
    assert ended.message.endswith(f"; there is a ./plain-2 in {tmp_path}")
    (tmp_path / "plain-2").chmod(0o755)
    ended = _failed(node, JobSpec(command=("./plain-2",), cwd=str(tmp_path)), allocation=24)
    assert ended.message == f"./plain-2 on node {node.name} is no program for this machine, or damaged"


def test_an_agent_for_scripts_runs_nothing_else(tmp_path: Path) -> None:
    allowed = tmp_path / "scripts"
    allowed.mkdir()
    (allowed / "in.sh").write_text("#!/bin/sh\necho in\n")
    (allowed / "in.sh").chmod(0o755)
    (tmp_path / "out.sh").write_text("echo out\n")
    (allowed / "link.sh").symlink_to(tmp_path / "out.sh")
    (allowed / "round").symlink_to("round")
    (tmp_path / "sh").write_text("#!/bin/sh\necho another\n")
    (tmp_path / "sh").chmod(0o755)
    with agent(tmp_path / "home", "--scripts-dir", str(allowed)) as node:
        cwd = str(allowed)
        shell = shutil.which("sh") or "sh"
        assert node.run(JobSpec(command=("sh",), path="in.sh", cwd=cwd)) is None
        assert node.run(JobSpec(command=("./in.sh", "x"), cwd=cwd), allocation=11) is None
        assert node.run(JobSpec(command=(shell,), path="in.sh", cwd=cwd), allocation=12) is None
        env = (("COLOUR", "blue"), ("MY_PATH", "/x"), ("PATHS", "x"))
        assert node.run(JobSpec(path="./in.sh", cwd=cwd, env=env), allocation=13) is None
        wrong = [
            JobSpec(command=("sh",), path="in.sh", cwd=cwd, env=(("PATH", f"{tmp_path}:/bin"),)),
            JobSpec(command=("../sh",), path="in.sh", cwd=cwd),
            JobSpec(command=(f"/bin/../{tmp_path}/sh",), path="in.sh", cwd=cwd),
            JobSpec(command=("true",), cwd=cwd),
            JobSpec(command=("sh",), path="link.sh", cwd=cwd),
            JobSpec(command=("sh",), path="../out.sh", cwd=cwd),
            JobSpec(command=("sh",), path="scripts/../out.sh", cwd=str(tmp_path)),
            JobSpec(command=("sh", "-c", "echo x"), cwd=cwd),
            JobSpec(command=("sh", "-c"), path="in.sh", cwd=cwd),
            JobSpec(script="echo x", cwd=cwd),
            JobSpec(command=("sh",), path="round", cwd=cwd),
            JobSpec(command=("env",), path="id", cwd=cwd),
            JobSpec(command=(sys.executable,), path="-cprint('x')", cwd=cwd),
            *(
                JobSpec(command=("./in.sh",), cwd=cwd, env=((name, "x"),))
                for name in ("BASH_ENV", "BASH_FUNC_ls%%", "LD_PRELOAD", "PS4", "PYTHONPATH", "HOME")
            ),
        ]
        for number, spec in enumerate(wrong, 14):
            ended = _failed(node, spec, allocation=number)
            assert ended.cause == Cause.START_FAILED, spec
            assert str(allowed) in ended.message


# ---------------------------------------------------------------- other users


@as_root
def test_a_task_of_another_user(node: Agent) -> None:
    account = pwd.getpwnam(NOBODY)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        _as_nobody(node, Path(folder), account)


def _as_nobody(node: Agent, folder: Path, account: pwd.struct_passwd) -> None:
    script = "#!/bin/sh\nid -un; id -G; echo $HOME $USER; echo $1; ls -l /proc/$$/fd | wc -l\n"
    spec = JobSpec(script=script, command=("{index}",), cwd="/", stderr=str(folder / "err"))
    assert node.run(spec, account=NOBODY) is None
    lines = node.output().splitlines()
    assert lines[:4] == [NOBODY, str(account.pw_gid), f"{account.pw_dir} {NOBODY}", "0"]
    assert (folder / "err").stat().st_uid == account.pw_uid
    ended = _failed(node, JobSpec(command=("true",), cwd="/root"), allocation=11, account=NOBODY)
    assert ended.message == f"cannot use /root on node {node.name}: Permission denied"
    ended = _failed(node, JobSpec(command=("true",), cwd="/no"), allocation=12, account=NOBODY)
    assert ended.message == f"no directory /no on node {node.name}"
    ended = _failed(
        node, JobSpec(command=("true",), stdout="/root/x", cwd="/"), allocation=13, account=NOBODY
    )
    assert ended.message == f"cannot use /root/x on node {node.name}: Permission denied"
    ended = _failed(node, JobSpec(command=("true",)), allocation=14, account="no-such-user")
    assert ended.message.startswith(f"no account 'no-such-user' on node {node.name}")
    ended = _failed(
        node, JobSpec(command=("sleep", "1000"), time_limit=100, cwd="/"), allocation=15, account=NOBODY
    )
    assert ended.cause == Cause.TIME_LIMIT


@as_root
def test_users_are_mapped(tmp_path: Path) -> None:
    with agent(tmp_path / "home", "--map-user", f"alice={NOBODY}") as node:
        assert node.run(JobSpec(command=("id", "-un"), cwd="/"), account="alice") is None
        assert node.output() == f"{NOBODY}\n"

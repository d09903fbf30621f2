"""Errors: one line that says what to do, an exit code that says whose turn it is, never a traceback."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest

from rota.cli import jobs
from rota.cli.app import INSTEAD
from rota.main.cli import root
from tests.cli.conftest import Rota

NO_TASK = "is no job and no task; try 42, 42/7 or 42/0-9"
NO_TASK_SHOWN = "is no job and no task; try 42 or 42/7"
NO_JOB = "is not the number of a job; 'rota ls' lists jobs"


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("", ["lss"], "there is no command 'lss'; did you mean 'ls'?"),
        ("", ["xyzzy"], "there is no command 'xyzzy'"),
        ("", ["version"], "there is no command 'version'; try: rota --version"),
        ("", ["ps"], "there is no command 'ps'; try: rota ls"),
        ("", ["top"], "there is no command 'top'; try: rota ls --state running"),
        ("", ["status"], "there is no command 'status'; try: rota cluster info"),
        ("", ["help", "nothing"], "there is no command 'nothing'"),
        ("node", ["cordn", "a"], "there is no command 'cordn'; did you mean 'cordon'?"),
        ("node", ["uncordon", "a"], "there is no command 'uncordon'; try: rota node resume"),
        ("node", ["delete", "a"], "there is no command 'delete'; try: rota node rm"),
        ("", ["x" * 3000], f"there is no command '{'x' * 61}...'"),
        ("run", ["--test-only", "a"], "there is no option '--test-only'"),
        (
            "run",
            ["--exclusive", "a"],
            (
                "there is no option '--exclusive'; "
                "a task that asks for all cores of a node (--cpu) is alone there"
            ),
        ),
        ("run", ["--cpus", "2"], "there is no option '--cpus'; did you mean '--cpu'?"),
        ("run", [], "what shall run? try: rota run -- echo hello"),
        (
            "run",
            ["-n", "4", "--", "a"],
            "-n means --no-stdin and takes no number; for 4 tasks try --array 0-3",
        ),
        ("run", ["--mem", "4G"], "there is no option '--mem'; Slurm's '--mem' is '--memory' here"),
        (
            "submit",
            ["--wrap", "echo hi"],
            "there is no option '--wrap'; Slurm's '--wrap \"CMD\"' is '-- sh -c \"CMD\"' here",
        ),
        ("run", ["-A", "a"], "there is no option '-A'; Slurm's '-A' is '--queue or --label' here"),
        ("submit", ["-N", "2"], "there is no option '-N'; a task runs on one node; --array makes many tasks"),
        (
            "submit",
            ["-o", "out"],
            (
                "invalid value for '-o' / '--output': 'out' is not one of 'table', 'wide', 'json', 'yaml',"
                " 'name'; a file for what the tasks print is --stdout"
            ),
        ),
        (
            "submit",
            ["a.yaml", "b.yaml"],
            "one job file at a time: submit a.yaml first; or one file can hold the jobs of all",
        ),
        (
            "token create",
            ["--ttl", "0s"],
            "invalid value for '--ttl': a token that is good for no time lets nobody join; try 15m",
        ),
        (
            "queue update",
            ["a"],
            "what shall change? give --weight, --quota, --priority-min or --priority-max",
        ),
        ("ls", ["--json"], "there is no option '--json'; try: -o json"),
        ("ls", ["--all"], "there is no option '--all'; try: --limit 0"),
        ("wait", ["--all"], "there is no option '--all'"),
        ("logs", ["-n", "3", "1"], "there is no option '-n'; try: --tail"),
        ("run", ["--detach", "a"], "there is no option '--detach'; try: rota submit"),
        ("submit", ["--timeout", "3s"], "there is no option '--timeout'; try: --time-limit"),
        ("submit", ["-p", "x"], "there is no option '-p'; Slurm's '-p' is '--queue' here"),
        ("submit", [], "what shall run? try 'rota submit -- COMMAND' or 'rota submit FILE'"),
        ("show", ["4x"], f"invalid value for 'ID[/INDEX]': '4x' {NO_TASK_SHOWN}"),
        ("show", ["0"], f"invalid value for 'ID[/INDEX]': '0' {NO_TASK_SHOWN}"),
        ("show", ["4/1-2"], "show takes a job or one task; try 'rota show 4'"),
        ("cancel", ["4/"], f"invalid value for 'ID[/TASKS]...': '4/' {NO_TASK}"),
        ("hold", ["9" * 30], f"invalid value for 'ID...': '{'9' * 30}' {NO_JOB}"),
        ("wait", ["--timeout", "90", "1"], "invalid value for '--timeout': '90' has no unit; try 90s"),
        ("ls", ["--label", "a"], "'a' is no label; try --label team=video"),
        ("node label", ["a", "b"], "'b' is no label; try disk=ssd, or disk=- to remove it"),
        ("ls", ["--queue", ""], "--queue is empty; give a value, or leave the option out"),
        (
            "run",
            ["--idempotency-key", "", "a"],
            "--idempotency-key is empty; give a value, or leave the option out",
        ),
        ("queue update", [""], "'NAME' is empty; give a value"),
        ("node cordon", ["a", " "], "'NAME...' is empty; give a value"),
        ("token revoke", [""], "'ID...' is empty; give a value"),
        ("events", ["--node", ""], "--node is empty; give a value, or leave the option out"),
        ("agent", ["--name", ""], "--name is empty; give a value, or leave the option out"),
        (
            "agent",
            ["--label", "a=b", "--label", ""],
            "--label is empty; give a value, or leave the option out",
        ),
        (
            "up",
            ["--lost-after", "4s"],
            "invalid value for '--lost-after': at least 5s is needed: healthy nodes would seem silent",
        ),
        ("up", ["--home", ""], "--home is empty; give a value, or leave the option out"),
        ("", ["--home", "", "ls"], "--home is empty; give a value, or leave the option out"),
        ("token create", ["--uses", ""], "invalid value for '--uses': '' is no number"),
        ("queue create", ["a", "--quota", "x"], "'x' is no quota; try --quota cpu=64"),
        (
            "completion",
            ["tcsh"],
            "invalid value for '{bash|zsh|fish}': 'tcsh' is not one of 'bash', 'zsh', 'fish'",
        ),
    ],
)
def test_a_mistake_is_answered_with_one_line(
    command: str, arguments: list[str], says: str, rota: Rota
) -> None:
    answer = rota(*command.split(), *arguments)
    assert answer.code == 2
    assert answer.out == ""
    path = f"rota {command}".strip()
    assert answer.lines == [f"{path}: {says} (see '{path} --help')"]


def test_a_quota_that_is_no_amount_is_refused(rota: Rota) -> None:
    answer = rota("queue", "create", "a", "--quota", "memory=2GBs")
    assert answer.code == 2
    assert answer.lines == ["rota: --quota memory: '2GBs' is not a size; try 2GB or 2GiB"]


def test_what_people_try_leads_to_commands_that_there_are() -> None:
    for said in INSTEAD.values():
        first, *rest = said.split(",")[0].split()
        assert first.startswith("--") or first in root.entries, said
        if rest and not rest[0].startswith("-"):
            group = root.get_command(click.Context(root), first)
            assert isinstance(group, click.Group)
            assert rest[0] in group.list_commands(click.Context(group))


def test_slurms_way_to_limit_an_array_is_answered_with_the_option(rota: Rota) -> None:
    answer = rota("submit", "--array", "1-10%2", "--", "true")
    assert answer.code == 2
    says = "'1-10%2' is how Slurm says it; here it is --array 1-10 --max-running 2"
    assert answer.lines == [f"rota: --array: {says}"]


def test_lines_for_slurm_are_counted(rota: Rota) -> None:
    Path("job.sh").write_text("#!/bin/sh\n#SBATCH -n 1\n#SBATCH --mem=1\ntrue\n")
    answer = rota("submit", "job.sh")
    says = "2 #SBATCH lines not read; '#ROTA' lines are, see docs/guides/from-slurm.md"
    assert answer.lines[0] == f"rota: job.sh: {says}"


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize(
    ("options", "shared"),
    [
        (["--array", "0-1", "--stdout", "all.txt"], ["stdout to all.txt"]),
        (["--array", "0-1", "--stdout", "{line}", "--stderr", "e"], ["stdout to {line}", "stderr to e"]),
        (["--array", "0-1", "--stdout", "{index}.txt", "--stderr", "none"], []),
        (["--array", "0-1", "--stdout", "/dev/null"], []),
        (["--array", "7", "--stdout", "all.txt"], []),
        (["--stdout", "all.txt"], []),
        (["--each-line", "lines", "--stdout", "{line}.txt", "--stderr", "e"], ["stderr to e"]),
    ],
)
def test_a_file_that_all_tasks_write_to_is_named(
    options: list[str], shared: list[str], command: str, rota: Rota
) -> None:
    Path("lines").write_text("a\nb\n")
    *said, no_cluster = rota(command, *options, "--", "true").lines
    assert said == [
        f"rota: every task writes its {file}; with {{index}} in it each has its own" for file in shared
    ]
    assert "there is no cluster" in no_cluster


def test_a_file_that_all_tasks_of_a_job_files_job_write_to_is_named(rota: Rota) -> None:
    Path("jobs.yaml").write_text("jobs: [{name: a, command: [x], array: 0-1, stdout: all.txt}]\n")
    says = "job a: every task writes its stdout to all.txt; with {index} in it each has its own"
    assert rota("submit", "jobs.yaml").lines[0] == f"rota: {says}"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["run", "--", "echo", "caf\udce9"], "COMMAND: "),
        (["submit", "--name", "caf\udce9", "--", "true"], "--name: "),
        (["run", "--env", "A=caf\udce9", "--", "true"], "--env A: "),
        (["run", "--env", "TAKEN", "--", "true"], "--env: "),
    ],
)
def test_what_is_no_text_is_refused(
    arguments: list[str], what: str, rota: Rota, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAKEN", "caf\udce9")
    answer = rota(*arguments)
    assert (answer.code, answer.lines) == (
        2,
        [f"rota: {what}'caf\\xe9' is not UTF-8 text; Rota takes no other"],
    )


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["run", "--", "true"], ", or give --cwd DIR"),
        (["submit", "--", "true"], ", or give --cwd DIR"),
        (["--home", "relative", "ls"], ""),
    ],
)
def test_a_directory_that_has_been_removed_is_said_to_be(
    arguments: list[str], hint: str, rota: Rota, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    answer = rota(*arguments)
    says = "the current directory has been removed: change to another one"
    assert (answer.code, answer.lines) == (2, [f"rota: {says}{hint}"])
    assert rota("run", "--cwd", "/", "--", "true").code == 5, "nothing but the cluster is missing"


def test_without_a_cluster_it_says_how_to_start_one(rota: Rota, tmp_path: Path) -> None:
    answer = rota("ls")
    assert answer.code == 5
    assert answer.lines == [f"rota: there is no cluster in {tmp_path / 'home'}; start one with: rota up"]


def test_the_option_home_comes_before_the_variable(rota: Rota, tmp_path: Path) -> None:
    answer = rota("--home", str(tmp_path / "other"), "ls")
    assert answer.lines == [f"rota: there is no cluster in {tmp_path / 'other'}; start one with: rota up"]


RENEWED_BY = {
    "tls": "the controller writes it anew when it starts: 'rota down', then 'rota up'",
    "": "copy the folder 'client' of the controller's home into this one again",
}


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"address": "a"}', "\0", "nonsense"])
@pytest.mark.parametrize("controllers", RENEWED_BY)
def test_a_damaged_context_is_said_to_be_damaged(
    text: str, controllers: str, rota: Rota, tmp_path: Path
) -> None:
    folder = tmp_path / "home" / "client"
    folder.mkdir(parents=True)
    (tmp_path / "home" / controllers).mkdir(exist_ok=True)
    (folder / "context.json").write_text(text)
    answer = rota("ls")
    assert answer.code == 5
    assert answer.lines == [f"rota: {folder / 'context.json'} is damaged; {RENEWED_BY[controllers]}"]


def test_a_key_that_is_missing_is_named(rota: Rota, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "client"
    folder.mkdir(parents=True)
    (folder / "context.json").write_text(
        '{"address": "127.0.0.1:1", "cluster": "c", "user": "u", "ca": "ca", "cert": "cert", "key": "key"}'
    )
    answer = rota("ls")
    assert answer.code == 5
    says = f"cannot be read: No such file or directory; {RENEWED_BY['']}"
    assert answer.lines == [f"rota: {folder / 'ca'} {says}"]


def test_a_bug_is_one_line_and_a_file(rota: Rota, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(jobs, "client", lambda: 1 // 0)
    monkeypatch.setattr("sys.argv", ["rota", "caf\udce9"])
    answer = rota("ls")
    assert answer.code == 1
    (line,) = answer.lines
    assert line.startswith("rota: this is a bug in Rota (ZeroDivisionError: ")
    (file,) = tmp_path.glob("rota-bug-*.txt")
    assert line.endswith(str(file))
    assert "Traceback" in file.read_text()


def test_a_bug_shows_its_traceback_when_asked(rota: Rota, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROTA_DEBUG", "1")
    monkeypatch.setattr(jobs, "client", lambda: 1 // 0)
    assert "Traceback" in rota("ls").err


def test_ctrl_c_is_exit_code_130(rota: Rota, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "client", interrupted)
    assert rota("ls").code == 130


STOP_AT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == os.environ["STOP_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    "module", ["rota", "click", "rota.cli.app", "rota.cli.jobs", "google.protobuf", "grpc"]
)
def test_ctrl_c_while_it_starts_ends_it_and_says_nothing(module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STOP_AT)
    program = Path(sys.executable).parent / "rota"
    done = subprocess.run(
        [program, "ls"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "STOP_AT": module, "ROTA_HOME": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("rota --version >&-", 1, "rota: cannot write to standard output: Bad file descriptor\n"),
        ("rota --version > /dev/full", 1, "rota: cannot write to standard output: No space left on device\n"),
        ("rota --version <&- 2>&- > /dev/null", 0, ""),
        ("rota lss 2>&-", 2, ""),
        ("rota lss 2> /dev/full", 2, ""),
        ("rota ls <&- >&- 2>&-", 5, ""),
        ("{ rota sim check --help; echo $? >&2; } | :", 0, "141\n"),
    ],
)
def test_streams_that_are_closed_or_full_change_no_more_than_what_is_read(
    command: str, code: int, says: str, tmp_path: Path
) -> None:
    folder = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "ROTA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", says)


def test_a_home_of_nobody_is_said_to_be(rota: Rota, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "~nobody-here/x: there is no account 'nobody-here' with a home directory"
    for arguments in (["ls"], ["up", "--home", "~nobody-here/x"], ["up", "--scripts-dir", "~nobody-here/x"]):
        monkeypatch.setenv("ROTA_HOME", "~nobody-here/x")
        answer = rota(*arguments)
        assert (answer.code, answer.lines) == (2, [f"rota: {says}"])

    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("ROTA_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    answer = rota("ls")
    says = "HOME is not set, and this account has no home directory; name one with --home or ROTA_HOME"
    assert (answer.code, answer.lines) == (2, [f"rota: {says}"])


def test_the_environment_is_left_alone_by_a_plain_call(rota: Rota, tmp_path: Path) -> None:
    rota("ls")
    assert os.environ["ROTA_HOME"] == str(tmp_path / "home")

"""Jobs that are refused before anybody is asked: exit 2, every problem in a line with its place."""

import os
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rota.cli.job_options import OPTIONS, job_options
from rota.cli.origins import Origins
from rota.client.messages import JobSpec, Resources
from tests.cli.conftest import Rota


def test_all_wrong_options_are_named_at_once(rota: Rota) -> None:
    answer = rota(
        "run", "--memory", "2GBs", "--cpu", "x", "--array", "5-3", "--retries", "-1",
        "--time-limit", "90", "--signal", "FOO", "--on-node-loss", "panic", "--", "true",
    )  # fmt: skip
    assert answer.code == 2
    assert answer.lines == [
        "rota: --cpu: 'x' is not a number; try 2 or 0.5",
        "rota: --memory: '2GBs' is not a size; try 2GB or 2GiB",
        "rota: --time-limit: '90' has no unit; try 90s",
        "rota: --retries: '-1' is negative; the least is 0",
        "rota: --on-node-loss: 'panic' is not known; try one of rerun, rerun_fenced, hold, cancel",
        "rota: --array: '5-3' is upside down; try 3-5",
        "rota: --signal: 'FOO' is not a signal; try TERM or USR1@60s",
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--cpu", "x", "--priority", "5000"], ["--cpu", "--priority"]),
        (["--after", "41:ok", "--after", "abc"], ["--after", "--after"]),
        (["--env", "TAKEN", "--env", "1=2", "--env", "A=\udcff"], ["--env", "--env A", "--env"]),
        (["--label", "x", "--label", "B b=1"], ["--label", "--label"]),
        # What follows from another mistake is left out.
        (["--time-limit", "5", "--signal", "USR1@60s"], ["--time-limit"]),
        (["--array", "0-9%2", "--each-line", "two"], ["--array"]),
        (["--each-line", "missing", "--array", "0-9"], ["--each-line"]),
    ],
)
def test_one_wrong_option_hides_no_other(
    arguments: list[str], named: list[str], rota: Rota, tmp_path: Path
) -> None:
    (tmp_path / "two").write_text("a\nb\n")
    answer = rota("submit", *arguments, "--", "true")
    assert answer.code == 2
    assert [line.split(": ")[1] for line in answer.lines] == named


def test_a_command_that_is_no_text_is_not_said_to_be_missing(rota: Rota) -> None:
    answer = rota("submit", "--priority", "5000", "--", "\udcff")
    assert [line.split(": ")[1] for line in answer.lines] == ["COMMAND", "--priority"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--array", "5-3"], "rota: --array: '5-3' is upside down; try 3-5"),
        (["--array", "0-4999999"], "rota: --array: '0-4999999' is 5,000,000 tasks; at most 4,000,000"),
        (
            ["--name", "-a"],
            "rota: --name: '-a' is not allowed; use letters, digits, '_', '.' and '-', beginning",
        ),
        (["--signal", "TERM@60s"], "rota: --signal: "),
        (["--resource", "power"], "rota: --resource: 'power' has no name and value; try power=10"),
        (["--resource", "cpu=2"], "rota: --resource: 'cpu=2' has an option of its own: --cpu 2"),
        (["--resource", "Power=2"], "rota: --resource: "),
        (
            ["--env", "ROTA_TEST_NOT_SET"],
            "rota: --env: 'ROTA_TEST_NOT_SET' is not set here; give a value, as in --env ROTA_TEST_NOT_SET=1",
        ),
        (
            ["--env", "ROTA_JOB_ID=7"],
            "rota: --env: 'ROTA_JOB_ID' is set by Rota itself for each task; give yours another name",
        ),
        (["--memory", "4"], "rota: --memory: '4' is not a size; try 4GB or 4GiB"),
        (["--env", "1=2"], "rota: --env: '1' is no name for it; use letters, digits and '_', no digit first"),
        (["--after", "41:soon"], "rota: --after: '41:soon' is no dependency; try 41:finished"),
        (["--after", "afterok:41"], "rota: --after: 'afterok:41' is no dependency; here it is --after 41"),
        (
            ["--after", "afternotok:4:5"],
            "rota: --after: 'afternotok:4:5' is no dependency; here it is --after 4:failed --after 5:failed",
        ),
        (["--after", "41:ok"], "rota: --after: '41:ok' is no dependency; here it is --after 41"),
        (["--after", "41,42"], "rota: --after: '41,42' is no dependency; here it is --after 41 --after 42"),
        (
            ["--stdout", "slurm-%A_%a.out"],
            "rota: --stdout: 'slurm-%A_%a.out' is how Slurm says it; here it is slurm-{index}.out",
        ),
        (
            ["--stderr", "%j.err"],
            "rota: --stderr: '%j.err' is how Slurm says it; here it is a path without it",
        ),
        (["--after", "other"], "rota: --after: "),
        (["--array", ""], "rota: --array: is empty; give a value, or leave the option out"),
        (["--node", " "], "rota: --node: is empty; give a value, or leave the option out"),
        (["--after", ""], "rota: --after: is empty; give a value, or leave the option out"),
        (["--each-line", ""], "rota: --each-line: is empty; give a value, or leave the option out"),
        (["--resource", "power=-1"], "rota: --resource power: '-1' is negative; the least is 0"),
        (["--label", "x"], "rota: --label: 'x' has no name and value; try team=video"),
        (["--priority", "5000"], "rota: --priority: '5000' is too large; the most is 1000"),
        (["--retries", "9" * 25], f"rota: --retries: '{'9' * 25}' is not a whole number"),
        (
            ["--each-line", "missing.txt"],
            "rota: --each-line: missing.txt cannot be read: No such file or directory",
        ),
    ],
)
def test_an_option_is_refused_by_its_own_name(arguments: list[str], line: str, rota: Rota) -> None:
    answer = rota("submit", *arguments, "--", "true")
    assert answer.code == 2
    (said,) = answer.lines
    assert said.startswith(line)


def test_a_command_that_is_empty_is_refused(rota: Rota) -> None:
    answer = rota("submit", "--", "")
    assert answer.code == 2
    assert answer.lines == ["rota: COMMAND: is empty; a command begins with the name of a program"]


def test_what_is_fed_cannot_be_tried_again(rota: Rota, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rota.cli.stdin.is_given", lambda: True)
    answer = rota("run", "--retries", "2", "--", "cat")
    says = "another attempt could not read standard input, which is gone then; '-n' leaves it out"
    assert (answer.code, answer.lines) == (2, [f"rota: --retries: {says}"])
    assert rota("run", "--retries", "2", "-n", "--", "cat").code == 5, "nothing but the cluster is missing"


# What no option says: no services are run yet.
_WITHOUT_OPTION = {"kind", "replicas", "stdin"}


def test_every_field_of_a_job_is_known_by_its_option() -> None:
    @click.command()
    @job_options
    def command(**_: object) -> None: ...

    fields = {f"resources.{field.name}" for field in Resources.DESCRIPTOR.fields}
    fields |= {field.name for field in JobSpec.DESCRIPTOR.fields} - _WITHOUT_OPTION
    assert fields <= set(OPTIONS)
    there = {name for param in command.params for name in param.opts}
    assert {option for option in OPTIONS.values() if option.startswith("--")} == there


@pytest.mark.parametrize(
    ("path", "says", "line"),
    [
        ("queue", "there is no queue 'x'", "--queue: there is no queue 'x' (a:1)"),
        ("resources.named.foo", "asks 3", "--resource foo: asks 3 (a:2)"),
        ("resources.named.b.c", "asks 4", "--resource b.c: asks 4 (a:3)"),
        ("resources.named['b.c']", "is large", "--resource b.c: is large (a:3)"),
        ("resources.named", "has 70 entries", "--resource: has 70 entries"),
        ("resources.cpu", "asks 99", "--cpu: asks 99"),
        ("resources", "no node has all of cpu 1", "no node has all of cpu 1"),
        ("labels", "'A b' is no name for it", "--label: 'A b' is no name for it (a:4)"),
        ("after[1].job", "there is no job '9'", "--after: there is no job '9' (a:5)"),
        ("lines[3]", "is long", "--each-line, line 4: is long"),
        ("command[0]", "is empty", "COMMAND: is empty"),
        ("command[2]", "is long", "COMMAND, argument 2: is long"),
        ("signal", "'time_limit' is after time_limit", "--signal: 'time_limit' is after --time-limit"),
        ("", "is 2 MiB in all", "the job: is 2 MiB in all"),
        ("of_tomorrow", "is odd", "of_tomorrow: is odd"),
    ],
)
def test_what_is_wrong_with_a_field_is_told_where_it_was_given(path: str, says: str, line: str) -> None:
    origins = Origins(OPTIONS)
    origins.note("queue", "a:1")
    origins.note("resources.named.foo", "a:2", name="foo")
    origins.note("resources.named.b.c", "a:3", name="b.c")
    origins.note("labels.A b", "a:4", name="A b")
    origins.note("after[0]", "a:4")
    origins.note("after[1]", "a:5")
    assert origins.tell(path, says) == line


def test_lines_that_are_no_text_or_too_many_are_refused(rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"a\nb\xff\n")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "large").write_bytes(b"x\n" * 600_000)
    for name, line in (
        ("bytes", "bytes is not UTF-8 text (line 2)"),
        ("empty", "empty has no lines, so there is nothing to run"),
        ("large", "large is larger than 1 MiB"),
    ):
        answer = rota("submit", "--each-line", name, "--", "echo", "{line}")
        assert (answer.code, answer.lines) == (2, [f"rota: --each-line: {line}"])


# ---------------------------------------------------------------- scripts


def test_a_scripts_lines_are_checked_where_they_stand(rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(
        "#!/bin/sh\n#ROTA --cpu 2\n#ROTA --memory 5xx\n\n"
        '#ROTA --cpus 3\n#ROTA "\n#ROTA stray\necho\n#ROTA --gpu x\n'
    )
    answer = rota("submit", "job.sh")
    assert answer.code == 2
    assert answer.lines == [
        "rota: job.sh:9: is not read: '#ROTA' lines stand ahead of the first command",
        "rota: there is no option '--cpus'; did you mean '--cpu'? (job.sh:5)",
        "rota: no closing quotation (job.sh:6)",
        "rota: got unexpected extra argument (stray) (job.sh:7)",
        "rota: --memory: '5xx' is not a size; try 5GB or 5GiB (job.sh:3)",
    ]


def test_what_stands_in_several_lines_is_refused_in_its_own(rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(
        "#ROTA --label a=1 --label 'B b=2'\n#ROTA --label c=3\n#ROTA --env 1=2\n"
        "#ROTA --retention 1s\n#ROTA --env A=1 --retention 2s\n"
    )
    answer = rota("submit", "--label", "D d=4", "job.sh")
    assert answer.code == 2
    ends = [(line.split(" ")[1], line.rpartition(" ")[2]) for line in answer.lines]
    assert ends == [
        ("--env:", "(job.sh:3)"),
        ("--label:", "(job.sh:1)"),
        ("--label:", "63"),
        ("--retention:", "(job.sh:5)"),
    ]


def test_the_command_line_comes_before_a_scripts_lines(rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("#!/bin/sh\n#ROTA --memory 5xx\n#ROTA --cpu x\n")
    answer = rota("submit", "--memory", "2GiB", "--cpu", "y", "job.sh")
    assert answer.lines == ["rota: --cpu: 'y' is not a number; try 2 or 0.5"]


def test_a_file_that_is_not_there_may_have_been_meant_as_a_command(rota: Rota) -> None:
    answer = rota("submit", "make")
    assert answer.code == 2
    assert answer.lines == [
        "rota: make cannot be read: No such file or directory; to submit a command, try: rota submit -- make"
    ]


@pytest.mark.parametrize(
    ("name", "text", "taken"),
    [
        ("job.sh", "echo\n", True),
        ("job", "#!/bin/sh\necho\n", True),
        ("job", "# mine\n#ROTA --cpu 1\necho\n", True),
        ("job", "#SBATCH -n 1\necho\n", True),
        ("job", "echo\n", False),
        ("jobs.yaml.txt", "command: [echo]\n", False),
        ("job", "#ROTARY\n", False),
    ],
)
def test_a_script_is_known_by_its_name_or_its_text(
    name: str, text: str, taken: bool, rota: Rota, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    answer = rota("submit", name)
    # 5: there is no cluster to take it.
    assert answer.code == (5 if taken else 2)
    (line,) = answer.lines[-1:]
    assert taken or line.startswith(
        f"rota: {name} is no job file (*.yaml, *.yml, *.json), and no script (*.sh"
    )


def test_standard_input_is_a_script(rota: Rota, tmp_path: Path) -> None:
    marks = "a text that begins with '#!' or has a line '#ROTA'"
    own = os.dup(0)
    for text, says in (
        ("command: [echo]\n", f"is no script ({marks}); a job file is submitted by its name"),
        ("\n", "is empty, so there is nothing to run"),
    ):
        (tmp_path / "given").write_text(text)
        with (tmp_path / "given").open() as given:
            os.dup2(given.fileno(), 0)
        try:
            answer = rota("submit", "-")
        finally:
            os.dup2(own, 0)
        assert (answer.code, answer.lines) == (2, [f"rota: standard input {says}"])
    os.close(own)


def test_an_empty_script_is_refused(rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("\n")
    answer = rota("submit", "job.sh")
    assert (answer.code, answer.lines) == (2, ["rota: job.sh is empty, so there is nothing to run"])


def test_what_does_not_stand_in_a_scripts_lines_is_said_to_stand_elsewhere(
    rota: Rota, tmp_path: Path
) -> None:
    (tmp_path / "job.sh").write_text("#ROTA --wait\n#ROTA --array 0-2 # three\n#ROTA --gpu 1 # don't\necho\n")
    answer = rota("submit", "job.sh")
    assert answer.code == 2
    assert answer.lines == [
        "rota: there is no option '--wait' for a job; it stands on the command line (job.sh:1)",
        "rota: got unexpected extra arguments (# three); a comment stands on a line of its own (job.sh:2)",
        "rota: no closing quotation; a comment stands on a line of its own (job.sh:3)",
    ]


def test_a_program_is_no_script(rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "prog").write_bytes(b"\x7fELF\2\1\1\0" + b"\0" * 2_000_000)
    answer = rota("submit", "prog")
    assert answer.code == 2
    assert answer.lines == ["rota: prog is a program, and no script; try: rota submit -- ./prog"]


def test_a_json_file_is_a_job_file(rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"command": ["true"], "retrys": 3}')
    answer = rota("submit", "job.json")
    assert answer.code == 2
    assert answer.lines == ["rota: retrys: unknown key; did you mean retries? (job.json:1:23)"]


@pytest.mark.parametrize("line", ["# ROTA --cpu 2", "#rota --cpu 2", "#ROTA: --cpu 2"])
def test_a_line_that_is_nearly_one_for_rota_is_named(line: str, rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(f"#!/bin/sh\n# Rota runs this\n{line}\n{line}\necho\n#ROTA --gpu 1\n")
    says = rota("submit", "job.sh").lines
    assert says[:2] == [
        "rota: job.sh:3: is not read: options stand in lines that begin with '#ROTA '",
        "rota: job.sh:6: is not read: '#ROTA' lines stand ahead of the first command",
    ]


# ---------------------------------------------------------------- job files


def test_a_job_files_problems_have_lines_and_columns(rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "jobs:\n- name: a\n  command: [true]\n  resources:\n"
        "    cpu: 1\n    gpu: 0\n    memory: 2GBs\n  retrys: 3\n"
    )
    answer = rota("submit", "job.yaml")
    assert answer.code == 2
    assert (
        answer.lines[0]
        == "rota: jobs[0].resources.memory: '2GBs' is not a size; try 2GB or 2GiB (job.yaml:7:13)"
    )
    assert answer.lines[1].startswith("rota: jobs[0].retrys: ")
    assert "did you mean retries?" in answer.lines[1]
    assert answer.lines[1].endswith("(job.yaml:8:3)")


def test_a_submission_feeds_no_job_of_a_file(rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("jobs:\n- command: [cat]\n- command: [cat]\n  stdin: true\n")
    answer = rota("submit", "job.yaml")
    says = "'rota submit' feeds no task; leave it out, or try 'rota run -- COMMAND < FILE' (job.yaml:4:10)"
    assert (answer.code, answer.lines) == (2, [f"rota: jobs[1].stdin: {says}"])


def test_more_than_ten_problems_are_counted(rota: Rota, tmp_path: Path) -> None:
    jobs = "".join(f"- name: -{number}\n  command: [true]\n" for number in range(17))
    (tmp_path / "job.yaml").write_text("jobs:\n" + jobs)
    answer = rota("submit", "job.yaml")
    assert answer.code == 2
    assert len(answer.lines) == 11
    assert answer.lines[10] == "rota: and 7 more"


def test_options_of_a_job_do_not_go_with_a_job_file(rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("command: [true]\n")
    answer = rota("submit", "--cpu", "2", "job.yaml")
    assert answer.code == 2
    (line,) = answer.lines
    assert line.startswith("rota submit: a job file says all of its jobs: write it in job.yaml instead")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"- - -",
        b"\xff\xfe",
        b"a: &x [1]\nb: *x\n",
        b"!!python/object:os.system {}\n",
        b"[" * 5000,
        b"jobs: " + b"x" * 10_000_000,
        b"command: ['a\\0b']\ncommand: [b]\n",
        b'command: ["a\\0b"]\n',
        b"command: []\n",
        b"command: [true]\nresources: {cpu: -1}\n",
        b"command: [true]\narray: 0-4999999\n",
    ],
)
def test_bad_files_are_refused_in_a_few_lines(data: bytes, rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(data)
    answer = rota("submit", "bad.yaml")
    assert answer.code == 2
    assert answer.out == ""
    assert 1 <= len(answer.lines) <= 11
    assert all(line.startswith("rota: ") for line in answer.lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.binary(max_size=400))
def test_random_bytes_are_never_a_traceback(data: bytes, rota: Rota, tmp_path: Path) -> None:
    (tmp_path / "random.yaml").write_bytes(data)
    answer = rota("submit", "random.yaml")
    # 5: by chance, it was a job, and there is no cluster.
    assert answer.code in (2, 5)
    assert answer.lines
    assert all(line.startswith("rota: ") for line in answer.lines)
    assert not any("bug" in line for line in answer.lines)

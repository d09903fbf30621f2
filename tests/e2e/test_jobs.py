"""Submitting, looking, waiting, changing: what a user does besides `rota run`."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rota.agent.output import TAIL_BYTES_MAX as NODES_TAIL_BYTES_MAX
from rota.cli.events import ENDS_OF_JOB_MAX
from rota.cli.logs import TAIL_BYTES_MAX
from rota.core.cluster.work import EVENTS_OF_ENDS_MAX
from tests.e2e.conftest import CALL_S_MAX, Cluster
from tests.support.files import Gate, until_there

# ---------------------------------------------------------------- submitting


def test_submitting_prints_the_number(cluster: Cluster) -> None:
    first = cluster.submit("--name", "first", "--", "true")
    assert first.isdecimal()
    assert (
        cluster.ok("submit", "--name", "second", "--", "true") == f"job {int(first) + 1} second submitted\n"
    )
    answer = json.loads(cluster.ok("submit", "-o", "json", "--", "true"))
    assert answer == {"ids": [str(int(first) + 2)], "repeated_request": False}


def test_waiting_shows_progress_and_the_outcome(cluster: Cluster) -> None:
    done = cluster("submit", "-o", "name", "--wait", "--array", "0-19", "--", "true")
    assert done.returncode == 0
    number = done.stdout.strip()
    ends = [line for line in done.stderr.splitlines() if "SUCCEEDED" in line]
    assert ends == [f"job {number} SUCCEEDED: 20 tasks: 20 succeeded"]


def test_waiting_says_how_a_job_failed_and_where_to_read_on(cluster: Cluster) -> None:
    several = cluster.submit(
        "--array", "0-4", "--", "sh", "-c", "case {index} in 0) ;; 1) kill -9 $$;; *) exit 3; esac"
    )
    missing = cluster.submit("--", "/no/such/program")
    after = cluster.submit("--after", missing, "--", "true")
    done = cluster("wait", several, missing, after)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == (
        f"job {several} FAILED: 5 tasks: 1 succeeded, 4 failed (failed: 3 by EXIT 3, 1 by SIGNAL 9); "
        f"'rota show {several} --failed' shows which, 'rota logs {several}/2 --stderr' what one said"
    )
    assert lines[1].startswith(
        f"job {missing} FAILED: 1 task: 1 failed (failed: 1 by START_FAILED: no program"
    )
    assert lines[1].endswith(f"; 'rota show {missing} --failed' shows which")
    reason = f"job {missing} failed, and this one was to run after it succeeded"
    assert lines[2] == f"job {after} CANCELLED: 1 task: 1 cancelled; {reason}"
    assert len(lines) == 3
    assert "FAILED" not in done.stderr


def test_the_same_key_is_the_same_submission(cluster: Cluster) -> None:
    first = cluster.submit("--idempotency-key", "k1", "--", "true")
    assert cluster.submit("--idempotency-key", "k1", "--", "true") == first
    assert "(the same request as before)" in cluster.ok("submit", "--idempotency-key", "k1", "--", "true")
    other = cluster("submit", "--idempotency-key", "k1", "--", "false")
    assert other.returncode == 4
    assert "k1" in other.stderr


def test_lines_of_a_file_and_of_standard_input(cluster: Cluster) -> None:
    (cluster.place / "words").write_text("a b\n{index}\nlast")
    out = cluster.ok("run", "--each-line", "words", "--", "echo", "{index}:{line}:$ROTA_LINE")
    assert sorted(out.splitlines()) == [
        "[0] 0:a b:$ROTA_LINE",
        "[1] 1:{index}:$ROTA_LINE",
        "[2] 2:last:$ROTA_LINE",
    ]
    number = cluster.submit("--each-line", "-", "--", "sh", "-c", 'echo "$ROTA_LINE"', stdin=b"x\ny\n")
    cluster.ok("wait", number)
    assert cluster.ok("logs", number) == "[0] x\n[1] y\n"


def test_a_scripts_text_travels(cluster: Cluster) -> None:
    script = cluster.place / "job.sh"
    script.write_text(
        "#!/bin/sh\n#ROTA --name from-script --array 0-1\n#ROTA --env A=1 --label k=v\necho $A $B $*\n"
    )
    number = cluster.submit("--env", "B=2", "--name", "given", "job.sh", "x", "y")
    script.unlink()
    cluster.ok("wait", number)
    assert cluster.ok("logs", number) == "[0] 1 2 x y\n[1] 1 2 x y\n"
    spec = cluster.json("show", number)["spec"]
    assert (spec["name"], spec["labels"], spec["env"]) == ("given", {"k": "v"}, {"A": "1", "B": "2"})


def test_a_job_file_with_several_jobs(cluster: Cluster) -> None:
    (cluster.place / "two.yaml").write_text(
        "jobs:\n- {name: one, command: [sh, -c, 'echo 1 > made']}\n"
        "- {name: two, after: [{job: one}], command: [cat, made]}\n"
    )
    ids = cluster.ok("submit", "two.yaml", "-o", "name").split()
    assert len(ids) == 2
    cluster.ok("wait", *ids)
    assert cluster.ok("logs", ids[1]) == "1\n"


def test_a_job_starts_after_another(cluster: Cluster, gate: Gate) -> None:
    first = cluster.submit("--", "sh", "-c", f"{gate.wait}; exit 1")
    after_success = cluster.submit("--after", first, "--", "true")
    after_end = cluster.submit("--after", f"{first}:finished", "--", "true")
    task = cluster.json("show", f"{after_end}/0")
    assert (task["state"], task["pending_reason"]) == ("TASK_STATE_PENDING", "PENDING_REASON_DEPENDENCY")
    job = cluster.json("show", after_end)
    says = f"waits for job {first} to end"
    assert (job["pending_reason"], job["reason"], task["reason"]) == (task["pending_reason"], says, says)
    assert f"  reason      {says}\n" in cluster.ok("show", after_end)
    assert cluster.ok("ls", "--limit", "1", "-o", "wide").splitlines()[1].endswith(says)
    gate.open()
    assert cluster("wait", first, after_success, after_end).returncode == 1
    states = [cluster.json("show", number)["state"] for number in (first, after_success, after_end)]
    assert states == ["JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_SUCCEEDED"]
    in_vain = cluster("submit", "-o", "name", "--after", first, "--", "true")
    reason = cluster.json("show", in_vain.stdout.strip())["reason"]
    says = f"rota: job {in_vain.stdout.strip()} is cancelled at once: {reason}\n"
    assert (in_vain.returncode, in_vain.stderr) == (0, says)
    cluster.ok("retry", in_vain.stdout.strip(), "--ignore-dependencies")
    # Also where it is put back beside others, it is named once.
    retried = cluster("retry", first, first)
    assert (retried.returncode, retried.stdout.splitlines()[0]) == (0, f"job {first}: 1 task put back")
    hint = (
        f"job {after_success} was cancelled because of job {first}: 'rota retry {after_success}' runs it too"
    )
    # The second time it may have failed again, or there is nothing to do.
    said = [line for line in retried.stderr.splitlines() if "nothing to put back" not in line]
    assert said == [f"rota: {hint}"]


def test_what_the_cluster_refuses_is_told_where_it_was_asked_for(cluster: Cluster) -> None:
    options = ["--cpu", "1000", "--resource", "x=3", "--after", "99999", "--queue", "nobodys"]
    for command in ("submit", "run"):
        done = cluster(command, *options, "--", "true")
        says = [line.split(": ")[1] for line in done.stderr.splitlines()]
        assert (done.returncode, says) == (2, ["--after", "--queue", "--cpu", "--resource x"]), done
        assert "the largest node has 4 (" in done.stderr
    (cluster.place / "refused.sh").write_text("#ROTA --resource x=3\n#ROTA --resource y=4 --queue nobodys\n")
    done = cluster("submit", "refused.sh")
    ends = [(line.split(": ")[1], line.rpartition(" ")[2]) for line in done.stderr.splitlines()]
    assert (done.returncode, ends) == (
        2,
        [
            ("--queue", "(refused.sh:2)"),
            ("--resource x", "(refused.sh:1)"),
            ("--resource y", "(refused.sh:2)"),
        ],
    )
    (cluster.place / "refused.yaml").write_text(
        "jobs:\n- command: [x]\n- command: [x]\n  queue: nobodys\n  after:\n  - job: 1\n  - {job: 99999}\n"
    )
    done = cluster("submit", "refused.yaml")
    ends = [(line.split(": ")[1], line.rpartition(" ")[2]) for line in done.stderr.splitlines()]
    assert ("jobs[1].queue", "(refused.yaml:4:10)") in ends
    assert ("jobs[1].after[1].job", "(refused.yaml:7:11)") in ends
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["queue", "create", "A"], "NAME: 'A' is not allowed;"),
        (
            ["queue", "create", "a", "--priority-min", "5", "--priority-max", "1"],
            "--priority-min: 5 is above --priority-max, which is 1",
        ),
        (["queue", "create", "a", "--quota", "foo=0.0"], "--quota foo: 0 would be no limit;"),
        (["token", "create", "--ttl", "9000d"], "--ttl: '9000d' is too large; the most is 365d"),
        (["node", "label", "a", "A b=1"], "K=V: 'A b' is no name for it;"),
        (["node", "drain", "a", "--deadline", "9000d"], "--deadline: '9000d' is too large;"),
        (["cancel", "1/9-3"], "ID[/TASKS]: '9-3' is upside down; try 3-9"),
        (["submit", "--idempotency-key", "k" * 300, "--", "x"], "--idempotency-key: is 300 characters long;"),
    ],
)
def test_what_is_refused_is_told_by_what_was_typed(arguments: list[str], says: str, cluster: Cluster) -> None:
    done = cluster(*arguments)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line[: len(says) + 6]) == (2, f"rota: {says}")


# ---------------------------------------------------------------- looking


def test_listings_filter_and_limit(cluster: Cluster) -> None:
    ids = [cluster.submit("--label", "set=a", "--name", f"n{number}", "--", "true") for number in range(3)]
    cluster.ok("wait", *ids)
    assert cluster.ok("ls", "--label", "set=a", "-o", "name").split() == ids[::-1]
    assert cluster.ok("ls", "--label", "set=a", "--limit", "2", "-o", "name").split() == ids[:0:-1]
    assert cluster.ok("ls", "--name", "n1", "--state", "succeeded", "-o", "name").split() == [ids[1]]
    nothing = cluster("ls", "--label", "set=none")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert nothing.stderr == "no job matches; 'rota ls' lists all\n"
    more = cluster("ls", "--limit", "1")
    assert more.stderr == "there are more; 'rota ls --limit 0' lists all\n"


def test_a_job_is_shown_with_its_nodes(cluster: Cluster) -> None:
    number = cluster.submit("--name", "work", "--array", "0-39", "--cpu", "0.5", "--", "true")
    cluster.ok("wait", number)
    job = cluster.json("show", number)
    assert job["tasks"]["succeeded"] == "40"
    assert sum(int(node["succeeded"]) for node in job["nodes"]) == 40
    assert sum(node["ended_percent"] for node in job["nodes"]) == pytest.approx(100)
    failed = cluster("show", number, "--failed")
    assert (failed.stdout, failed.stderr) == ("", f"no task of job {number} has failed\n")
    text = cluster.ok("show", number)
    assert text.splitlines()[0] == f"job {number}  work  SUCCEEDED"
    assert "40 tasks: 40 succeeded" in text
    assert "  array       0-39\n" in text
    assert "PEAK MEMORY" in text
    assert yaml.safe_load(cluster.ok("show", number, "-o", "yaml")) == cluster.json("show", number)


def test_failures_are_grouped_and_a_task_has_all_its_attempts(cluster: Cluster) -> None:
    number = cluster.submit(
        "--array", "0-5", "--retries", "1", "--", "sh", "-c", "test {index} -lt 3 || exit {index}"
    )
    assert cluster("wait", number).returncode == 1
    groups = cluster.json("show", number, "--failed")["groups"]
    assert sorted((group["cause"], group["code"], group["indices"]) for group in groups) == [
        ("CAUSE_EXIT", 3, "3"),
        ("CAUSE_EXIT", 4, "4"),
        ("CAUSE_EXIT", 5, "5"),
    ]
    shown = cluster("show", number, "--failed")
    assert "EXIT" in shown.stdout
    assert shown.stderr == f"'rota logs {number}/3 --stderr' prints what one said\n"
    task = cluster.json("show", f"{number}/4")
    assert [(attempt["number"], attempt["code"]) for attempt in task["attempts"]] == [(1, 4), (2, 4)]
    text = cluster.ok("show", f"{number}/4")
    assert text.startswith(f"task {number}/4  FAILED")
    assert text.count("EXIT 4") == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "99999"], "there is no job 99999"),
        (["show", "{there}/77"], "has no task 77; it has 0"),
        (["logs", "99999"], "there is no job 99999"),
        (["wait", "99999"], "there is no job 99999"),
        (["cancel", "99999"], "there is no job 99999"),
        (["retry", "99999"], "there is no job 99999"),
        (["node", "show", "nobody"], "nobody"),
        (["node", "cordon", "nobody"], "nobody"),
        (["queue", "rm", "nobody"], "nobody"),
        (["queue", "update", "nobody", "--weight", "2"], "nobody"),
        (["events", "--job", "99999"], "there is no job 99999"),
        (["events", "-f", "--node", "nobody"], "nobody"),
    ],
)
def test_what_is_not_there_is_exit_code_3(arguments: list[str], says: str, cluster: Cluster) -> None:
    there = cluster.submit("--", "true") if "{there}/77" in arguments else ""
    done = cluster(*(argument.replace("{there}", there) for argument in arguments))
    assert done.returncode == 3, done
    (line,) = done.stderr.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("output", "number_in"),
    [
        ("json", lambda text: json.loads(text)["ids"][0]),
        ("yaml", lambda text: yaml.safe_load(text)["ids"][0]),
        ("name", lambda text: text.removesuffix("\n")),
    ],
)
def test_what_is_waited_for_is_told_beside_the_output(
    output: str, number_in: Callable[[str], str], cluster: Cluster
) -> None:
    done = cluster("submit", "--wait", "-o", output, "--", "false")
    assert done.returncode == 1
    assert number_in(done.stdout).isdecimal()
    assert "FAILED" in done.stderr


# ---------------------------------------------------------------- logs


ENDED_OR_FOLLOWED = pytest.mark.parametrize("follow", [[], ["-f"]], ids=["now", "follow"])


def test_a_last_line_that_is_not_sent_whole_is_said(cluster: Cluster) -> None:
    assert TAIL_BYTES_MAX == NODES_TAIL_BYTES_MAX
    size = TAIL_BYTES_MAX + 100_000
    number = cluster.submit("--", "sh", "-c", f"head -c {size} /dev/zero | tr '\\0' x; echo; echo short")
    cluster.ok("wait", number)
    done = cluster("logs", number, "--tail", "1")
    assert (done.stdout, done.stderr) == ("short\n", "")
    done = cluster("logs", number, "--tail", "2")
    assert len(done.stdout) == TAIL_BYTES_MAX
    assert done.stderr == "rota: the last lines are longer than 16MiB: what is before that is left out\n"


@ENDED_OR_FOLLOWED
def test_logs_of_one_task_and_of_many(follow: list[str], cluster: Cluster) -> None:
    script = "for i in 1 2 3; do echo {index}.$i; done; echo e{index} >&2"
    number = cluster.submit("--array", "3-4", "--", "sh", "-c", script)
    cluster.ok("wait", number)

    def logs(tasks: str, *options: str) -> list[str]:
        # Of tasks that are followed at once, any may be the first.
        return sorted(cluster.ok("logs", number + tasks, *options, *follow).splitlines())

    assert logs("/3") == ["3.1", "3.2", "3.3"]
    assert logs("/3", "--tail", "1") == ["3.3"]
    assert logs("/4", "--stderr") == ["e4"]
    assert logs("", "--tail", "1") == ["[3] 3.3", "[4] 4.3"]
    assert logs("/3,4", "--stderr", "--attempt", "1") == ["[3] e3", "[4] e4"]
    for tasks, says in (
        ("/9", f"job {number} has no task 9; it has 3-4"),
        ("/3,5-7", f"job {number} has no tasks 5-7; it has 3-4"),
    ):
        done = cluster("logs", number + tasks, *follow)
        assert (done.returncode, done.stdout, done.stderr) == (3, "", f"rota: {says}\n")


@ENDED_OR_FOLLOWED
def test_logs_of_an_attempt(follow: list[str], cluster: Cluster) -> None:
    # Task 0 succeeds at once, the others at the third attempt.
    script = "echo try $ROTA_ATTEMPT; test {index} = 0 || test $ROTA_ATTEMPT = 3"
    number = cluster.submit("--array", "0-2", "--retries", "2", "--", "sh", "-c", script)
    cluster.ok("wait", number)

    def logs(tasks: str, *options: str) -> tuple[int, list[str], str]:
        done = cluster("logs", number + tasks, *options, *follow)
        return done.returncode, sorted(done.stdout.splitlines()), done.stderr

    assert logs("") == (0, ["[0] try 1", "[1] try 3", "[2] try 3"], "")
    assert logs("/1", "--attempt", "1") == (0, ["try 1"], "")
    assert logs("", "--attempt", "2") == (0, ["[1] try 2", "[2] try 2"], "")
    assert logs("", "--attempt", "9") == (
        3,
        [],
        f"rota: none of the tasks of job {number} has an attempt 9\n",
    )
    assert logs("/0", "--attempt", "2") == (3, [], f"rota: task {number}/0 has no attempt 2\n")


def test_logs_of_what_never_ran_say_so(cluster: Cluster) -> None:
    failed = cluster.submit("--", "no-such-program")
    cluster("wait", failed)
    done = cluster("logs", failed)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("rota: attempt 1 did not start: no program 'no-such-program'")
    never = cluster.submit("--array", "0-1", "--after", f"{failed}", "--", "true")
    cluster("wait", never)
    for tasks, says in (
        ("", f"none of the tasks of job {never} has run"),
        ("/1", f"task {never}/1 has not run"),
    ):
        done = cluster("logs", never + tasks)
        assert (done.returncode, done.stderr) == (3, f"rota: {says}\n")


@ENDED_OR_FOLLOWED
def test_logs_of_a_large_array_come_by_index(follow: list[str], cluster: Cluster) -> None:
    # More than are followed one by one, most of which write nothing.
    script = "case {index} in *77) echo {index};; esac"
    number = cluster.submit("--array", "0-999", "--cpu", "0.1", "--", "sh", "-c", script)
    cluster.ok("wait", number)
    out = cluster.ok("logs", number, *follow)
    assert out.splitlines() == [f"[{index}] {index}" for index in range(77, 1000, 100)]


def test_logs_follow_until_the_end(cluster: Cluster, gate: Gate) -> None:
    number = cluster.submit("--", "sh", "-c", f"echo a; {gate.wait}; echo b")
    with cluster.begin("logs", "-f", number) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"a\n"
        (attempt,) = cluster.json("show", f"{number}/0")["attempts"]
        submitted_at_ms = int(cluster.json("show", number)["submitted_at_ms"])
        assert submitted_at_ms <= int(attempt["started_at_ms"]) <= time.time() * 1000
        assert "running" in cluster.ok("show", f"{number}/0").splitlines()[-1]
        gate.open()
        out, err = process.communicate(timeout=CALL_S_MAX)
    assert (process.returncode, out, err) == (0, b"b\n", b"")


@ENDED_OR_FOLLOWED
def test_logs_that_were_not_kept_say_where_they_went(follow: list[str], cluster: Cluster) -> None:
    number = cluster.submit(
        "--stdout", "kept-{index}.txt", "--stderr", "none", "--", "sh", "-c", "echo x; echo y >&2"
    )
    cluster.ok("wait", number)
    kept = cluster.place / "kept-0.txt"
    assert kept.read_text() == "x\n"
    kept.unlink()
    for options, says in (
        ([], f"standard output of job {number} is written to kept-{{index}}.txt on the nodes"),
        (["--stderr"], f"standard error of job {number} is not kept"),
    ):
        done = cluster("logs", number, *options, *follow)
        assert (done.returncode, done.stdout, done.stderr) == (3, "", f"rota: {says}\n")


# ---------------------------------------------------------------- changing


def test_cancelling_ends_the_whole_tree(cluster: Cluster, tmp_path: Path) -> None:
    up = tmp_path / "up"
    deaf = f'echo $$ > {tmp_path}/pid; trap "" TERM; touch {up}; sleep 1000'
    script = f"setsid sh -c '{deaf}' & wait"
    number = cluster.submit("--grace", "200ms", "--", "sh", "-c", script)
    until_there(up)
    pid = int((tmp_path / "pid").read_text())
    assert cluster.ok("cancel", number) == f"cancelling job {number}\n"
    assert cluster("wait", number).returncode == 1
    assert cluster.json("show", number)["state"] == "JOB_STATE_CANCELLED"
    assert not Path(f"/proc/{pid}").exists()
    assert (
        cluster.unchanged("cancel", number)
        == f"job {number} has already ended (cancelled): nothing to cancel"
    )


def test_cancelling_some_tasks(cluster: Cluster, gate: Gate) -> None:
    number = cluster.submit("--array", "0-3", "--", "sh", "-c", f"{gate.wait}")
    assert cluster.ok("cancel", f"{number}/1,3") == f"cancelling tasks 1,3 of job {number}\n"
    again = f"task {number}/3: ended, or being cancelled already: nothing to cancel"
    assert cluster.unchanged("cancel", f"{number}/3") == again
    gate.open()
    cluster("wait", number)
    counts = cluster.json("show", number)["tasks"]
    assert (counts["succeeded"], counts["cancelled"]) == ("2", "2")


def test_one_bad_id_does_not_keep_the_others_from_being_cancelled(cluster: Cluster) -> None:
    number = cluster.submit("--", "sleep", "60")
    done = cluster("cancel", "99999", number, "99998")
    assert done.returncode == 3
    assert [line.split(";")[0] for line in done.stderr.splitlines()] == [
        "rota: there is no job 99999",
        "rota: there is no job 99998",
    ]
    assert done.stdout == f"cancelling job {number}\n"
    cluster("wait", number)


def test_a_held_job_starts_when_it_is_released(cluster: Cluster, gate: Gate) -> None:
    first = cluster.submit("--", "sh", "-c", f"{gate.wait}")
    number = cluster.submit("--after", f"{first}:finished", "--", "true")
    assert cluster.unchanged("release", number) == f"job {number} is not held: nothing to release"
    assert "is held;" in cluster.ok("hold", number)
    assert cluster.unchanged("hold", number) == f"job {number} is already held"
    gate.open()
    cluster.ok("wait", first)
    assert cluster.json("show", number)["held"] is True
    assert "PENDING, HELD" in cluster.ok("ls", "--limit", "1")
    assert cluster("wait", "--timeout", "100ms", number).returncode == 1
    done = cluster("wait", "--timeout", "0", first)
    assert (done.returncode, done.stdout.partition(":")[0]) == (0, f"job {first} SUCCEEDED"), done
    assert cluster.ok("release", number) == f"job {number} is released\n"
    assert (
        cluster.unchanged("release", first)
        == f"job {first} has already ended (succeeded): nothing to release"
    )
    cluster.ok("wait", number)
    for command in ("cancel", "hold", "release"):
        says = f"job {number} has already ended (succeeded): nothing to {command}"
        assert cluster.unchanged(command, number) == says
    nothing = "none of its tasks has failed or was cancelled: nothing to put back"
    assert cluster.unchanged("retry", number) == f"job {number}: {nothing}"
    assert cluster.json("hold", number)["state"] == "JOB_STATE_SUCCEEDED"
    kinds = [event["kind"] for event in cluster.json("events", "--job", number)["events"]]
    assert kinds.count("EVENT_KIND_JOB_HELD") == kinds.count("EVENT_KIND_JOB_RELEASED") == 1


def test_failed_tasks_are_put_back(cluster: Cluster) -> None:
    number = cluster.submit("--array", "0-2", "--", "sh", "-c", "test -e repaired || test {index} = 0")
    assert cluster("wait", number).returncode == 1
    (cluster.place / "repaired").touch()
    before = cluster.json("show", number)
    says = "1 task put back; the other has not failed and was not cancelled"
    assert cluster.ok("retry", f"{number}/0,1") == f"job {number}: {says}\n"
    assert cluster.ok("retry", number) == f"job {number}: 1 task put back\n"
    cluster.ok("wait", number)
    job = cluster.json("show", number)
    assert sum(node["ended_percent"] for node in job["nodes"]) == pytest.approx(100)
    assert sum(int(node["failed"]) for node in job["nodes"]) == 0
    assert job["started_at_ms"] == before["started_at_ms"]
    assert int(job["retried_at_ms"]) >= int(before["ended_at_ms"])
    assert "  retried " in cluster.ok("show", number)


# ---------------------------------------------------------------- events


def test_events_tell_a_jobs_story(cluster: Cluster) -> None:
    number = cluster.submit("--", "false")
    cluster("wait", number)
    kinds = [event["kind"] for event in cluster.json("events", "--job", number)["events"]]
    assert kinds[0] == "EVENT_KIND_JOB_SUBMITTED"
    # They come in one report of the node.
    assert sorted(kinds[1:3]) == ["EVENT_KIND_ATTEMPT_ENDED", "EVENT_KIND_JOB_STARTED"]
    assert kinds[3:] == ["EVENT_KIND_JOB_ENDED"]
    done = cluster("events", "--job", number)
    assert "EXIT 1" in done.stdout
    assert done.stderr == ""


def test_more_failures_than_there_are_events_of_are_said(cluster: Cluster) -> None:
    number = cluster.submit("--array", "0-119", "--", "false")
    cluster("wait", number)
    done = cluster("events", "--job", number, "--limit", "1000")
    assert done.stdout.count("ATTEMPT_ENDED") == ENDS_OF_JOB_MAX == EVENTS_OF_ENDS_MAX
    (line,) = done.stderr.splitlines()
    assert "120 tasks failed" in line
    assert f"'rota show {number} --failed' has them all" in line
    assert cluster("events", "--job", number, "--kind", "job_ended").stderr == ""


def test_events_of_leases_are_shown_when_asked_for(cluster: Cluster) -> None:
    def kinds(*arguments: str) -> set[str]:
        return {event["kind"] for event in cluster.json("events", "--limit", "10000", *arguments)["events"]}

    cluster.ok("run", "--cpu", "0.3", "--", "true")
    assert "EVENT_KIND_LEASE_OPENED" in kinds("--all")
    assert not any("KIND_LEASE" in kind for kind in kinds())
    assert kinds("--kind", "node_ready", "--kind", "lease_opened") == {
        "EVENT_KIND_NODE_READY",
        "EVENT_KIND_LEASE_OPENED",
    }
    with cluster.begin("events", "-f", "--kind", "node_ready") as process:
        assert process.stdout is not None
        assert process.stdout.readline().split() == [b"TIME", b"EVENT", b"ABOUT", b"WHAT"]
        assert process.stdout.readline().split()[2] == b"NODE_READY"
        process.send_signal(signal.SIGINT)
        process.wait(CALL_S_MAX)


def test_events_are_followed_a_line_each(cluster: Cluster) -> None:
    with cluster.begin("events", "-f", "-o", "json", "--limit", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        number = cluster.submit("--", "true")
        event = json.loads(process.stdout.readline())
        assert (event["job"], event["kind"]) == (number, "EVENT_KIND_JOB_SUBMITTED")
        process.send_signal(signal.SIGINT)
        assert process.wait(CALL_S_MAX) == 130
        assert process.stderr is not None
        assert process.stderr.read().strip() == b""

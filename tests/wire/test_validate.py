"""The rules of the contract, kept at every edge."""

# ruff: noqa: E501 the messages that people read stand here whole

import time
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from rota.core.model.spec import JobSpec
from rota.wire.convert import codec
from rota.wire.gen.v1 import (
    cluster_pb2,
    enrol_pb2,
    job_pb2,
    job_service_pb2,
    link_pb2,
    node_pb2,
    rules_pb2,
)
from rota.wire.problems import LINES_MAX, PROBLEMS_MAX, BadInput, Problem, path_of, path_text, report
from rota.wire.rules import SPEC_BYTES_MAX
from rota.wire.validate import rules_of, validate
from tests.wire.values import SPECS

MODULES = (job_pb2, job_service_pb2, node_pb2, cluster_pb2, link_pb2, enrol_pb2)


def a_job(**fields: Any) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(**{"command": ["true"], **fields})


def of_jobs(*jobs: job_pb2.JobSpec) -> list[str]:
    return [str(problem) for problem in validate(job_service_pb2.SubmitJobsRequest(jobs=jobs))]


def of_job(**fields: Any) -> list[str]:
    return of_jobs(a_job(**fields))


def job_after(*names: str, **fields: Any) -> job_pb2.JobSpec:
    return a_job(after=[job_pb2.Dependency(job=name) for name in names], **fields)


RIGHT: list[dict[str, Any]] = [
    {},
    {"name": "a", "queue": "default", "node": "n-1"},
    {"array": "0-99,200", "max_running": 4_000_000, "retries": 1000, "priority": -1000},
    {"array": "0-3999999"},
    {"command": [], "script": "#!/bin/sh\nexit\n"},
    {"command": [], "path": "worker/scripts/count.sh"},
    {"command": ["", "an argument"], "script": "exit"},
    {"lines": ["a", "", "c"]},
    {"lines": ["a", "b"], "array": "5,7"},
    {"signal": "TERM"},
    {"signal": "USR1@60s", "time_limit": 60_001},
    {"stdin": True},
    {"kind": job_pb2.JOB_KIND_SERVICE, "replicas": 3},
    {"after": [job_pb2.Dependency(job="41")]},
    {"env": {"A": "", "_b9": "x" * 130_000}},
    {"resources": job_pb2.Resources(cpu=0, memory=2**50, named={"power.x": 10**12})},
    {"grace": 0, "retention": 60_000},
]


@pytest.mark.parametrize("fields", RIGHT, ids=lambda fields: ",".join(fields) or "plain")
def test_what_is_right_is_accepted(fields: dict[str, Any]) -> None:
    assert of_job(**fields) == []


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "a b"}, "jobs[0].name: 'a b' is not allowed; use letters, digits, '_', '.' and '-', beginning and ending with a letter or digit"),
    ({"name": "x" * 129}, "jobs[0].name: is 129 characters long; at most 128 are allowed"),
    ({"command": []}, "jobs[0].command: is missing: a job needs a command, a script or a path"),
    ({"command": [""]}, "jobs[0].command[0]: is empty; a command begins with the name of a program"),
    ({"command": ["a", "b\0c"]}, "jobs[0].command[1]: has a NUL character at position 1; remove it"),
    ({"command": ["x"] * 4097}, "jobs[0].command: has 4,097 items; at most 4,096 are allowed"),
    ({"command": ["x" * 131072] * 9}, "jobs[0].command: is 1,179,648 bytes in all; at most 1MiB are allowed"),
    ({"lines": ["ok", "\u4e2d" * 40_001]}, "jobs[0].lines[1]: is 120,003 bytes long; at most 120,000 are allowed"),
    ({"command": ["x", "y" * 131073]}, "jobs[0].command[1]: is 131,073 bytes long; at most 131,000 are allowed"),
    ({"script": "a\0"}, "jobs[0].script: has a NUL character at position 1; remove it"),
    ({"env": {"1A": "x"}}, "jobs[0].env: '1A' is no name for it; use letters, digits and '_', no digit first"),
    ({"env": {"A": "\0"}}, "jobs[0].env.A: has a NUL character at position 0; remove it"),
    ({"array": "9-0"}, "jobs[0].array: '9-0' is upside down; try 0-9"),
    ({"array": "0-4999999"}, "jobs[0].array: '0-4999999' is 5,000,000 tasks; at most 4,000,000"),
    ({"array": "a\nb"}, r"jobs[0].array: 'a\nb' is not a list of indices; try 0-99 or 0-9,20"),
    ({"retries": 1001}, "jobs[0].retries: '1001' is too large; the most is 1000"),
    ({"priority": -1001}, "jobs[0].priority: '-1001' is too small; the least is -1000"),
    ({"retention": 59_000}, "jobs[0].retention: '59s' is too small; the least is 1m"),
    ({"time_limit": -1}, "jobs[0].time_limit: '-1ms' is too small; the least is 0"),
    ({"grace": 86_400_001}, "jobs[0].grace: '1d1ms' is too large; the most is 1d"),
    ({"resources": job_pb2.Resources(memory=-1)}, "jobs[0].resources.memory: '-1' is too small; the least is 0"),
    ({"resources": job_pb2.Resources(memory=2**51)}, "jobs[0].resources.memory: '2PiB' is too large; the most is 1PiB"),
    ({"resources": job_pb2.Resources(cpu=-500)}, "jobs[0].resources.cpu: '-0.5' is too small; the least is 0"),
    ({"resources": job_pb2.Resources(named={"power": -1})}, "jobs[0].resources.named.power: '-0.001' is too small; the least is 0"),
    ({"labels": {"a b": "x"}}, "jobs[0].labels: 'a b' is no name for it; use letters, digits, '_', '.', '/' and '-', at most 63"),
    ({"labels": {"a/b": "x" * 257}}, "jobs[0].labels['a/b']: is 257 characters long; at most 256 are allowed"),
    ({"on_node_loss": 9}, "jobs[0].on_node_loss: 9 is not known; try one of rerun, rerun_fenced, hold, cancel"),
    ({"signal": "SIGTERM@5s"}, "jobs[0].signal: 'SIGTERM@5s' is not a signal; try TERM@5s"),
    ({"signal": "TERM@5s"}, "jobs[0].signal: 'TERM@5s' counts from the end of a time_limit, and there is none"),
    ({"signal": "TERM@5s", "time_limit": 5000}, "jobs[0].signal: 'TERM@5s' would come before the start: the time_limit is 5s"),
    ({"lines": ["a", "b"], "array": "0-2"}, "jobs[0].lines: has 2 lines for the 3 tasks of array; give one line a task, or leave array out"),
    ({"lines": ["a\0"]}, "jobs[0].lines[0]: has a NUL character at position 1; remove it"),
    ({"stdin": True, "array": "0-1"}, "jobs[0].stdin: only a job of one task can read standard input, and this one has 2"),
    ({"kind": 2}, "jobs[0].replicas: is missing: a service needs at least 1"),
    ({"kind": 2, "replicas": 1, "array": "0-1"}, "jobs[0].array: is not for a service, whose instances are all alike; say `replicas`"),
    ({"replicas": 2}, "jobs[0].replicas: is for services, which are not run yet; say `array: 0-1` for 2 tasks"),
    ({"replicas": 1}, "jobs[0].replicas: is for services, which are not run yet; leave it out"),
    ({"stderr": "-"}, "jobs[0].stderr: '-' would be a file of this name; leave it out, and the output is kept for 'rota logs'"),
    ({"after": [job_pb2.Dependency()]}, "jobs[0].after[0].job: is missing"),
    ({"after": [job_pb2.Dependency(job="0")]}, "jobs[0].after[0].job: '0' is no job's number"),
    ({"after": [job_pb2.Dependency(job="9" * 20)]}, f"jobs[0].after[0].job: '{'9' * 20}' is no job's number"),
    ({"after": [job_pb2.Dependency(job="x")]}, "jobs[0].after[0].job: no job of this submission is named 'x'; a job submitted before is named by its number"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "says"), WRONG, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_said_with_its_place_and_what_would_be_right(
    fields: dict[str, Any], says: str
) -> None:
    assert of_job(**fields) == [says]


def test_all_that_is_wrong_is_said_at_once() -> None:
    said = of_jobs(a_job(name="-", retries=9999, cwd="\0"), a_job(), a_job(queue="Q", command=[]))
    assert [line.split(":")[0] for line in said] == [
        "jobs[0].name", "jobs[0].cwd", "jobs[0].retries", "jobs[2].queue", "jobs[2].command",
    ]  # fmt: skip


def test_a_whole_job_has_a_limit() -> None:
    script = "x" * (1024 * 1024)
    env = {f"V{number}": "y" * 130_000 for number in range(3)}
    assert of_job(script=script, env={"V0": "y" * 130_000}) == []
    (said,) = of_job(script=script, env=env)
    assert said.startswith("jobs[0]: is 1,438,")
    assert "at most 1280KiB are allowed" in said
    assert SPEC_BYTES_MAX == 1280 * 1024


# ---------------------------------------------------------------- jobs among themselves


def test_jobs_of_a_submission_may_follow_one_another() -> None:
    assert (
        of_jobs(
            job_after("b", "c", name="a"),
            job_after("c", "41", name="b"),
            a_job(name="c"),
            a_job(name="c2"),
            a_job(),
        )
        == []
    )


def test_names_may_be_alike_unless_something_comes_after_them() -> None:
    assert of_jobs(a_job(name="a"), a_job(name="a")) == []
    assert of_jobs(a_job(name="a"), a_job(), a_job(name="a"), job_after("a")) == [
        "jobs[2].name: 'a' is jobs[0] too; what another job comes after needs a name of its own"
    ]


def test_a_name_that_is_nearly_one_is_named() -> None:
    assert of_jobs(a_job(name="render"), job_after("rendr")) == [
        "jobs[1].after[0].job: no job of this submission is named 'rendr'; did you mean render?"
    ]


def test_what_was_meant_is_no_long_work() -> None:
    started = time.process_time()
    many = [job_after(f"job-nomber-{number}", name=f"job-number-{number}") for number in range(3_000)]
    assert of_jobs(*many)[2_999 - PROBLEMS_MAX :] == []
    alike = [job_after("ba" * 32, name=f"{'ab' * 60}{number}") for number in range(300)]
    said = of_jobs(*alike)
    assert ["did you mean" in line for line in said[9:11]] == [True, False], "for those that people see"
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("jobs", "circle"),
    [
        ([job_after("a", name="a")], {"a -> a"}),
        (
            [job_after("b", name="a"), job_after("c", name="b"), job_after("a", name="c"), a_job(name="d")],
            {"a -> c -> b -> a", "b -> a -> c -> b", "c -> b -> a -> c"},
        ),
    ],
)
def test_circles_are_named(jobs: list[job_pb2.JobSpec], circle: set[str]) -> None:
    (said,) = of_jobs(*jobs)
    assert said.split(": ", 1)[1] in {f"the jobs wait for one another in a circle: {one}" for one in circle}
    assert ".after: " in said


def test_a_long_chain_is_no_circle_and_a_long_circle_is_shortened() -> None:
    chain = [job_after(f"j{number + 1}", name=f"j{number}") for number in range(5_000)]
    assert of_jobs(*chain, a_job(name="j5000")) == []
    (said,) = of_jobs(*chain, job_after("j0", name="j5000"))
    assert said.count("->") == 7
    assert "-> ... ->" in said


# ---------------------------------------------------------------- other messages


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (job_service_pb2.SubmitJobsRequest(), ["jobs: is empty; at least one is needed"]),
        (job_service_pb2.GetJobRequest(), ["id: is missing"]),
        (cluster_pb2.CreateQueueRequest(), ["queue: is missing"]),
        (cluster_pb2.CreateQueueRequest(queue=cluster_pb2.Queue()), ["queue.name: is missing"]),
        (
            cluster_pb2.CreateQueueRequest(queue=cluster_pb2.Queue(name="q", priority_min=5, priority_max=-5)),
            ["queue.priority_min: 5 is above priority_max, which is -5"],
        ),
        (
            cluster_pb2.CreateQueueRequest(
                queue=cluster_pb2.Queue(
                    name="q", quota=job_pb2.Resources(cpu=0, named={"power": 0, "licence": 1})
                )
            ),
            [
                "queue.quota.cpu: 0 would be no limit; leave it out for none, or give at least 0.001",
                "queue.quota.named.power: 0 would be no limit; leave it out for none, or give at least 0.001",
            ],
        ),
        (cluster_pb2.CreateQueueRequest(queue=cluster_pb2.Queue(name="q", quota=job_pb2.Resources(memory=1))), []),
        (
            job_service_pb2.WriteInputRequest(data=b"\0" * 65537),
            ["data: is 65,537 bytes long; at most 65,536 are allowed"],
        ),
        (job_service_pb2.WriteInputRequest(data=b"\0" * 65536), []),
        (job_service_pb2.CancelJobRequest(id=1, indices="5-"), ["indices: '5-' is not a list of indices; try 0-99 or 0-9,20"]),
        (
            link_pb2.ConnectRequest(
                hello=link_pb2.Hello(inventory=node_pb2.Inventory(pools=[node_pb2.Pool(name="x" * 64)]))
            ),
            ["hello.inventory.pools[0].name: is 64 characters long; at most 63 are allowed"],
        ),
        (link_pb2.ConnectRequest(goodbye=link_pb2.Goodbye(reason="\0")), ["goodbye.reason: has a NUL character at position 0; remove it"]),
        (
            node_pb2.Inventory(facts={"a\0": "b"}),
            [r"facts: the name 'a\x00' has a NUL character; remove it"],
        ),
    ],
)  # fmt: skip
def test_every_message_is_checked(message: Message, says: list[str]) -> None:
    assert [str(problem) for problem in validate(message)] == says


def fields_with_rules() -> Iterator[Any]:
    for module in MODULES:
        for message in module.DESCRIPTOR.message_types_by_name.values():
            yield from (field for field in message.fields if field.GetOptions().HasExtension(rules_pb2.rules))


def test_the_rules_of_the_contract_make_sense() -> None:
    numbers = {"min", "max"}
    lengths = {"length_min", "length_max", "bytes_max", "pattern", "pattern_says"}
    of_many = {"items_max", "total_bytes_max", "key_pattern", "key_pattern_says"}
    for field in fields_with_rules():
        rules = rules_of(field)
        given = {descriptor.name for descriptor, _ in rules.ListFields()} - {
            "required",
            "unit",
            "nul_allowed",
        }
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        one = field.message_type.fields_by_name["value"] if is_map else field
        allowed = lengths if one.type in (one.TYPE_STRING, one.TYPE_BYTES) else numbers
        if field.is_repeated:
            allowed = allowed | of_many
        assert given <= allowed, field.full_name
        assert rules.HasField("pattern") == rules.HasField("pattern_says"), field.full_name
        assert rules.HasField("key_pattern") == rules.HasField("key_pattern_says"), field.full_name


@given(SPECS)
def test_any_message_is_checked_without_failing(spec: JobSpec) -> None:
    message = codec(JobSpec, job_pb2.JobSpec).to_message(spec)
    for problem in validate(job_service_pb2.SubmitJobsRequest(jobs=[message])):
        assert len(str(problem).splitlines()) == 1


# ---------------------------------------------------------------- limits, and lines for people


def test_problems_are_looked_for_up_to_a_limit() -> None:
    many = job_service_pb2.SubmitJobsRequest(jobs=[a_job(lines=["\0"] * 100_000)])
    assert len(validate(many)) == PROBLEMS_MAX


def test_a_short_text_is_no_long_work() -> None:
    started = time.process_time()
    (said,) = of_job(array=",".join(["0-4294967294:1100"] * 3_600))
    assert said.endswith("is more than 4,000,000 tasks")
    assert time.process_time() - started < 5


def test_ten_lines_and_then_a_count() -> None:
    problems = [Problem(("jobs", number, "name"), "is wrong") for number in range(17)]
    lines = report(problems).splitlines()
    assert len(lines) == LINES_MAX + 1
    assert lines[0] == "jobs[0].name: is wrong"
    assert lines[-1] == "and 7 more"
    assert report(problems[:10]).splitlines()[-1] == "jobs[9].name: is wrong"
    assert str(BadInput(problems)) == report(problems)
    assert BadInput(problems).problems == tuple(problems)


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_problem_is_one_line_whatever_is_in_it(key: str, says: str) -> None:
    line = str(Problem(("jobs", 0, "env", key), says, "job.yaml:1:1"))
    assert line.isprintable()
    assert line.startswith("jobs[0].env")


def test_paths_are_written_as_people_write_them() -> None:
    assert path_text(("jobs", 0, "resources", "memory")) == "jobs[0].resources.memory"
    assert path_text(("jobs", 12, "env", "A")) == "jobs[12].env.A"
    assert path_text(("labels", "a.b/c")) == "labels['a.b/c']"
    for path in (("jobs", 12, "env", "A"), ("labels", "a.b/c"), ("after", 3, "job"), ()):
        assert path_of(path_text(path)) == path
    assert path_text(("labels", "a" * 65)) == f"labels['{'a' * 61}...']"

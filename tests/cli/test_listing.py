"""`-o`: tables, JSON, YAML, names."""

import json
import re

import pytest
import yaml
from google.protobuf.message import Message

from rota.cli import formats
from rota.cli.events import EVENTS
from rota.cli.jobs import JOBS, state_name
from rota.cli.listing import plain
from rota.cli.node import NODES
from rota.cli.queue import QUEUES
from rota.cli.show import ATTEMPTS, FAILURES, task_text
from rota.cli.states import choices, short, value
from rota.cli.token import TOKENS
from rota.client.messages import (
    Attempt,
    Cause,
    Event,
    FailureGroup,
    Job,
    JobNode,
    JobSpec,
    JobState,
    ListFailuresResponse,
    ListJobsResponse,
    ListNodesResponse,
    ListQueuesResponse,
    ListTokensResponse,
    Node,
    OnNodeLoss,
    Queue,
    Resources,
    Task,
    TaskCounts,
    TaskState,
    Token,
)

RUNNING = Job(
    id=7,
    spec=JobSpec(name="render", queue="default"),
    state=JobState.JOB_STATE_RUNNING,
    tasks=TaskCounts(total=1000, succeeded=200, failed=3, running=12),
    elapsed_ms=90_000,
)
PENDING = Job(
    id=123,
    spec=JobSpec(queue="video"),
    state=JobState.JOB_STATE_PENDING,
    tasks=TaskCounts(total=1),
    held=True,
)


def test_tables_are_aligned_and_have_a_title(capsys: pytest.CaptureFixture[str]) -> None:
    JOBS.print([RUNNING, PENDING], "table", "")
    titles, first, second = capsys.readouterr().out.splitlines()
    assert titles.split() == ["ID", "NAME", "STATE", "ENDED", "FAILED", "RUNNING", "QUEUE", "AGE", "ELAPSED"]
    assert first.split() == ["7", "render", "RUNNING", "203/1,000", "3", "12", "default", "-", "1m30s"]
    assert second.split() == ["123", "-", "PENDING,", "HELD", "0/1", "0", "0", "video", "-", "-"]
    for title in ("NAME", "STATE", "QUEUE"):
        column = titles.index(title)
        assert all(row[column - 1] == " " and row[column] != " " for row in (first, second)), title
    assert first.index("7") == titles.index("ID") + 1, "numbers end below the title's end"


def test_a_job_that_was_asked_to_stop_is_stopping_until_it_has_ended() -> None:
    stopping = Job(state=JobState.JOB_STATE_RUNNING, cancelled=True, held=True)
    assert state_name(stopping) == "STOPPING"
    stopping.state = JobState.JOB_STATE_CANCELLED
    assert state_name(stopping) == "CANCELLED"


def test_fields_are_in_the_contracts_order_however_empty() -> None:
    def names(message: Message) -> list[str]:
        return [field.name for field in message.DESCRIPTOR.fields]

    for job in (RUNNING, Job(id=1, nodes=[JobNode(succeeded=3)], exit_code=0)):
        made = plain(job)
        assert list(made) == [name for name in names(job) if name in made]
        assert list(made.get("tasks", {})) in ([], names(TaskCounts()))
        assert [list(node) for node in made["nodes"]] == [names(node) for node in job.nodes]


def test_wide_tables_have_more_columns(capsys: pytest.CaptureFixture[str]) -> None:
    JOBS.print([RUNNING], "wide", "")
    assert "OWNER" in capsys.readouterr().out


def test_an_empty_table_says_what_to_do_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    JOBS.print([], "table", "no jobs yet; try: rota run -- echo hello")
    assert capsys.readouterr() == ("", "no jobs yet; try: rota run -- echo hello\n")


def test_empty_lists_are_lists_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    JOBS.print([], "json", "nothing")
    assert json.loads(capsys.readouterr().out) == {"jobs": []}
    JOBS.print([], "yaml", "nothing")
    assert yaml.safe_load(capsys.readouterr().out) == {"jobs": []}
    JOBS.print([], "name", "nothing")
    assert capsys.readouterr() == ("", "")


def test_json_is_the_contracts_with_zeros_and_long_numbers_as_texts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    JOBS.print([RUNNING], "json", "")
    (job,) = json.loads(capsys.readouterr().out)["jobs"]
    assert job["id"] == "7"
    assert job["state"] == "JOB_STATE_RUNNING"
    assert job["tasks"]["succeeded"] == "200"
    assert job["tasks"]["cancelled"] == "0"
    assert job["spec"]["max_running"] == 0
    assert job["held"] is False
    assert job["nodes"] == []


def test_yaml_says_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    JOBS.print([RUNNING, PENDING], "json", "")
    as_json = json.loads(capsys.readouterr().out)
    JOBS.print([RUNNING, PENDING], "yaml", "")
    assert yaml.safe_load(capsys.readouterr().out) == as_json


def test_names_are_ids_alone(capsys: pytest.CaptureFixture[str]) -> None:
    JOBS.print([RUNNING, PENDING], "name", "")
    assert capsys.readouterr().out == "7\n123\n"


def test_one_thing_is_an_object_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    JOBS.print_one(RUNNING, "json")
    assert json.loads(capsys.readouterr().out) == plain(RUNNING)


def test_lists_are_named_as_in_the_contract() -> None:
    for listing, answer in (
        (JOBS, ListJobsResponse),
        (NODES, ListNodesResponse),
        (QUEUES, ListQueuesResponse),
        (TOKENS, ListTokensResponse),
        (FAILURES, ListFailuresResponse),
    ):
        assert listing.key in answer.DESCRIPTOR.fields_by_name


def test_indices_are_cut_between_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    FAILURES.print([FailureGroup(indices=",".join(map(str, range(800, 830, 2))))], "table", "")
    assert ",814,816,... " in capsys.readouterr().out
    FAILURES.print([FailureGroup(indices="0-9,20")], "table", "")
    assert " 0-9,20 " in capsys.readouterr().out


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b[31mred\n\r\x07\u202e\x9b31m"
    NODES.print([Node(name=evil, labels={evil: evil})], "wide", "")
    FAILURES.print([FailureGroup(message=evil)], "table", "")
    ATTEMPTS.print([Attempt(message=evil, node=evil)], "table", "")
    TOKENS.print([Token(created_by=evil)], "wide", "")
    QUEUES.print([Queue(name=evil)], "table", "")
    EVENTS.print([Event(message=evil, node=evil, by=evil)], "table", "")
    NODES.print([Node(name=evil)], "name", "")
    out = capsys.readouterr().out
    assert not re.search(r"[^\n -~]", out)
    assert r"a\x1b[31mred\n\r\x07\u202e\x9b31m" in out


def test_sentences_about_tasks() -> None:
    assert formats.counts(TaskCounts(total=1, running=1)) == "1 task: 1 running"
    assert (
        formats.counts(TaskCounts(total=2000, succeeded=1500, pending=500, backoff=2, held=1))
        == "2,000 tasks: 1,500 succeeded, 500 pending (2 backing off, 1 held)"
    )


@pytest.mark.parametrize(
    ("numbers", "count", "last"),
    [
        ([], 0, "  it has not been tried yet"),
        ([], 1, "of its one attempt there is no record"),
        ([2, 3], 4, "of 2 of its 4 attempts there is no record"),
        # The third is on a node, and has not begun.
        ([2, 3], 2, "of 1 of its 2 attempts there is no record"),
    ],
)
def test_attempts_without_a_record_are_told(numbers: list[int], count: int, last: str) -> None:
    attempts = [Attempt(number=number) for number in numbers]
    task = Task(state=TaskState.TASK_STATE_PENDING, attempts=attempts, attempt_count=count)
    assert task_text(task).splitlines()[-1] == last


def test_resources_are_written_as_people_do() -> None:
    amount = Resources(cpu=500, memory=2**31, named={"power": 10_000})
    assert formats.resources(amount) == "cpu=0.5 memory=2GiB power=10"
    assert formats.resources(Resources()) == "-"


def test_outcomes() -> None:
    assert formats.outcome(Cause.CAUSE_EXIT, 3) == "EXIT 3"
    assert formats.outcome(Cause.CAUSE_SIGNAL, 9) == "SIGNAL 9"
    assert formats.outcome(Cause.CAUSE_OOM, 9) == "OOM"


def test_short_names_of_enums() -> None:
    assert choices(OnNodeLoss) == ["rerun", "rerun_fenced", "hold", "cancel"]
    assert short(JobState, JobState.JOB_STATE_FAILED) == "FAILED"
    assert short(JobState, 99) == "99"
    assert value(JobState, "failed") == JobState.JOB_STATE_FAILED

"""What users ask: accepted whole or refused whole, for those who may, and written down."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc import error_details_pb2, status_pb2

from rota.controller.api import writing
from rota.controller.api.auth import ACTIONS, ROLES, Action, Caller, authorize
from rota.controller.api.errors import DETAILS_BYTES_MAX, DETAILS_KEY, SMALL_BYTES_MAX, ApiError
from rota.controller.api.services import jobs as jobs_service
from rota.core.cluster import feeding
from rota.core.cluster.inputs import Fed
from rota.wire.gen.v1 import (
    cluster_pb2,
    job_pb2,
    job_service_pb2,
    link_pb2,
    node_pb2,
)
from tests.shell.controller.harness import Api, Audience, running

TRUE = job_pb2.JobSpec(command=["true"])

SERVICES: list[ServiceDescriptor] = [
    service
    for file in (job_service_pb2, node_pb2, cluster_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]


def submit(*jobs: job_pb2.JobSpec, key: str = "") -> job_service_pb2.SubmitJobsRequest:
    return job_service_pb2.SubmitJobsRequest(jobs=jobs or [TRUE], idempotency_key=key)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value


def violations(failed: grpc.aio.AioRpcError) -> list[tuple[str, str]]:
    details = dict(failed.trailing_metadata() or ())[DETAILS_KEY]
    assert isinstance(details, bytes)
    status = status_pb2.Status.FromString(details)
    assert status.code == failed.code().value[0]
    request = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(request)
    return [(violation.field, violation.description) for violation in request.field_violations]


# ---------------------------------------------------------------- submissions


async def test_a_submission_is_listed_shown_and_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        array = job_pb2.JobSpec(command=["echo", "{index}"], array="0-9", name="nums", labels={"team": "a"})
        answer = await jobs.SubmitJobs(submit(TRUE, array))
        assert (list(answer.ids), answer.repeated_request) == ([1, 2], False)
        listed = (await jobs.ListJobs(job_service_pb2.ListJobsRequest())).jobs
        assert [(job.id, job.tasks.total, job.owner) for job in listed] == [(2, 10, "admin"), (1, 1, "admin")]
        shown = (await jobs.GetJob(job_service_pb2.GetJobRequest(id=2))).job
        assert (list(shown.spec.command), dict(shown.spec.labels), shown.state) == (
            ["echo", "{index}"],
            {"team": "a"},
            job_pb2.JOB_STATE_PENDING,
        )


async def test_all_that_is_wrong_is_said_at_once_with_its_place(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        bad = job_pb2.JobSpec(array="9-0", queue="No Such", resources=job_pb2.Resources(memory=-1))
        failed = await refusal(run.admin().jobs.SubmitJobs(submit(TRUE, bad)))
        assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
        found = violations(failed)
        paths = [path for path, _ in found]
        wrong = ["array", "command", "queue", "resources.memory"]
        assert sorted(paths) == [f"jobs[1].{name}" for name in wrong]
        assert "upside down" in dict(found)["jobs[1].array"]
        assert f"(and {len(found) - 1} more)" in (failed.details() or "")
        assert (await run.admin().jobs.ListJobs(job_service_pb2.ListJobsRequest())).jobs == [], (
            "nothing is kept"
        )


async def test_what_only_the_cluster_knows_is_refused_with_its_place_too(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        failed = await refusal(
            run.admin().jobs.SubmitJobs(submit(job_pb2.JobSpec(command=["true"], queue="none")))
        )
        assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert [path for path, _ in violations(failed)] == ["jobs[0].queue"]


async def test_very_many_problems_are_cut_and_counted(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        failed = await refusal(run.admin().jobs.SubmitJobs(submit(*[job_pb2.JobSpec()] * 500)))
        found = violations(failed)
        assert len(found) < 500
        assert found[-1][1] == f"and {500 - len(found) + 1} more"
        details = dict(failed.trailing_metadata() or ())[DETAILS_KEY]
        assert len(details) < 2 * DETAILS_BYTES_MAX


async def test_equal_jobs_of_separate_calls_have_one_template(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        for name in ("one", "one", "other"):
            await jobs.SubmitJobs(submit(job_pb2.JobSpec(name=name, command=["true"])))
        one, two, other = await run.controller.loop.read(
            lambda machine: [job.spec for job in machine.cluster.jobs.values()]
        )
        assert one is two
        assert (one.name, other.name) == ("one", "other")


async def test_a_repeated_request_is_the_same_request(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        first = await jobs.SubmitJobs(submit(TRUE, key="k"))
        again = await jobs.SubmitJobs(submit(TRUE, key="k"))
        assert (list(again.ids), again.repeated_request) == (list(first.ids), True)
        other = await refusal(jobs.SubmitJobs(submit(job_pb2.JobSpec(command=["false"]), key="k")))
        assert other.code() is grpc.StatusCode.ABORTED
        assert violations(other)[0][0] == "idempotency_key"
        someone = await run.user("bob", "submitter")
        assert list((await someone.jobs.SubmitJobs(submit(TRUE, key="k"))).ids) == [2], (
            "keys are each user's own"
        )


async def test_a_large_submission_is_checked_and_taken_like_a_small_one(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        many = [
            job_pb2.JobSpec(command=["echo", str(number % 7)], name=f"n-{number}") for number in range(1_000)
        ]
        request = submit(*many, key="k")
        assert request.ByteSize() > SMALL_BYTES_MAX
        answer = await jobs.SubmitJobs(request)
        assert list(answer.ids) == list(range(1, 1_001))
        assert (await jobs.SubmitJobs(request)).repeated_request
        shown = (await jobs.GetJob(job_service_pb2.GetJobRequest(id=1_000))).job
        assert (shown.spec.name, list(shown.spec.command)) == ("n-999", ["echo", str(999 % 7)])
        failed = await refusal(jobs.SubmitJobs(submit(*many, job_pb2.JobSpec())))
        assert [path for path, _ in violations(failed)] == ["jobs[1000].command"]


async def test_others_are_served_while_a_long_list_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_service, "PIECE_LOOKED_MAX", 7)
    monkeypatch.setattr(jobs_service, "PIECE_FOUND_MAX", 3)
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        many = [job_pb2.JobSpec(command=["true"], name=f"n-{number % 10}") for number in range(100)]
        await jobs.SubmitJobs(submit(*many))
        looks = 0
        read = run.controller.loop.read

        async def counted(look: Any) -> Any:
            nonlocal looks
            looks += 1
            return await read(look)

        monkeypatch.setattr(run.controller.loop, "read", counted)
        listed = await jobs.ListJobs(job_service_pb2.ListJobsRequest(page_size=50))
        assert [job.id for job in listed.jobs] == list(range(100, 50, -1))
        assert looks > 50 // 3
        looks = 0
        rest = await jobs.ListJobs(
            job_service_pb2.ListJobsRequest(page_token=listed.next_page_token, name="n-3")
        )
        assert [job.id for job in rest.jobs] == [44, 34, 24, 14, 4]
        assert rest.next_page_token == ""
        assert looks > 50 // 7


async def test_how_the_leader_keeps_up_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.admin().jobs.SubmitJobs(submit(TRUE))
        pace = (await run.admin().cluster.GetCluster(cluster_pb2.GetClusterRequest())).pace
        assert pace.turns >= 1
        assert pace.turn_us_max > 0


async def test_pages_of_jobs_and_tasks_leave_nothing_out(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        await jobs.SubmitJobs(submit(*[TRUE] * 24, job_pb2.JobSpec(command=["true"], array="0-98:2")))
        seen: list[int] = []
        token = ""
        while True:
            request = job_service_pb2.ListJobsRequest(page_size=10, page_token=token)
            page = await jobs.ListJobs(request)
            seen += [job.id for job in page.jobs]
            if not (token := page.next_page_token):
                break
        assert seen == list(range(25, 0, -1))
        indices: list[int] = []
        while True:
            tasks = await jobs.ListTasks(
                job_service_pb2.ListTasksRequest(job=25, page_size=7, page_token=token)
            )
            indices += [task.index for task in tasks.tasks]
            if not (token := tasks.next_page_token):
                break
        assert indices == list(range(0, 99, 2))
        some = job_service_pb2.ListTasksRequest(job=25, indices="10-20")
        assert [task.index for task in (await jobs.ListTasks(some)).tasks] == [10, 12, 14, 16, 18, 20]
        bad = job_service_pb2.ListJobsRequest(page_token="what")
        assert (await refusal(jobs.ListJobs(bad))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_listings_are_filtered(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        bob = await run.user("bob", "submitter")
        await jobs.SubmitJobs(
            submit(job_pb2.JobSpec(command=["true"], name="a", labels={"x": "1", "y": "2"}))
        )
        await bob.jobs.SubmitJobs(submit(job_pb2.JobSpec(command=["true"], name="b", labels={"x": "1"})))
        await jobs.CancelJob(job_service_pb2.CancelJobRequest(id=1))

        async def ids(**filters: Any) -> list[int]:
            found = await jobs.ListJobs(job_service_pb2.ListJobsRequest(**filters))
            return [job.id for job in found.jobs]

        assert await ids(owner="bob") == [2]
        assert await ids(name="a") == [1]
        assert await ids(labels={"x": "1"}) == [2, 1]
        assert await ids(labels={"x": "1", "y": "2"}) == [1]
        assert await ids(states=[job_pb2.JOB_STATE_CANCELLED]) == [1]
        assert await ids(queue="other") == []


async def test_hold_release_cancel_and_retry_change_the_job(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        await jobs.SubmitJobs(submit(job_pb2.JobSpec(command=["true"], array="0-4")))
        assert (await jobs.HoldJob(job_service_pb2.HoldJobRequest(id=1))).job.held
        task = (await jobs.GetTask(job_service_pb2.GetTaskRequest(job=1, index=3))).task
        assert task.pending_reason == job_pb2.PENDING_REASON_HELD
        assert not (await jobs.ReleaseJob(job_service_pb2.ReleaseJobRequest(id=1))).job.held
        one = await jobs.CancelJob(job_service_pb2.CancelJobRequest(id=1, indices="0-1"))
        assert (one.job.tasks.cancelled, one.job.state) == (2, job_pb2.JOB_STATE_PENDING)
        whole = await jobs.CancelJob(job_service_pb2.CancelJobRequest(id=1))
        assert (whole.job.tasks.cancelled, whole.job.state) == (5, job_pb2.JOB_STATE_CANCELLED)
        assert whole.job.exit_code == 130
        again = await jobs.CancelJob(job_service_pb2.CancelJobRequest(id=1))
        assert again.job.state == job_pb2.JOB_STATE_CANCELLED, "cancelling what has ended is a success"
        back = await jobs.RetryJob(job_service_pb2.RetryJobRequest(id=1, indices="2-3"))
        assert (back.task_count, back.job.tasks.pending, back.job.state) == (2, 2, job_pb2.JOB_STATE_PENDING)


async def test_a_retry_names_the_jobs_that_its_job_had_cancelled(tmp_path: Path) -> None:
    def after(name: str, *others: str) -> job_pb2.JobSpec:
        return job_pb2.JobSpec(name=name, command=["true"], after=[job_pb2.Dependency(job=o) for o in others])

    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        specs = [after("a"), after("last", "a", "mid"), after("mid", "a"), after("x", "a", "b"), after("b")]
        a, last, mid, x, b = (await jobs.SubmitJobs(submit(*specs))).ids
        for number in (a, b):
            await jobs.CancelJob(job_service_pb2.CancelJobRequest(id=number))
        back = await jobs.RetryJob(job_service_pb2.RetryJobRequest(id=a))
        assert back.cancelled_dependents == [mid, last], "in the order in which they can be retried"
        again = await jobs.RetryJob(job_service_pb2.RetryJobRequest(id=a))
        assert (again.task_count, list(again.cancelled_dependents)) == (0, [mid, last])
        back = await jobs.RetryJob(job_service_pb2.RetryJobRequest(id=mid))
        assert back.cancelled_dependents == [last]
        back = await jobs.RetryJob(job_service_pb2.RetryJobRequest(id=b))
        assert back.cancelled_dependents == [x], "nothing else keeps it from running now"
        await jobs.CancelJob(job_service_pb2.CancelJobRequest(id=a))
        back = await jobs.RetryJob(job_service_pb2.RetryJobRequest(id=b))
        assert back.cancelled_dependents == []


async def test_a_job_that_waits_says_for_what(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        later = job_pb2.JobSpec(command=["true"], after=[job_pb2.Dependency(job="1")])
        await jobs.SubmitJobs(submit(TRUE))
        await jobs.SubmitJobs(submit(later))
        await jobs.SubmitJobs(submit(TRUE))
        await jobs.HoldJob(job_service_pb2.HoldJobRequest(id=3))
        listed = (await jobs.ListJobs(job_service_pb2.ListJobsRequest())).jobs
        assert [job.reason for job in listed] == [
            "is held; to let it go on: rota release 3",
            "waits for job 1 to succeed",
            "waits for a node: none is known",
        ]
        task = (await jobs.GetTask(job_service_pb2.GetTaskRequest(job=2))).task
        assert task.pending_reason == job_pb2.PENDING_REASON_DEPENDENCY


async def test_a_watched_job_is_shown_at_once_at_changes_and_at_its_end(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        await jobs.SubmitJobs(submit())
        call: Any = jobs.WatchJob(job_service_pb2.WatchJobRequest(id=1))
        answers = aiter(call)
        first = await anext(answers)
        assert first.job.state == job_pb2.JOB_STATE_PENDING
        await jobs.CancelJob(job_service_pb2.CancelJobRequest(id=1))
        states = [answer.job.state async for answer in answers]
        assert states == [job_pb2.JOB_STATE_CANCELLED]
        assert not run.controller.loop._waiting.job_watchers


async def test_events_are_followed(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        admin = run.admin()
        await admin.jobs.SubmitJobs(submit(TRUE, TRUE))
        call: Any = admin.events.ListEvents(cluster_pb2.ListEventsRequest(follow=True, job=2))
        assert [event.job for event in (await call.read()).events] == [2]
        await admin.jobs.CancelJob(job_service_pb2.CancelJobRequest(id=1))
        await admin.jobs.CancelJob(job_service_pb2.CancelJobRequest(id=2))
        more = (await call.read()).events
        assert {event.job for event in more} == {2}
        assert more[0].by == "admin"
        after = cluster_pb2.ListEventsRequest(after_seq=more[0].seq - 1, limit=1, job=2)
        found = [answer async for answer in admin.events.ListEvents(after)]
        assert [event.seq for answer in found for event in answer.events] == [more[0].seq]
        newest = cluster_pb2.ListEventsRequest(limit=2)
        answers = [answer async for answer in admin.events.ListEvents(newest)]
        assert len([event for answer in answers for event in answer.events]) == 2


async def test_queues_nodes_tokens_and_the_cluster(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        admin = run.admin()
        node = await run.join("n1")
        await node.come_up()
        queue = cluster_pb2.Queue(name="gpu", weight=3, quota=job_pb2.Resources(cpu=2000), priority_max=5)
        made = (await admin.queues.CreateQueue(cluster_pb2.CreateQueueRequest(queue=queue))).queue
        assert (made.name, made.weight, made.quota.cpu, made.priority_max) == ("gpu", 3, 2000, 5)
        assert not made.HasField("priority_min")
        twice = await refusal(admin.queues.CreateQueue(cluster_pb2.CreateQueueRequest(queue=queue)))
        assert twice.code() is grpc.StatusCode.ABORTED
        closed = cluster_pb2.Queue(name="none", quota=job_pb2.Resources(cpu=0))
        refused = await refusal(admin.queues.CreateQueue(cluster_pb2.CreateQueueRequest(queue=closed)))
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "queue.quota.cpu: 0 would be no limit" in (refused.details() or "")
        # What is not limited is shown as such, so that it can be sent back as it is.
        queue.quota.CopyFrom(job_pb2.Resources(memory=2**30))
        changed = cluster_pb2.CreateQueueRequest(queue=queue, update=True)
        made = (await admin.queues.CreateQueue(changed)).queue
        assert (made.quota.HasField("cpu"), made.quota.memory) == (False, 2**30)
        await admin.queues.CreateQueue(cluster_pb2.CreateQueueRequest(queue=made, update=True))
        listed = (await admin.queues.ListQueues(cluster_pb2.ListQueuesRequest())).queues
        assert [queue.name for queue in listed] == ["default", "gpu"]
        await admin.queues.DeleteQueue(cluster_pb2.DeleteQueueRequest(name="gpu"))
        labelled = await admin.nodes.LabelNode(node_pb2.LabelNodeRequest(node="n1", labels={"disk": "ssd"}))
        assert labelled.node.labels == {"disk": "ssd"}
        drained = await admin.nodes.DrainNode(node_pb2.DrainNodeRequest(node=node.node, deadline=60_000))
        assert drained.node.draining
        assert drained.node.drain_deadline_ms > 0
        assert (await node.hear("drain")).draining
        resumed = (await admin.nodes.ResumeNode(node_pb2.ResumeNodeRequest(node="n1"))).node
        assert (resumed.draining, resumed.cordoned) == (False, False)
        assert resumed.address.startswith("127.0.0.1:")
        assert resumed.silent_ms >= 0
        summary = await admin.cluster.GetCluster(cluster_pb2.GetClusterRequest())
        assert (summary.nodes, summary.nodes_ready, summary.capacity.cpu) == (1, 1, 4000)
        assert (summary.principal, summary.uuid) == ("admin", node.cluster)
        tokens = (await admin.tokens.ListTokens(cluster_pb2.ListTokensRequest())).tokens
        assert [(token.uses_left, token.created_by) for token in tokens] == [(0, "admin")]
        gone = await refusal(admin.nodes.GetNode(node_pb2.GetNodeRequest(node="n9")))
        assert gone.code() is grpc.StatusCode.NOT_FOUND


def taken(grant: link_pb2.Grant, size: int, **more: bool) -> link_pb2.InputTaken:
    return link_pb2.InputTaken(allocation=grant.allocation, bytes=size, **more)


async def test_input_goes_to_the_task_that_reads_it(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        await jobs.SubmitJobs(submit(job_pb2.JobSpec(command=["cat"], stdin=True), TRUE))
        call: Any = jobs.WriteInput()
        await call.write(job_service_pb2.WriteInputRequest(job=1, data=b"hel\0"))
        await call.write(job_service_pb2.WriteInputRequest(job=1, offset=4, data=b"lo", end=True))
        await call.done_writing()
        node = await run.join("n1")
        await node.come_up()
        grant: link_pb2.Grant = await node.hear("grant")
        report = link_pb2.Report(journal_id=node.hello().journal_id, first_sequence=1, last_sequence=1)
        report.allocations.add(allocation=grant.allocation).started.bounds.extend([0, 0])
        await node.say(report=report)
        pieces = [await node.hear("input") for _ in range(2)]
        assert [(piece.offset, piece.data, piece.end) for piece in pieces] == [
            (0, b"hel\0", False),
            (4, b"lo", True),
        ]
        assert {piece.allocation for piece in pieces} == {grant.allocation}
        await node.say(input_taken=taken(grant, 4, again=True))
        again = await node.hear("input")
        assert (again.offset, again.end) == (4, True), "what the node does not have is sent again"
        await node.say(input_taken=taken(grant, 6, end=True))
        assert (await call).accepted_bytes == 6
        other: Any = jobs.WriteInput()
        await other.write(job_service_pb2.WriteInputRequest(job=2, data=b"x"))
        assert (await refusal(other)).code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_task_whose_feeder_is_gone_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "UNFED_MS_MAX", 1_500)
    monkeypatch.setattr(writing, "FED_S", 0.05)
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        await jobs.SubmitJobs(submit(job_pb2.JobSpec(command=["cat"], stdin=True)))
        node = await run.join("n1")
        await node.come_up()
        grant: link_pb2.Grant = await node.hear("grant")
        report = link_pb2.Report(journal_id=node.hello().journal_id, first_sequence=1, last_sequence=1)
        report.allocations.add(allocation=grant.allocation).started.bounds.extend([0, 0])
        await node.say(report=report)
        ask, fed = run.controller.loop.ask, asyncio.Queue[Any]()

        async def heard(make: Any) -> Any:
            answer = await ask(make)
            if isinstance(make(0), Fed):
                fed.put_nowait(answer)
            return answer

        monkeypatch.setattr(run.controller.loop, "ask", heard)
        call: Any = jobs.WriteInput()
        await call.write(job_service_pb2.WriteInputRequest(job=1, data=b"hel"))
        assert (await node.hear("input")).data == b"hel"
        await node.say(input_taken=taken(grant, 3))
        for _ in range(2 * feeding.UNFED_MS_MAX // 50):
            await fed.get()
        await call.write(job_service_pb2.WriteInputRequest(job=1, offset=3, data=b"lo"))
        assert (await node.hear("input")).data == b"lo", "it was not asked while it was fed"
        await node.say(input_taken=taken(grant, 5))
        call.cancel()
        asked: link_pb2.Input = await node.hear("input")
        assert (asked.allocation, asked.data, asked.end) == (grant.allocation, b"", False)
        await node.say(input_taken=taken(grant, 5))
        assert (await node.hear("stop")).allocation == grant.allocation
        job = (await jobs.GetJob(job_service_pb2.GetJobRequest(id=1))).job
        assert "standard input" in job.reason


async def test_much_input_waits_for_a_node_that_reads_slowly(tmp_path: Path) -> None:
    piece, count = b"x" * 65536, 512
    async with running(tmp_path) as run:
        jobs = run.admin().jobs
        await jobs.SubmitJobs(submit(job_pb2.JobSpec(command=["cat"], stdin=True)))
        node = await run.join("n1")
        await node.come_up()
        grant: link_pb2.Grant = await node.hear("grant")
        report = link_pb2.Report(journal_id=node.hello().journal_id, first_sequence=1, last_sequence=1)
        report.allocations.add(allocation=grant.allocation).started.bounds.extend([0, 0])
        await node.say(report=report)
        call: Any = jobs.WriteInput()

        async def write() -> None:
            for number in range(count):
                request = job_service_pb2.WriteInputRequest(job=1, offset=number * len(piece), data=piece)
                await call.write(request)
            await call.done_writing()

        writing = asyncio.create_task(write())
        offsets = []
        carrier = run.controller._links
        for _ in range(count):
            offsets.append((await node.hear("input")).offset)
            await node.say(input_taken=taken(grant, offsets[-1] + len(piece)))
            assert max(stream.waiting_bytes for stream in carrier._streams.values()) < 10 * len(piece)
        assert offsets == [number * len(piece) for number in range(count)]
        await writing
        assert (await call).accepted_bytes == count * len(piece)


# ---------------------------------------------------------------- who may do what


def test_every_method_of_the_contract_has_an_action() -> None:
    methods = {f"{service.name}.{method.name}" for service in SERVICES for method in service.methods}
    assert methods == set(ACTIONS)


@pytest.mark.parametrize("role", ["", "nobody", "Admin", *ROLES])
@pytest.mark.parametrize("action", [*Action, None])
def test_what_is_not_allowed_is_denied(role: str, action: Action | None) -> None:
    allowed = action in ROLES.get(role, frozenset())
    caller = Caller("ann", role, "ann")
    if allowed:
        authorize(caller, action, owner="ann")
    else:
        with pytest.raises(ApiError) as denied:
            authorize(caller, action, owner="ann")
        assert denied.value.code is grpc.StatusCode.PERMISSION_DENIED


def changes(api: Api) -> dict[str, Any]:
    """A call of each RPC that is not only looking."""
    return {
        "JobService.CancelJob": lambda: api.jobs.CancelJob(job_service_pb2.CancelJobRequest(id=1)),
        "JobService.HoldJob": lambda: api.jobs.HoldJob(job_service_pb2.HoldJobRequest(id=1)),
        "JobService.ReleaseJob": lambda: api.jobs.ReleaseJob(job_service_pb2.ReleaseJobRequest(id=1)),
        "JobService.RetryJob": lambda: api.jobs.RetryJob(job_service_pb2.RetryJobRequest(id=1)),
        "JobService.WriteInput": lambda: api.jobs.WriteInput(
            iter([job_service_pb2.WriteInputRequest(job=1, data=b"x")])
        ),
        "JobService.SubmitJobs": lambda: api.jobs.SubmitJobs(submit()),
        "NodeService.CordonNode": lambda: api.nodes.CordonNode(node_pb2.CordonNodeRequest(node="n1")),
        "NodeService.DrainNode": lambda: api.nodes.DrainNode(node_pb2.DrainNodeRequest(node="n1")),
        "NodeService.ResumeNode": lambda: api.nodes.ResumeNode(node_pb2.ResumeNodeRequest(node="n1")),
        "NodeService.LabelNode": lambda: api.nodes.LabelNode(node_pb2.LabelNodeRequest(node="n1")),
        "NodeService.RemoveNode": lambda: api.nodes.RemoveNode(node_pb2.RemoveNodeRequest(node="n1")),
        "QueueService.CreateQueue": lambda: api.queues.CreateQueue(
            cluster_pb2.CreateQueueRequest(queue=cluster_pb2.Queue(name="q"))
        ),
        "QueueService.DeleteQueue": lambda: api.queues.DeleteQueue(cluster_pb2.DeleteQueueRequest(name="q")),
        "TokenService.CreateToken": lambda: api.tokens.CreateToken(cluster_pb2.CreateTokenRequest()),
        "TokenService.ListTokens": lambda: api.tokens.ListTokens(cluster_pb2.ListTokensRequest()),
        "TokenService.RevokeToken": lambda: api.tokens.RevokeToken(cluster_pb2.RevokeTokenRequest(id="x")),
    }


async def test_roles_hold_over_the_wire_and_every_refusal_is_audited(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await run.admin().jobs.SubmitJobs(submit(job_pb2.JobSpec(command=["cat"], stdin=True)))
        assert set(changes(run.admin())) == {
            name for name, action in ACTIONS.items() if action is not Action.SEE
        }
        denied = {
            "viewer": set(ACTIONS) - {name for name, action in ACTIONS.items() if action is Action.SEE},
            # The job is the admin's.
            "submitter": {
                name for name, action in ACTIONS.items() if action not in (Action.SEE, Action.SUBMIT)
            },
            "operator": {name for name, action in ACTIONS.items() if action is Action.MANAGE_TOKENS},
        }
        for role, names in denied.items():
            user = await run.user(f"the-{role}", role)
            calls = changes(user)
            for name in sorted(names):
                failed = await refusal(calls[name]())
                assert failed.code() is grpc.StatusCode.PERMISSION_DENIED, (role, name)
            refused = [
                line["what"]
                for line in run.audit()
                if line["who"] == f"the-{role}" and line["outcome"] == "PERMISSION_DENIED"
            ]
            assert sorted(refused) == sorted(names)
            assert (await user.cluster.GetCluster(cluster_pb2.GetClusterRequest())).principal == f"the-{role}"


async def test_a_submitter_changes_the_own_jobs(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        bob = await run.user("bob", "submitter")
        await bob.jobs.SubmitJobs(submit())
        assert (await bob.jobs.HoldJob(job_service_pb2.HoldJobRequest(id=1))).job.held
        line = run.audit()[-1]
        assert (line["who"], line["what"], line["of"], line["outcome"]) == (
            "bob",
            "JobService.HoldJob",
            "job 1",
            "done",
        )


async def test_a_request_above_the_limit_is_not_read(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        huge = job_pb2.JobSpec(command=["x" * 5_000_000])
        failed = await refusal(run.admin().jobs.SubmitJobs(submit(huge)))
        assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_that_goes_away_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        admin, audience = run.admin(), Audience(run.controller.loop)
        await admin.jobs.SubmitJobs(submit())
        calls: list[Any] = [
            admin.jobs.WatchJob(job_service_pb2.WatchJobRequest(id=1)),
            admin.events.ListEvents(cluster_pb2.ListEventsRequest(follow=True)),
        ]
        for call in calls:
            await call.read()
        await audience.until(len(calls))
        for call in calls:
            call.cancel()
        await audience.until(0)
        waiting = run.controller.loop._waiting
        assert not waiting.job_watchers
        assert not waiting.event_watchers


async def test_those_who_watch_do_not_delay_the_controllers_end(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        admin, audience = run.admin(), Audience(run.controller.loop)
        await admin.jobs.SubmitJobs(submit(job_pb2.JobSpec(command=["cat"], stdin=True)))
        input_: Any = admin.jobs.WriteInput()
        await input_.write(job_service_pb2.WriteInputRequest(job=1, data=b"x"))
        calls: list[Any] = [
            admin.jobs.WatchJob(job_service_pb2.WatchJobRequest(id=1)),
            admin.events.ListEvents(cluster_pb2.ListEventsRequest(follow=True)),
            admin.jobs.ReadOutput(job_service_pb2.ReadOutputRequest(job=1, follow=True)),
            input_,
        ]
        for call in calls[:2]:
            await call.read()
        await audience.until(len(calls))
        stopping = asyncio.create_task(run.controller.stop(60))
        async with asyncio.timeout(20):
            await stopping
        for call in calls:
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert "stopping" in (await call.details() or "")


async def test_a_bug_is_logged_and_shows_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as run:
        admin = run.admin()

        async def broken(*_: object) -> None:
            raise KeyError("secret detail")

        monkeypatch.setattr(run.controller.loop, "ask", broken)
        failed = await refusal(admin.jobs.SubmitJobs(submit()))
        assert failed.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in (failed.details() or "")
        assert "secret detail" in caplog.text
        assert run.audit()[-1]["outcome"] == "INTERNAL"
        assert (await admin.cluster.GetCluster(cluster_pb2.GetClusterRequest())).principal == "admin"

"""What users ask of jobs: submit, cancel, hold, release, retry; and how long ended ones are kept."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pyroaring import BitMap

from rota.core.cluster import lost, nodes
from rota.core.cluster.inputs import CancelJob, Done, HoldJob, ReleaseJob, RetryJob, Submit, Submitted, Why
from rota.core.cluster.records import (
    META_CLUSTER,
    After,
    Idempotency,
    JobConfig,
    JobStatus,
    JobVersion,
    allocation_key,
    allocation_status_key,
    exceptions_key,
    idempotency_key,
    job_key,
    job_status_key,
    segment_key,
    tally_key,
    version_key,
)
from rota.core.cluster.settling import arm_retry, cannot_be_met, stop_rest
from rota.core.cluster.state import Job, Node
from rota.core.cluster.tasks import (
    TaskWriter,
    ask_stop,
    close_if_done,
    fold,
    put_job_status,
    untally,
)
from rota.core.cluster.work import PIECE_JOBS, Work, tasks_text
from rota.core.model import indexset
from rota.core.model.protocol import RECALL_ALL, Forget, Recall
from rota.core.model.resources import BUILT_IN, Resources, amount_text
from rota.core.model.spec import JobSpec
from rota.core.model.states import EventKind, JobKind, JobState, StopReason, TaskState

IDEMPOTENCY_MS = 2 * 86_400_000
# Of the jobs of one submission, so many have an event each, and the rest one together.
EVENTS_OF_SUBMISSION_MAX = 100
# So many keys of requests and tokens are forgotten in one step.
EXPIRED_MAX = 1_024

_NEW = JobStatus()


def begin(work: Work) -> None:
    """A leader begins: retention goes on."""
    for job in work.cluster.jobs.values():
        if job.ended:
            work.soft.timers.arm("retention", str(job.id), job.status.ended_ms + job.spec.retention)
    forget_expired(work, "")


# ---------------------------------------------------------------- submit


def submit(work: Work, item: Submit) -> Iterator[None]:
    """Accepts all the jobs, or none with every reason; in pieces."""
    if _repeated(work, item):
        return
    first = work.cluster.meta.next_job
    numbers = {spec.name: first + place for place, spec in enumerate(item.specs) if spec.name}
    problems: list[str] = []
    afters = []
    taken: set[_Asked] = set()
    for place, spec in enumerate(item.specs):
        path = f"jobs[{place}]"
        afters.append(_after(work, spec, path, numbers, problems) if spec.after else ())
        asked = _asked(spec)
        if asked not in taken:
            found = _impossible(work, spec, path)
            problems += found
            if not found:
                taken.add(asked)
        if (place + 1) % PIECE_JOBS == 0:
            yield
    if problems:
        work.refuse(item.ticket, Why.INVALID, *problems)
        return
    work.put(META_CLUSTER, replace(work.cluster.meta, next_job=first + len(item.specs)))
    plain = JobConfig(item.principal, submitted_at_ms=work.wall_ms, account=item.account)
    versions: dict[int, JobVersion] = {}
    for place, (spec, after) in enumerate(zip(item.specs, afters, strict=True)):
        number = first + place
        # What is equal is kept, and encoded, once.
        work.put(job_key(number), replace(plain, after=after) if after else plain)
        work.put(version_key(number, 1), versions.setdefault(id(spec), JobVersion(spec)))
        work.put(job_status_key(number), _NEW)
        job = work.cluster.jobs[number]
        if place < EVENTS_OF_SUBMISSION_MAX:
            by, count = item.principal, len(job.all)
            work.event(EventKind.JOB_SUBMITTED, job=number, by=by, message=tasks_text(count))
        work.touch(job)
        if (place + 1) % PIECE_JOBS == 0:
            yield
    jobs = tuple(range(first, first + len(item.specs)))
    if len(jobs) > EVENTS_OF_SUBMISSION_MAX:
        rest = indexset.text(jobs[EVENTS_OF_SUBMISSION_MAX:])
        work.event(EventKind.JOB_SUBMITTED, by=item.principal, message=f"and jobs {rest}")
    if item.key:
        key = idempotency_key(item.principal, item.key)
        work.put(key, Idempotency(jobs, item.digest, work.wall_ms + IDEMPOTENCY_MS))
        work.soft.timers.arm_earlier("expiry", "", work.now_ms + IDEMPOTENCY_MS)
    work.reply(item.ticket, Submitted(jobs))


def _repeated(work: Work, item: Submit) -> bool:
    """Whether the key was used before, which is answered."""
    known = work.cluster.idempotency.get(f"{item.principal}/{item.key}") if item.key else None
    if known is None:
        return False
    if known.digest != item.digest:
        work.refuse(
            item.ticket,
            Why.CONFLICT,
            f"idempotency_key: '{item.key}' was used for another submission (job {known.jobs[0]}); "
            "take another key",
        )
    else:
        work.reply(item.ticket, Submitted(known.jobs, repeated=True))
    return True


_Asked = tuple[JobKind, bool, str, int, Resources, str]


def _asked(spec: JobSpec) -> _Asked:
    """Jobs alike in this are possible alike."""
    return (spec.kind, spec.name.isdecimal(), spec.queue, spec.priority, spec.resources, spec.node)


def _after(
    work: Work, spec: JobSpec, path: str, numbers: dict[str, int], problems: list[str]
) -> tuple[After, ...]:
    result = []
    for place, dependency in enumerate(spec.after):
        if dependency.job.isdecimal():
            number = int(dependency.job) if int(dependency.job) in work.cluster.jobs else None
        else:
            number = numbers.get(dependency.job)
        if number is None:
            problems.append(
                f"{path}.after[{place}].job: there is no job '{dependency.job}'; "
                "give the number of a job that is kept, or the name of one in the same submission"
            )
        else:
            result.append(After(number, dependency.when))
    return tuple(result)


def _impossible(work: Work, spec: JobSpec, path: str) -> list[str]:
    """Why no queue would take the job or no known node could ever carry it."""
    problems = []
    if spec.kind is not JobKind.BATCH:
        problems.append(f"{path}.kind: services are not run yet; leave it out, or say batch")
    if spec.name.isdecimal():
        problems.append(f"{path}.name: '{spec.name}' would be taken for a job's number; add a letter")
    queue = work.cluster.queue(spec.queue)
    if queue is None:
        known = ", ".join(sorted({"default", *work.cluster.queues}))
        problems.append(f"{path}.queue: there is no queue '{spec.queue}'; known are {known}")
    else:
        low, high = queue.priority_min, queue.priority_max
        if (low is not None and spec.priority < low) or (high is not None and spec.priority > high):
            problems.append(
                f"{path}.priority: {spec.priority} is outside of what queue '{spec.queue}' allows "
                f"({'any' if low is None else low} to {'any' if high is None else high})"
            )
        if queue.quota is not None:
            for name, amount in spec.resources.items():
                limit = queue.quota.get(name)
                if limit and amount > limit:
                    asked, most = amount_text(name, amount), amount_text(name, limit)
                    problems.append(
                        f"{path}.resources.{_field(name)}: asks {asked}; "
                        f"queue '{spec.queue}' has {most} in all"
                    )
    if spec.node:
        named = work.cluster.find_node(spec.node)
        if named is None or named.config.name != spec.node:
            problems.append(f"{path}.node: there is no node '{spec.node}'; see: rota node ls")
            return problems
        known_nodes: Iterable[Node] = (named,)
    else:
        known_nodes = (node for node in work.cluster.nodes.values() if not node.config.removed)
    pools = []
    for node in known_nodes:
        for pool in node.pools:
            if not spec.resources.missing_in(pool.resources):
                return problems
            pools.append((node.config.name, pool.resources))
    if pools:
        problems += _too_large(spec.resources, path, pools)
    return problems


def _field(resource: str) -> str:
    return resource if resource in BUILT_IN else f"named.{resource}"


def _too_large(wanted: Resources, path: str, pools: list[tuple[str, Resources]]) -> list[str]:
    """Names, for each resource that no node has enough of, the node with the most."""
    problems = []
    for name, amount in wanted.items():
        node, have = max(pools, key=lambda pool: pool[1].get(name))
        if have.get(name) < amount:
            largest = f"the largest node has {amount_text(name, have.get(name))} ({node})"
            problems.append(f"{path}.resources.{_field(name)}: asks {amount_text(name, amount)}; {largest}")
    if not problems:
        wants = ", ".join(f"{name} {amount_text(name, amount)}" for name, amount in wanted.items())
        problems.append(f"{path}.resources: no single node has all of {wants}")
    return problems


# ---------------------------------------------------------------- changes


def _find(work: Work, ticket: int, number: int) -> Job | None:
    job = work.cluster.jobs.get(number)
    if job is None:
        work.refuse(ticket, Why.NOT_FOUND, f"there is no job {number}; see: rota ls")
    return job


def _wanted(work: Work, ticket: int, job: Job, indices: BitMap | None) -> BitMap | None:
    """The tasks meant, or None where one of them is not the job's (which was answered)."""
    if indices is None:
        return job.all
    strange = indices - job.all
    if strange:
        work.refuse(
            ticket,
            Why.NOT_FOUND,
            f"job {job.id} has no task {strange.min()}; it has {indexset.text(job.all)}",
        )
        return None
    return indices


def cancel(work: Work, item: CancelJob) -> None:
    """Cancels a job or some of its tasks. What has ended is left as it is."""
    job = _find(work, item.ticket, item.job)
    indices = _wanted(work, item.ticket, job, item.indices) if job is not None else None
    if job is None or indices is None:
        return
    again = item.grace_ms is not None
    if item.indices is None:
        changed = not job.ended and (again or not job.config.cancelled)
    else:
        indices = indices & _not_ended(job, stopping=again)
        changed = not job.ended and bool(indices)
    work.reply(item.ticket, Done(len(indices) if changed else 0, changed))
    if not changed:
        return
    if item.indices is None:
        work.put(job_key(job.id), replace(job.config, cancelled=True, cancel_grace_ms=item.grace_ms))
        work.event(EventKind.JOB_CANCEL_REQUESTED, job=job.id, by=item.by)
        if item.grace_ms is not None:
            _stop_again(work, job, item.grace_ms)
        stop_rest(work, job)
    else:
        _cancel_tasks(work, job, indices, item)
    work.touch(job)


def _not_ended(job: Job, *, stopping: bool) -> BitMap:
    """Tasks that have not ended; with those that are being stopped already, or without."""
    rest = job.pending.copy()
    for allocation in job.allocations.values():
        rest |= allocation.remaining if stopping else allocation.remaining - allocation.desired.cancelled
    return rest


def _stop_again(work: Work, job: Job, grace_ms: int) -> None:
    """A second cancel with another grace counts for what is being stopped already."""
    for allocation in list(job.allocations.values()):
        ask_stop(work, allocation, allocation.desired.cancelled, StopReason.CANCEL, grace_ms)


def _cancel_tasks(work: Work, job: Job, indices: BitMap, item: CancelJob) -> None:
    work.event(
        EventKind.TASK_CANCELLED,
        job=job.id,
        index=indices.min() if len(indices) == 1 else None,
        by=item.by,
        message=f"tasks {indexset.text(indexset.take_first(indices, 1_000))}" if len(indices) > 1 else "",
    )
    pending = job.pending & indices
    if pending:
        writer = TaskWriter(work, job)
        writer.wait(pending, 0)
        writer.finish(pending, TaskState.CANCELLED)
        writer.flush()
    for allocation in list(job.allocations.values()):
        meant = allocation.remaining & indices
        if not meant:
            continue
        if allocation.desired.lost and not work.soft.connected(allocation.node.id):
            lost.end_lost(work, allocation, meant, TaskState.CANCELLED)
            continue
        ask_stop(work, allocation, meant, StopReason.CANCEL, item.grace_ms)


def hold(work: Work, item: HoldJob) -> None:
    """Nothing new of the job starts; what waits on nodes is asked back, what runs goes on."""
    job = _find(work, item.ticket, item.job)
    if job is None:
        return
    changed = not job.ended and not job.config.held
    work.reply(item.ticket, Done(changed=changed))
    if not changed:
        return
    work.put(job_key(job.id), replace(job.config, held=True))
    work.event(EventKind.JOB_HELD, job=job.id, by=item.by)
    for allocation in job.allocations.values():
        session = work.soft.sessions.get(allocation.node.id)
        if session is not None and session.compared and allocation.remaining - allocation.status.started:
            work.send(allocation.node.id, Recall(allocation.id, session.ask(), count=RECALL_ALL))
    work.touch(job)


def release(work: Work, item: ReleaseJob) -> None:
    """Ends a hold. Tasks kept for a lost node run again: the operator says that it will not come back."""
    job = _find(work, item.ticket, item.job)
    if job is None:
        return
    if job.config.held:
        # That alone: whoever ends a hold has not said that no attempt runs on a machine out of reach.
        work.put(job_key(job.id), replace(job.config, held=False))
        work.reply(item.ticket, Done(changed=True))
        work.event(EventKind.JOB_RELEASED, job=job.id, by=item.by)
        work.touch(job)
        return
    kept_back = job.held | job.fenced
    count = len(kept_back)
    if kept_back:
        writer = TaskWriter(work, job)
        writer.release(kept_back)
        writer.flush()
    for allocation in list(job.lost.values()):
        kept = allocation.remaining.copy()
        session = work.soft.sessions.get(allocation.node.id)
        if not kept or session is not None or not allocation.waits_for_node:
            continue
        count += len(kept)
        lost.end_lost(work, allocation, kept, TaskState.PENDING, "given up by an operator")
    work.reply(item.ticket, Done(count, count > 0))
    if count:
        held = f"{tasks_text(count)} {'was' if count == 1 else 'were'} held"
        work.event(EventKind.JOB_RELEASED, job=job.id, by=item.by, message=held)
        work.touch(job)


def retry(work: Work, item: RetryJob) -> None:
    """Puts failed and cancelled tasks back, and reopens the job."""
    job = _find(work, item.ticket, item.job)
    indices = _wanted(work, item.ticket, job, item.indices) if job is not None else None
    if job is None or indices is None:
        return
    if job.ending and not job.ended:
        what = "cancelled" if job.config.cancelled else "stopped"
        work.refuse(item.ticket, Why.REFUSED, f"job {job.id} is being {what}; wait until it has ended")
        return
    if work.cluster.queue(job.spec.queue) is None:
        queue = job.spec.queue
        says = f"queue '{queue}' of job {job.id} was removed; make it again: rota queue create {queue}"
        work.refuse(item.ticket, Why.REFUSED, says)
        return
    if job.spec.stdin:
        work.refuse(item.ticket, Why.REFUSED, f"job {job.id} read standard input, which is gone; run it anew")
        return
    in_vain = "" if item.ignore_dependencies else _waits_in_vain(work, job)
    if in_vain:
        work.refuse(item.ticket, Why.REFUSED, in_vain)
        return
    for allocation in list(job.allocations.values()):
        if allocation.owned & (allocation.status.failed | allocation.status.cancelled) & indices:
            fold(work, allocation)
            close_if_done(work, allocation)
    back = BitMap()
    for segment in job.segments.values():
        back |= (segment.failed | segment.cancelled) & indices
    left = job.count_failed - len(back & _failed(job))
    limit = job.spec.max_failures
    if back and limit is not None and left > limit:
        says = (
            f"{tasks_text(left)} of job {job.id} would still be failed, more than max_failures, which is "
            f"{limit}, so that it would be stopped at once; retry more of them: rota retry {job.id}"
        )
        work.refuse(item.ticket, Why.REFUSED, says)
        return
    work.reply(item.ticket, Done(len(back)))
    if not back:
        return
    untally(work, job, back)
    writer = TaskWriter(work, job)
    writer.reopen(back)
    writer.flush()
    after = () if item.ignore_dependencies else job.config.after
    work.put(job_key(job.id), replace(job.config, cancelled=False, cancel_grace_ms=None, after=after))
    if job.ended:
        put_job_status(
            work,
            job,
            state=JobState.PENDING,
            stopping=False,
            cause=None,
            reason="",
            ended_at_ms=0,
            ended_ms=0,
            avoid=(),
            fails_everywhere=False,
        )
        work.soft.timers.disarm("retention", str(job.id))
    put_job_status(work, job, retried_at_ms=work.wall_ms)
    arm_retry(work, job)
    work.event(EventKind.JOB_RETRIED, job=job.id, by=item.by, message=tasks_text(len(back)))
    work.touch(job)


def _failed(job: Job) -> BitMap:
    """What has failed, and is in the segments."""
    return BitMap.union(*(segment.failed for segment in job.segments.values())) if job.segments else BitMap()


def _waits_in_vain(work: Work, job: Job) -> str:
    """Why a job cannot be put back that waits for others; nothing if it can."""
    for after in job.config.after:
        other = work.cluster.jobs.get(after.job)
        if other is None or not cannot_be_met(work.cluster, after):
            continue
        succeeded = other.status.state is JobState.SUCCEEDED
        first = "" if succeeded else f"retry job {other.id} first, or "
        how = other.status.state.name.lower()
        how = f"was {how}" if other.status.state is JobState.CANCELLED else f"has {how}"
        return (
            f"job {job.id} waits for job {after.job}, which {how}: {first}let it wait for none: "
            f"rota retry {job.id} --ignore-dependencies"
        )
    return ""


# ---------------------------------------------------------------- retention


def retention_over(work: Work, name: str) -> None:
    """An ended job is forgotten, here and on the nodes that ran it."""
    job = work.cluster.jobs.get(int(name))
    if job is None or not job.ended:
        return
    needed_ms = _needed_ms(work, job)
    if needed_ms > work.now_ms:
        work.soft.timers.arm("retention", name, needed_ms)
        return
    for allocation in list(job.allocations.values()):
        work.drop(allocation_status_key(allocation.node.id, allocation.id))
        work.drop(allocation_key(allocation.node.id, allocation.id))
    tallied = list(job.tallies)
    for node in tallied:
        work.send(node, Forget((job.id,)))
        work.drop(tally_key(job.id, node))
    for segment in list(job.segments):
        work.drop(segment_key(job.id, segment))
    for segment in list(job.exceptions):
        work.drop(exceptions_key(job.id, segment))
    versions = list(job.versions)
    for version in versions:
        work.drop(version_key(job.id, version))
    for session in work.soft.sessions.values():
        session.templates_sent -= {(job.id, version) for version in versions}
    work.drop(job_status_key(job.id))
    work.drop(job_key(job.id))
    nodes.forget_removed(work, tallied)
    work.event(EventKind.JOB_REMOVED, job=job.id, message="its retention is over")


def _needed_ms(work: Work, job: Job) -> int:
    """Until when a job is kept for those that wait for it in vain: without it, they would not know."""
    times = [0]
    for number in work.cluster.dependents.get(job.id, ()):
        other = work.cluster.jobs[number]
        if any(after.job == job.id and cannot_be_met(work.cluster, after) for after in other.config.after):
            ended_ms = other.status.ended_ms if other.ended else work.now_ms
            times.append(ended_ms + other.spec.retention)
    return max(times)


def forget_expired(work: Work, name: str) -> None:
    """What is kept for a time is forgotten after it: keys of requests, and tokens; many in several steps."""
    count = 0
    while (due := work.cluster.expiries.next()) is not None and due[0] <= work.wall_ms:
        if count == EXPIRED_MAX:
            work.soft.timers.arm("expiry", name, work.now_ms)
            return
        work.drop(due[1])
        count += 1
    if due is not None:
        work.soft.timers.arm("expiry", name, work.now_ms + max(due[0] - work.wall_ms, 60_000))

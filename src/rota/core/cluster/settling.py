"""Jobs as wholes: when they end, stop, wait, and go on. Runs at the end of each step over what moved."""

from collections.abc import Iterator

from rota.core.cluster import lost
from rota.core.cluster.records import After
from rota.core.cluster.state import Cluster, Job
from rota.core.cluster.tasks import TaskWriter, ask_stop, put_job_status, supersede
from rota.core.cluster.work import PIECE_JOBS, Work
from rota.core.model.states import (
    JOB_ENDS,
    Cause,
    DependencyWhen,
    EventKind,
    JobState,
    StopReason,
    TaskState,
)


def begin(work: Work) -> None:
    """A leader begins: timers of retries are set, and every job is looked at once."""
    for job in work.cluster.active.values():
        arm_retry(work, job)
        work.touch(job)


def settle(work: Work) -> Iterator[None]:
    """Concludes what follows from the tasks that moved, until nothing more does; in pieces."""
    while work.touched:
        touched, work.touched = work.touched, {}
        for count, job in enumerate(touched.values(), 1):
            if job.id in work.cluster.jobs and not job.ended:
                _settle_job(work, job)
            if count % PIECE_JOBS == 0:
                yield


def _settle_job(work: Work, job: Job) -> None:
    if not job.ending:
        _check_dependencies(work, job)
        limit = job.spec.max_failures
        if limit is not None and job.count_failed > limit and not job.ending:
            put_job_status(
                work, job, stopping=True, reason=f"more tasks failed than max_failures, which is {limit}"
            )
    if job.ending:
        stop_rest(work, job)
    # Every index is counted at most once, so this many ends are an end of each.
    if job.count_ended == len(job.all):
        _end(work, job)


def _check_dependencies(work: Work, job: Job) -> None:
    if job.status.state is not JobState.PENDING:
        # It has begun: what becomes of the others in a retry is nothing to it any more.
        return
    for after in job.config.after:
        if cannot_be_met(work.cluster, after):
            state = work.cluster.jobs[after.job].status.state.name.lower()
            reason = f"job {after.job} {state}, and this one was to run after it {after.when.name.lower()}"
            put_job_status(work, job, stopping=True, cause=Cause.DEPENDENCY, reason=reason)
            return


def cannot_be_met(cluster: Cluster, after: After) -> bool:
    """Whether the other job has ended, and not as was asked."""
    other = cluster.jobs.get(after.job)
    return other is not None and other.ended and not _met(other.status.state, after.when)


def _met(state: JobState, when: DependencyWhen) -> bool:
    match when:
        case DependencyWhen.SUCCEEDED:
            return state is JobState.SUCCEEDED
        case DependencyWhen.FINISHED:
            return state in JOB_ENDS
        case DependencyWhen.FAILED:
            return state is JobState.FAILED


def waits_for(cluster: Cluster, job: Job) -> list[int]:
    """The jobs that this one still waits for: those that it was told of, until it has begun.

    One that is no longer kept had ended as was asked (`jobs.retention_over`).
    """
    if job.status.state is not JobState.PENDING:
        return []
    waiting = []
    for after in job.config.after:
        other = cluster.jobs.get(after.job)
        if other is not None and not (other.ended and _met(other.status.state, after.when)):
            waiting.append(after.job)
    return waiting


# ---------------------------------------------------------------- stopping


def stop_rest(work: Work, job: Job) -> None:
    """Cancels what waits, and asks for the end of what does not. May be repeated."""
    grace_ms = job.config.cancel_grace_ms
    if job.pending:
        pending = job.pending.copy()
        writer = TaskWriter(work, job)
        if job.status.cause is Cause.DEPENDENCY:
            writer.failed_by(pending, Cause.DEPENDENCY, 0, job.status.reason)
        writer.wait(pending, 0)
        writer.finish(pending, TaskState.CANCELLED)
        writer.flush()
    for allocation in list(job.allocations.values()):
        if allocation.desired.lost:
            _stop_lost(work, allocation.id, job)
            continue
        rest = allocation.remaining - allocation.desired.cancelled
        ask_stop(work, allocation, rest, StopReason.CANCEL, grace_ms)


def _stop_lost(work: Work, number: int, job: Job) -> None:
    """A lost node's allocation of a job that ends: what was kept for it is given up."""
    allocation = job.allocations[number]
    if work.soft.connected(allocation.node.id):
        kept = allocation.remaining - allocation.desired.cancelled
        ask_stop(work, allocation, kept, StopReason.CANCEL, job.config.cancel_grace_ms)
        # What it would take back is not to go on either, whoever holds it now.
        if allocation.unclaimed:
            supersede(work, allocation, allocation.unclaimed)
    elif allocation.remaining:
        lost.end_lost(work, allocation, allocation.remaining, TaskState.CANCELLED)
    if number in job.lost:
        over = allocation.unclaimed & job.finals
        if over:
            supersede(work, allocation, over)


# ---------------------------------------------------------------- retries and ends


def arm_retry(work: Work, job: Job) -> None:
    """Sets the timer for the earliest back-off or fence of the job."""
    times = [
        sets[0].until_ms for said in job.exceptions.values() for sets in (said.backoffs, said.fences) if sets
    ]
    if times:
        work.soft.timers.arm("retry", str(job.id), min(times))


def retry_due(work: Work, name: str) -> None:
    """Back-offs and fences that are over: their tasks may be placed again."""
    job = work.cluster.jobs.get(int(name))
    if job is None or job.ended:
        return
    writer = TaskWriter(work, job)
    writer.expire(work.now_ms)
    writer.flush()
    arm_retry(work, job)


def _end(work: Work, job: Job) -> None:
    if job.config.cancelled and job.count_cancelled:
        state = JobState.CANCELLED
    elif job.count_failed:
        state = JobState.FAILED
    elif job.count_cancelled:
        state = JobState.CANCELLED
    else:
        state = JobState.SUCCEEDED
    for allocation in list(job.lost.values()):
        if allocation.unclaimed:
            supersede(work, allocation, allocation.unclaimed)
    put_job_status(work, job, state=state, ended_at_ms=work.wall_ms, ended_ms=work.now_ms)
    work.soft.averages.pop(job.id, None)
    work.soft.timers.disarm("retry", str(job.id))
    work.soft.timers.arm("retention", str(job.id), work.now_ms + job.spec.retention)
    work.event(
        EventKind.JOB_ENDED,
        job=job.id,
        cause=job.status.cause,
        message=f"{state.name.lower()}: {job.count_succeeded} succeeded, {job.count_failed} failed, "
        f"{job.count_cancelled} cancelled",
    )
    for dependent in sorted(work.cluster.dependents.get(job.id, ())):
        work.touch(work.cluster.jobs[dependent])
    work.place_wanted = True

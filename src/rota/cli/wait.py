"""`rota wait`, and the waiting of `rota submit --wait`."""

import queue
import threading
import time
from collections.abc import Sequence

import click

from rota.cli import app, formats
from rota.cli.jobs import state_name
from rota.cli.progress import progress
from rota.cli.session import JobNumber, client
from rota.cli.units import Duration
from rota.client.client import JOB_ENDS, PATIENCE_OF_WAITING_S, Client
from rota.client.messages import FailureGroup, Job, JobState

EXIT_NOT_SUCCEEDED = 1


@click.command(
    epilog="""\b
Examples:
  rota wait 42 && echo done
  rota wait --timeout 10m 42 43
"""
)
@click.argument("jobs", nargs=-1, required=True, type=JobNumber(open_only=True), metavar="ID...")
@click.option("--timeout", type=Duration(), help="Give up after so long.")
def wait(jobs: Sequence[int], timeout: int | None) -> int:
    """Wait until jobs have ended: exit 0 if all succeeded, else 1."""
    with client(PATIENCE_OF_WAITING_S) as rota:
        return wait_for(rota, jobs, timeout)


def wait_for(
    rota: Client, numbers: Sequence[int], timeout_ms: int | None = None, *, err: bool = False
) -> int:
    """Shows progress until the jobs have ended, then (with `err` there too) what became of them.

    Raises RotaError.
    """
    jobs = list(dict.fromkeys(numbers))
    last: dict[int, Job] = {}
    try:
        _wait(rota, jobs, last, timeout_ms)
    except KeyboardInterrupt:
        app.say("no longer waiting; the jobs go on")
        raise
    for number in jobs:
        job = last.get(number)
        if job is None or job.state not in JOB_ENDS:
            click.echo(f"job {number} has not ended yet", err=True)
        else:
            click.echo(_ended(rota, job), err=err)
    succeeded = [job for job in last.values() if job.state == JobState.JOB_STATE_SUCCEEDED]
    return 0 if len(succeeded) == len(jobs) else EXIT_NOT_SUCCEEDED


def _ended(rota: Client, job: Job) -> str:
    """What became of a job, in one line."""
    said = f"job {job.id} {state_name(job)}: {formats.counts(job.tasks)}"
    groups = rota.failures(job.id) if job.tasks.failed else ()
    if groups:
        said += f" (failed: {formats.failures(groups)}{_message(groups)})"
    if job.reason:
        said += f"; {formats.safe(job.reason)}"
    if groups:
        logs = formats.logs_hint(job.id, groups)
        said += f"; 'rota show {job.id} --failed' shows which" + (f", {logs} what one said" if logs else "")
    return said


def _message(groups: Sequence[FailureGroup]) -> str:
    """Where all failed alike, what was said of one."""
    return f": {formats.safe(groups[0].message)}" if len(groups) == 1 and groups[0].message else ""


def _wait(rota: Client, jobs: Sequence[int], last: dict[int, Job], timeout_ms: int | None) -> None:
    """Keeps the last that is known of each job, until all have ended or time is over. Raises RotaError."""
    until = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
    news: queue.SimpleQueue[Job | BaseException] = queue.SimpleQueue()
    for number in jobs:
        threading.Thread(target=_watch, args=(rota, number, news), daemon=True).start()
    left = set(jobs)
    with progress() as shown:
        while left:
            try:
                job = news.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except queue.Empty:
                # Of these nothing has been heard yet.
                last.update((number, rota.job(number)) for number in left.difference(last))
                return
            if isinstance(job, BaseException):
                raise job
            last[job.id] = job
            shown.update(job)
            if job.state in JOB_ENDS:
                left.discard(job.id)


def _watch(rota: Client, number: int, news: "queue.SimpleQueue[Job | BaseException]") -> None:
    try:
        for job in rota.watch(number):
            news.put(job)
    except BaseException as error:  # noqa: BLE001 (it is raised where the jobs are waited for)
        news.put(error)

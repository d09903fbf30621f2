"""`rota ls`, `cancel`, `hold`, `release`, `retry`."""

from collections.abc import Sequence

import click

from rota.cli import app, formats
from rota.cli.listing import Column, Listing, output_option
from rota.cli.session import JobNumber, QueueName, TasksOfJob, client, each, not_empty, one_index, pairs
from rota.cli.states import short, state_option, value
from rota.cli.units import Duration
from rota.client.client import JOB_ENDS, Client
from rota.client.errors import InvalidRequest
from rota.client.follow import indices_of
from rota.client.messages import CancelJobResponse, Job, JobState

LIMIT_DEFAULT = 50
DEPENDENTS_SHOWN_MAX = 50


def state_name(job: Job) -> str:
    """`RUNNING`; a hold and a stop that was asked for are said too."""
    name = short(JobState, job.state)
    if job.state in JOB_ENDS:
        return name
    return "STOPPING" if job.cancelled else f"{name}, HELD" if job.held else name


def _done(job: Job) -> str:
    return f"{formats.ended(job.tasks):,}/{job.tasks.total:,}"


JOBS = Listing[Job](
    "jobs",
    lambda job: str(job.id),
    [
        Column("ID", lambda job: str(job.id), right=True),
        Column("NAME", lambda job: job.spec.name),
        Column("STATE", state_name),
        Column("ENDED", _done, right=True),
        Column("FAILED", lambda job: f"{job.tasks.failed:,}", right=True),
        Column("RUNNING", lambda job: f"{job.tasks.running:,}", right=True),
        Column("QUEUE", lambda job: job.spec.queue),
        Column("AGE", lambda job: formats.age(job.submitted_at_ms), right=True),
        Column("ELAPSED", lambda job: formats.duration(job.elapsed_ms), right=True),
        Column("PRIORITY", lambda job: str(job.spec.priority), wide=True, right=True),
        Column("OWNER", lambda job: job.owner, wide=True),
        Column("CPU", lambda job: formats.duration(job.cpu_ms), wide=True, right=True),
        Column("PEAK MEMORY", lambda job: formats.size(job.memory_peak_bytes), wide=True, right=True),
        Column("REASON", formats.reason, wide=True),
    ],
)


@click.command(
    epilog="""\b
Examples:
  rota ls                             the newest jobs
  rota ls --state running -o wide     what runs, with owner and times
  rota ls --label team=video -o name  ids alone, for scripts
"""
)
@state_option(JobState)
@click.option(
    "--queue",
    default="",
    metavar="NAME",
    type=QueueName(),
    callback=not_empty,
    help="Only jobs of this queue.",
)
@click.option("--owner", default="", metavar="USER", callback=not_empty, help="Only jobs of this user.")
@click.option("--name", default="", metavar="NAME", callback=not_empty, help="Only jobs of this name.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Only jobs with this label.")
@click.option(
    "--limit",
    default=LIMIT_DEFAULT,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="At most so many, the newest; 0 means all.",
)
@output_option
def ls(
    states: Sequence[str],
    queue: str,
    owner: str,
    name: str,
    labels: Sequence[str],
    limit: int,
    output: str,
) -> None:
    """List jobs, the newest first."""
    wanted = pairs(labels, "label", "--label team=video")
    chosen = [value(JobState, state) for state in states]
    filtered = bool(chosen or queue or owner or name or wanted)
    with client() as rota:
        found = list(
            rota.jobs(
                states=chosen,
                queue=queue,
                owner=owner,
                name=name,
                labels=wanted,
                limit=limit and limit + 1,
            )
        )
        if queue and not found:
            _check_queue(rota, queue)
    more = bool(limit) and len(found) > limit
    empty = "no job matches; 'rota ls' lists all" if filtered else "no jobs yet; try: rota run -- echo hello"
    JOBS.print(found[:limit] if more else found, output, empty)
    if more and output in ("table", "wide"):
        click.echo("there are more; 'rota ls --limit 0' lists all", err=True)


def _check_queue(rota: Client, name: str) -> None:
    """Jobs of a queue may outlive it, so it is asked for where there are none. Raises InvalidRequest."""
    known = sorted(queue.name for queue in rota.queues())
    if name not in known:
        raise InvalidRequest(f"--queue: there is no queue '{name}'; known are {', '.join(known)}")


@click.command(
    epilog="""\b
Examples:
  rota cancel 42              the whole job
  rota cancel 42/7 42/10-19   some of its tasks
  rota cancel --grace 5m 42   five minutes between TERM and KILL
"""
)
@click.argument("tasks", nargs=-1, required=True, type=TasksOfJob(open_only=True), metavar="ID[/TASKS]...")
@click.option("--grace", type=Duration(), help="Time between TERM and KILL, instead of the job's own.")
@output_option
def cancel(tasks: Sequence[tuple[int, str]], grace: int | None, output: str) -> int:
    """End jobs, or some of their tasks."""
    with client() as rota:

        def act(item: tuple[int, str]) -> None:
            number, indices = item
            answer = rota.cancel(number, indices=indices, grace_ms=grace)
            what = f"job {number}"
            if indices:
                one = one_index(indices) is not None
                what = f"task {number}/{indices}" if one else f"tasks {indices} of job {number}"
            says = _cancelled(answer, what, some=bool(indices))
            JOBS.print_changed(answer.job, output, says, changed=answer.changed)

        return each(tasks, act)


def _has_ended(job: Job, what: str) -> str:
    return f"job {job.id} has already ended ({state_name(job).lower()}): nothing to {what}"


def _cancelled(answer: CancelJobResponse, what: str, *, some: bool) -> str:
    ended = answer.job.state in JOB_ENDS
    if answer.changed:
        return f"cancelled {what}" if ended else f"cancelling {what}"
    if ended:
        return _has_ended(answer.job, "cancel")
    if some:
        return f"{what}: ended, or being cancelled already: nothing to cancel"
    return f"{what} is already being cancelled"


@click.command(epilog="Example: rota hold 42")
@click.argument("jobs", nargs=-1, required=True, type=JobNumber(open_only=True), metavar="ID...")
@output_option
def hold(jobs: Sequence[int], output: str) -> int:
    """Start nothing new of jobs until they are released; what runs goes on."""
    with client() as rota:

        def act(number: int) -> None:
            answer = rota.hold(number)
            says = f"job {number} is held; 'rota release {number}' lets it go on"
            if not answer.changed:
                ended = answer.job.state in JOB_ENDS
                says = _has_ended(answer.job, "hold") if ended else f"job {number} is already held"
            JOBS.print_changed(answer.job, output, says, changed=answer.changed)

        return each(jobs, act)


@click.command(epilog="Example: rota release 42")
@click.argument("jobs", nargs=-1, required=True, type=JobNumber(open_only=True), metavar="ID...")
@output_option
def release(jobs: Sequence[int], output: str) -> int:
    """End a hold; of a job that is not held, give up a lost node: its tasks run again."""
    with client() as rota:

        def act(number: int) -> None:
            answer = rota.release(number)
            says = f"job {number} is released"
            if not answer.changed:
                nothing = f"job {number} is not held: nothing to release"
                says = _has_ended(answer.job, "release") if answer.job.state in JOB_ENDS else nothing
            JOBS.print_changed(answer.job, output, says, changed=answer.changed)

        return each(jobs, act)


@click.command(
    epilog="""\b
Examples:
  rota retry 42         every task that failed or was cancelled
  rota retry 42/7,9-12  these alone
"""
)
@click.argument("tasks", nargs=-1, required=True, type=TasksOfJob(), metavar="ID[/TASKS]...")
@click.option(
    "--ignore-dependencies",
    is_flag=True,
    help="Let it wait for no other job.",
)
@output_option
def retry(tasks: Sequence[tuple[int, str]], ignore_dependencies: bool, output: str) -> int:
    """Run failed and cancelled tasks again; jobs that were cancelled because of theirs are named."""
    given = {number for number, _ in tasks}
    # Of each job that stays cancelled: because of which of those given.
    dependents: dict[int, list[int]] = {}
    with client() as rota:

        def act(item: tuple[int, str]) -> None:
            number, indices = item
            answer = rota.retry(number, indices=indices, ignore_dependencies=ignore_dependencies)
            says = f"{answer.task_count:,} task{'s' if answer.task_count != 1 else ''} put back"
            if not answer.task_count:
                which = f"its tasks {indices}" if indices else "its tasks"
                says = f"none of {which} has failed or was cancelled: nothing to put back"
            elif indices and (others := len(indices_of(indices)) - answer.task_count):
                these = (
                    f"other {others:,} have not failed and were"
                    if others > 1
                    else "other has not failed and was"
                )
                says += f"; the {these} not cancelled"
            JOBS.print_changed(answer.job, output, f"job {number}: {says}", changed=answer.task_count > 0)
            for dependent in answer.cancelled_dependents:
                if dependent not in given and number not in dependents.setdefault(dependent, []):
                    dependents[dependent].append(number)

        code = each(tasks, act)
    for because in dict.fromkeys(tuple(causes) for causes in dependents.values()):
        _say_dependents(because, [job for job, causes in dependents.items() if tuple(causes) == because])
    return code


def _say_dependents(because: Sequence[int], dependents: Sequence[int]) -> None:
    """The jobs that stay cancelled, which had been because of some that run again."""
    shown = [str(job) for job in dependents[:DEPENDENTS_SHOWN_MAX]]
    says = f"{'jobs' if len(shown) > 1 else 'job'} {', '.join(shown)}"
    hint = f"'rota retry {' '.join(shown)}' runs {'them' if len(shown) > 1 else 'it'} too"
    if more := len(dependents) - len(shown):
        says += f" and {more:,} more"
        hint += f", and then 'rota retry {' '.join(map(str, because))}' names more"
    was = "was" if len(dependents) == 1 else "were"
    whose = f"{'jobs' if len(because) > 1 else 'job'} {', '.join(map(str, because))}"
    app.say(f"{says} {was} cancelled because of {whose}: {hint}")

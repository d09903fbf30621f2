"""`rota show`: a job, why its tasks failed, or one task with all its attempts."""

import click

from rota.cli import formats
from rota.cli.jobs import JOBS, state_name
from rota.cli.listing import Column, Listing, output_option, state
from rota.cli.session import TasksOfJob, client, one_index
from rota.cli.states import short
from rota.client.client import JOB_ENDS
from rota.client.messages import (
    Attempt,
    Cause,
    FailureGroup,
    Job,
    JobNode,
    Task,
    TaskState,
)

NODES = Listing[JobNode](
    "nodes",
    lambda node: node.node,
    [
        Column("NODE", lambda node: node.node),
        Column("RUNNING", lambda node: f"{node.running:,}", right=True),
        Column("ALLOCATED", lambda node: f"{node.allocated:,}", right=True),
        Column("SUCCEEDED", lambda node: f"{node.succeeded:,}", right=True),
        Column("FAILED", lambda node: f"{node.failed:,}", right=True),
        Column("CANCELLED", lambda node: f"{node.cancelled:,}", right=True),
        Column("ENDED", lambda node: f"{node.ended_percent:.1f}%", right=True),
        Column("CPU", lambda node: formats.duration(node.cpu_ms), right=True),
        Column("PEAK MEMORY", lambda node: formats.size(node.memory_peak_bytes), right=True),
    ],
)


def _cause(group: FailureGroup) -> str:
    return short(Cause, group.cause)


def _shortened(indices: str, length: int = 40) -> str:
    """The first of them, none of them cut."""
    if len(indices) <= length:
        return indices
    return indices[: length - 3].rpartition(",")[0] + ",..."


FAILURES = Listing[FailureGroup](
    "groups",
    lambda group: group.indices,
    [
        Column("CAUSE", _cause),
        Column("CODE", lambda group: str(group.code), right=True),
        Column("TASKS", lambda group: f"{group.count:,}", right=True),
        Column("INDICES", lambda group: _shortened(group.indices)),
        Column("MESSAGE", lambda group: group.message),
    ],
)


def _attempt_end(attempt: Attempt) -> str:
    if attempt.cause:
        return formats.outcome(attempt.cause, attempt.code)
    return "running" if attempt.started_at_ms else "not started"


ATTEMPTS = Listing[Attempt](
    "attempts",
    lambda attempt: str(attempt.number),
    [
        Column("ATTEMPT", lambda attempt: str(attempt.number), right=True),
        Column("NODE", lambda attempt: attempt.node),
        Column("END", _attempt_end),
        Column("STARTED", lambda attempt: formats.clock(attempt.started_at_ms)),
        Column("DURATION", lambda attempt: formats.duration(attempt.duration_ms), right=True),
        Column("USER", lambda attempt: formats.duration(attempt.cpu_user_ms), right=True),
        Column("SYSTEM", lambda attempt: formats.duration(attempt.cpu_system_ms), right=True),
        Column("PEAK MEMORY", lambda attempt: formats.size(attempt.memory_peak_bytes), right=True),
        Column("MESSAGE", lambda attempt: attempt.message),
    ],
)

TASKS = Listing[Task]("tasks", lambda task: f"{task.job}/{task.index}", [])


@click.command(
    epilog="""\b
Examples:
  rota show 42           tasks by state, nodes, times
  rota show 42 --failed  failures by cause and code
  rota show 42/7         one task with all its attempts
  rota show 42 -o json   everything, for programs
"""
)
@click.argument("task", type=TasksOfJob(example="42 or 42/7"), metavar="ID[/INDEX]")
@click.option("--failed", is_flag=True, help="Failed tasks by cause and code.")
@output_option
def show(task: tuple[int, str], failed: bool, output: str) -> None:
    """Show a job, its failures, or one task."""
    number, indices = task
    index = one_index(indices)
    if indices and (index is None or failed):
        raise click.UsageError(
            f"show takes a job or one task; try 'rota show {number}'", click.get_current_context()
        )
    with client() as rota:
        if index is not None:
            TASKS.print_one(rota.task(number, index), output, task_text)
        elif failed:
            groups = rota.failures(number)
            FAILURES.print(groups, output, f"no task of job {number} has failed")
            logs = formats.logs_hint(number, groups)
            if logs and output in ("table", "wide"):
                click.echo(f"{logs} prints what one said", err=True)
        else:
            JOBS.print_one(rota.job(number), output, _job)


def _job(job: Job) -> str:
    spec = job.spec
    facts = [
        ("command", formats.safe(formats.command(job))),
        ("array", formats.safe(_shortened(spec.array))),
        ("directory", formats.safe(spec.cwd)),
        ("resources", formats.resources(spec.resources)),
        ("queue", formats.safe(spec.queue) + (f", priority {spec.priority}" if spec.priority else "")),
        ("owner", formats.safe(job.owner)),
        ("labels", formats.safe(" ".join(f"{key}={value}" for key, value in sorted(spec.labels.items())))),
        ("submitted", formats.clock(job.submitted_at_ms)),
        ("started", formats.clock(job.started_at_ms)),
        ("retried", formats.clock(job.retried_at_ms)),
        ("ended", formats.clock(job.ended_at_ms)),
        ("elapsed", formats.duration(job.elapsed_ms)),
        ("CPU", formats.duration(job.cpu_ms)),
        ("peak memory", formats.size(job.memory_peak_bytes)),
        ("tasks", formats.counts(job.tasks)),
        ("reason", formats.reason(job)),
    ]
    lines = [
        f"job {job.id}"
        + (f"  {formats.safe(spec.name)}" if spec.name else "")
        + f"  {state(state_name(job))}"
    ]
    lines += [f"  {name:<12}{text}" for name, text in facts if text and text != formats.NOTHING]
    if job.nodes:
        lines += ["", NODES.table(list(job.nodes))]
    if job.tasks.failed:
        lines += ["", f"'rota show {job.id} --failed' groups the failures"]
    elif job.state not in JOB_ENDS and job.held:
        lines += ["", f"'rota release {job.id}' ends the hold"]
    return "\n".join(lines)


def task_text(task: Task) -> str:
    """A task and its attempts, for people."""
    name = short(TaskState, task.state)
    notes = [
        formats.reason(task),
        "asked to stop" if task.stop_requested else "",
    ]
    lines = [f"task {task.job}/{task.index}  " + ", ".join([state(name), *filter(None, notes)])]
    if task.attempts:
        lines += ["", ATTEMPTS.table(list(task.attempts))]
    unknown = task.attempt_count - sum(each.number <= task.attempt_count for each in task.attempts)
    if unknown:
        of = (
            f"{unknown} of its {task.attempt_count} attempts" if task.attempt_count > 1 else "its one attempt"
        )
        lines += ["", f"of {of} there is no record"]
    elif not task.attempts:
        lines.append("  it has not been tried yet" if name != "CANCELLED" else "  it was never tried")
    return "\n".join(lines)

"""`rota logs`."""

import queue

import click

from rota.cli.printer import STDERR, STDOUT, Printer
from rota.cli.session import TasksOfJob, client, one_index
from rota.client.client import PATIENCE_OF_WAITING_S, PATIENCE_S, Client
from rota.client.errors import NotFound
from rota.client.follow import Choice, Follower, indices_of, task_indices


@click.command(
    epilog="""\b
Examples:
  rota logs 42                  what a job wrote; of an array [INDEX] in front of each line
  rota logs 42/7 --stderr       standard error of one task
  rota logs 42 -f               on as it is written
  rota logs 42/7 --tail 20 --attempt 1
"""
)
@click.argument("task", type=TasksOfJob(), metavar="ID[/TASKS]")
@click.option("-f", "--follow", is_flag=True, help="Go on as it is written, until the end.")
@click.option("--stderr", is_flag=True, help="Standard error instead of standard output.")
@click.option(
    "--tail", type=click.IntRange(0, 1_000_000), default=0, help="Only the last N lines of each task."
)
@click.option("--attempt", type=click.IntRange(0), default=0, help="Of this attempt (0: the latest).")
def logs(task: tuple[int, str], follow: bool, stderr: bool, tail: int, attempt: int) -> None:
    """Print what tasks have written to standard output, or to standard error."""
    number, indices = task
    choice = Choice(STDERR if stderr else STDOUT, attempt, alone=attempt > 0, tail_lines=tail)
    with client(PATIENCE_OF_WAITING_S if follow else PATIENCE_S) as rota:
        if follow:
            _follow(rota, number, indices, choice)
        else:
            _print(rota, number, indices, choice)


def _print(rota: Client, number: int, indices: str, choice: Choice) -> None:
    """What there is now, task after task."""
    index = one_index(indices)
    if not indices:
        job = rota.job(number)
        index = task_indices(job).min() if job.tasks.total == 1 else None
    if index is not None:
        _print_task(rota, number, index, choice, Printer(prefixed=False, one_stream=True))
        return
    printer = Printer(prefixed=True, one_stream=True)
    for task in rota.tasks(number, indices=indices):
        if task.attempt_count:
            _print_task(rota, number, task.index, choice, printer)


def _print_task(rota: Client, number: int, index: int, choice: Choice, printer: Printer) -> None:
    answers = rota.output(
        number, index, attempt=choice.attempt, stream=choice.stream, tail_lines=choice.tail_lines
    )
    for answer in answers:
        if answer.unavailable:
            raise NotFound(answer.unavailable)
        printer.take(index, answer)


def _follow(rota: Client, number: int, indices: str, choice: Choice) -> None:
    """What is written, by all tasks at once, until the job has ended and all is read."""
    job = rota.job(number)
    chosen = task_indices(job)
    if indices:
        chosen &= indices_of(indices)
    if not chosen:
        raise NotFound(f"job {number} has no task {indices}")
    errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    printer = Printer(prefixed=len(chosen) > 1, one_stream=True)
    follower = Follower(rota, job, printer, errors.put, indices=chosen, choice=choice)
    for news in rota.watch(number):
        follower.update(news)
        if not errors.empty():
            raise errors.get()
    follower.finish()
    if not errors.empty():
        raise errors.get()

"""`rota logs`."""

import queue
import time
from dataclasses import dataclass
from typing import Protocol

import click
from pyroaring import BitMap

from rota.cli import app, formats
from rota.cli.hints import start_hint
from rota.cli.printer import STDERR, STDOUT, Printer
from rota.cli.session import TasksOfJob, client
from rota.client.client import JOB_ENDS, PATIENCE_OF_WAITING_S, PATIENCE_S, Client
from rota.client.errors import NotFound
from rota.client.follow import Choice, Follower, indices_of, task_indices, text_of
from rota.client.messages import Cause, Job, ReadOutputResponse
from rota.client.units import bytes_text

# A reading that takes longer than this says how far it is, on a terminal.
PROGRESS_S = 1.0
# So much a node sends of last lines (`rota.agent.output` has the same).
TAIL_BYTES_MAX = 16 * 1024 * 1024


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
@click.option("--tail", type=click.IntRange(1, 1_000_000), metavar="N", help="Only the last N lines of each.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Of this attempt (default: the latest).")
def logs(task: tuple[int, str], follow: bool, stderr: bool, tail: int | None, attempt: int | None) -> None:
    """Print what tasks have written to standard output, or to standard error."""
    number, indices = task
    choice = Choice(
        STDERR if stderr else STDOUT, attempt or 0, alone=attempt is not None, tail_lines=tail or 0
    )
    with client(PATIENCE_OF_WAITING_S if follow else PATIENCE_S) as rota:
        job = rota.job(number)
        chosen = _chosen(job, indices)
        _check_kept(job, choice)
        printer = Printer(prefixed=len(chosen) > 1, one_stream=True)
        try:
            if follow:
                found = _follow(rota, job, chosen, choice, printer)
            else:
                found = _print(rota, job, indices, chosen, choice, printer)
        finally:
            printer.end_progress()
            if len(chosen) == 1:
                _say_failed_start(rota, job, chosen.min(), attempt)
        if found.missed:
            raise click.ClickException("not all of the output could be read")
        if not found.attempt_count:
            raise NotFound(_nothing(rota.job(number), chosen, attempt))


def _chosen(job: Job, indices: str) -> BitMap:
    """The tasks to be read. Raises NotFound, InvalidRequest."""
    there = task_indices(job)
    if not indices:
        return there
    chosen = indices_of(indices)
    if missing := chosen - there:
        what = f"task {missing.min()}" if len(missing) == 1 else f"tasks {text_of(missing)}"
        raise NotFound(f"job {job.id} has no {what}; it has {text_of(there)}")
    return chosen


def _check_kept(job: Job, choice: Choice) -> None:
    """Raises NotFound where no node keeps what is to be read."""
    err = choice.stream == STDERR
    path = job.spec.stderr if err else job.spec.stdout
    if path:
        where = "not kept" if path == "none" else f"written to {formats.safe(path)} on the nodes"
        raise NotFound(f"standard {'error' if err else 'output'} of job {job.id} is {where}")


def _nothing(job: Job, chosen: BitMap, attempt: int | None) -> str:
    """Why there was no attempt to read."""
    who = f"task {job.id}/{chosen.min()}" if len(chosen) == 1 else f"none of the tasks of job {job.id}"
    if attempt is not None:
        return f"{who} has {'no' if len(chosen) == 1 else 'an'} attempt {attempt}"
    has = "has not" if len(chosen) == 1 else "has"
    return f"{who} {has} {'run' if job.state in JOB_ENDS else 'started'}"


def _say_failed_start(rota: Client, job: Job, index: int, attempt: int | None) -> None:
    """An attempt that did not start has written nothing; why it did not is told in its place."""
    for each in reversed(rota.task(job.id, index).attempts):
        if attempt in (None, each.number):
            if each.cause == Cause.CAUSE_START_FAILED:
                app.say(f"attempt {each.number} did not start: {formats.safe(each.message)}")
                if hint := start_hint(job.spec):
                    app.say(hint)
            return


class _Found(Protocol):
    """What there was: how many attempts, and whether there is, or may be, more than could be read."""

    attempt_count: int
    missed: bool


@dataclass
class _Now:
    attempt_count: int = 0
    missed: bool = False


class _Tails:
    """Finds out whose last lines are longer than what is sent of them."""

    def __init__(self) -> None:
        self.cut = BitMap()
        # Where in its file what came of an attempt begins.
        self._begun: dict[tuple[int, int], int] = {}

    def take(self, answer: ReadOutputResponse) -> None:
        """A piece of a task's output."""
        key = (answer.index, answer.attempt)
        if answer.data:
            begun = self._begun.setdefault(key, answer.offset)
            if begun and answer.offset + len(answer.data) - begun >= TAIL_BYTES_MAX:
                self.cut.add(answer.index)
        if answer.end:
            self._begun.pop(key, None)


def _print(rota: Client, job: Job, indices: str, chosen: BitMap, choice: Choice, printer: Printer) -> _Found:
    """What there is now, task after task. Raises RotaError."""
    begun_s = time.monotonic()
    found = _Now()
    tails = _Tails()
    answers = rota.outputs(
        job.id,
        indices=indices,
        attempt=choice.attempt,
        stream=choice.stream,
        tail_lines=choice.tail_lines,
    )
    for answer in answers:
        for output in answer.outputs:
            found.missed = found.missed or bool(output.unavailable)
            printer.take(output.index, output)
            if choice.tail_lines:
                tails.take(output)
        for each in answer.unread:
            found.missed = True
            printer.unread(each.indices, each.why)
        found.attempt_count += answer.attempt_count
        if answer.sent_below and time.monotonic() > begun_s + PROGRESS_S:
            printer.progress(f"{chosen.rank(answer.sent_below - 1):,} of {len(chosen):,} tasks")
    if tails.cut:
        whose = f" of tasks {text_of(tails.cut)}" if len(chosen) > 1 else ""
        most = bytes_text(TAIL_BYTES_MAX)
        app.say(f"the last lines{whose} are longer than {most}: what is before that is left out")
    return found


def _follow(rota: Client, job: Job, chosen: BitMap, choice: Choice, printer: Printer) -> _Found:
    """What is written, by all tasks at once, until the job has ended and all is read. Raises RotaError."""
    errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    follower = Follower(rota, job, printer, errors.put, indices=chosen, choice=choice)
    for news in rota.watch(job.id):
        follower.update(news)
        if not errors.empty():
            raise errors.get()
    follower.finish()
    if not errors.empty():
        raise errors.get()
    return follower

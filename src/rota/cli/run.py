"""`rota run`: a command on the cluster as if it ran here."""

import os
import queue
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import click

from rota.cli import app, formats
from rota.cli.job_options import given_options, job_options, named_by_options, spec_of
from rota.cli.printer import Printer
from rota.cli.session import client
from rota.client.client import JOB_ENDS, PATIENCE_OF_WAITING_S, Client
from rota.client.errors import ControllerFailed, NotFound, Refused
from rota.client.feeding import PIECE_BYTES_MAX
from rota.client.follow import Follower
from rota.client.messages import Cause, Job, JobSpec, JobState

EXIT_ROTA = 125
EXIT_CANCELLED = 130
# A job that waits longer than this says why, on a terminal.
PATIENT_S = 3.0


class _Interrupted:
    """Ctrl-C, or SIGTERM."""


class _AllRead:
    """The job has ended, and all its output is printed."""


News = Job | BaseException | _Interrupted | _AllRead


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  rota run -- make test
  rota run --cpu 4 --memory 8GiB -- ./train.py --epochs 5
  rota run --array 0-9 -- sh -c 'echo {index}'   each line with [INDEX] in front
  tar c src | rota run -- tar t                  standard input goes along
\b
Exit code: the task's own; 128+n if signal n killed it; 124 at the time limit; 130 if cancelled;
125 if Rota failed; 2 bad usage, 3 not found, 4 refused, 5 unreachable.
Ctrl-C cancels the job; a second Ctrl-C leaves it to end on its own.
""",
)
@job_options
@click.option("--idempotency-key", default="", metavar="KEY", help="The same key is the same submission.")
@click.option("-n", "--no-stdin", is_flag=True, help="Do not feed standard input to the task.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND...")
@click.pass_context
def run(
    ctx: click.Context, /, command: Sequence[str], idempotency_key: str, no_stdin: bool, **options: Any
) -> int:
    """Run a command, print what it prints, and exit as it exits."""
    if not command and not options.get("path"):
        raise click.UsageError("what shall run? try: rota run -- echo hello", ctx)
    spec = spec_of(given_options(ctx), command=command, stdin=not no_stdin and _stdin_is_piped())
    try:
        with client(PATIENCE_OF_WAITING_S) as rota:
            return _Run(rota, spec, idempotency_key).result()
    except ControllerFailed as error:
        app.present(error)
        return EXIT_ROTA


class _Run:
    """One job in the foreground. All news comes to the main thread by one queue."""

    def __init__(self, rota: Client, spec: JobSpec, idempotency_key: str) -> None:
        self._rota = rota
        self._spec = spec
        self._key = idempotency_key
        self._number = 0
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._job = Job()
        self._interrupts = 0
        self._told_why = not sys.stderr.isatty()

    def result(self) -> int:
        """Submits, shows, waits; the exit code. Raises RotaError."""
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self._interrupt)
        try:
            with named_by_options():
                self._number = self._rota.submit([self._spec], self._key).ids[0]
        except KeyboardInterrupt:
            app.say("interrupted while submitting; 'rota ls' shows whether the job was accepted")
            return EXIT_CANCELLED
        follower = self._follower()
        self._spawn(self._watch)
        if self._spec.stdin:
            self._spawn(self._feed)
        while True:
            match self._next():
                case _Interrupted():
                    if self._stop():
                        return EXIT_CANCELLED
                case _AllRead():
                    return self._outcome()
                case BrokenPipeError():
                    # Nobody reads any more: as a program would, the job ends with it.
                    self._rota.cancel(self._number)
                    return app.broken_pipe()
                case BaseException() as failed:
                    raise failed
                case job:
                    self._job = job
                    follower.update(job)
                    if job.state in JOB_ENDS:
                        self._spawn(lambda: self._read_to_the_end(follower))

    def _next(self) -> News:
        """The next news. A job that waits for long is said to, and why."""
        while True:
            waits = self._job.state == JobState.JOB_STATE_PENDING and not self._told_why
            try:
                return self._news.get(timeout=PATIENT_S if waits else None)
            except queue.Empty:
                self._told_why = True
                self._say_why()

    def _say_why(self) -> None:
        job = self._rota.job(self._number)
        if job.reason:
            app.say(f"job {job.id} {formats.reason(job)}")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._number:
            raise KeyboardInterrupt
        self._news.put(_Interrupted())

    def _stop(self) -> bool:
        """The first time cancels the job; True where it shall be left alone."""
        self._interrupts += 1
        if self._interrupts > 1 or self._job.state in JOB_ENDS:
            app.say(f"leaving job {self._number}; 'rota show {self._number}' shows what became of it")
            return True
        app.say(f"cancelling job {self._number}; Ctrl-C again leaves it to end on its own")
        self._spawn(lambda: self._rota.cancel(self._number))
        return False

    def _outcome(self) -> int:
        """The exit code of the ended job; says on standard error what the task itself could not."""
        job, number = self._job, self._number
        if job.state == JobState.JOB_STATE_CANCELLED:
            app.say(f"job {number} was cancelled" + (f": {job.reason}" if job.reason else ""))
        elif job.state == JobState.JOB_STATE_FAILED:
            groups = self._rota.failures(number)
            if job.tasks.total > 1:
                ends = ", ".join(
                    f"{each.count:,} by {formats.outcome(each.cause, each.code)}" for each in groups
                )
                count = f"{job.tasks.failed:,} of {job.tasks.total:,} tasks"
                app.say(f"job {number}: {count} failed ({ends}); 'rota show {number} --failed' shows which")
            elif groups and groups[0].cause != Cause.CAUSE_EXIT:
                end, message = formats.outcome(groups[0].cause, groups[0].code), groups[0].message
                app.say(f"job {number} ended by {end}" + (f": {formats.safe(message)}" if message else ""))
        return job.exit_code if job.HasField("exit_code") else EXIT_ROTA

    # ------------------------------------------------------------ threads

    def _spawn(self, work: Callable[[], object]) -> None:
        """Works in a thread that nobody waits for; what goes wrong there is news."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 (it is raised in the main thread)
                self._news.put(error)

        threading.Thread(target=guarded, daemon=True).start()

    def _follower(self) -> Follower:
        job = Job(id=self._number, spec=self._spec)
        prefixed = bool(self._spec.array or self._spec.lines)
        return Follower(self._rota, job, Printer(prefixed=prefixed), self._news.put)

    def _watch(self) -> None:
        for job in self._rota.watch(self._number):
            self._news.put(job)

    def _read_to_the_end(self, follower: Follower) -> None:
        follower.finish()
        self._news.put(_AllRead())

    def _feed(self) -> None:
        # Refused: the task has ended, and wants no more.
        with suppress(NotFound, Refused):
            self._rota.write_input(self._number, _stdin_pieces())


def _stdin_is_piped() -> bool:
    """Whether standard input is a pipe, a file or a socket: somebody means it to be read."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _stdin_pieces() -> Iterator[bytes]:
    # Past Python's buffer, whose lock a thread that is left behind would hold for ever.
    while data := os.read(0, PIECE_BYTES_MAX):
        yield data

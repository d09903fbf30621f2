"""`rota run`: a command on the cluster as if it ran here."""

import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import click

from rota.cli import app, formats, stdin
from rota.cli.hints import shared_files, start_hint
from rota.cli.job_options import given_options, job_of, job_options
from rota.cli.origins import told_by
from rota.cli.printer import AGAIN_SAID_MAX, STDERR, STDOUT, Printer
from rota.cli.session import client, idempotency_key_option, say_interrupted
from rota.client.client import JOB_ENDS, PATIENCE_OF_WAITING_S, Client
from rota.client.errors import ControllerFailed, NotFound, Refused, RotaError
from rota.client.follow import Follower
from rota.client.messages import Cause, Job, JobSpec, JobState

EXIT_ROTA = 125
EXIT_CANCELLED = 130
# A job that waits longer than this says why: soon to a person, and into a log only if it lasts.
PATIENT_S = 2.0
PATIENT_IN_LOG_S = 10.0
# How long a second Ctrl-C waits for the controller to have heard of the first.
CANCEL_S_MAX = 2.0
# And a first one for what becomes of a job that was being submitted.
UNSUBMIT_S_MAX = 5.0
# An end of standard input and a hang-up that are no further apart have one cause.
TOGETHER_S_MAX = 1.0

# After these a task runs again, unless there is nothing any more that it could read.
_RUN_AGAIN = (Cause.CAUSE_PREEMPTED, Cause.CAUSE_AGENT_ERROR, Cause.CAUSE_NODE_REBOOT)

_FILES = {STDOUT: "--stdout", STDERR: "--stderr"}


class _Interrupted:
    """Ctrl-C, or SIGTERM."""


class _Left:
    """The terminal is closed (HUP), or QUIT: nobody waits any more."""

    def __init__(self, number: int) -> None:
        self.number = number


class _AllRead:
    """The job has ended, and all its output is printed."""


News = Job | BaseException | _Interrupted | _Left | _AllRead


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
Ctrl-C cancels the job and waits for its end; a second Ctrl-C does not wait.
""",
)
@job_options
@idempotency_key_option
@click.option("-n", "--no-stdin", is_flag=True, help="Do not feed standard input to the task.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND...")
@click.pass_context
def run(
    ctx: click.Context, /, command: Sequence[str], idempotency_key: str, no_stdin: bool, **options: Any
) -> int:
    """Run a command, print what it prints, and exit as it exits."""
    if not command and not options.get("path"):
        raise click.UsageError("what shall run? try: rota run -- echo hello", ctx)
    if no_stdin and command and command[0].isdecimal():
        count = int(command[0])
        hint = f"; for {count} tasks try --array 0-{count - 1}" if count > 1 else ""
        raise click.UsageError(f"-n means --no-stdin and takes no number{hint}", ctx)
    made = job_of(given_options(ctx), command=command, stdin=not no_stdin and stdin.is_given())
    spec = made.spec
    if not (spec.stdin or no_stdin) and stdin.has_data():
        app.say("standard input is not read: it goes along with a job of one task alone ('-n' says so)")
    for line in shared_files(spec):
        app.say(line)
    try:
        with told_by(made.tell), client(PATIENCE_OF_WAITING_S) as rota:
            return _Run(rota, spec, idempotency_key).result()
    except ControllerFailed as error:
        app.present(error)
        return EXIT_ROTA


class _Run:
    """One job in the foreground. All news comes to the main thread by one queue."""

    def __init__(self, rota: Client, spec: JobSpec, idempotency_key: str) -> None:
        self._rota = rota
        self._spec = spec
        self._key = idempotency_key or str(uuid.uuid4())
        self._number = 0
        self._submitted_s = 0.0
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._job = Job()
        self._interrupts = 0
        self._told_why = False
        self._printer = Printer(prefixed=bool(spec.array or spec.lines), again=self._why_again)
        # The controller has heard that the job is to end.
        self._cancelled = threading.Event()
        # When standard input came to its end; the task has all of it, or wants no more.
        self._input_ended_s: float | None = None
        self._fed = threading.Event()

    def result(self) -> int:
        """Submits, shows, waits; the exit code. Raises RotaError."""
        self._catch_signals()
        self._number = self._submit()
        self._submitted_s = time.monotonic()
        follower = Follower(self._rota, Job(id=self._number, spec=self._spec), self._printer, self._news.put)
        self._spawn(self._watch)
        if self._spec.stdin:
            self._spawn(self._feed)
        while True:
            match self._next():
                case _Interrupted():
                    if self._stop():
                        return EXIT_CANCELLED
                case _Left(number=number):
                    self._let_go()
                    _end_by(number)
                case _AllRead():
                    return self._outcome(follower)
                case BrokenPipeError():
                    # Nobody reads any more: as a program would, the job ends with it.
                    self._rota.cancel(self._number)
                    return app.broken_pipe()
                case app.CannotWrite() as failed:
                    self._rota.cancel(self._number)
                    raise failed
                case BaseException() as failed:
                    raise failed
                case job:
                    self._job = job
                    follower.update(job)
                    if job.state in JOB_ENDS:
                        self._spawn(lambda: self._read_to_the_end(follower))

    def _submit(self) -> int:
        """Submits; what is interrupted meanwhile is cancelled. Raises RotaError."""
        try:
            return self._rota.submit([self._spec], self._key).ids[0]
        except KeyboardInterrupt:
            answers: queue.SimpleQueue[int | RotaError] = queue.SimpleQueue()
            threading.Thread(target=lambda: answers.put(self._unsubmit()), daemon=True).start()
            try:
                match answers.get(timeout=UNSUBMIT_S_MAX):
                    case RotaError() as error:
                        app.say(str(error))
                        say_interrupted(self._key)
                    case number:
                        app.say(f"interrupted while submitting: job {number} is cancelled")
            except (queue.Empty, KeyboardInterrupt):
                say_interrupted(self._key)
            raise

    def _unsubmit(self) -> int | RotaError:
        """Cancels what may have been accepted: the same key submitted again gives its number."""
        try:
            with Client(self._rota.context, patience_s=CANCEL_S_MAX) as rota:
                number = rota.submit([self._spec], self._key).ids[0]
                rota.cancel(number)
        except RotaError as error:
            return error
        return number

    def _why_again(self, index: int, attempt: int) -> str:
        why = ""
        with suppress(RotaError):
            for each in self._rota.task(self._number, index).attempts:
                if each.number == attempt - 1 and each.cause:
                    why = f": attempt {each.number} ended by {formats.outcome(each.cause, each.code)}"
        return f"rota: task {self._number}/{index} starts again, as attempt {attempt}{why}"

    def _next(self) -> News:
        """The next news. A job that waits for long is said to, and why."""
        patient_s = PATIENT_S if sys.stderr.isatty() else PATIENT_IN_LOG_S
        while True:
            waits = self._job.state == JobState.JOB_STATE_PENDING and not self._told_why
            left_s = max(0.0, self._submitted_s + patient_s - time.monotonic())
            try:
                return self._news.get(timeout=left_s if waits else None)
            except queue.Empty:
                self._told_why = True
                self._say_why()

    def _say_why(self) -> None:
        job = self._rota.job(self._number)
        if job.reason:
            app.say(f"job {job.id} {formats.reason(job)}")

    def _catch_signals(self) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, self._interrupt)
        for each in (signal.SIGHUP, signal.SIGQUIT):
            # Nohup's are left alone.
            if signal.getsignal(each) is signal.SIG_DFL:
                signal.signal(each, self._leave)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._number:
            raise KeyboardInterrupt
        self._news.put(_Interrupted())

    def _leave(self, number: int, frame: FrameType | None) -> None:
        if not self._number:
            _end_by(number)
        self._news.put(_Left(number))

    def _let_go(self) -> None:
        """Says what becomes of the job, which goes on where it can.

        Without the rest of its input a task would wait for ever, or take what it has for the whole.
        """
        if self._job.state in JOB_ENDS:
            return
        number = self._number
        if self._spec.stdin and not (self._has_whole_input() and self._fed.wait(CANCEL_S_MAX)):
            self._spawn(self._cancel)
            self._cancelled.wait(CANCEL_S_MAX)
            says = f"cancelling job {number}, whose standard input ends here"
        else:
            says = f"leaving job {number}, which goes on; 'rota logs -f {number}' shows what it prints"
        # The terminal may be gone, and standard error a file.
        with suppress(OSError):
            app.say(says)

    def _has_whole_input(self) -> bool:
        """Whether it came to an end; one that comes with the signal is that of a writer whom it ended too."""
        ended_s = self._input_ended_s
        return ended_s is not None and (stdin.is_file() or time.monotonic() - ended_s > TOGETHER_S_MAX)

    def _stop(self) -> bool:
        """The first time cancels the job; True where it shall be left alone."""
        self._interrupts += 1
        number = self._number
        if self._job.state in JOB_ENDS:
            app.say(
                f"job {number} has ended, but not all of its output is printed; 'rota logs {number}' does"
            )
            return True
        if self._interrupts > 1 and self._cancelled.wait(CANCEL_S_MAX):
            app.say(f"leaving job {number}, which was told to end; 'rota show {number}' shows when it has")
            return True
        if self._interrupts > 1:
            app.say(
                f"leaving job {number}, which goes on: the controller did not answer; 'rota cancel {number}'"
            )
            return True
        app.say(f"cancelling job {number}; Ctrl-C again does not wait for its end")
        self._spawn(self._cancel)
        return False

    def _cancel(self) -> None:
        self._rota.cancel(self._number)
        self._cancelled.set()

    def _outcome(self, follower: Follower) -> int:
        """The exit code of the ended job; says on standard error what the task itself could not."""
        job, number = self._job, self._number
        if (more := self._printer.again_count - AGAIN_SAID_MAX) > 0:
            app.say(f"tasks started again {more:,} times more; 'rota show {number}/INDEX' shows why")
        if cut := self._printer.cut:
            options = " and ".join(f"{option} PATH" for stream, option in _FILES.items() if stream in cut)
            app.say(f"not all of the output was kept; to keep more: {options}")
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
                end = formats.outcome(groups[0].cause, groups[0].code)
                why = [formats.safe(groups[0].message)] if groups[0].message else []
                if job.spec.stdin and groups[0].cause in _RUN_AGAIN:
                    why.append("it had read its input, which is gone")
                app.say(f"job {number} ended by {end}" + (f": {'; '.join(why)}" if why else ""))
                if groups[0].cause == Cause.CAUSE_START_FAILED and (hint := start_hint(job.spec)):
                    app.say(hint)
        elif follower.missed:
            app.say(
                f"job {number} succeeded, but not all of its output could be read; try 'rota logs {number}'"
            )
            return EXIT_ROTA
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

    def _watch(self) -> None:
        for job in self._rota.watch(self._number):
            self._news.put(job)

    def _read_to_the_end(self, follower: Follower) -> None:
        follower.finish()
        self._news.put(_AllRead())

    def _feed(self) -> None:
        # Refused: the task has ended, and wants no more.
        with suppress(NotFound, Refused):
            self._rota.write_input(self._number, self._pieces())
        self._fed.set()

    def _pieces(self) -> Iterator[bytes]:
        yield from stdin.pieces()
        self._input_ended_s = time.monotonic()


def _end_by(number: int) -> None:
    """Ends this process by a signal, as if nobody had caught it."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(signal.Signals(number))

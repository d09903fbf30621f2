"""What every command that talks to a cluster begins with, and how it is told what it is about."""

import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from rota.cli import app
from rota.cli.origins import told_by_parameters
from rota.cli.states import short
from rota.client.client import PATIENCE_S, Client
from rota.client.context import home_directory, was_stopped
from rota.client.errors import InvalidRequest, NotFound, Refused, RotaError
from rota.client.messages import JobSpec, JobState, NodeState, SubmitJobsResponse

if TYPE_CHECKING:
    # For a shell that completes alone.
    from click.shell_completion import CompletionItem

T = TypeVar("T")
COMPLETION_S_MAX = 1.0
COMPLETIONS_MAX = 100
# So many of the newest jobs are looked through for what was begun to be typed.
COMPLETION_JOBS_MAX = 2_000
INDEX_MAX = 2**32 - 2
NUMBER_MAX = 2**63 - 1
# When is said that the controller does not answer: soon to a person, and into a log only if it lasts.
NOTICE_S = 2.0
# For a controller that was stopped in good order: it may be on its way up again.
STOPPED_S = 1.0
NOTICE_IN_LOG_S = 10.0

_OPEN = (JobState.JOB_STATE_PENDING, JobState.JOB_STATE_RUNNING)


@contextmanager
def client(patience_s: float = PATIENCE_S) -> Iterator[Client]:
    """A client of the cluster in the home. It is said when it takes time to reach it."""
    notice_s = NOTICE_S if sys.stderr.isatty() else NOTICE_IN_LOG_S
    if patience_s <= PATIENCE_S and was_stopped(home_directory()):
        patience_s = STOPPED_S
    with Client(patience_s=patience_s, notice=app.say, notice_s=notice_s) as made, told_by_parameters():
        yield made


def submit_jobs(rota: Client, jobs: Sequence[JobSpec], key: str) -> SubmitJobsResponse:
    """Submits; one that is interrupted tells how to find out what became of it. Raises RotaError."""
    key = key or str(uuid.uuid4())
    try:
        return rota.submit(jobs, key)
    except KeyboardInterrupt:
        say_interrupted(key)
        raise


def say_interrupted(key: str) -> None:
    """Nobody knows whether what was being submitted has been accepted: how to find out."""
    app.say(
        "interrupted while submitting, which may have been accepted: then 'rota ls' lists the job and 'rota"
        f" cancel' ends it; the same command with '--idempotency-key {key}' submits it only if it was not"
    )


# ---------------------------------------------------------------- what a command is about


_Choice = tuple[str, str | None]
"""What may be chosen, and a word about it."""


class _Named(click.ParamType[T]):
    """Something that the cluster has: a shell completes it by asking the cluster."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """What begins so, each with a word about it; nothing where no cluster answers at once."""
        from click.shell_completion import CompletionItem

        try:
            with Client(patience_s=COMPLETION_S_MAX) as made:
                fitting = (each for each in self.known(made) if each[0].startswith(incomplete))
                return [CompletionItem(value, help=says) for value, says in islice(fitting, COMPLETIONS_MAX)]
        except (RotaError, OSError):
            return []

    def known(self, rota: Client) -> Iterable[_Choice]:
        """All there is to choose from. Raises RotaError."""
        raise NotImplementedError


class _Word(_Named[str]):
    """A name, which the cluster checks."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As it is."""
        return str(value)


class NodeName(_Word):
    """The name of a node."""

    name = "NAME"

    def known(self, rota: Client) -> list[_Choice]:
        """All nodes."""
        return [(node.name, short(NodeState, node.state).lower()) for node in rota.nodes()]


class QueueName(_Word):
    """The name of a queue."""

    name = "NAME"

    def known(self, rota: Client) -> list[_Choice]:
        """All queues."""
        return [(queue.name, None) for queue in rota.queues()]


class TokenId(_Word):
    """The id of a join token."""

    name = "ID"

    def known(self, rota: Client) -> list[_Choice]:
        """Tokens that can still be used."""
        now_ms = time.time() * 1000
        usable = (token for token in rota.tokens() if token.uses_left and not token.revoked)
        return [(token.id, None) for token in usable if token.expires_at_ms > now_ms]


class _OfJob(_Named[T]):
    """A job by its number. `open_only`: of the ended ones none is proposed."""

    def __init__(self, *, open_only: bool = False) -> None:
        self.open_only = open_only

    def known(self, rota: Client) -> Iterable[_Choice]:
        """The newest jobs."""
        for job in rota.jobs(states=_OPEN if self.open_only else (), limit=COMPLETION_JOBS_MAX):
            says = f"{short(JobState, job.state).lower()} {job.spec.name}".strip()
            yield str(job.id), says


class Dependency(_OfJob[str]):
    """A job, and how it must have ended: checked with the rest of the job."""

    name = "ID[:WHEN]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As it is."""
        return str(value)


class JobNumber(_OfJob[int]):
    """The number of a job."""

    name = "ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """`42` is 42."""
        if isinstance(value, int):
            return value
        number = _number(value, NUMBER_MAX)
        if not number:
            self.fail(f"'{value}' is not the number of a job; 'rota ls' lists jobs", param, ctx)
        return number


class TasksOfJob(_OfJob[tuple[int, str]]):
    """A job, or some of its tasks: (number, indices as text). `example`: what would be right."""

    name = "ID[/TASKS]"

    def __init__(self, *, open_only: bool = False, example: str = "42, 42/7 or 42/0-9") -> None:
        super().__init__(open_only=open_only)
        self._example = example

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, str]:
        """`42/0-9` is (42, `0-9`), `42` is (42, ``)."""
        if isinstance(value, tuple):
            return value
        job, slash, indices = value.partition("/")
        number = _number(job, NUMBER_MAX)
        if not number or (slash and not indices):
            self.fail(f"'{value}' is no job and no task; try {self._example}", param, ctx)
        return number, indices


def not_empty(ctx: click.Context, param: click.Parameter, value: T) -> T:
    """A callback: an empty text that is given is a shell's variable that is not set, and never meant."""
    texts = value if isinstance(value, tuple) else (value,)
    given = ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    if given and any(isinstance(text, str) and not text.strip() for text in texts):
        if isinstance(param, click.Argument):
            raise click.UsageError(f"'{param.make_metavar(ctx)}' is empty; give a value", ctx)
        raise click.UsageError(f"{param.opts[-1]} is empty; give a value, or leave the option out", ctx)
    return value


idempotency_key_option = click.option(
    "--idempotency-key",
    default="",
    metavar="KEY",
    callback=not_empty,
    help="The same key is the same submission.",
)
"""For `submit_jobs`."""


def one_index(indices: str) -> int | None:
    """The index in a text that names just one, else None."""
    return _number(indices, INDEX_MAX)


def _number(text: str, largest: int) -> int | None:
    if not (text.isascii() and text.isdecimal()) or len(text) > 19 or int(text) > largest:
        return None
    return int(text)


def pairs(texts: Iterable[str], what: str, example: str) -> dict[str, str]:
    """`K=V` texts as a mapping; the last of the same key counts."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(
                f"'{text}' is no {what}; try {example}", click.get_current_context(silent=True)
            )
        found[key] = value
    return found


def each(items: Iterable[T], act: Callable[[T], None]) -> int:
    """Does something with each item, though others are refused, each of which is said to be.

    Returns the exit code of the first that is, or 0. Raises RotaError where nobody can be asked.
    """
    code = 0
    for item in items:
        try:
            with told_by_parameters():
                act(item)
        except (InvalidRequest, NotFound, Refused) as error:
            failed = app.present(error)
            code = code or failed
    return code

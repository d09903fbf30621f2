"""What every command that talks to a cluster begins with, and how it is told what it is about."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from rota.cli import app
from rota.client.client import PATIENCE_S, Client
from rota.client.errors import RotaError

T = TypeVar("T")
INDEX_MAX = 2**32 - 2
NUMBER_MAX = 2**63 - 1


@contextmanager
def client(patience_s: float = PATIENCE_S) -> Iterator[Client]:
    """A client of the cluster in the home. A person is told when it takes time to reach it."""
    with Client(patience_s=patience_s, notice=app.say if sys.stderr.isatty() else None) as made:
        yield made


class JobNumber(click.ParamType[int]):
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


class TasksOfJob(click.ParamType[tuple[int, str]]):
    """A job, or some of its tasks: (number, indices as text)."""

    name = "ID[/TASKS]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, str]:
        """`42/0-9` is (42, `0-9`), `42` is (42, ``)."""
        if isinstance(value, tuple):
            return value
        job, slash, indices = value.partition("/")
        number = _number(job, NUMBER_MAX)
        if not number or (slash and not indices):
            self.fail(f"'{value}' is no job and no task; try 42, 42/7 or 42/0-9", param, ctx)
        return number, indices


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
    """Does something with each item, though it fails with others; the first failure's exit code, or 0."""
    code = 0
    for item in items:
        try:
            act(item)
        except RotaError as error:
            code = code or app.present(error)
    return code

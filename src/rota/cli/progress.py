"""How far a job is, on standard error: a bar on a terminal, else a line now and then."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rota.cli import app, formats
from rota.cli.jobs import state_name
from rota.client.client import JOB_ENDS
from rota.client.messages import Job

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

# Without a terminal: a line at each tenth of the tasks.
STEPS = 10


class Progress(Protocol):
    """Is told what the job has become."""

    def update(self, job: Job) -> None:
        """Shows it."""
        ...


@contextmanager
def progress() -> Iterator[Progress]:
    """Shows how far jobs are while the block runs."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[notes]}"),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=False) as drawn:
        yield _Bars(drawn)


class _Bars:
    def __init__(self, drawn: "RichProgress") -> None:
        self._drawn = drawn
        self._bars: dict[int, TaskID] = {}

    def update(self, job: Job) -> None:
        if job.id not in self._bars:
            self._bars[job.id] = self._drawn.add_task(f"job {job.id}", total=job.tasks.total, notes="")
        notes = [state_name(job).lower()]
        if job.tasks.failed:
            notes.append(f"{job.tasks.failed:,} failed")
        self._drawn.update(self._bars[job.id], completed=formats.ended(job.tasks), notes=", ".join(notes))


class _Lines:
    def __init__(self) -> None:
        self._said: dict[int, tuple[str, int]] = {}

    def update(self, job: Job) -> None:
        if job.state in JOB_ENDS:
            return  # which whoever waits says, with more
        step = formats.ended(job.tasks) * STEPS // max(1, job.tasks.total)
        if self._said.get(job.id) != (state_name(job), step):
            self._said[job.id] = (state_name(job), step)
            app.say(f"job {job.id} {state_name(job)}: {formats.counts(job.tasks)}")

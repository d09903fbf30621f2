"""Standard input that nobody feeds any more: its task would wait for the rest for ever.

Whoever feeds a job says so again and again; that it is gone, nobody says. When nothing was heard for long
enough, the task's node is asked how much it has, for only that knows whether the input is whole. Nothing is
stored: a new leader begins to wait anew.
"""

from rota.core.cluster.inputs import Done, Fed
from rota.core.cluster.state import Job, Node
from rota.core.cluster.tasks import put_job_status
from rota.core.cluster.work import Work
from rota.core.model.protocol import Input, InputTaken
from rota.core.model.states import EventKind

# `rota run` goes on trying for 60 s where the controller is out of reach, and feeds again after that.
UNFED_MS_MAX = 90_000


def begin(work: Work) -> None:
    """A leader begins, or was stopped and goes on: whoever feeds could not say so."""
    work.soft.unfed.clear()
    for job in work.cluster.active.values():
        if job.spec.stdin:
            expect(work, job)


def expect(work: Work, job: Job) -> None:
    """From now on a job is to be fed."""
    work.soft.unfed.discard(job.id)
    work.soft.timers.arm("input", str(job.id), work.now_ms + UNFED_MS_MAX)


def fed(work: Work, item: Fed) -> None:
    """Somebody feeds a job."""
    job = work.cluster.jobs.get(item.job)
    if job is not None and not job.ended:
        expect(work, job)
    work.reply(item.ticket, Done())


def overdue(work: Work, name: str) -> None:
    """Nobody has fed a job for long: its node is asked, again and again while it does not answer.

    A task that does not run has read nothing: whoever feeds it may still come.
    """
    job = work.cluster.active.get(int(name))
    work.soft.unfed.discard(int(name))
    if job is None:
        return
    for allocation in job.allocations.values():
        for index in allocation.running:
            expect(work, job)
            work.soft.unfed.add(job.id)
            # It has nothing to say, and is answered like any other piece.
            work.send(allocation.node.id, Input(allocation.id, index, 0, b"", False))


def taken(work: Work, node: Node, message: InputTaken) -> None:
    """A node says how much it has of an input that nobody feeds just now."""
    allocation = node.allocations.get(message.allocation)
    if allocation is None or message.index not in allocation.running:
        return
    job = allocation.job
    asked = job.id in work.soft.unfed
    work.soft.unfed.discard(job.id)
    if message.end:
        work.soft.timers.disarm("input", str(job.id))
    elif asked and not job.ending:
        reason = "nobody feeds its standard input any more, of which the end is missing"
        put_job_status(work, job, stopping=True, reason=reason)
        work.event(EventKind.JOB_CANCEL_REQUESTED, job=job.id, message=reason)
        work.touch(job)

"""`rota submit`."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from rota.cli import app, formats, slurm, stdin
from rota.cli.hints import shared_files
from rota.cli.job_options import (
    SCRIPT_MARK,
    absolute,
    doubtful_lines,
    given_options,
    job_of,
    job_options,
    merge,
    read_script,
    script_options,
)
from rota.cli.listing import output_option, plain, print_json, print_yaml
from rota.cli.origins import Tell, told_by
from rota.cli.session import client, idempotency_key_option, not_empty, submit_jobs
from rota.cli.wait import wait_for
from rota.client.client import PATIENCE_OF_WAITING_S, PATIENCE_S, Client
from rota.client.errors import InvalidRequest, RotaError
from rota.client.messages import JobSpec, JobState, SubmitJobsResponse
from rota.client.texts import read_job_file

NAME_LENGTH_MAX = 128
# Of so many jobs that wait for earlier ones is asked whether they wait in vain.
ASKED_MAX = 10

_COMMAND = "rota.cli.submit.command"


class SubmitCommand(click.Command):
    """Keeps apart what stands ahead of `--` and the command behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[_COMMAND] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)


@click.command(
    cls=SubmitCommand,
    context_settings={"ignore_unknown_options": False},
    epilog="""\b
Examples:
  rota submit -- make test
  rota submit --array 0-999 --cpu 4 -- ./render {index}
  rota submit --each-line urls.txt -- curl -sO {line}
  rota submit train.sh -- --epochs 5  options in lines like '#ROTA --gpu 1'
  rota submit jobs.yaml --wait
  ID=$(rota submit -o name -- make)   the id alone
""",
)
@click.argument(
    "file",
    required=False,
    type=click.Path(),
    callback=not_empty,
    metavar="[FILE.yaml | SCRIPT [ARGUMENT]... | -- COMMAND...]",
)
@click.argument("arguments", nargs=-1, metavar="")
@job_options
@idempotency_key_option
@click.option("--wait", is_flag=True, help="Wait until the jobs have ended: exit 0 if all succeeded, else 1.")
@output_option
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    file: str | None,
    arguments: Sequence[str],
    idempotency_key: str,
    wait: bool,
    output: str,
    **_: Any,
) -> int:
    """Submit a command, a script or a job file; the text of a script travels with it."""
    jobs, tell = _jobs(ctx, file, arguments)
    if "-" not in (file, ctx.params.get("each_line")) and stdin.has_data():
        app.say("standard input is not read by 'rota submit', and no task gets it; 'rota run' takes it along")
    for job in jobs:
        for line in shared_files(job):
            app.say(line)
    with told_by(tell), client(PATIENCE_OF_WAITING_S if wait else PATIENCE_S) as rota:
        answer = submit_jobs(rota, jobs, idempotency_key)
        _print(answer, jobs, output)
        if wait:
            return wait_for(rota, answer.ids, err=True)
        if not answer.repeated_request:
            _say_cancelled(rota, answer, jobs)
        return 0


def is_job_file(file: str | None) -> bool:
    """Whether a file says all of its jobs; else it is a script."""
    return file is not None and file.endswith((".yaml", ".yml", ".json"))


def _jobs(ctx: click.Context, file: str | None, arguments: Sequence[str]) -> tuple[Sequence[JobSpec], Tell]:
    """What is to be submitted, and where it comes from. Raises InvalidRequest or UsageError."""
    command: Sequence[str] | None = ctx.meta.get(_COMMAND)
    options = given_options(ctx)
    if file is None:
        if not command and "path" not in options:
            raise click.UsageError("what shall run? try 'rota submit -- COMMAND' or 'rota submit FILE'", ctx)
        made = job_of(options, command=command or ())
        return [made.spec], made.tell
    if is_job_file(file):
        if any(map(is_job_file, arguments)):
            says = f"one job file at a time: submit {file} first; or one file can hold the jobs of all"
            raise click.UsageError(says, ctx)
        if options or arguments or command:
            raise click.UsageError(f"a job file says all of its jobs: write it in {file} instead", ctx)
        read = read_job_file(file)
        fed = [number for number, job in enumerate(read.jobs) if job.stdin]
        if fed:
            says = "'rota submit' feeds no task; leave it out, or try 'rota run -- COMMAND < FILE'"
            raise InvalidRequest(read.tell(number, "stdin", says) for number in fed)
        for job in read.jobs:
            job.cwd = absolute(job.cwd)
        return read.jobs, read.tell
    script = read_script(file)
    if count := slurm.line_count(script):
        lines = f"{count} {slurm.SCRIPT_MARK} line{'s' if count > 1 else ''}"
        app.say(f"{file}: {lines} not read; '{SCRIPT_MARK}' lines are, see {slurm.GUIDE}")
    for doubt in doubtful_lines(file, script):
        app.say(doubt)
    found = script_options(file, script)
    given = dict(found.options)
    merge(given, options)
    for name, texts in options.items():
        if not isinstance(texts, tuple):
            found.places.pop(name, None)
    made = job_of(given, command=[*arguments, *(command or ())], script=script, lines=found)
    made.spec.name = made.spec.name or _name_of(file)
    return [made.spec], made.tell


def _say_cancelled(rota: Client, answer: SubmitJobsResponse, jobs: Sequence[JobSpec]) -> None:
    """Names jobs that will not run, because one that they come after has ended otherwise."""
    numbers = [
        number
        for number, job in zip(answer.ids, jobs, strict=True)
        if any(after.job.isdecimal() for after in job.after)
    ]
    # They are submitted, whatever becomes of the question.
    with suppress(RotaError):
        for number in numbers[:ASKED_MAX]:
            job = rota.job(number)
            if job.state == JobState.JOB_STATE_CANCELLED:
                app.say(f"job {number} is cancelled at once: {formats.reason(job)}")


def _name_of(script: str) -> str:
    """What a job without a name is called: as its script's file, of what a name may have."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", Path(script).name)[:NAME_LENGTH_MAX].strip("_.-")


def _print(answer: SubmitJobsResponse, jobs: Sequence[JobSpec], output: str) -> None:
    if output == "json":
        print_json(plain(answer))
    elif output == "yaml":
        print_yaml(plain(answer))
    elif output == "name":
        click.echo("\n".join(map(str, answer.ids)))
    else:
        again = " (the same request as before)" if answer.repeated_request else ""
        for number, job in zip(answer.ids, jobs, strict=True):
            name = f" {formats.safe(job.name)}" if job.name else ""
            click.echo(f"job {number}{name} submitted{again}")

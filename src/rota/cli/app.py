"""The root of the command line, and how errors look: one line each, never a traceback."""

import os
import re
import sys
import traceback
from collections.abc import Sequence

import click

import rota
from rota.cli import slurm
from rota.cli.group import Entry, LazyGroup, nearest, shortened
from rota.cli.interrupts import EXIT_INTERRUPTED

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_REFUSED = 4
EXIT_UNREACHABLE = 5
EXIT_PIPE = 141

# The lines of a script, and the commands with a job's options too.
_LINE = "#ROTA"
_WITH_JOB_OPTIONS = ("run", "submit", _LINE)
# Options of the commands that are no job's.
_OF_THE_COMMAND = ("--wait", "--idempotency-key", "--no-stdin")

DEBUG_VARIABLE = "ROTA_DEBUG"

_WORK, _CLUSTER, _OTHER = "Work", "Cluster", "Other"

ENTRIES = {
    "run": Entry("rota.cli.run:run", "run a command and show what it prints", _WORK),
    "submit": Entry("rota.cli.submit:submit", "submit a command, a script or a job file", _WORK),
    "ls": Entry("rota.cli.jobs:ls", "list jobs", _WORK),
    "show": Entry("rota.cli.show:show", "show a job, its failures, or one task", _WORK),
    "logs": Entry("rota.cli.logs:logs", "print what tasks have written", _WORK),
    "wait": Entry("rota.cli.wait:wait", "wait until jobs have ended", _WORK),
    "cancel": Entry("rota.cli.jobs:cancel", "end jobs, or some of their tasks", _WORK),
    "hold": Entry("rota.cli.jobs:hold", "start nothing new of jobs", _WORK),
    "release": Entry("rota.cli.jobs:release", "end a hold", _WORK),
    "retry": Entry("rota.cli.jobs:retry", "run failed and cancelled tasks again", _WORK),
    "events": Entry("rota.cli.events:events", "what happened", _WORK),
    "node": Entry(
        "rota.cli.node:node", "list, show, cordon, drain, resume, label and remove nodes", _CLUSTER
    ),
    "queue": Entry("rota.cli.queue:queue", "create, change, list and remove queues", _CLUSTER),
    "token": Entry("rota.cli.token:token", "create, list and revoke join tokens", _CLUSTER),
    "cluster": Entry("rota.cli.cluster:cluster", "the cluster in numbers", _CLUSTER),
    "completion": Entry("rota.cli.completion:completion", "completion for bash, zsh and fish", _OTHER),
}

# What people try who come from other programs.
INSTEAD = {
    "version": "--version",
    "status": "cluster info",
    "info": "cluster info",
    "ps": "ls",
    "top": "ls --state running",
    "list": "ls",
    "jobs": "ls",
    "queues": "queue ls",
    "nodes": "node ls",
    "squeue": "ls",
    "sinfo": "node ls",
    "srun": "run",
    "exec": "run",
    "sbatch": "submit",
    "apply": "submit",
    "create": "submit",
    "scancel": "cancel",
    "kill": "cancel",
    "stop": "cancel, or for the cluster of this machine: rota down",
    "delete": "cancel",
    "rm": "cancel",
    "sacct": "ls",
    "describe": "show",
    "get": "ls",
    "log": "logs",
    "tail": "logs -f",
    "start": "up",
    "server": "up",
    "worker": "agent",
}

# Options that people try who come from other programs: ours, where the command has it.
OPTIONS_INSTEAD = {
    "--json": "-o json",
    "--yaml": "-o yaml",
    "--wide": "-o wide",
    "--format": "-o",
    "--status": "--state",
    "--all": "--limit 0",
    "--lines": "--tail",
    "-n": "--tail",
    "--timeout": "--time-limit",
    "--depends": "--after",
    "--depends-on": "--after",
    "--workdir": "--cwd",
}

_SAYS = """Rota runs programs on a set of machines.

\b
  rota up                      a cluster on this machine
  rota run -- echo hello       run a command there
  rota submit --array 0-99 -- ./render {index}
  rota ls                      what became of it
"""


class Root(LazyGroup):
    """`rota`: a LazyGroup whose commands are shown by heading, with the options of all."""

    def __init__(self) -> None:
        super().__init__(
            "rota", ENTRIES, _SAYS, "'rota COMMAND --help' shows a command's options and examples."
        )
        self.instead = INSTEAD
        self.params += [
            click.Option(
                ["--home"],
                metavar="DIR",
                expose_value=False,
                is_eager=True,
                callback=_set_home,
                help="Use the cluster in this directory (default: ROTA_HOME, else ~/.rota).",
            ),
            click.Option(
                ["--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_print_version,
                help="Print the version.",
            ),
        ]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As LazyGroup's; `rota help COMMAND` is `rota COMMAND --help`."""
        if args[0] == "help" and not ctx.resilient_parsing:
            if len(args) == 1:
                click.echo(ctx.get_help())
                ctx.exit()
            return super().resolve_command(ctx, [*args[1:], "--help"])
        return super().resolve_command(ctx, args)


def _set_home(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and not value.strip():
        raise click.UsageError("--home is empty; give a value, or leave the option out", ctx)
    if value:
        from rota.client.context import expanded

        os.environ["ROTA_HOME"] = str(expanded(value))


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"rota {rota.__version__}")
        ctx.exit()


class CannotWrite(click.ClickException):
    """What is printed cannot be written: a full disk, say."""

    def __init__(self, stream: str, error: OSError) -> None:
        super().__init__(f"cannot write to {stream}: {error.strerror}")


def run(root: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code. Every error has become a line on standard error."""
    try:
        result = root.main(args=arguments, prog_name="rota", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as nothing:
        click.echo(nothing.format_message(), err=True)
        return EXIT_USAGE
    except click.UsageError as wrong:
        command = wrong.ctx.command_path if wrong.ctx is not None else "rota"
        return _say(wrong.ctx, [f"{usage_text(wrong)} (see '{command} --help')"], EXIT_USAGE)
    except click.ClickException as wrong:
        return present(wrong)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return broken_pipe()
    except SystemExit as end:
        # So click ends a shell's completion, and what prints into a broken pipe; no command exits so itself.
        return broken_pipe() if end.code else 0
    except OSError as error:
        if not _is_of_stdout(error):
            return present(error)
        _let_go_of_stdout()
        return present(CannotWrite("standard output", error))
    except Exception as error:  # noqa: BLE001 (the last resort: a user sees a line, not a traceback)
        return present(error)


def broken_pipe() -> int:
    """Whoever read our output is gone: ends quietly."""
    _let_go_of_stdout()
    return EXIT_PIPE


def _let_go_of_stdout() -> None:
    """What is still to be written there is not, and Python says nothing of it at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def _is_of_stdout(error: OSError) -> bool:
    """Whether printing raised it: such an error does not say which file it is about."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    return last.f_code in (click.echo.__code__, run.__code__)


def say(text: str) -> None:
    """A line for people, on standard error."""
    click.echo(f"rota: {text}", err=True)


def problem_lines(problems: Sequence[str], limit: int = 10) -> list[str]:
    """At most `limit` of them, then how many more there are."""
    lines = list(problems[:limit])
    if len(problems) > limit:
        lines.append(f"and {len(problems) - limit} more")
    return lines


def present(error: Exception) -> int:
    """Says what went wrong; returns the exit code for it."""
    if isinstance(error, click.ClickException):
        return _say(None, [error.format_message()], error.exit_code)
    # gRPC and protobuf are imported where a client was used, and not on an early error.
    from rota.client import errors

    codes = {
        errors.InvalidRequest: EXIT_USAGE,
        errors.NotFound: EXIT_NOT_FOUND,
        errors.Refused: EXIT_REFUSED,
        errors.NoCluster: EXIT_UNREACHABLE,
        errors.Unreachable: EXIT_UNREACHABLE,
    }
    if isinstance(error, errors.RotaError):
        return _say(None, problem_lines(error.problems), codes.get(type(error), EXIT_BUG))
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
        return _say(None, [f"'{shown(error.object)}' is not UTF-8 text; Rota takes no other"], EXIT_USAGE)
    if isinstance(error, FileNotFoundError) and error.filename is None:
        # Only the current directory has no name.
        return _say(None, ["the current directory has been removed: change to another one"], EXIT_USAGE)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return _say(None, [f"{error.filename}: {error.strerror}"], EXIT_BUG)
    return _report_bug(error)


def _say(ctx: click.Context | None, lines: Sequence[str], code: int) -> int:
    command = ctx.command_path if ctx is not None else "rota"
    for line in lines:
        click.echo(f"{command}: {line}", err=True)
    return code


def shown(text: str) -> str:
    """A text that may hold bytes which are no UTF-8; these are written in hexadecimal digits."""
    return os.fsencode(text).decode(errors="backslashreplace")


def usage_text(wrong: click.UsageError) -> str:
    """What is wrong with a command line, in one line."""
    text = wrong.format_message().rstrip(".")
    if isinstance(wrong, click.NoSuchOption):
        of_a_job = wrong.ctx is not None and wrong.ctx.info_name in _WITH_JOB_OPTIONS
        hint = slurm.hint(wrong.option_name) if of_a_job else ""
        hint = hint or _tried(wrong) or nearest(wrong.option_name, wrong.possibilities or ())
        text = f"there is no option '{shortened(wrong.option_name)}'{hint}"
    elif isinstance(wrong, click.BadParameter) and _is_output_of_submit(wrong):
        text += "; a file for what the tasks print is --stdout"
    text = re.sub(r"is not a valid (integer|float)( range)?", "is no number", text)
    return " ".join((text[:1].lower() + text[1:]).split())


def _is_output_of_submit(wrong: click.BadParameter) -> bool:
    """Whether its `-o` was given something else than a format: many programs' is a file."""
    of_submit = wrong.ctx is not None and wrong.ctx.info_name == "submit"
    return of_submit and wrong.param is not None and wrong.param.name == "output"


def _tried(wrong: click.NoSuchOption) -> str:
    """`; try: -o json`, if the command has it, or nothing."""
    if wrong.ctx is not None and wrong.ctx.info_name == "run" and wrong.option_name == "--detach":
        return "; try: rota submit"
    if wrong.ctx is not None and wrong.ctx.info_name == _LINE and wrong.option_name in _OF_THE_COMMAND:
        return " for a job; it stands on the command line"
    ours = OPTIONS_INSTEAD.get(wrong.option_name, "")
    there = {name for param in wrong.ctx.command.params for name in param.opts} if wrong.ctx else set()
    return f"; try: {ours}" if ours.split(" ")[0] in there else ""


def _report_bug(error: Exception) -> int:
    import tempfile

    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
        return EXIT_BUG
    with tempfile.NamedTemporaryFile(
        "w", prefix="rota-bug-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(f"rota {rota.__version__}: {' '.join(sys.argv)}\n\n")
        traceback.print_exception(error, file=file)
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return _say(None, [f"this is a bug in Rota ({what}); please report it with {file.name}"], EXIT_BUG)


root = Root()

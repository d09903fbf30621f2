"""`rota agent`: makes this machine a node, if it is none yet, and becomes its supervisor."""

import os
import pwd
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import click

from rota.cli.app import say
from rota.cli.session import not_empty
from rota.client.context import expanded
from rota.client.errors import InvalidRequest, Refused, RotaError, Unreachable
from rota.client.texts import pair, set_text
from rota.client.units import UnitError, parse_milliseconds
from rota.main.controller import Address
from rota.main.daemon import say_ready
from rota.main.home import Home
from rota.main.machine_texts import add_label, add_named
from rota.main.options import home_option, ready_option
from rota.wire.gen.v1.node_pb2 import Inventory, Pool
from rota.wire.units import quoted
from rota.wire.validate import validate

F = TypeVar("F", bound=Callable[..., Any])

# What an agent is told of its machine: option, placeholder, whether it may stand several times, help.
_OPTIONS = [
    ("--cpu", "N", False, "Cores to offer (default: all; none is kept for the system)."),
    ("--memory", "SIZE", False, "Memory to offer (default: all but a share for the system)."),
    ("--gpu", "N", False, "GPUs to offer (default: the NVIDIA GPUs found)."),
    ("--disk", "SIZE", False, "Disk space to offer (default: all that is free but a share for the system)."),
    ("--resource", "NAME=N", True, "Another resource to offer."),
    ("--label", "K=V", True, "A label of the node."),
    ("--scripts-dir", "DIR", False, "Run only what is in this directory: a guard, no sandbox."),
    ("--map-user", "USER=ACCOUNT", True, "Run a user's tasks as this account."),
    ("--grace", "DURATION", False, "When the agent is stopped: time between TERM and KILL (default: 10s)."),
]
_AMOUNTS = ("cpu", "memory", "gpu", "disk")

# By the exit codes of `rota.agent.enrol`.
_ENROL_ERRORS: dict[int, type[RotaError]] = {2: InvalidRequest, 4: Refused, 5: Unreachable}


class _Share(click.ParamType[tuple[int, int]]):
    """`I/N`."""

    name = "I/N"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        number, _, count = value.partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
            self.fail(f"'{value}' is no part of a machine; try 0/2", param, ctx)
        return int(number), int(count)


def machine_options(function: F) -> F:
    """What an agent is told of its machine; `machine_arguments` understands them."""
    for option, metavar, multiple, says in reversed(_OPTIONS):
        function = click.option(option, metavar=metavar, multiple=multiple, help=says)(function)
    return function


def machine_arguments(options: Mapping[str, Any]) -> list[str]:
    """The same options as arguments of another command."""
    arguments = []
    for option, _, multiple, _ in _OPTIONS:
        given = options.get(option[2:].replace("-", "_")) or ()
        for text in given if multiple else filter(None, [given]):
            arguments += [option, text]
    return arguments


@click.command(
    epilog="""\b
Examples:
  rota agent --join 10.0.0.1:7071 --token rota1_... --name gpu-1
  rota agent                       once it has joined
  ROTA_TOKEN=rota1_... rota agent --join 10.0.0.1:7071 --label rack=7 --cpu 30
"""
)
@home_option
@click.option(
    "--join",
    type=Address("10.0.0.1:7071, as 'rota token create' says it"),
    help="Where the controller lets machines join.",
)
@click.option(
    "--token",
    envvar="ROTA_TOKEN",
    show_envvar=True,
    metavar="TOKEN",
    help="A join token; not needed once it has joined.",
)
@click.option("--name", metavar="NAME", help="The node's name (default: the machine's).")
@machine_options
@click.option("--number", type=click.IntRange(0), default=0, hidden=True, help="Which of the home's agents.")
@click.option("--share", type=_Share(), hidden=True, help="Which of how many parts of the machine.")
@ready_option
def agent(
    home: Home,
    join: tuple[str, int] | None,
    token: str | None,
    name: str | None,
    number: int,
    share: tuple[int, int] | None,
    ready_fd: int | None,
    **options: Any,
) -> None:
    """Run an agent in the foreground, for systemd or by hand; 'rota up' is simpler."""
    ctx = click.get_current_context()
    for param in ctx.command.params:
        not_empty(ctx, param, ctx.params[param.name])
    try:
        # First what needs nobody else: no token is used up for an agent that then cannot be started.
        machine_flags(options)
        home.make()
        known_as = home.node_name(number)
        if known_as is not None and name not in (None, known_as):
            raise click.UsageError(
                f"{home.path} is node {known_as} already; give node {name} a home of its own (--home)",
                ctx,
            )
        if known_as is None:
            _enrol(home, number, join, token, name or machine_name())
            say(f"joined as node {home.node_name(number)}")
        elif token:
            say(f"{home.path} is node {known_as} already: the token was not used")
        command = supervisor_command(home, number, share, options, ready_fd)
    except (click.ClickException, RotaError) as failed:
        say_ready(ready_fd, str(failed))
        raise
    os.environ.pop("ROTA_TOKEN", None)
    # This process becomes the supervisor, so that nothing of the command line stays in memory.
    os.execv(command[0], command)


def machine_name(number: int = 0) -> str:
    """The machine's name, without its domain; for further agents with their number."""
    host = socket.gethostname().partition(".")[0]
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", host).strip("-_")[:50] or "node"
    return f"{plain}-{number}" if number else plain


def _enrol(home: Home, number: int, join: tuple[str, int] | None, token: str | None, name: str) -> None:
    """Makes the agent a node, in a child: nothing of gRPC and keys stays in this process."""
    if join is None or not token:
        raise click.UsageError(
            "this is no node yet; join a cluster with --join HOST:PORT --token TOKEN "
            "('rota token create' on the controller's machine makes one)",
            click.get_current_context(),
        )
    directory = home.agent(number)
    directory.mkdir(mode=0o700, exist_ok=True)
    host = f"[{join[0]}]" if ":" in join[0] else join[0]
    command = [sys.executable, "-m", "rota.agent.enrol"]
    command += ["--home", str(directory), "--join", f"{host}:{join[1]}", "--name", name]
    done = subprocess.run(command, input=token, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"enrolment ended with {done.returncode}"]
        says = lines[-1].removeprefix("rota: ")
        if says.startswith("name: "):
            says = f"--{says}"
        raise _ENROL_ERRORS.get(done.returncode, Refused)(says)


def supervisor_command(
    home: Home, number: int, share: tuple[int, int] | None, options: Mapping[str, Any], ready_fd: int | None
) -> list[str]:
    """What this process becomes: the options checked, and in numbers. Raises InvalidRequest."""
    flags = machine_flags(options)
    fixed = [("--home", home.agent(number)), ("--pid-file", home.agent_pid(number))]
    fixed.append(("--link-pid-file", home.link_pid(number)))
    ready = [] if ready_fd is None else [("--ready-fd", ready_fd)]
    shared = [] if share is None else [("--share", share_text(*share))]
    pairs = [*fixed, *ready, *shared, *flags]
    return [sys.executable, "-m", "rota.agent", *(str(word) for pair in pairs for word in pair)]


def share_text(number: int, count: int) -> str:
    """Which of how many equal parts of the machine."""
    return f"{number}/{count}"


def flag_of(name: str) -> str:
    """How the supervisor's command line calls an option of the machine's."""
    return "--grace-ms" if name == "grace" else "--" + name.replace("_", "-")


def machine_flags(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an agent is told of its machine, checked, for the supervisor's command line.

    Raises InvalidRequest with all that is wrong.
    """
    problems: list[str] = []
    flags: list[tuple[str, str]] = []
    inventory = Inventory(pools=[Pool()])
    amounts = inventory.pools[0].resources

    def add(name: str, convert: Callable[[str], str]) -> None:
        given = options.get(name) or ()
        for text in [given] if isinstance(given, str) else filter(None, given):
            try:
                flags.append((flag_of(name), convert(text)))
            except UnitError as error:
                problems.append(f"--{name.replace('_', '-')}: {error}")

    def amount(name: str, text: str) -> str:
        set_text(amounts, name, text)
        if name == "cpu" and not amounts.cpu:
            # It would be ready, and run nothing.
            raise UnitError(
                f"{quoted(text)} is no core; offer at least 0.001, or leave the option out for all"
            )
        return str(getattr(amounts, name))

    def named(text: str) -> str:
        name = add_named(amounts, text)
        return f"{name}={amounts.named[name]}"

    def label(text: str) -> str:
        name = add_label(inventory.labels, text)
        return f"{name}={inventory.labels[name]}"

    for name in _AMOUNTS:
        add(name, partial(amount, name))
    add("resource", named)
    add("label", label)
    add("map_user", _account)
    add("scripts_dir", _directory)
    add("grace", lambda text: str(parse_milliseconds(text)))
    # And what the controller would refuse for as long as the agent tells it.
    problems += [f"{_option_of(problem.path)}: {problem.says}" for problem in validate(inventory)]
    if problems:
        raise InvalidRequest(problems)
    return flags


def _option_of(path: tuple[str | int, ...]) -> str:
    names = {"labels": "--label", "named": "--resource"}
    return next((names[step] for step in path if step in names), f"--{path[-1]}")


def _account(text: str) -> str:
    user, account = pair(text, "ada=render")
    try:
        pwd.getpwnam(account)
    except KeyError:
        raise UnitError(f"there is no account '{account}' on this machine") from None
    return f"{user}={account}"


def _directory(text: str) -> str:
    path = expanded(text).resolve()
    if not path.is_dir():
        raise UnitError(f"there is no directory {path}")
    return str(path)

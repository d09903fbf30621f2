"""`rota agent`: makes this machine a node, if it is none yet, and becomes its supervisor."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from rota.client.errors import InvalidRequest, Refused, RotaError, Unreachable
from rota.client.messages import Resources
from rota.client.texts import set_named, set_text
from rota.client.units import UnitError, parse_milliseconds
from rota.main.controller import Address
from rota.main.daemon import say_ready
from rota.main.home import Home
from rota.main.options import home_option, ready_option

F = TypeVar("F", bound=Callable[..., Any])

# What an agent is told of its machine: option, placeholder, whether it may stand several times, help.
_OPTIONS = [
    ("--cpu", "N", False, "Cores to offer (default: all)."),
    ("--memory", "SIZE", False, "Memory to offer (default: all but a share for the system)."),
    ("--gpu", "N", False, "GPUs to offer (default: none)."),
    ("--disk", "SIZE", False, "Disk space to offer."),
    ("--resource", "NAME=N", True, "Another resource to offer."),
    ("--label", "K=V", True, "A label of the node."),
    ("--scripts-dir", "DIR", False, "Refuse scripts (--path) that are not in this directory."),
    ("--map-user", "USER=ACCOUNT", True, "Run a user's tasks as this account."),
    ("--grace", "DURATION", False, "When the agent is stopped: time between TERM and KILL (default: 10s)."),
]
_AMOUNTS = ("cpu", "memory", "gpu", "disk")

# By the exit codes of `rota.agent.enrol`.
_ENROL_ERRORS: dict[int, type[RotaError]] = {2: InvalidRequest, 4: Refused, 5: Unreachable}


def machine_options(function: F) -> F:
    """What an agent is told of its machine; `machine_arguments` understands them."""
    for option, metavar, multiple, says in reversed(_OPTIONS):
        function = click.option(option, metavar=metavar, multiple=multiple, help=says)(function)
    return function


def machine_arguments(options: dict[str, Any]) -> list[str]:
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
@click.option("--join", type=Address(), help="Where the controller lets machines join.")
@click.option(
    "--token", envvar="ROTA_TOKEN", show_envvar=True, help="A join token; not needed once it has joined."
)
@click.option("--name", help="The node's name (default: the machine's).")
@machine_options
@click.option("--number", type=click.IntRange(0), default=0, hidden=True, help="Which of the home's agents.")
@ready_option
def agent(
    home: Home,
    join: tuple[str, int] | None,
    token: str | None,
    name: str | None,
    number: int,
    ready_fd: int | None,
    **options: Any,
) -> None:
    """Run an agent in the foreground, for systemd or by hand; 'rota up' is simpler."""
    home.make()
    try:
        if home.node_name(number) is None:
            _enrol(home, number, join, token, name or machine_name())
        command = supervisor_command(home, number, options, ready_fd)
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
        raise _ENROL_ERRORS.get(done.returncode, Refused)(lines[-1].removeprefix("rota: "))


def supervisor_command(home: Home, number: int, options: dict[str, Any], ready_fd: int | None) -> list[str]:
    """What this process becomes: the options checked, and in numbers. Raises InvalidRequest."""
    problems: list[str] = []
    arguments: list[str] = []

    def add(option: str, convert: Callable[[str], str], text: str) -> None:
        try:
            arguments.extend((option, convert(text)))
        except UnitError as error:
            problems.append(f"{option}: {error}")

    for name in _AMOUNTS:
        if options.get(name):
            add(f"--{name}", partial(_amount, name), options[name])
    for text in options.get("resource") or ():
        add("--resource", _named, text)
    for option in ("label", "map_user"):
        for text in options.get(option) or ():
            add("--" + option.replace("_", "-"), _pair, text)
    if options.get("scripts_dir"):
        arguments += ["--scripts-dir", str(Path(options["scripts_dir"]).resolve())]
    if options.get("grace"):
        add("--grace-ms", lambda text: str(parse_milliseconds(text)), options["grace"])
    if problems:
        raise InvalidRequest(problems)
    fixed = ["--home", home.agent(number), "--pid-file", home.agent_pid(number)]
    fixed += ["--link-pid-file", home.link_pid(number)]
    ready = [] if ready_fd is None else ["--ready-fd", str(ready_fd)]
    return [sys.executable, "-m", "rota.agent", *map(str, fixed), *ready, *arguments]


def _amount(name: str, text: str) -> str:
    amount = Resources()
    set_text(amount, name, text)
    return str(getattr(amount, name))


def _named(text: str) -> str:
    name, value = _split(text, "power=100")
    amount = Resources()
    set_named(amount, name, value)
    return f"{name}={amount.named[name]}"


def _pair(text: str) -> str:
    return "=".join(_split(text, "rack=7"))


def _split(text: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UnitError(f"'{text}' has no name and value; try {example}")
    return name, value

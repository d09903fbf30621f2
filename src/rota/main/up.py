"""`rota up`: a cluster on this machine. Starts what is missing and leaves what runs alone."""

import getpass
import select
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import click
from click.core import ParameterSource

from rota.cli.units import Duration
from rota.client.client import Client
from rota.client.context import join_address
from rota.main import daemon
from rota.main.agent import machine_arguments, machine_name, machine_options
from rota.main.controller import LOST_AFTER_MS_DEFAULT
from rota.main.down import bring_down
from rota.main.home import Home
from rota.main.nodes import until_ready
from rota.main.options import home_option
from rota.main.processes import lives, living

NODES_MAX = 64
START_S_MAX = 30.0
TOKEN_MS = 60_000


@click.command(
    epilog="""\b
Examples:
  rota up                    in the foreground; Ctrl-C is 'rota down'
  rota up --detach           in the background; stop it with 'rota down'
  rota up -d --nodes 4       four nodes, to try things out: each declares the whole machine
  rota up -d --home /tmp/x   another cluster, which does not disturb the first
"""
)
@home_option
@click.option("-d", "--detach", is_flag=True, help="Return once everything runs.")
@click.option(
    "--nodes", type=click.IntRange(0, NODES_MAX), help="How many nodes here (default: those of before, or 1)."
)
@click.option(
    "--lost-after",
    type=Duration(),
    default=LOST_AFTER_MS_DEFAULT,
    help="Silence after which a node is lost (default: 5m), if the controller is started.",
)
@machine_options
def up(home: Home, detach: bool, nodes: int | None, lost_after: int, **options: Any) -> int:
    """Start what is missing of a cluster on this machine: a controller, and agents."""
    home.make()
    with home.starting():
        started = _start_controller(home, lost_after)
        with Client(patience_s=START_S_MAX) as rota:
            count = nodes if nodes is not None else max(1, home.agent_count())
            missing = [number for number in range(count) if not lives(home.agent_pid(number))]
            for number in missing:
                _start_agent(home, rota, number, machine_arguments(options))
            names = {number: home.node_name(number) or "" for number in missing}
            until_ready(rota, home, names, START_S_MAX)
            _say_where(home, rota)
    return 0 if detach or not (started or missing) else _stay(home)


def _start_controller(home: Home, lost_after: int) -> bool:
    """Starts the controller where none runs. Raises ClickException."""
    if lives(home.controller_pid):
        return False
    arguments = ["controller", "--home", str(home.path), "--lost-after", f"{lost_after}ms"]
    daemon.start("controller", arguments, home.log / "controller.log")
    return True


def _start_agent(home: Home, rota: Client, number: int, options: Sequence[str]) -> None:
    """Starts an agent; one that is no node yet gets a token. Raises ClickException."""
    name = home.node_name(number) or machine_name(number)
    arguments = ["agent", "--home", str(home.path), "--number", str(number), "--name", name, *options]
    secret = ""
    if home.node_name(number) is None:
        secret = rota.create_token(ttl_ms=TOKEN_MS, uses=1).secret
        arguments += ["--join", join_address(rota.context) or ""]
    log = home.log / f"agent-{number}.log"
    # In the environment, because anybody may read command lines.
    daemon.start(f"agent {name}", arguments, log, {"ROTA_TOKEN": secret})


def _say_where(home: Home, rota: Client) -> None:
    cluster = rota.cluster()
    ready = "1 node" if cluster.nodes_ready == 1 else f"{cluster.nodes_ready:,} nodes"
    click.echo(f"rota is up: controller at {rota.context.address}, {ready} ready, home {home.path}")
    account = getpass.getuser()
    click.echo(f"tasks run as {account}{' (so they may do anything here)' if account == 'root' else ''}")
    click.echo(f"try: rota{_home_argument(home)} run -- echo hello")


def _home_argument(home: Home) -> str:
    """What a command needs to find this home, if it does not find it by itself."""
    here = click.get_current_context()
    given = [each.get_parameter_source("home") for each in (here, here.find_root())]
    return f" --home {home.path}" if ParameterSource.COMMANDLINE in given else ""


def _stay(home: Home) -> int:
    """In the foreground until Ctrl-C, which is `rota down`, or until a part ends."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as held:
        parts = {"the controller": home.controller_pid}
        parts |= {f"agent {home.node_name(number)}": home.agent_pid(number) for number in home.agents()}
        poll = select.poll()
        names = {}
        ended = ""
        for name, pid_file in parts.items():
            process = held.enter_context(living(pid_file))
            if process is None:
                ended = name
            else:
                poll.register(process.descriptor, select.POLLIN)
                names[process.descriptor] = name
        try:
            click.echo("Ctrl-C stops it; 'rota up --detach' would run it in the background")
            ended = ended or names[poll.poll()[0][0]]
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            click.echo("stopping")
            with home.starting():
                bring_down(home)
            return 0
    click.echo(f"{ended} ended; 'rota up' starts it again, {home.log} says why", err=True)
    return 1

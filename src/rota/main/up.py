"""`rota up`: a cluster on this machine. Starts what is missing and leaves what runs alone."""

import getpass
import os
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import click
from click.core import ParameterSource

from rota.cli.app import say
from rota.client.client import Client
from rota.client.context import is_controllers, join_address, load_context
from rota.client.errors import Refused
from rota.main import daemon, settings
from rota.main.agent import machine_arguments, machine_flags, machine_name, machine_options, share_text
from rota.main.controller import LOST_AFTER_MS_DEFAULT
from rota.main.down import bring_down, let_go_of_terminal
from rota.main.home import Home
from rota.main.nodes import forgotten, until_ready
from rota.main.notices import say_what_is_not_there, say_what_waits, say_who_is_left
from rota.main.options import home_option, lost_after_option
from rota.main.processes import lives, living
from rota.main.settings import Settings

NODES_MAX = 64
START_S_MAX = 30.0
TOKEN_MS = 60_000


@click.command(
    epilog="""\b
Examples:
  rota up                    in the foreground; Ctrl-C is 'rota down'
  rota up --detach           in the background; stop it with 'rota down'
  rota up -d --nodes 4       four nodes, to try things out: each offers a quarter of the machine
  rota up -d --home /tmp/x   another cluster, which does not disturb the first

\b
What it is told is kept in the home and holds at the next start too; an empty text
(--cpu '') takes back what is said of the machine. What runs is left alone: for that,
options take effect after 'rota down' and 'rota up'.
"""
)
@home_option
@click.option("-d", "--detach", is_flag=True, help="Return once everything runs.")
@click.option(
    "--nodes",
    type=click.IntRange(0, NODES_MAX),
    metavar="N",
    help="How many nodes here, each with an equal share of the machine, but one core at least "
    "(default: as many as before, or 1).",
)
@lost_after_option(default=None)
@machine_options
def up(home: Home, detach: bool, nodes: int | None, lost_after: int | None, **options: Any) -> int:
    """Start what is missing of a cluster on this machine: a controller, and agents."""
    given = settings.said(nodes, lost_after, options)
    machine_flags(given.machine)
    _refuse_in_clients_home(home)
    home.make()
    with home.starting(), _interruptible(home, detach=detach):
        started = _start(home, given)
    if detach:
        return 0
    if not started:
        click.echo("all of it runs already, in the background: 'rota down' stops it")
        return 0
    return _stay(home)


@contextmanager
def _interruptible(home: Home, *, detach: bool) -> Iterator[None]:
    """A start that is interrupted, in the foreground also by TERM and HUP: there nothing is left of it.

    Where something ran before, all goes on: it is not this call's to stop.
    """
    keep = detach or _runs(home)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if not keep and handler != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if keep:
            say("interrupted; what has been started goes on: 'rota down' stops it")
        else:
            say("interrupted; ending what has been started")
            if _runs(home):
                bring_down(home)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _runs(home: Home) -> bool:
    return any(map(lives, [home.controller_pid, *map(home.agent_pid, home.agents())]))


def _interrupt(number: int, _frame: object) -> None:
    if number == signal.SIGHUP:
        let_go_of_terminal()
    raise KeyboardInterrupt


def _refuse_in_clients_home(home: Home) -> None:
    """A controller started there would take the place of the credentials for another. Raises Refused."""
    if home.context.exists() and not is_controllers(home.path):
        address = load_context(home.path).address
        raise Refused(
            f"{home.path} is a client of the cluster at {address}; "
            "for a cluster here take another home (--home)"
        )


def _start(home: Home, given: Settings) -> bool:
    """Starts what is missing; whether anything was. Raises ClickException and RotaError."""
    first = not home.context.exists()
    wanted = settings.kept(home).changed_by(given)
    machine_flags(wanted.machine)
    settings.keep(home, wanted)
    count = max(1, home.agent_count()) if wanted.nodes is None else wanted.nodes
    running = [number for number in home.agents() if lives(home.agent_pid(number))]
    missing = [number for number in range(count) if number not in running]
    say_what_waits(home, given, wanted, running, count)
    if missing:
        say_what_is_not_there(wanted, count)
    started = _start_controller(home, wanted.lost_after_ms or LOST_AFTER_MS_DEFAULT)
    with Client(patience_s=START_S_MAX) as rota:
        left = forgotten(rota, home, sorted({*missing, *running}))
        for number in sorted({*missing} - left.keys()):
            share = ["--share", share_text(number, count)]
            _start_agent(home, rota, number, [*share, *machine_arguments(wanted.machine)])
        names = {
            number: home.node_name(number) or "" for number in sorted({*missing, *running} - left.keys())
        }
        problems = [*left.values(), *until_ready(rota, home, names, START_S_MAX)]
        # What runs goes on, and is named, whatever became of the rest.
        _say_where(home, rota, first=first)
        say_who_is_left(home, rota, given, count, running)
        if problems:
            for problem in problems[:-1]:
                say(problem)
            raise click.ClickException(problems[-1])
    return started or bool(missing)


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


def _say_where(home: Home, rota: Client, *, first: bool) -> None:
    cluster = rota.cluster()
    ready = "1 node" if cluster.nodes_ready == 1 else f"{cluster.nodes_ready:,} nodes"
    click.echo(f"rota is up: controller at {rota.context.address}, {ready} ready, home {home.path}")
    if first:
        account = getpass.getuser()
        click.echo(f"tasks run as {account}{' (so they may do anything here)' if account == 'root' else ''}")
        click.echo(f"try: rota{_home_argument(home)} run -- echo hello")


def _home_argument(home: Home) -> str:
    """What a command needs to find this home, if it does not find it by itself."""
    here = click.get_current_context()
    given = [each.get_parameter_source("home") for each in (here, here.find_root())]
    return f" --home {home.path}" if ParameterSource.COMMANDLINE in given else ""


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor to read the numbers of signals from that ask to end, and that do nothing else here."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        # nohup, and a shell's background jobs, want some of them ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reading)
        os.close(writing)


def _stay(home: Home) -> int:
    r"""In the foreground until a signal, or until a part ends.

    Ctrl-C, TERM, and the end of the terminal are `rota down`; Ctrl-\ (QUIT) leaves everything running.
    """
    with ExitStack() as held:
        asked = held.enter_context(_signals())
        parts = {"the controller": home.controller_pid}
        parts |= {f"agent {home.node_name(number)}": home.agent_pid(number) for number in home.agents()}
        poll = select.poll()
        poll.register(asked, select.POLLIN)
        names = {}
        ended = ""
        for name, pid_file in parts.items():
            process = held.enter_context(living(pid_file))
            if process is None:
                ended = name
            else:
                poll.register(process.descriptor, select.POLLIN)
                names[process.descriptor] = name
        click.echo("Ctrl-C stops it; Ctrl-\\ leaves it running in the background")
        if not ended:
            descriptor = poll.poll()[0][0]
            if descriptor == asked:
                return _obey(home, os.read(asked, 1)[0])
            ended = names[descriptor]
    say(f"{ended} ended; 'rota up' starts it again, {home.log} says why")
    return 1


def _obey(home: Home, number: int) -> int:
    if number == signal.SIGQUIT:
        click.echo("left running; 'rota down' stops it")
        return 0
    if number == signal.SIGHUP:
        let_go_of_terminal()
    click.echo("stopping; once more, and what still runs is killed")
    with home.starting():
        bring_down(home)
    return 0

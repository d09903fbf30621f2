"""`rota down`: stops what runs in a home; the controller last, so that it hears of the tasks' ends."""

import os
import signal
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import click

from rota.cli.units import Duration
from rota.client.client import Client
from rota.client.context import load_context
from rota.client.errors import RotaError
from rota.client.messages import JobState
from rota.main.home import Home
from rota.main.options import home_option
from rota.main.processes import Process, living

TIMEOUT_MS_DEFAULT = 60_000
CONTROLLER_S_MAX = 15.0
KILLED_S_MAX = 5.0
ASK_S_MAX = 1.0


@click.command(
    epilog="""\b
Examples:
  rota down                running tasks get TERM, then KILL; they run again at the next 'rota up',
                           but for those that read standard input, which are lost
  rota down --timeout 10m  patience with agents that give their tasks long

\b
Ctrl-C while it waits kills what still runs; nothing goes on running because of it.
"""
)
@home_option
@click.option(
    "--timeout",
    type=Duration(),
    default=TIMEOUT_MS_DEFAULT,
    help="Kill what has not stopped after so long (default: 1m).",
)
def down(home: Home, timeout: int) -> int:
    """Stop the agents and the controller of a home; running tasks start again at the next 'rota up'."""
    if not home.run.is_dir():
        click.echo(f"nothing runs in {home.path}", err=True)
        return 0
    with home.starting():
        bring_down(home, timeout)
    return 0


def bring_down(home: Home, timeout_ms: int = TIMEOUT_MS_DEFAULT) -> None:
    """Ends all agents within `timeout_ms`, then the controller. Says how many tasks ran."""
    with ExitStack() as held:
        # Held from here on: they remove their pid files before they have ended.
        agents = {
            number: process
            for number in home.agents()
            if (process := held.enter_context(living(home.agent_pid(number)))) is not None
        }
        controller = held.enter_context(living(home.controller_pid))
        if not agents and controller is None:
            click.echo(f"nothing runs in {home.path}", err=True)
        tasks = _running(home, agents) if agents and controller is not None else None
        with _hurried_by_signals(agents.values()):
            _end_agents(home, agents, time.monotonic() + timeout_ms / 1000)
            if controller is not None:
                _end_controller(controller)
    for number in home.agents():
        home.agent_pid(number).unlink(missing_ok=True)
        home.link_pid(number).unlink(missing_ok=True)
    home.controller_pid.unlink(missing_ok=True)
    if agents or controller is not None:
        what = _what(len(agents), controller=controller is not None)
        click.echo(f"stopped {what}{_tasks_text(tasks)}")


@contextmanager
def _hurried_by_signals(agents: Collection[Process]) -> Iterator[None]:
    """INT and TERM end the tasks' grace; a terminal that goes away changes nothing."""

    def hurry(_number: int, _frame: object) -> None:
        with suppress(OSError):
            # Past Python's buffers: this may be in the midst of another text.
            os.write(2, b"rota: killing what still runs\n")
        _tell(agents)

    def hang_up(_number: int, _frame: object) -> None:
        let_go_of_terminal()

    mine = {signal.SIGINT: hurry, signal.SIGTERM: hurry, signal.SIGHUP: hang_up}
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def let_go_of_terminal() -> None:
    """What is written from now on goes nowhere if it went to a terminal."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


@dataclass(frozen=True, slots=True)
class _Tasks:
    """How many tasks run; of these, how many have read an input, which is gone with them."""

    running: int
    lost: int


def _running(home: Home, agents: Iterable[int]) -> _Tasks | None:
    """The tasks on these agents' nodes; None where the controller does not say."""
    names = {name for number in agents if (name := home.node_name(number))}
    try:
        with Client(load_context(home.path), patience_s=ASK_S_MAX) as rota:
            running = sum(node.running for node in rota.nodes() if node.name in names)
            # Of one task each, and nowhere else but here.
            alone = (
                rota.job(job.id)
                for job in rota.jobs(states=[JobState.JOB_STATE_RUNNING])
                if running and job.tasks.total == 1
            )
            lost = sum(
                job.spec.stdin and any(each.running and each.node in names for each in job.nodes)
                for job in alone
            )
            return _Tasks(running, lost)
    except RotaError:
        return None


def _tell(agents: Iterable[Process]) -> None:
    """To end their tasks with grace; told once more, they kill them."""
    for process in agents:
        process.signal(signal.SIGTERM)


def _end_agents(home: Home, agents: Mapping[int, Process], until_s: float) -> None:
    _tell(agents.values())
    for number, process in agents.items():
        if not process.ended(until_s - time.monotonic()):
            click.echo(f"agent {number} has not stopped in time, killing it", err=True)
            process.signal(signal.SIGKILL)
            process.ended(KILLED_S_MAX)
        # The link of a killed agent kills what its tasks left, and ends then.
        with living(home.link_pid(number)) as link:
            if link is not None:
                link.ended(KILLED_S_MAX)


def _end_controller(process: Process) -> None:
    process.signal(signal.SIGTERM)
    if not process.ended(CONTROLLER_S_MAX):
        click.echo("the controller has not stopped in time, killing it", err=True)
        process.signal(signal.SIGKILL)
        process.ended(KILLED_S_MAX)


def _what(agents: int, *, controller: bool) -> str:
    parts = [f"{agents} agent{'s' if agents != 1 else ''}"] if agents else []
    return " and ".join(parts + (["the controller"] if controller else []))


def _tasks_text(tasks: _Tasks | None) -> str:
    if tasks is None:
        return ""
    if tasks.running == 0:
        return "; no task was running"
    were = "1 task was running" if tasks.running == 1 else f"{tasks.running:,} tasks were running"
    again = tasks.running - tasks.lost
    if not tasks.lost:
        return f"; {were} and {_verb(again, 'start')} again at the next 'rota up'"
    ends = [f"{again:,} {_verb(again, 'start')} again at the next 'rota up'"] if again else []
    ends.append(f"{tasks.lost:,} {'is' if tasks.lost == 1 else 'are'} lost: the input that was read is gone")
    return f"; {were}, {', '.join(ends)}"


def _verb(count: int, verb: str) -> str:
    return f"{verb}s" if count == 1 else verb

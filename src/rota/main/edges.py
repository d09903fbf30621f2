"""`rota sim edges`: many simulated nodes in this process, for a real cluster."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from rota.cli.app import say
from rota.cli.session import client, not_empty
from rota.client.context import join_address, load_context
from rota.client.errors import InvalidRequest, Refused, RotaError, Unreachable
from rota.client.texts import set_text
from rota.client.units import UnitError, parse_milliseconds
from rota.main.controller import Address
from rota.main.home import Home
from rota.main.machine_texts import add_label, add_named
from rota.main.open_files import allow
from rota.main.options import home_option
from rota.wire.gen.v1.enrol_pb2 import EnrolRequest
from rota.wire.gen.v1.node_pb2 import Inventory
from rota.wire.validate import validate

if TYPE_CHECKING:
    from rota.sim.edges.fleet import Counts, Fleet
    from rota.sim.edges.identities import Identities

COUNT_MAX = 100_000
# For as long as enrolling so many may take.
TOKEN_TTL_MS = 3_600_000
GRPC_EXPERIMENTS = "-event_engine_client"
PROGRESS_S = 1.0
# Lines on nodes that are not wanted, and on such that have to wait.
REFUSALS_SHOWN_MAX = 5
# By the exit codes of `rota.agent.enrol`.
_ENROL_ERRORS: dict[int, type[RotaError]] = {2: InvalidRequest, 4: Refused, 5: Unreachable}


class _TaskTime(click.ParamType[tuple[int, int]]):
    """`0`, `2s`, `1s..5s`: the shortest and the longest, in milliseconds."""

    name = "T|T..T"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        first, dots, last = value.partition("..")
        try:
            shortest = _milliseconds(first)
            longest = _milliseconds(last) if dots else shortest
        except UnitError as error:
            self.fail(f"{error}; or a span, as in 1s..5s", param, ctx)
        if longest < shortest:
            self.fail(f"'{value}' is upside down; try {last}..{first}", param, ctx)
        return shortest, longest


def _milliseconds(text: str) -> int:
    return 0 if text == "0" else parse_milliseconds(text)


class _Share(click.ParamType[float]):
    """`1%`, `0.5%`."""

    name = "SHARE"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)%", value.strip(), re.ASCII)
        if match is None or float(match[1]) > 100:
            self.fail(f"'{value}' is no share; try 1%, of at most 100%", param, ctx)
        return float(match[1]) / 100


@click.command(
    epilog="""\b
Examples:
  rota sim edges --count 10                      ten nodes of 4 cores, on the controller's machine
  rota sim edges --count 1000 --name edge-{} --cpu 4 --resource power=10
  rota sim edges --count 1000 --first 1000       a second process, with the next thousand
  rota sim edges --count 50 --task-time 1s..5s --fail 1% --exit-code 3
  rota sim edges --count 100 --join 10.0.0.1:7071 --token rota1_... --home ~/edges

A simulated node runs nothing. A task takes as long as --task-time says; without it, a command
'sleep 2' takes two seconds, and any other no time. There is no output. Jobs do not know the
difference: give simulated nodes a cluster of their own.
"""
)
@home_option
@click.option(
    "--count", type=click.IntRange(1, COUNT_MAX), required=True, metavar="N", help="How many nodes."
)
@click.option(
    "--name", default="edge-{}", show_default=True, metavar="NAME", help="Their names; {} is the number."
)
@click.option(
    "--first", type=click.IntRange(0), default=0, metavar="N", show_default=True, help="The first number."
)
@click.option("--cpu", default="4", show_default=True, metavar="N", help="Cores of each node.")
@click.option("--memory", default="16GiB", show_default=True, metavar="SIZE", help="Memory of each node.")
@click.option("--gpu", default="0", metavar="N", help="GPUs of each node (default: none).")
@click.option("--disk", default="0", metavar="SIZE", help="Disk space of each node (default: none).")
@click.option("--resource", multiple=True, metavar="NAME=N", help="Another resource of each node.")
@click.option("--label", multiple=True, metavar="K=V", help="A label of each node.")
@click.option(
    "--task-time", type=_TaskTime(), help="How long each task takes (default: as its command says)."
)
@click.option("--fail", type=_Share(), default=0.0, help="The share of tasks that fail (default: none).")
@click.option(
    "--exit-code", type=click.IntRange(1, 255), default=1, metavar="N", show_default=True, help="How they do."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, metavar="N", help="Which tasks fail, and which end first."
)
@click.option(
    "--join",
    type=Address("10.0.0.1:7071, as 'rota token create' says it"),
    help="Where machines join (default: at the controller of this home).",
)
@click.option(
    "--token",
    envvar="ROTA_TOKEN",
    show_envvar=True,
    metavar="TOKEN",
    help="A join token for as many nodes (default: one that is made and ended here, as this home's user).",
)
def edges(
    home: Home,
    count: int,
    name: str,
    first: int,
    task_time: tuple[int, int] | None,
    fail: float,
    exit_code: int,
    seed: int,
    join: tuple[str, int] | None,
    token: str | None,
    **options: Any,
) -> int:
    """Run many simulated nodes: the real protocol, an identity each, and tasks that only take time.

    They join at their first start and keep their identities in the home: at the next they are the same.

    Ctrl-C stops them as an agent is stopped; a second time, at once.
    """
    ctx = click.get_current_context()
    for param in ctx.command.params:
        not_empty(ctx, param, ctx.params[param.name])
    # First what needs nobody else.
    names = _names(name, first, count)
    inventory = _inventory(options)
    _allow_files(count)
    if not (home.path.exists() or token):
        # There is none to join, and nothing is to be made there.
        load_context(home.path)
    home.make()
    # As for the controller, where the same is said of the other side.
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)

    from rota.core.model import protocol
    from rota.sim.edges.fleet import Fleet
    from rota.sim.edges.identities import HomeError, Identities
    from rota.sim.edges.tasks import Drawn
    from rota.wire.convert import codec

    refusals = _Refusals()
    try:
        identities = Identities(home.path)
        try:
            _enrol_missing(identities, names, join, token)
            cluster = identities.cluster()
            assert cluster is not None
            known = identities.read(names)
        finally:
            identities.close()
    except HomeError as wrong:
        raise Refused(str(wrong)) from wrong
    fleet = Fleet(
        cluster.uuid,
        known,
        codec(protocol.Inventory, Inventory).from_message(inventory),
        Drawn(task_time, fail, exit_code, seed + first),
        lambda node, why: refusals.final.append((node, why)),
        refusals.now.__setitem__,
    )
    asyncio.run(_run(fleet, refusals))
    if len(refusals.final) == count:
        raise Refused(f"none of these nodes is wanted: {refusals.final[0][1]}")
    return 0


# ---------------------------------------------------------------- what is asked for


def _names(pattern: str, first: int, count: int) -> list[str]:
    """The nodes' names. Raises InvalidRequest."""
    if "{}" not in pattern and count > 1:
        raise InvalidRequest(f"--name: '{pattern}' is one name for {count} nodes; try {pattern}-{{}}")
    names = [pattern.replace("{}", str(number)) for number in range(first, first + count)]
    wrong = validate(EnrolRequest(secret="x", csr=b"x", idempotency_key="x", name=names[-1]))
    if wrong:
        raise InvalidRequest([f"--name: {problem.says}" for problem in wrong])
    return names


def _inventory(options: Mapping[str, Any]) -> Inventory:
    """What each node declares. Raises InvalidRequest with all that is wrong."""
    import rota

    inventory = Inventory(agent_version=rota.__version__, facts={"simulated": "yes"})
    inventory.warnings.append("this node is simulated: its tasks only take time")
    pool = inventory.pools.add(units=1)
    problems: list[str] = []

    @contextmanager
    def told(option: str) -> Iterator[None]:
        try:
            yield
        except UnitError as error:
            problems.append(f"{option}: {error}")

    for amount in ("cpu", "memory", "gpu", "disk"):
        with told(f"--{amount}"):
            set_text(pool.resources, amount, options[amount])
            if amount == "cpu" and not pool.resources.cpu:
                raise UnitError(f"'{options[amount]}' is no core; each task takes some")
    for text in options["resource"]:
        with told(f"--resource {text}"):
            add_named(pool.resources, text)
    for text in options["label"]:
        with told(f"--label {text}"):
            add_label(inventory.labels, text)
    problems += [f"{problem.path[-1]}: {problem.says}" for problem in validate(inventory)]
    if not problems and pool.resources.gpu % 1000:
        problems.append(f"--gpu: '{options['gpu']}' is no whole number of GPUs")
    if problems:
        raise InvalidRequest(problems)
    for number in range(pool.resources.gpu // 1000):
        pool.devices.add(kind="gpu", id=str(number))
    return inventory


def _allow_files(count: int) -> None:
    """A connection is an open file. Raises Refused where there may not be so many."""
    most = allow(count)
    if count > most:
        raise Refused(
            f"{count:,} nodes are as many open files, and this process may have {most:,} for them; run them "
            "in several processes (--first), or raise the limit (ulimit -Hn, LimitNOFILE=)"
        )


# ---------------------------------------------------------------- enrolling


def _enrol_missing(
    identities: "Identities", names: Sequence[str], join: tuple[str, int] | None, token: str | None
) -> None:
    """Makes nodes of those that are none yet. Raises RotaError."""
    there = identities.enrolled(names)
    missing = [name for name in names if name not in there]
    if not missing:
        unused = [option for option, given in (("--join", join), ("--token", token)) if given]
        if unused:
            were = "was" if len(unused) == 1 else "were"
            say(f"these nodes have joined already: {' and '.join(unused)} {were} not used")
        return
    if token:
        if join is None:
            raise click.UsageError("--token needs --join HOST:PORT", click.get_current_context())
        _enrol(identities, missing, _address(join), token)
        return
    with client() as rota:
        where = _address(join) if join is not None else join_address(rota.context)
        if where is None:
            raise InvalidRequest(
                "where machines join is not known in this home; say it with --join HOST:PORT "
                "('rota token create' on the controller's machine shows it)"
            )
        made = rota.create_token(ttl_ms=TOKEN_TTL_MS, uses=len(missing))
        try:
            _enrol(identities, missing, where, made.secret)
        finally:
            rota.revoke_token(made.token.id)


def _address(join: tuple[str, int]) -> str:
    host = f"[{join[0]}]" if ":" in join[0] else join[0]
    return f"{host}:{join[1]}"


def _enrol(identities: "Identities", names: Sequence[str], join: str, token: str) -> None:
    from rota.agent.enrol import EnrolError
    from rota.sim.edges.enrolling import enrol_all

    line = _Line()
    began_s = time.monotonic()
    try:
        asyncio.run(
            enrol_all(
                identities,
                names,
                join,
                token,
                lambda done: line.show(f"enrolling: {done:,} of {len(names):,} nodes"),
            )
        )
    except EnrolError as failed:
        raise _ENROL_ERRORS.get(failed.exit_code, Refused)(str(failed)) from failed
    finally:
        line.clear()
    nodes = "1 node has" if len(names) == 1 else f"{len(names):,} nodes have"
    say(f"{nodes} joined in {time.monotonic() - began_s:.1f} s")


# ---------------------------------------------------------------- running


@dataclass
class _Refusals:
    """Nodes that are not wanted, and those that were told since the last look to come later, with why."""

    final: list[tuple[str, str]] = field(default_factory=list)
    now: dict[str, str] = field(default_factory=dict)


async def _run(fleet: "Fleet", refusals: _Refusals) -> None:
    """Until all have left. The first INT or TERM lets them say goodbye, the second ends this at once."""
    running = asyncio.create_task(fleet.run())
    leaving: list[asyncio.Task[None]] = []

    def stop() -> None:
        if leaving:
            running.cancel()
            return
        say("stopping: the nodes say goodbye; once more ends this at once")
        leaving.append(asyncio.create_task(fleet.leave()))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    showing = asyncio.create_task(_show(fleet.counts, refusals))
    try:
        await running
    except asyncio.CancelledError:
        if not leaving:
            raise
    finally:
        showing.cancel()
        await asyncio.gather(showing, *leaving, return_exceptions=True)
    say(_sum(fleet.counts))


async def _show(counts: "Counts", refusals: _Refusals) -> None:
    """How it goes: on a terminal a line that is written anew, else what becomes of the connections."""
    line = _Line()
    shown = 0
    waiting: set[str] = set()
    waits_shown = 0
    all_there: bool | None = None
    ended_before = counts.ended
    try:
        while True:
            for node, why in refusals.final[shown:REFUSALS_SHOWN_MAX]:
                line.clear()
                say(f"{node} is not wanted: {why}")
            shown = len(refusals.final)
            others = sorted(refusals.now.keys() - waiting)
            if others and waits_shown < REFUSALS_SHOWN_MAX:
                line.clear()
                say(_waits(others, refusals.now[others[0]]))
                waits_shown += 1
            waiting.update(others)
            refusals.now.clear()
            there = counts.connected == counts.nodes
            if there is not all_there and (there or all_there):
                line.clear()
                say(f"{counts.connected:,} of {counts.nodes:,} nodes are connected")
                all_there = there
                # What keeps them away next time is news again.
                waiting.clear()
                waits_shown = 0
            rate = (counts.ended - ended_before) / PROGRESS_S
            ended_before = counts.ended
            line.show(f"{_sum(counts)}, {rate:,.0f} a second")
            await asyncio.sleep(PROGRESS_S)
    finally:
        line.clear()


def _waits(nodes: Sequence[str], why: str) -> str:
    if len(nodes) == 1:
        return f"{nodes[0]} has to wait: {why}"
    return f"{len(nodes):,} nodes have to wait; {nodes[0]}: {why}"


def _sum(counts: "Counts") -> str:
    running = counts.begun - counts.ended
    failed = f" ({counts.failed:,} failed)" if counts.failed else ""
    return (
        f"{counts.connected:,} of {counts.nodes:,} nodes connected, {running:,} tasks running, "
        f"{counts.ended:,} ended{failed}"
    )


class _Line:
    """A line on a terminal that is written over again and again; nothing elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        if self._terminal:
            click.echo(f"\r\033[K{text}", nl=False, err=True)
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)
            self._shown = False

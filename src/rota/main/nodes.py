"""Waiting until nodes are ready, told by events."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from rota.cli.app import say
from rota.client.client import Client
from rota.client.errors import RotaError
from rota.client.messages import NodeState
from rota.main.daemon import last_line
from rota.main.home import Home
from rota.main.processes import living

# A wait of so long is not worth a word.
QUIET_S = 2.0


def forgotten(rota: Client, home: Home, numbers: Iterable[int]) -> dict[int, str]:
    """Agents that are no nodes of this controller any more, by number, and what is to be done about each.

    They were removed, or the records are others than when they joined: they would wait in vain.
    """
    known = {node.name for node in rota.nodes() if node.state != NodeState.NODE_STATE_GONE}
    return {
        number: f"node {name} is not known to the controller any more: 'rota down', remove "
        f"{home.agent(number)}, and 'rota up' makes it a new node"
        for number in numbers
        if (name := home.node_name(number)) is not None and name not in known
    }


def until_ready(rota: Client, home: Home, names: Mapping[int, str], seconds: float) -> list[str]:
    """Returns once the nodes of these agents, by number, are ready; what is wrong with those that are not."""
    news: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    _spawn(partial(_hear, rota, news))
    for number in names:
        _spawn(partial(_outlive, home, number, news))
    began_s = time.monotonic()
    said = False
    missing = dict(names)
    problems: list[str] = []
    while True:
        ready = {node.name for node in rota.nodes() if node.state == NodeState.NODE_STATE_READY}
        missing = {number: name for number, name in missing.items() if name not in ready}
        if not missing:
            return problems
        waited_s = time.monotonic() - began_s
        if waited_s >= seconds:
            problems += [
                f"node {name} is not ready after {seconds:.0f} s "
                f"(its log: {home.log / f'agent-{number}.log'})"
                for number, name in missing.items()
            ]
            return problems
        if waited_s >= QUIET_S and not said:
            said = True
            say(f"waiting until {', '.join(missing.values())} can be reached")
        dead = None
        with suppress(queue.Empty):
            dead = news.get(timeout=(seconds if said else QUIET_S) - waited_s)
        if dead in missing:
            log = home.log / f"agent-{dead}.log"
            problems.append(f"agent {missing.pop(dead)} ended: {last_line(log)} (its log: {log})")


def _hear(rota: Client, news: "queue.SimpleQueue[int | None]") -> None:
    """Something happened in the cluster: None."""
    with suppress(RotaError, ValueError):
        for _ in rota.events(follow=True, limit=1):
            news.put(None)


def _outlive(home: Home, number: int, news: "queue.SimpleQueue[int | None]") -> None:
    """An agent's process ended: its number."""
    with living(home.agent_pid(number)) as process:
        if process is not None:
            process.ended(None)
    news.put(number)


def _spawn(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()

"""Waiting until nodes are ready, told by events."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import click

from rota.client.client import Client
from rota.client.errors import RotaError
from rota.client.messages import NodeState
from rota.main.home import Home
from rota.main.processes import living


def until_ready(rota: Client, home: Home, names: Mapping[int, str], seconds: float) -> None:
    """Returns once the nodes of these agents, by number, are ready. Raises ClickException."""
    news: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    _spawn(partial(_hear, rota, news))
    for number in names:
        _spawn(partial(_outlive, home, number, news))
    until_s = time.monotonic() + seconds
    missing = dict(names)
    while True:
        ready = {node.name for node in rota.nodes() if node.state == NodeState.NODE_STATE_READY}
        missing = {number: name for number, name in missing.items() if name not in ready}
        if not missing:
            return
        number = next(iter(missing))
        log = home.log / f"agent-{number}.log"
        try:
            dead = news.get(timeout=max(0.0, until_s - time.monotonic()))
        except queue.Empty:
            raise click.ClickException(
                f"node {missing[number]} is not ready after {seconds:.0f} s (its log: {log})"
            ) from None
        if dead in missing:
            raise click.ClickException(
                f"agent {missing[dead]} ended (its log: {home.log / f'agent-{dead}.log'})"
            )


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

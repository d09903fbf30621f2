"""`rota controller`: one controller in this process."""

import asyncio
import logging
import os
import signal
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING

import click

from rota.agent.files import replaced
from rota.agent.log import log_to_stderr
from rota.first import first_of
from rota.main.daemon import say_ready
from rota.main.home import Home
from rota.main.open_files import allow
from rota.main.options import home_option, lost_after_option, ready_option

if TYPE_CHECKING:
    from rota.controller.pace import Pace
    from rota.controller.server import Controller

STOP_GRACE_S = 5.0
# How often it is looked whether the home is still there.
LOOK_S = 2.0
# There is no cluster in the home any more. Its unit names this code: started again there, a controller would
# begin a new one.
EXIT_HOMELESS = 5
LOST_AFTER_MS_DEFAULT = 300_000
# With fewer, a cluster of ordinary size may find the controller without a file to open.
CONNECTIONS_MIN = 1_000
GRPC_EXPERIMENTS = "-event_engine_listener"

_log = logging.getLogger(__name__)


class Address(click.ParamType[tuple[str, int]]):
    """`HOST:PORT`, `[::1]:PORT`."""

    name = "HOST:PORT"

    def __init__(self, example: str) -> None:
        """The example is shown to whoever gives no address."""
        self._example = example

    def convert(
        self, value: str | tuple[str, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """The host and the port."""
        if isinstance(value, tuple):
            return value
        host, colon, port = value.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
            self.fail(f"'{value}' is no address; try {self._example}", param, ctx)
        return host, int(port)


@click.command(
    epilog="""\b
Examples:
  rota controller                        on loopback, with free ports that are kept
  rota controller --listen 0.0.0.0:7070  for other machines; they join at --join-port
"""
)
@home_option
@click.option(
    "--listen",
    type=Address("0.0.0.0:7070, or 127.0.0.1:0 for any free port"),
    default="127.0.0.1:0",
    show_default=True,
    help="Where users and nodes call.",
)
@click.option(
    "--join-port",
    type=click.IntRange(0, 65_535),
    default=0,
    metavar="PORT",
    help="Where machines join (0: a free one).",
)
@lost_after_option(default=LOST_AFTER_MS_DEFAULT)
@ready_option
def controller(
    home: Home, listen: tuple[str, int], join_port: int, lost_after: int, ready_fd: int | None
) -> int:
    """Run a controller in the foreground, for systemd or by hand; 'rota up' is simpler."""
    home.make()
    # A terminal that is closed is no reason to end.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log_to_stderr(home.log)
    # gRPC's older way to wait for its connections: a message on one of 10,000 costs a fourth less than with a
    # pool of threads of its own. It is read when gRPC is first used.
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    # Here, so that no other command pays for the imports.
    from rota.controller.pace import Pace, timed_loop

    pace = Pace()
    try:
        with asyncio.Runner(loop_factory=lambda: timed_loop(pace)) as runner:
            return runner.run(_serve(home, listen, join_port, lost_after, ready_fd, pace))
    except _Failed as failed:
        raise click.ClickException(str(failed)) from failed


class _Failed(Exception):
    """Why there is no controller, for people."""


async def _serve(
    home: Home, listen: tuple[str, int], join_port: int, lost_after: int, ready_fd: int | None, pace: "Pace"
) -> int:
    """Until it is asked to end, or ends by itself; the exit code. Raises _Failed."""
    # Here, so that no other command pays for the imports.
    from rota.controller.ca import CaError
    from rota.controller.loop import Clock, SchemaTooNew
    from rota.controller.ports import Listen, PortError
    from rota.controller.server import Controller
    from rota.core.cluster.soft import Settings
    from rota.store.port import StoreError
    from rota.store.sqlite import SqliteStore

    clock = Clock(boot_ms=_boot_ms, wall_ms=_wall_ms)
    connections = allow()
    if connections < CONNECTIONS_MIN:
        _log.warning(
            "this process may have %d connections open, one for each node and user; raise its limit of open "
            "files (ulimit -Hn, LimitNOFILE=)",
            connections,
        )
    try:
        store = await SqliteStore.open(home.path, clock.wall_ms)
        try:
            with closing(_Lock(home)) as lock:
                controller = Controller(
                    home.path,
                    store,
                    clock,
                    Listen(listen[0], listen[1], join_port),
                    Settings().scaled(lost_after / LOST_AFTER_MS_DEFAULT),
                    pace,
                )
                await controller.start()
                _log.info(
                    "the API is at %s, machines join at %s", controller.api_address, controller.join_address
                )
                say_ready(ready_fd)
                ready_fd = None
                notify_systemd()
                await _until_ended(controller, lock)
        finally:
            await store.close()
    except _Homeless:
        _log.error("%s was removed or replaced while its controller ran: this controller ends", home.path)
        return EXIT_HOMELESS
    except (CaError, PortError, SchemaTooNew, StoreError) as failed:
        say_ready(ready_fd, str(failed))
        raise _Failed(str(failed)) from failed
    except OSError as failed:
        text = f"{failed.filename or home.path}: {failed.strerror}"
        say_ready(ready_fd, text)
        raise _Failed(text) from failed
    return 0


async def _until_ended(controller: "Controller", lock: "_Lock") -> None:
    """Raises what ended it; _Homeless where that is why something failed."""
    try:
        try:
            await first_of(_stopped(), controller.closed(), lock.removed())
        finally:
            await controller.stop(STOP_GRACE_S)
    finally:
        # Ahead of what failed because of it.
        if lock.gone():
            raise _Homeless


class _Homeless(Exception):
    """The home is not there any more: a controller that is started there would not know of this one."""


class _Lock:
    """The lock of a home's store as it is now, by which it is seen whether the home is still there."""

    def __init__(self, home: Home) -> None:
        self._path = home.path / "store" / "lock"
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._descriptor)

    def gone(self) -> bool:
        """Whether it is not the one at its path any more."""
        return replaced(self._descriptor, self._path)

    async def removed(self) -> None:
        """Returns once it is gone."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self.gone():
                return


async def _stopped() -> None:
    """Returns at SIGTERM, SIGINT or SIGQUIT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


def _boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def notify_systemd() -> None:
    """Tells systemd, if it is what started this process, that it is ready (sd_notify(3))."""
    path = os.environ.pop("NOTIFY_SOCKET", "")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.connect("\0" + path[1:] if path.startswith("@") else path)
            notify.send(b"READY=1")

"""One controller, wired together: start, serve, stop.

Two ports: the API and the node protocol with mutual TLS, and enrolment alone with the server's certificate.
"""

import asyncio
import getpass
import os
import threading
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import grpc

from rota.controller import ports
from rota.controller.api.auth import ADMIN
from rota.controller.api.desk import Desk
from rota.controller.api.grpc import Face
from rota.controller.api.reading import OutputReader
from rota.controller.api.services.clusters import Clusters
from rota.controller.api.services.events import Events
from rota.controller.api.services.jobs import Jobs
from rota.controller.api.services.nodes import Nodes
from rota.controller.api.services.queues import Queues
from rota.controller.api.services.tokens import Tokens
from rota.controller.api.writing import Inputs, InputWriter
from rota.controller.audit import Audit
from rota.controller.ca import Authority, Identity, open_authority
from rota.controller.context import write_context
from rota.controller.enrolment import Enrolment
from rota.controller.files import private_directory, write_private
from rota.controller.housekeeping import keep_archive_small
from rota.controller.links import Links
from rota.controller.loop import Clock, Loop
from rota.controller.output import Outputs
from rota.controller.pace import Pace, Rounds
from rota.controller.ports import Listen, PortError
from rota.core.cluster.inputs import PutUser
from rota.core.cluster.records import UserConfig
from rota.core.cluster.soft import Settings
from rota.store.port import Archive, Store
from rota.wire.gen.v1 import enrol_pb2_grpc

RECEIVE_BYTES_MAX = 4 * 1024 * 1024
ENROL_BYTES_MAX = 64 * 1024
CALLS_OF_A_CONNECTION_MAX = 1000

_OPTIONS = (
    # Two controllers must never share a port.
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", CALLS_OF_A_CONNECTION_MAX),
    # A peer that is gone without a word is noticed within 90 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 30_000),
    # Peers ask whether we live each 20 s while they wait; without this they are sent away for it.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class ArchivingStore(Store, Archive, Protocol):
    """A store with both faces."""


class Controller:
    """One controller in this process. The store is open, and stays so."""

    def __init__(
        self,
        home: Path,
        store: ArchivingStore,
        clock: Clock,
        listen: Listen = Listen(),  # noqa: B008 (it is frozen)
        settings: Settings = Settings(),  # noqa: B008 (it is frozen)
        pace: Pace | None = None,
    ) -> None:
        private_directory(home)
        now = datetime.now(UTC)
        self.home = home
        self.authority = open_authority(home / "tls", str(uuid.uuid4()), now)
        self.listen = ports.choose(home, listen)
        self._store = store
        self._audit = Audit(home / "audit.log", clock.wall_ms)
        self.loop = Loop(store, clock, settings, self.authority.cluster, pace)
        self._outputs = Outputs()
        inputs = Inputs()
        self._links = Links(self.loop, self._outputs, inputs.taken, Rounds(self.loop.pace))
        self.loop.connect(self._links)
        desk = Desk(self.loop)
        self._api = grpc.aio.server(
            options=(*_OPTIONS, ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX))
        )
        self._join = grpc.aio.server(
            options=(*_OPTIONS, ("grpc.max_receive_message_length", ENROL_BYTES_MAX))
        )
        services = (
            Jobs(
                desk,
                store,
                OutputReader(desk, store, self._outputs),
                InputWriter(desk, inputs, self._links.room),
            ),
            Nodes(desk, self._links.address),
            Queues(desk),
            Tokens(desk, self.authority.fingerprint),
            Events(desk),
            Clusters(desk, self.api_address),
        )
        self._api.add_generic_rpc_handlers(
            (self._links.handlers(), *Face(desk, self._audit).handlers(services))
        )
        enrolment = Enrolment(self.loop, self.authority, self._audit, self._api_address_for_nodes)
        enrol_pb2_grpc.add_EnrolServiceServicer_to_server(enrolment, self._join)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    @property
    def api_address(self) -> str:
        """Where users and nodes of this machine reach the API."""
        host = self.listen.host
        return ports.address({"0.0.0.0": ports.LOOPBACK, "::": "::1"}.get(host, host), self.listen.api_port)

    @property
    def join_address(self) -> str:
        """Where machines join."""
        return ports.address(self.listen.host, self.listen.join_port)

    def _api_address_for_nodes(self) -> str:
        return f":{self.listen.api_port}" if self.listen.host in ("0.0.0.0", "::") else self.api_address

    async def start(self) -> None:
        """Returns when it leads and serves. Raises PortError, and what `Loop.run` raises."""
        self._bind(self._api, self.listen.api_port, with_clients=True)
        self._bind(self._join, self.listen.join_port, with_clients=False)
        ports.keep(self.home, self.listen)
        leading = asyncio.Event()
        run = asyncio.create_task(self.loop.run(leading.set), name="loop")
        self._tasks.append(run)
        first = asyncio.create_task(leading.wait())
        await asyncio.wait({run, first}, return_when=asyncio.FIRST_COMPLETED)
        first.cancel()
        if run.done():
            run.result()
        self._tasks.append(asyncio.create_task(keep_archive_small(self.loop, self._store), name="archive"))
        await self._api.start()
        await self._join.start()
        await self._know_admin()
        write_context(
            self.home / "client", self.authority, user=ADMIN, address=self.api_address, now=datetime.now(UTC)
        )
        write_private(private_directory(self.home / "run") / "controller.pid", f"{os.getpid()}\n".encode())

    async def closed(self) -> None:
        """Waits until the loop ends: after `stop`, or with the error that ended it."""
        # Whoever waits may give up; the loop goes on.
        await asyncio.shield(self._tasks[0])

    async def stop(self, grace_s: float) -> None:
        """Ends what is being answered within `grace_s`, commits what was taken, and frees the ports.

        Done twice it does nothing the second time.
        """
        if self._stopped:
            return
        self._stopped = True
        why = "the controller is stopping"
        self._links.close_all(why)
        self._outputs.close_all(why)
        self.loop.retire()
        await asyncio.gather(self._api.stop(grace_s), self._join.stop(grace_s))
        self.loop.stop()
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        pid_file = self.home / "run" / "controller.pid"
        # Where the home was removed, that of the one that came to its place.
        with suppress(OSError):
            if pid_file.read_bytes() == f"{os.getpid()}\n".encode():
                pid_file.unlink()
        self._audit.close()

    def _bind(self, server: grpc.aio.Server, port: int, *, with_clients: bool) -> None:
        where = ports.address(self.listen.host, port)
        try:
            bound = server.add_secure_port(where, _credentials(self.authority, with_clients=with_clients))
        except RuntimeError as taken:
            raise PortError(
                f"cannot listen on {where}: another program has it ('ss -ltnp' shows which), or it is no "
                "address of this machine; free it, for this cluster's nodes call the controller there; if "
                f"none has joined yet, remove {self.home / 'ports.json'}: free ports are chosen then"
            ) from taken
        assert bound == port, (bound, port)

    async def _know_admin(self) -> None:
        """The account that runs the first controller is the admin, and the admin's tasks run as it."""
        if not await self.loop.read(lambda machine: ADMIN in machine.cluster.users):
            config = UserConfig(ADMIN, getpass.getuser(), self.loop.wall_ms())
            await self.loop.ask(lambda ticket: PutUser(ticket, "controller", ADMIN, config))


def _credentials(authority: Authority, *, with_clients: bool) -> grpc.ServerCredentials:
    """The controller's certificate, also when it is renewed; with clients' certificates, or without."""
    lock = threading.Lock()
    roots = authority.pem if with_clients else None

    def configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(identity.key, identity.chain)], roots)

    current = authority.server(datetime.now(UTC))

    def renewed() -> Any:
        # Called by gRPC's threads, ahead of each handshake; None where nothing has changed.
        nonlocal current
        with lock:
            latest = authority.server(datetime.now(UTC))
            if latest is current:
                return None
            current = latest
            return configuration(latest)

    return grpc.dynamic_ssl_server_credentials(configuration(current), renewed, with_clients)

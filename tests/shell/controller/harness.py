"""A real controller on loopback ports of its own, and those who talk to it: users, and played nodes."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rota.controller.loop import Clock, Loop, News
from rota.controller.server import ArchivingStore, Controller
from rota.core.cluster.inputs import PutUser
from rota.core.cluster.records import UserConfig
from rota.core.cluster.soft import Settings
from rota.store.memory import MemoryStore
from rota.wire.gen.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    enrol_pb2,
    enrol_pb2_grpc,
    job_service_pb2_grpc,
    link_pb2,
    link_pb2_grpc,
    node_pb2_grpc,
)
from rota.wire.link import apart

NAME = (("grpc.ssl_target_name_override", "controller.rota"),)
WAIT_S_MAX = 20.0
P = ParamSpec("P")


def boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


CLOCK = Clock(boot_ms, wall_ms)


@dataclass
class Who:
    """A key and a certificate."""

    key: bytes
    chain: bytes


class Api:
    """The services, as one user (or anybody) sees them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.jobs = job_service_pb2_grpc.JobServiceStub(channel)
        self.nodes = node_pb2_grpc.NodeServiceStub(channel)
        self.queues = cluster_pb2_grpc.QueueServiceStub(channel)
        self.tokens = cluster_pb2_grpc.TokenServiceStub(channel)
        self.events = cluster_pb2_grpc.EventServiceStub(channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
        self.link = link_pb2_grpc.LinkServiceStub(channel)


@dataclass
class Running:
    """A controller that runs, and channels to it."""

    controller: Controller
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.controller.home

    @property
    def ca(self) -> bytes:
        return self.controller.authority.pem

    def channel(self, who: Who | None, ca: bytes | None = None) -> grpc.aio.Channel:
        """A channel to the API with this certificate, or with none."""
        key, chain = (who.key, who.chain) if who is not None else (None, None)
        credentials = grpc.ssl_channel_credentials(ca or self.ca, key, chain)
        channel = grpc.aio.secure_channel(self.controller.api_address, credentials, NAME)
        self.channels.append(channel)
        return channel

    def admin(self) -> Api:
        """As the client context in the home says."""
        directory = self.home / "client"
        context = json.loads((directory / "context.json").read_bytes())
        who = Who((directory / context["key"]).read_bytes(), (directory / context["cert"]).read_bytes())
        return Api(self.channel(who))

    async def user(self, name: str, role: str) -> Api:
        """A new user with this role."""
        config = UserConfig(role, "nobody")
        await self.controller.loop.ask(lambda ticket: PutUser(ticket, "test", name, config))
        return Api(self.channel(self.user_certificate(name)))

    def user_certificate(self, name: str) -> Who:
        identity = self.controller.authority.make_user(name, datetime.now(UTC))
        return Who(identity.key, identity.chain)

    async def token(self, uses: int = 1, ttl: int = 0) -> str:
        answer = await self.admin().tokens.CreateToken(cluster_pb2.CreateTokenRequest(uses=uses, ttl=ttl))
        return answer.secret

    async def join(self, name: str) -> "PlayedNode":
        """A node that has enrolled, by the contract alone."""
        secret = (await self.token()).split("_", 1)[1].rpartition("_")[0]
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
        async with grpc.aio.secure_channel(
            self.controller.join_address, grpc.ssl_channel_credentials(self.ca), NAME
        ) as channel:
            answer = await enrol_pb2_grpc.EnrolServiceStub(channel).Enrol(
                enrol_pb2.EnrolRequest(
                    secret=secret,
                    csr=csr.public_bytes(serialization.Encoding.PEM),
                    name=name,
                    idempotency_key="once",
                )
            )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        channel = self.channel(Who(pem, answer.certificate_chain))
        return PlayedNode(answer.node_id, name, answer.cluster, channel)

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.home / "audit.log").read_text().splitlines()]


class PlayedNode:
    """A node that says what a test wants it to."""

    def __init__(self, node: str, name: str, cluster: str, channel: grpc.aio.Channel) -> None:
        self.node = node
        self.name = name
        self.cluster = cluster
        self.channel = channel
        self.link = link_pb2_grpc.LinkServiceStub(channel)
        self.call = self.link.Connect()
        self._heard: list[link_pb2.ConnectResponse] = []
        self.envelope_count = 0

    async def say(self, **body: Any) -> None:
        await self.call.write(link_pb2.ConnectRequest(**body))

    async def hear(self, kind: str) -> Any:
        """The next message of this kind; others are passed over."""
        async with asyncio.timeout(WAIT_S_MAX):
            while True:
                while not self._heard:
                    envelope: Any = await self.call.read()
                    assert envelope is not grpc.aio.EOF, (
                        f"{await self.call.code()} {await self.call.details()}"
                    )
                    self._heard += apart(envelope)
                    self.envelope_count += 1
                message = self._heard.pop(0)
                if message.WhichOneof("body") == kind:
                    return getattr(message, kind)

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ended; what was still said on it is passed over."""
        async with asyncio.timeout(WAIT_S_MAX):
            while True:
                try:
                    message: object = await self.call.read()
                except grpc.aio.AioRpcError:
                    break
                if message is grpc.aio.EOF:
                    break
            return await self.call.code(), await self.call.details()

    def hello(self, **fields: Any) -> link_pb2.Hello:
        hello = link_pb2.Hello(
            protocol=1, cluster=self.cluster, boot_id="boot-1", journal_id=f"journal-{self.name}", sent_ms=1
        )
        pool = hello.inventory.pools.add(units=1)
        pool.resources.cpu = 4000
        for name, value in fields.items():
            setattr(hello, name, value)
        return hello

    async def come_up(self) -> None:
        """Hello, with nothing held; returns when the leader has said Welcome."""
        await self.say(hello=self.hello())
        await self.hear("welcome")
        await self.say(holding_end=link_pb2.HoldingEnd())

    async def beat(self, sent_ms: int) -> None:
        """A heartbeat, and its acknowledgement."""
        await self.say(heartbeat=link_pb2.Heartbeat(sent_ms=sent_ms))
        while (await self.hear("heartbeat_ack")).sent_ms != sent_ms:
            pass


@asynccontextmanager
async def running(
    home: Path, store: ArchivingStore | None = None, settings: Settings | None = None
) -> AsyncIterator[Running]:
    """A controller, stopped at the end."""
    kept = store if store is not None else MemoryStore(wall_ms)
    controller = Controller(home, kept, CLOCK, settings=settings or Settings())
    await controller.start()
    run = Running(controller)
    try:
        yield run
    finally:
        for channel in run.channels:
            await channel.close()
        await controller.stop(0.5)


class Audience:
    """Who waits for news of a loop; made before they come."""

    def __init__(self, loop: Loop) -> None:
        self._present: set[News] = set()
        self._changed = asyncio.Event()
        loop.watch_job = self._counted(loop.watch_job)  # type: ignore[method-assign]
        loop.watch_events = self._counted(loop.watch_events)  # type: ignore[method-assign]

    def _counted(self, watch: Callable[P, AbstractContextManager[News]]) -> Callable[P, Any]:
        @contextmanager
        def counted(*arguments: P.args, **named: P.kwargs) -> Iterator[News]:
            with watch(*arguments, **named) as news:
                self._present.add(news)
                self._changed.set()
                try:
                    yield news
                finally:
                    self._present.discard(news)
                    self._changed.set()

        return counted

    async def until(self, count: int) -> None:
        """Returns once there are so many."""
        async with asyncio.timeout(WAIT_S_MAX):
            while len(self._present) != count:
                self._changed.clear()
                await self._changed.wait()


async def child(*arguments: str, stdin: bytes = b"") -> tuple[int, str]:
    """Runs a module of Rota in a process of its own: exit code and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WAIT_S_MAX):
        _, errors = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, errors.decode()

"""Who gets through the controller's ports, and who does not."""

import asyncio
import os
import socket
import ssl
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from rota.controller.ca import open_authority
from rota.controller.peers import Peer, peer_of
from rota.controller.ports import Listen, PortError
from rota.controller.server import Controller
from rota.store.memory import MemoryStore
from rota.wire.gen.v1 import cluster_pb2, link_pb2
from tests.shell.controller.harness import CLOCK, NAME, Api, Running, Who, running, wall_ms

GET = cluster_pb2.GetClusterRequest()


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code()


async def test_without_a_client_certificate_nothing_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        api = Api(run.channel(None))
        assert await code_of(api.cluster.GetCluster(GET)) is grpc.StatusCode.UNAVAILABLE
        call = api.link.Connect()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_certificates_of_another_authority_are_refused_both_ways(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    other = open_authority(tmp_path / "other", "00000000-0000-4000-8000-000000000000", now)
    false = other.make_user("admin", now)
    async with running(tmp_path / "home") as run:
        stranger = Api(run.channel(Who(false.key, false.chain)))
        assert await code_of(stranger.cluster.GetCluster(GET)) is grpc.StatusCode.UNAVAILABLE
        deceived = Api(run.channel(run.user_certificate("admin"), ca=other.pem))
        assert await code_of(deceived.cluster.GetCluster(GET)) is grpc.StatusCode.UNAVAILABLE
        assert (await run.admin().cluster.GetCluster(GET)).principal == "admin"


async def test_a_client_refuses_a_server_of_another_name(tmp_path: Path) -> None:
    """A node's certificate is signed by the same authority, and is no controller's."""
    async with running(tmp_path) as run:
        node = await run.join("n1")
        key, chain = _stolen(run)
        server = grpc.aio.server()
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)], run.ca, require_client_auth=True)
        )
        await server.start()
        admin = run.user_certificate("admin")
        credentials = grpc.ssl_channel_credentials(run.ca, admin.key, admin.chain)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, NAME) as channel:
            assert await code_of(Api(channel).cluster.GetCluster(GET)) is grpc.StatusCode.UNAVAILABLE
        await server.stop(0)
        await node.come_up()


def _stolen(run: Running) -> tuple[bytes, bytes]:
    user = run.user_certificate("mallory")
    return user.key, user.chain


async def test_each_kind_of_certificate_opens_its_own_services_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        as_user = Api(node.channel)
        assert await code_of(as_user.cluster.GetCluster(GET)) is grpc.StatusCode.UNAUTHENTICATED
        as_node = run.admin().link
        connect = as_node.Connect()
        assert await connect.code() is grpc.StatusCode.PERMISSION_DENIED
        push = as_node.PushOutput()
        assert await push.code() is grpc.StatusCode.PERMISSION_DENIED
        server = run.controller.authority.server(datetime.now(UTC))
        as_controller = Api(run.channel(Who(server.key, server.chain)))
        assert await code_of(as_controller.cluster.GetCluster(GET)) is grpc.StatusCode.UNAUTHENTICATED
        nobody = Api(run.channel(run.user_certificate("nobody")))
        assert await code_of(nobody.cluster.GetCluster(GET)) is grpc.StatusCode.PERMISSION_DENIED


def handshake(address: str, ca: bytes, client: Who | None, version: ssl.TLSVersion, directory: Path) -> str:
    """The version agreed on; raises where there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    if client is not None:
        (directory / "client.pem").write_bytes(client.key + client.chain)
        context.load_cert_chain(directory / "client.pem")
    host, port = address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain, server_hostname="controller.rota") as secure,
    ):
        return secure.version() or ""


async def test_tls_1_2_is_refused_on_both_ports(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.shell.controller.serve",
        str(tmp_path / "home"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(20):
        api, join = (await process.stdout.readline()).decode().split()
    client = tmp_path / "home" / "client"
    ca = (client / "ca.crt").read_bytes()
    admin = Who((client / "user.key").read_bytes(), (client / "user.crt").read_bytes())
    for address, who in ((api, admin), (join, None)):
        new = await asyncio.to_thread(handshake, address, ca, who, ssl.TLSVersion.TLSv1_3, tmp_path)
        assert new == "TLSv1.3"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(handshake, address, ca, who, ssl.TLSVersion.TLSv1_2, tmp_path)
    process.stdin.close()
    assert await process.wait() == 0


def test_a_call_over_tls_1_2_is_nobodys() -> None:
    names = {"peer_spiffe_id": [b"spiffe://rota/user/admin"], "ssl_tls_version": [b"TLSv1.3"]}
    assert peer_of(names) == Peer("user", "admin")
    assert peer_of({**names, "ssl_tls_version": [b"TLSv1.2"]}) is None
    assert peer_of({"peer_spiffe_id": names["peer_spiffe_id"]}) is None


@pytest.mark.parametrize(
    "name",
    [
        b"spiffe://rota/user/",
        b"spiffe://rota/user/a/b",
        b"spiffe://other/user/admin",
        b"spiffe://rota/admin/admin",
        b"spiffe://rota/node/not-a-uuid",
        b"spiffe://rota/node/6BA7B810-9DAD-41D1-80B4-00C04FD430C8",
        b"\xff\xfe",
    ],
)
def test_other_names_are_nobodys(name: bytes) -> None:
    assert peer_of({"peer_spiffe_id": [name], "ssl_tls_version": [b"TLSv1.3"]}) is None


async def throw(address: str, data: bytes) -> bytes:
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        async with asyncio.timeout(20):
            answer = await reader.read()
    except OSError:
        pass  # it hung up
    finally:
        writer.close()
    return answer


async def test_garbage_on_both_ports_hurts_nobody(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.come_up()
        pieces = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 600, b"\0" * 70_000]
        pieces += [os.urandom(4000) for _ in range(5)]
        for address in (run.controller.api_address, run.controller.join_address):
            for answer in await asyncio.gather(*(throw(address, piece) for piece in pieces)):
                assert len(answer) < 200, "no more than an alert"
        await node.beat(7)
        assert (await run.admin().cluster.GetCluster(GET)).principal == "admin"


async def test_a_port_that_is_taken_is_said_in_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        controller = Controller(tmp_path, MemoryStore(wall_ms), CLOCK, Listen(api_port=port))
        with pytest.raises(PortError, match=f"cannot listen on 127.0.0.1:{port}"):
            await controller.start()


async def test_a_message_of_another_service_size_is_not_read(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        node = await run.join("n1")
        await node.say(hello=node.hello())
        await node.hear("welcome")
        await node.say(goodbye=link_pb2.Goodbye(reason="x" * 300_000))
        code, details = await node.ended()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "at most 262144" in details

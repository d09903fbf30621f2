"""How a machine becomes a node: with the real enrolment process, against real and false join ports."""

import asyncio
import json
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rota.controller.ca import open_authority
from rota.wire.gen.v1 import cluster_pb2, enrol_pb2, enrol_pb2_grpc, link_pb2, node_pb2
from tests.shell.controller.harness import NAME, Running, child, running

OK, USAGE, REFUSED, UNREACHABLE = 0, 2, 4, 5


async def enrol(home: Path, join: str, token: str, name: str = "n1") -> tuple[int, str]:
    return await child(
        "rota.agent.enrol", "--home", str(home), "--join", join, "--name", name, stdin=f"{token}\n".encode()
    )


def enrolments(run: Running) -> list[str]:
    return [line["outcome"] for line in run.audit() if line["what"] == "EnrolService.Enrol"]


async def test_a_machine_enrols_and_its_key_stays_where_it_is(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        home = tmp_path / "n1"
        assert await enrol(home, run.controller.join_address, await run.token()) == (OK, "")
        identity = json.loads((home / "identity.json").read_bytes())
        nodes = (await run.admin().nodes.ListNodes(node_pb2.ListNodesRequest())).nodes
        assert [(node.id, node.name) for node in nodes] == [(identity["node"], "n1")]
        assert identity["addresses"] == [run.controller.api_address]
        assert identity["cluster"] == run.controller.authority.cluster
        for path in (home / "identity.json", *(home / "tls").iterdir()):
            assert path.stat().st_mode & 0o777 == 0o600, path
        assert home.stat().st_mode & 0o777 == 0o700
        assert enrolments(run) == ["done"]


async def test_a_token_of_another_cluster_is_not_sent(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a, running(tmp_path / "b") as b:
        code, error = await enrol(tmp_path / "n1", b.controller.join_address, await a.token())
        assert code == REFUSED
        assert "is not the one that made this token" in error
        assert enrolments(b) == [], "it was told nothing"


async def test_a_port_that_shows_a_stolen_ca_certificate_is_told_nothing(tmp_path: Path) -> None:
    """The fingerprint is found in its chain, but what it proves to be is not signed by that authority."""
    async with running(tmp_path / "home") as run:
        token = await run.token()
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(x509.load_pem_x509_certificate(run.ca).subject)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
            .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("controller.rota")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        chain = tmp_path / "false.pem"
        chain.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + leaf.public_bytes(serialization.Encoding.PEM)
            + run.ca
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        context.set_alpn_protocols(["h2"])
        told: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            told.append(await reader.read(65536))
            writer.close()

        server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            code, error = await enrol(tmp_path / "n1", f"127.0.0.1:{port}", token)
        assert code == UNREACHABLE, error
        assert b"".join(told) == b""


async def test_a_token_serves_as_often_as_it_says(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        token = await run.token(uses=2)
        join = run.controller.join_address
        codes = [(await enrol(tmp_path / name, join, token, name))[0] for name in ("n1", "n2", "n3")]
        assert codes == [OK, OK, REFUSED]
        code, error = await enrol(tmp_path / "n3", join, token, "n3")
        assert (code, "is used up" in error) == (REFUSED, True)


async def test_enrolling_again_with_the_same_key_takes_no_second_use(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        token = await run.token()
        home = tmp_path / "n1"
        assert (await enrol(home, run.controller.join_address, token))[0] == OK
        first = (home / "identity.json").read_bytes()
        (home / "identity.json").unlink()  # as if the answer had been lost
        assert await enrol(home, run.controller.join_address, token) == (OK, "")
        assert (home / "identity.json").read_bytes() == first
        code, error = await enrol(tmp_path / "thief", run.controller.join_address, token)
        assert (code, "is used up" in error) == (REFUSED, True)


async def test_revoked_and_expired_tokens_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        admin = run.admin()
        made = await admin.tokens.CreateToken(cluster_pb2.CreateTokenRequest())
        await admin.tokens.RevokeToken(cluster_pb2.RevokeTokenRequest(id=made.token.id))
        code, error = await enrol(tmp_path / "n1", run.controller.join_address, made.secret)
        assert (code, "was revoked" in error) == (REFUSED, True)
        code, error = await enrol(tmp_path / "n1", run.controller.join_address, await run.token(ttl=1))
        assert (code, "has expired" in error) == (REFUSED, True)
        assert enrolments(run) == ["FAILED_PRECONDITION", "FAILED_PRECONDITION"]


async def test_a_name_is_taken_once(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        token = await run.token(uses=2)
        assert (await enrol(tmp_path / "one", run.controller.join_address, token))[0] == OK
        code, error = await enrol(tmp_path / "two", run.controller.join_address, token)
        assert (code, "a node named 'n1' exists" in error) == (REFUSED, True)


@pytest.mark.parametrize(
    ("join", "token", "code", "says"),
    [
        ("127.0.0.1:1", "nonsense", USAGE, "no join token"),
        ("nowhere", "rota1_" + "a" * 8 + "_" + "a" * 32 + "_" + "a" * 52, USAGE, "try HOST:PORT"),
        (
            "127.0.0.1:1",
            "rota1_" + "a" * 8 + "_" + "a" * 32 + "_" + "a" * 52,
            UNREACHABLE,
            "cannot be reached",
        ),
    ],
)
async def test_mistakes_are_said_in_a_line(
    tmp_path: Path, join: str, token: str, code: int, says: str
) -> None:
    got, error = await enrol(tmp_path / "n1", join, token)
    assert (got, error.count("\n")) == (code, 1)
    assert says in error


async def test_a_port_that_speaks_no_tls_is_said_plainly(tmp_path: Path) -> None:
    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server:
        join = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        code, error = await enrol(tmp_path / "n1", join, "rota1_" + "a" * 8 + "_" + "a" * 32 + "_" + "a" * 52)
    assert (code, "is not the join port of a controller" in error) == (REFUSED, True)


async def test_the_join_port_serves_nothing_but_enrolment(tmp_path: Path) -> None:
    async with (
        running(tmp_path / "home") as run,
        grpc.aio.secure_channel(
            run.controller.join_address, grpc.ssl_channel_credentials(run.ca), NAME
        ) as channel,
    ):
        for method in ("/rota.v1.ClusterService/GetCluster", "/rota.v1.JobService/SubmitJobs"):
            call: Any = channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(b"")
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        stub = enrol_pb2_grpc.EnrolServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Enrol(enrol_pb2.EnrolRequest(secret="x" * 100_000))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_removed_nodes_certificate_counts_for_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        node = await run.join("n1")
        await node.come_up()
        await run.admin().nodes.RemoveNode(node_pb2.RemoveNodeRequest(node="n1", force=True))
        await node.ended()
        node.call = node.link.Connect()
        await node.say(hello=node.hello())
        refused: link_pb2.Refused = await node.hear("refused")
        assert "removed" in refused.message
        assert refused.retry_ms == 0
        assert (await node.ended())[0] is grpc.StatusCode.ABORTED


async def test_the_authority_is_the_same_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path / "home") as run:
        fingerprint, address = run.controller.authority.fingerprint, run.controller.api_address
    now = datetime.now(UTC)
    assert open_authority(tmp_path / "home" / "tls", "other", now).fingerprint == fingerprint
    async with running(tmp_path / "home") as run:
        assert run.controller.api_address == address, "ports are kept"

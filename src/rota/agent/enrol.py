"""Enrolment: makes this machine a node of a cluster. A short-lived child of `rota agent --join`.

    python -m rota.agent.enrol --home HOME --join HOST:PORT --name NAME   (the token on standard input)

The key is made here and never leaves. Whom the token is shown to is settled first: of the certificates that
the join port offers, the one with the token's fingerprint is the cluster's authority, and the connection
that carries the token is made anew, trusting that one alone. A connection that offers no such certificate
is told nothing.

In HOME then stand `tls/node.key`, `tls/node.crt`, `tls/ca.crt`, and, written last, `identity.json`: the
cluster's and the node's UUID, the node's name, and where the controller listens. Enrolling again with the
same key (after an answer was lost) gets the same answer and takes no second use of the token.

Ends with 0, or a line on standard error and 2 (the token or an argument is wrong), 4 (refused) or 5
(unreachable).
"""

import argparse
import hashlib
import json
import os
import socket
import ssl
import sys
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rota.core.model.token import parse
from rota.wire.gen.v1 import enrol_pb2

SERVER_NAME = "controller.rota"
TIMEOUT_S = 20.0

METHOD = f"/{enrol_pb2.DESCRIPTOR.services_by_name['EnrolService'].full_name}/Enrol"

EXIT_USAGE, EXIT_REFUSED, EXIT_UNREACHABLE = 2, 4, 5
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class EnrolError(Exception):
    """Why there is no certificate; `exit_code` says whose affair it is."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def enrol(home: Path, join: str, name: str, token_text: str) -> None:
    """Gets a certificate and keeps it in the home. Raises EnrolError."""
    token = parse(token_text)
    if token is None:
        raise EnrolError(EXIT_USAGE, "this is no join token; a whole one begins with rota1_")
    tls = home / "tls"
    for directory in (home, tls):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
    key = _key(tls / "node.key")
    authority = offered_authority(join, token.fingerprint)
    with grpc.secure_channel(join, *trusting(authority)) as channel:
        answer = _ask(channel, join, request_for(key, token.secret, name))
    check(answer, authority, key, join)
    _write(tls / "ca.crt", authority.public_bytes(serialization.Encoding.PEM))
    _write(tls / "node.crt", answer.certificate_chain)
    identity = {
        "cluster": answer.cluster,
        "node": answer.node_id,
        "name": answer.name,
        "addresses": addresses(answer, join),
    }
    _write(home / "identity.json", (json.dumps(identity, indent=2) + "\n").encode())


def offered_authority(join: str, fingerprint: bytes) -> x509.Certificate:
    """The certificate with this fingerprint among those that the join port offers; nothing is said to it.

    Raises EnrolError.
    """
    host, port = _address(join)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = (
        ssl.CERT_NONE
    )  # what is offered here is compared with the fingerprint, and not trusted
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=SERVER_NAME) as secure,
        ):
            offered = _chain(secure)
    except ssl.SSLError as wrong:
        raise EnrolError(EXIT_REFUSED, f"{host}:{port} is not the join port of a controller") from wrong
    except OSError as away:
        reason = away.strerror or str(away)
        raise EnrolError(
            EXIT_UNREACHABLE, f"the join port {host}:{port} cannot be reached: {reason}"
        ) from away
    for certificate in offered:
        if hashlib.sha256(certificate).digest() == fingerprint:
            return x509.load_der_x509_certificate(certificate)
    raise EnrolError(
        EXIT_REFUSED,
        f"the controller at {host}:{port} is not the one that made this token; the token was not sent to it",
    )


def _chain(secure: ssl.SSLSocket) -> list[bytes]:
    """The certificates that the other side has sent, in DER form."""
    if sys.version_info >= (3, 13):
        return secure.get_unverified_chain()
    # The same function has been there since 3.10, one level below.
    certificates = secure._sslobj.get_unverified_chain()  # type: ignore[attr-defined]  # noqa: SLF001
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in certificates]


def trusting(authority: x509.Certificate) -> tuple[grpc.ChannelCredentials, tuple[tuple[str, str]]]:
    """Credentials and options of a channel to the join port that trusts one authority alone."""
    credentials = grpc.ssl_channel_credentials(authority.public_bytes(serialization.Encoding.PEM))
    return credentials, (("grpc.ssl_target_name_override", SERVER_NAME),)


def request_for(key: ec.EllipticCurvePrivateKey, secret: str, name: str) -> enrol_pb2.EnrolRequest:
    """What a node with this key and this name asks; the same key is the same request."""
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return enrol_pb2.EnrolRequest(
        secret=secret,
        csr=x509.CertificateSigningRequestBuilder(x509.Name([]))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM),
        name=name,
        idempotency_key=hashlib.sha256(public).hexdigest(),
    )


def _ask(channel: grpc.Channel, join: str, request: enrol_pb2.EnrolRequest) -> enrol_pb2.EnrolResponse:
    call = channel.unary_unary(
        METHOD, enrol_pb2.EnrolRequest.SerializeToString, enrol_pb2.EnrolResponse.FromString
    )
    try:
        answer: enrol_pb2.EnrolResponse = call(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        raise refusal(error, join) from error
    return answer


def refusal(error: grpc.RpcError, join: str) -> EnrolError:
    """What an error of the call means."""
    if "Socket closed" in (error.details() or ""):
        # The same authority, but nobody is heard there without a certificate.
        return EnrolError(
            EXIT_REFUSED, f"{join} is a controller, but not its join port; 'rota token create' shows that"
        )
    code = EXIT_UNREACHABLE if error.code() in _UNREACHABLE else EXIT_REFUSED
    return EnrolError(code, error.details() or error.code().name)


def check(
    answer: enrol_pb2.EnrolResponse,
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    join: str,
) -> None:
    """Raises EnrolError unless the answer is a certificate of this authority for this key."""
    try:
        leaf = x509.load_pem_x509_certificates(answer.certificate_chain)[0]
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as wrong:
        raise EnrolError(EXIT_REFUSED, f"{join} answered with a certificate that is not valid") from wrong
    if leaf.public_key() != key.public_key():
        raise EnrolError(EXIT_REFUSED, f"{join} answered with a certificate for another key")


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The node's key, made where there is none."""
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        found = ec.generate_private_key(ec.SECP256R1())
        pem = found.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _write(path, pem)
    except ValueError as wrong:
        raise EnrolError(EXIT_USAGE, f"{path} is no key: remove it, and a new one is made") from wrong
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise EnrolError(EXIT_USAGE, f"{path} is no ECDSA key: remove it, and a new one is made")
    return found


def _address(join: str) -> tuple[str, int]:
    host, colon, port = join.rpartition(":")
    if not (colon and host and port.isdecimal()):
        raise EnrolError(EXIT_USAGE, f"'{join}' is no address; try HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def addresses(answer: enrol_pb2.EnrolResponse, join: str) -> list[str]:
    """Where the controller listens, of which it is best reached where it was for joining."""
    host, _ = _address(join)
    listed = answer.address if not answer.address.startswith(":") else ""
    dialled = _join_address(host, int(answer.address.rpartition(":")[2]))
    return [dialled, *([listed] if listed not in ("", dialled) else [])]


def _join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _write(path: Path, data: bytes) -> None:
    """Replaces a file as a whole, mode 0600, on disk when this returns."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def main() -> int:
    """The process; the token is the first line of standard input, so that no list of processes shows it."""
    parser = argparse.ArgumentParser(prog="python -m rota.agent.enrol", description="Enrols this machine.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--join", required=True, metavar="HOST:PORT")
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    try:
        enrol(arguments.home, arguments.join, arguments.name, sys.stdin.readline())
    except EnrolError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"{arguments.home} cannot be written: {error.strerror or error}\n")
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())

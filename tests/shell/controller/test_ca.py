"""The certificate authority: what it signs, what it refuses, and what it says of damaged files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rota.controller.ca import CSR_BYTES_MAX, CaError, CsrError, open_authority, public_key
from rota.controller.context import write_context

NOW = datetime(2026, 11, 21, tzinfo=UTC)
CLUSTER = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
NODE = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    )
    names = x509.SubjectAlternativeName(
        [x509.DNSName("controller.rota"), x509.UniformResourceIdentifier("spiffe://rota/user/admin")]
    )
    builder = builder.add_extension(names, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def leaf_of(chain: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain)[0]


def uris(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def dns_names(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)


def test_the_first_start_makes_an_authority_and_the_next_finds_it(tmp_path: Path) -> None:
    made = open_authority(tmp_path / "tls", CLUSTER, NOW)
    found = open_authority(tmp_path / "tls", "another-uuid", NOW)
    assert found.fingerprint == made.fingerprint
    assert found.cluster == CLUSTER
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "tls" / "ca.key").stat().st_mode & 0o777 == 0o600
    assert found.server(NOW) == made.server(NOW), "the server's certificate is kept too"


def test_a_start_that_died_between_key_and_certificate_begins_again(tmp_path: Path) -> None:
    open_authority(tmp_path, CLUSTER, NOW)
    (tmp_path / "ca.crt").unlink()
    assert open_authority(tmp_path, CLUSTER, NOW).cluster == CLUSTER


def test_a_node_gets_its_uuid_and_nothing_of_what_it_asked_for(tmp_path: Path) -> None:
    authority = open_authority(tmp_path, CLUSTER, NOW)
    leaf = leaf_of(authority.sign_node(request(ec.generate_private_key(ec.SECP256R1())), NODE, NOW))
    assert uris(leaf) == [f"spiffe://rota/node/{NODE}"]
    assert dns_names(leaf) == [], "a node cannot stand in for the controller"
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_server_certificate_is_renewed_in_time(tmp_path: Path) -> None:
    authority = open_authority(tmp_path, CLUSTER, NOW)
    first = authority.server(NOW)
    assert authority.server(NOW + timedelta(days=29)) is first
    second = authority.server(NOW + timedelta(days=31))
    assert second != first
    assert dns_names(leaf_of(second.chain)) == ["controller.rota"]
    assert leaf_of(second.chain).not_valid_after_utc == NOW + timedelta(days=31 + 90)


def test_another_authoritys_server_certificate_is_not_used(tmp_path: Path) -> None:
    open_authority(tmp_path / "a", CLUSTER, NOW).server(NOW)
    other = open_authority(tmp_path / "b", CLUSTER, NOW)
    (tmp_path / "b" / "server.pem").write_bytes((tmp_path / "a" / "server.pem").read_bytes())
    leaf_of(other.server(NOW).chain).verify_directly_issued_by(x509.load_pem_x509_certificate(other.pem))


def test_a_request_must_be_signed_by_its_own_key() -> None:
    good = x509.load_pem_x509_csr(request(ec.generate_private_key(ec.SECP256R1())))
    spoiled = bytearray(good.public_bytes(serialization.Encoding.DER))
    spoiled[-1] ^= 1
    pem = x509.load_der_x509_csr(bytes(spoiled)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(CsrError, match="not signed by its own key"):
        public_key(pem)


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP521R1()),
    ],
    ids=["rsa", "ed25519", "p521"],
)
def test_keys_of_other_kinds_are_refused(
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey,
) -> None:
    with pytest.raises(CsrError, match="P-256 or P-384"):
        public_key(request(key))


@pytest.mark.parametrize("text", [b"", b"\xff" * 100, b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", b"{}"])
def test_what_is_no_request_is_refused(text: bytes) -> None:
    with pytest.raises(CsrError, match="not a certificate signing request"):
        public_key(text)


def test_a_request_has_a_limit() -> None:
    with pytest.raises(CsrError, match=f"at most {CSR_BYTES_MAX}"):
        public_key(b"A" * (CSR_BYTES_MAX + 1))


def test_a_missing_key_and_a_foreign_certificate_are_said_plainly(tmp_path: Path) -> None:
    open_authority(tmp_path / "a", CLUSTER, NOW)
    open_authority(tmp_path / "b", CLUSTER, NOW)
    (tmp_path / "a" / "ca.crt").write_bytes((tmp_path / "b" / "ca.crt").read_bytes())
    with pytest.raises(CaError, match="do not belong together"):
        open_authority(tmp_path / "a", CLUSTER, NOW)
    (tmp_path / "a" / "ca.key").unlink()
    with pytest.raises(CaError, match=r"ca\.key is missing"):
        open_authority(tmp_path / "a", CLUSTER, NOW)
    (tmp_path / "b" / "ca.crt").write_bytes(b"nonsense")
    with pytest.raises(CaError, match="no usable"):
        open_authority(tmp_path / "b", CLUSTER, NOW)
    open_authority(tmp_path / "c", CLUSTER, NOW)
    with pytest.raises(CaError, match="ended on 2036"):
        open_authority(tmp_path / "c", CLUSTER, NOW + timedelta(days=3651))


def test_the_client_context_lasts_and_is_renewed_at_half_time(tmp_path: Path) -> None:
    authority = open_authority(tmp_path / "tls", CLUSTER, NOW)
    context = tmp_path / "client"

    def write(now: datetime, address: str = "127.0.0.1:1") -> bytes:
        write_context(context, authority, user="admin", address=address, now=now)
        return (context / "user.crt").read_bytes()

    first = write(NOW)
    assert write(NOW + timedelta(days=100), "127.0.0.1:2") == first
    assert "127.0.0.1:2" in (context / "context.json").read_text()
    assert write(NOW + timedelta(days=200)) != first
    assert uris(leaf_of(first)) == ["spiffe://rota/user/admin"]
    assert (context / "user.key").stat().st_mode & 0o777 == 0o600

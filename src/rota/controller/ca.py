"""The cluster's certificate authority, and who a certificate says that its holder is.

Made at the first start in HOME/tls: `ca.key` and `ca.crt` (ECDSA P-256), and the controller's own
`server.pem`. All certificates stay valid under this one authority; what ends a node's or a
user's access is its record in the store, not a list of revoked certificates.

| certificate | names in it | use | valid |
|---|---|---|---|
| authority | the cluster's UUID | signs | 10 years |
| controller | DNS `controller.rota`, `spiffe://rota/controller/UUID` | both | 90 days (60 left: renewed) |
| node | `spiffe://rota/node/UUID` | client | as long as the authority |
| user | `spiffe://rota/user/NAME` | client | 1 year |

The *fingerprint* of the authority is the SHA-256 of its certificate in DER form.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rota.controller.files import private_directory, write_private

SERVER_NAME = "controller.rota"
AUTHORITY_DAYS = 3650
SERVER_DAYS = 90
SERVER_DAYS_LEFT_MIN = 60
USER_DAYS = 365
CSR_BYTES_MAX = 16_384

# Clocks of joiners may be behind ours.
_BACKDATED = timedelta(hours=1)
_CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
_SERVER = ExtendedKeyUsageOID.SERVER_AUTH


class CaError(Exception):
    """The files of the authority cannot be used; the message says which and what to do."""


class CsrError(ValueError):
    """A request that is not signed; the message says why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and its certificate chain, leaf first, as PEM."""

    key: bytes
    chain: bytes
    renew_at: datetime


class Authority:
    """Signs for one cluster. `now` is always an aware datetime."""

    def __init__(
        self, directory: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> None:
        self._directory = directory
        self._key = key
        self._certificate = certificate
        self._server: Identity | None = None
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.fingerprint = certificate.fingerprint(hashes.SHA256())

    @property
    def cluster(self) -> str:
        """The UUID of the cluster that the authority was made for."""
        return str(self._certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    def server(self, now: datetime) -> Identity:
        """The controller's own identity, renewed in time; cheap to call at every handshake."""
        if self._server is None:
            self._server = self._stored_server()
        if self._server is None or now >= self._server.renew_at:
            self._server = self._make_server(now)
        return self._server

    def sign_node(self, csr: bytes, node: str, now: datetime) -> bytes:
        """The certificate chain of a node for the key that a PEM request proves to have. Raises CsrError."""
        public = public_key(csr)
        return self._sign(public, node, [_uri("node", node)], [_CLIENT], now, None) + self.pem

    def make_user(self, user: str, now: datetime) -> Identity:
        """A new key with a user's certificate, for the client context in the home."""
        key = ec.generate_private_key(ec.SECP256R1())
        chain = self._sign(key.public_key(), user, [_uri("user", user)], [_CLIENT], now, USER_DAYS) + self.pem
        return Identity(_key_pem(key), chain, now + timedelta(days=USER_DAYS // 2))

    def _make_server(self, now: datetime) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(SERVER_NAME), _uri("controller", self.cluster)]
        leaf = self._sign(key.public_key(), SERVER_NAME, names, [_SERVER, _CLIENT], now, SERVER_DAYS)
        # The authority goes along, so that a joiner can compare it with its token's fingerprint.
        identity = Identity(_key_pem(key), leaf + self.pem, _renewal(x509.load_pem_x509_certificate(leaf)))
        # One file, so that a crash cannot leave a key beside another key's certificate.
        write_private(self._directory / "server.pem", identity.key + identity.chain)
        return identity

    def _stored_server(self) -> Identity | None:
        """What an earlier start left; None where it is missing or not of this authority."""
        try:
            text = (self._directory / "server.pem").read_bytes()
            leaf = x509.load_pem_x509_certificates(text)[0]
            key = _load_key(text)
            leaf.verify_directly_issued_by(self._certificate)
        except (FileNotFoundError, ValueError, TypeError, InvalidSignature):
            return None
        if leaf.public_key() != key.public_key():
            return None
        return Identity(
            _key_pem(key), leaf.public_bytes(serialization.Encoding.PEM) + self.pem, _renewal(leaf)
        )

    def _sign(
        self,
        public: ec.EllipticCurvePublicKey,
        common_name: str,
        names: list[x509.GeneralName],
        uses: list[x509.ObjectIdentifier],
        now: datetime,
        days: int | None,
    ) -> bytes:
        end = self._certificate.not_valid_after_utc
        if days is not None:
            end = min(end, now + timedelta(days=days))
        return (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


_PUT_BACK = "put back a copy of both; if there is none, begin a cluster in a new home, which nodes join anew"


def open_authority(directory: Path, cluster: str, now: datetime) -> Authority:
    """The authority in a directory, made for `cluster` where there is none. Raises CaError."""
    private_directory(directory)
    key_path, certificate_path = directory / "ca.key", directory / "ca.crt"
    if not certificate_path.exists():
        # A key without a certificate has signed nothing: a first start ended between the two.
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key, cluster, now)
        write_private(key_path, _key_pem(key))
        write_private(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
        return Authority(directory, key, certificate)
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = _load_key(key_path.read_bytes())
    except FileNotFoundError as missing:
        raise CaError(f"{key_path} is missing beside ca.crt: {_PUT_BACK}") from missing
    except (ValueError, TypeError) as error:
        raise CaError(f"{directory} holds no usable ca.key and ca.crt ({error}): {_PUT_BACK}") from error
    if certificate.public_key() != key.public_key():
        raise CaError(f"ca.key and ca.crt in {directory} do not belong together: {_PUT_BACK}")
    if now >= certificate.not_valid_after_utc:
        raise CaError(f"{certificate_path} ended on {certificate.not_valid_after_utc:%Y-%m-%d}")
    return Authority(directory, key, certificate)


def public_key(csr: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a PEM request proves to have; everything else in it is ignored. Raises CsrError."""
    if len(csr) > CSR_BYTES_MAX:
        raise CsrError(f"the request has {len(csr)} bytes; at most {CSR_BYTES_MAX}")
    try:
        request = x509.load_pem_x509_csr(csr)
        public = request.public_key()
        valid = request.is_signature_valid
    except Exception as error:
        raise CsrError("the request is not a certificate signing request in PEM form") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(
        public.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        raise CsrError("the request's key is of a kind that is not accepted; use ECDSA with P-256 or P-384")
    if not valid:
        raise CsrError("the request is not signed by its own key")
    return public


def key_digest(public: ec.EllipticCurvePublicKey) -> str:
    """Names a public key: the SHA-256 of its SubjectPublicKeyInfo, in hex."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return digest.finalize().hex()


def _self_signed(key: ec.EllipticCurvePrivateKey, cluster: str, now: datetime) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(cluster))
        .issuer_name(_name(cluster))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _name(common_name: str) -> x509.Name:
    # A common name holds 64 characters; who somebody is stands in the URI alone.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Rota"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )


def _uri(kind: str, name: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(f"spiffe://rota/{kind}/{name}")


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _renewal(leaf: x509.Certificate) -> datetime:
    return leaf.not_valid_after_utc - timedelta(days=SERVER_DAYS_LEFT_MIN)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not an ECDSA key")
    return key

"""Join tokens: `rota1_ID_RANDOM_FINGERPRINT`.

ID names the token without giving it away, RANDOM is the secret (160 bits; only its SHA-256 is stored), and
FINGERPRINT (the SHA-256 of the authority's certificate in DER form) lets the joiner know the cluster before
it says anything. All three are base32 in small letters, so that a double click takes the whole token and
nothing in it needs quoting. What is sent to the join port is `ID_RANDOM`.
"""

import base64
import hashlib
import re
from dataclasses import dataclass

ID_BYTES = 5
RANDOM_BYTES = 20

_SECRET = re.compile(r"([a-z2-7]{8})_([a-z2-7]{32})")
_TOKEN = re.compile(r"rota1_([a-z2-7]{8}_[a-z2-7]{32})_([a-z2-7]{52})")


@dataclass(frozen=True, slots=True)
class Secret:
    """What the cluster keeps of a token: its id, and the hash of its random part."""

    token: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Token:
    """A token as its holder has it: what is sent to the join port, and whom to send it to."""

    secret: str
    fingerprint: bytes


def make(fingerprint: bytes, random: bytes) -> tuple[Secret, str]:
    """A new token of ID_BYTES + RANDOM_BYTES random bytes: what is stored of it, and what is shown once."""
    assert len(random) == ID_BYTES + RANDOM_BYTES, len(random)
    token, secret = _text(random[:ID_BYTES]), _text(random[ID_BYTES:])
    return Secret(token, _sha256(secret)), f"rota1_{token}_{secret}_{_text(fingerprint)}"


def parse(text: str) -> Token | None:
    """A whole token; None where the text is none."""
    match = _TOKEN.fullmatch(text.strip().lower())
    if match is None:
        return None
    return Token(match[1], base64.b32decode(match[2].upper() + "===="))


def parse_secret(text: str) -> Secret | None:
    """`ID_RANDOM` as the join port receives it; None where it is no such text."""
    match = _SECRET.fullmatch(text)
    return Secret(match[1], _sha256(match[2])) if match else None


def _text(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()

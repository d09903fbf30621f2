"""Who is at the other end of a connection, by its certificate."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, get_args

Kind = Literal["node", "user", "controller"]

NAMES_KNOWN_MAX = 1_024

_PREFIX = "spiffe://rota/"


@dataclass(frozen=True, slots=True)
class Peer:
    """`name`: a node's UUID, a user's name. `address`: where it connects from."""

    kind: Kind
    name: str
    address: str = ""


def peer_of(auth_context: Mapping[str, Iterable[bytes]], address: str = "") -> Peer | None:
    """The peer of a connection that gRPC has verified; None where its certificate names nobody."""
    names = list(auth_context.get("peer_spiffe_id", ()))
    if len(names) != 1 or not is_tls_1_3(auth_context):
        return None
    found = _read(names[0])
    return None if found is None else Peer(*found, address)


@lru_cache(maxsize=NAMES_KNOWN_MAX)
def _read(name_in_certificate: bytes) -> tuple[Kind, str] | None:
    text = name_in_certificate.decode("utf-8", "replace")
    kind, _, name = text.removeprefix(_PREFIX).partition("/")
    if not text.startswith(_PREFIX) or kind not in get_args(Kind) or not name or "/" in name:
        return None
    if kind == "node" and not _is_uuid(name):
        return None
    return cast(Kind, kind), name


def is_tls_1_3(auth_context: Mapping[str, Iterable[bytes]]) -> bool:
    """Whether the connection is as safe as all of ours are."""
    return list(auth_context.get("ssl_tls_version", ())) == [b"TLSv1.3"]


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False

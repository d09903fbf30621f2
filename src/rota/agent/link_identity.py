"""What enrolment left in the agent's home, and channels to the controller made of it."""

import json
from dataclasses import dataclass
from pathlib import Path

import grpc

from rota.core.model.protocol import MESSAGE_BYTES_MAX

SERVER_NAME = "controller.rota"
# A message's envelope, and the pieces' own.
_SLACK_BYTES = 64 * 1024


class IdentityError(Exception):
    """The home has no usable identity; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is, and where the controllers listen (`HOST:PORT`)."""

    node: str
    name: str
    addresses: tuple[str, ...]
    ca: bytes
    key: bytes
    chain: bytes

    def channel(self, address: str) -> grpc.aio.Channel:
        """A new channel; both sides prove who they are, and the name is `controller.rota` at any address."""
        credentials = grpc.ssl_channel_credentials(self.ca, self.key, self.chain)
        options = (
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX + _SLACK_BYTES),
            # A controller that is gone without a word is noticed within 30 s.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # The link dials again itself, and in its own time.
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
        )
        return grpc.aio.secure_channel(address, credentials, options)


def read_identity(home: Path) -> Identity:
    """The identity in an agent's home. Raises IdentityError."""
    try:
        text = json.loads((home / "identity.json").read_bytes())
        tls = home / "tls"
        return Identity(
            node=str(text["node"]),
            name=str(text["name"]),
            addresses=tuple(str(address) for address in text["addresses"]),
            ca=(tls / "ca.crt").read_bytes(),
            key=(tls / "node.key").read_bytes(),
            chain=(tls / "node.crt").read_bytes(),
        )
    except FileNotFoundError as missing:
        raise IdentityError(f"{missing.filename} is missing: join the cluster again") from missing
    except (ValueError, KeyError, TypeError) as wrong:
        raise IdentityError(f"{home / 'identity.json'} is damaged: join the cluster again") from wrong

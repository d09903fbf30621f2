"""The controller's ports: chosen once, kept in HOME/ports.json, and taken again at every start."""

import json
import socket
from dataclasses import dataclass
from pathlib import Path

from rota.controller.files import write_private

LOOPBACK = "127.0.0.1"


class PortError(Exception):
    """An address that cannot be listened on; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen. A port of 0 means the one in HOME/ports.json, or else a free one."""

    host: str = LOOPBACK
    api_port: int = 0
    join_port: int = 0


def choose(home: Path, listen: Listen) -> Listen:
    """The same with ports that are not 0. Raises PortError."""
    kept = _kept(home)
    free = _free(listen.host)
    ports = Listen(
        listen.host,
        listen.api_port or kept.api_port or free[0],
        listen.join_port or kept.join_port or free[1],
    )
    if ports.api_port == ports.join_port:
        raise PortError(f"port {ports.api_port} is meant for both the API and joining: choose two")
    return ports


def keep(home: Path, listen: Listen) -> None:
    """Remembers the ports for the next start."""
    text = json.dumps({"api": listen.api_port, "join": listen.join_port}, indent=2) + "\n"
    write_private(home / "ports.json", text.encode())


def _kept(home: Path) -> Listen:
    path = home / "ports.json"
    try:
        found = json.loads(path.read_bytes())
        return Listen("", int(found["api"]), int(found["join"]))
    except FileNotFoundError:
        return Listen("", 0, 0)
    except (ValueError, KeyError, TypeError) as wrong:
        raise PortError(f"{path} is damaged: remove it, and new ports are chosen") from wrong


def _free(host: str) -> tuple[int, int]:
    """Two ports, held at the same time, so that they are two."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with (
            socket.socket(family, socket.SOCK_STREAM) as one,
            socket.socket(family, socket.SOCK_STREAM) as other,
        ):
            one.bind((host, 0))
            other.bind((host, 0))
            return one.getsockname()[1], other.getsockname()[1]
    except OSError as wrong:
        raise PortError(f"cannot listen on {host}: {wrong.strerror or wrong}") from wrong


def address(host: str, port: int) -> str:
    """As gRPC and people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

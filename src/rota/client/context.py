"""Where the cluster is and who asks: the client context, a folder `client` in the home."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from rota.client.errors import InvalidRequest, NoCluster

HOME_VARIABLE = "ROTA_HOME"


@dataclass(frozen=True, slots=True)
class Context:
    """What is needed to call the API. `ca`, `cert` and `key` are PEM files."""

    home: Path
    address: str
    cluster: str
    user: str
    ca: Path
    cert: Path
    key: Path


def home_directory() -> Path:
    """The home: ROTA_HOME, else `~/.rota`. Raises InvalidRequest."""
    return expanded(os.environ.get(HOME_VARIABLE) or "~/.rota")


def expanded(path: str) -> Path:
    """A path that people give, seen from here, `~` and `~ada` replaced. Raises InvalidRequest."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        if path[1:2] in ("", "/"):
            says = (
                "HOME is not set, and this account has no home directory; name one with --home or ROTA_HOME"
            )
        else:
            says = f"{path}: there is no account '{path[1:].partition('/')[0]}' with a home directory"
        raise InvalidRequest(says) from error


def join_address(context: Context) -> str | None:
    """Where machines join, if the controller's home is this one; the host is that of the API."""
    try:
        ports = json.loads((context.home / "ports.json").read_bytes())
        return f"{context.address.rpartition(':')[0]}:{int(ports['join'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_controllers(home: Path) -> bool:
    """Whether a controller has been started in this home; else it is a client, or has an agent alone."""
    return (home / "tls").is_dir()


def was_stopped(home: Path) -> bool:
    """Whether this home's controller has ended in good order: it has put its pid file away."""
    return is_controllers(home) and not (home / "run" / "controller.pid").exists()


def how_to_renew(home: Path) -> str:
    """Where another context comes from, for people."""
    if is_controllers(home):
        return "the controller writes it anew when it starts: 'rota down', then 'rota up'"
    return "copy the folder 'client' of the controller's home into this one again"


def load_context(home: Path | None = None) -> Context:
    """The context in a home (nothing: the one of `home_directory`). Raises NoCluster."""
    home = home or home_directory()
    path = home / "client" / "context.json"
    try:
        found = json.loads(path.read_bytes())
        folder = path.parent
        return Context(
            home=home,
            address=str(found["address"]),
            cluster=str(found["cluster"]),
            user=str(found["user"]),
            ca=folder / found["ca"],
            cert=folder / found["cert"],
            key=folder / found["key"],
        )
    except (FileNotFoundError, NotADirectoryError):
        raise NoCluster(f"there is no cluster in {home}; start one with: rota up") from None
    except OSError as error:
        raise NoCluster(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NoCluster(f"{path} is damaged; {how_to_renew(home)}") from error

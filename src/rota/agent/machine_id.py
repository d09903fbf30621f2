"""Whether an agent's home is the node's own, or a copy of it, which must not pass for the node.

The controller takes a node that comes with another boot id for the machine after a reboot, once it has not
heard it for a while. So a copy would be believed whenever the original is away, and what still runs there
would be taken for ended. The home tells the two apart: `HOME/machine.json` names the machine by its
/etc/machine-id, hashed for this use alone (as sd_id128_get_machine_app_specific(3) does, since the id itself
is not to be shown around), and by the boot id, which tells that it is the same one where a container has got
another id. A machine without an id is not told from others, nor are machines from each other whose id is
the same, as where an image that they were made from holds one (machine-id(5) says how to make images).

On one machine, a copy that starts would end what the original runs: the tasks in its journal are the same
processes. So the path of the home is recorded too, and where the node is there still, the home is a copy. One
that was moved goes on.
"""

import hashlib
import hmac
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from rota.agent.facts import boot_id

_FILE = "machine.json"
_MACHINE_ID = Path("/etc/machine-id")
# What the ids are hashed for; made at random, once.
_APPLICATION = bytes.fromhex("9f0c3be15d7a4c0e8b6f2a41d3c57e90")


class Copied(Exception):
    """The home is another's; the message says what to do."""


class _Place(NamedTuple):
    """Where a home is; the machine's id is empty where it has none."""

    machine: str
    boot: str
    home: str


def claim(home: Path, id_file: Path = _MACHINE_ID) -> None:
    """Makes the home this machine's, and the node's at this path, if it is no other's.

    Raises Copied and OSError.
    """
    ours = _Place(_hashed(id_file), boot_id(), str(home.absolute()))
    theirs = _recorded(home)
    if theirs == ours:
        return
    if theirs is not None and theirs.machine not in ("", ours.machine) and theirs.boot != ours.boot:
        raise Copied(
            f"{home} was copied or moved from another machine. If its agent there will never run again, "
            f"remove {home / _FILE}, and this one takes its place; else remove {home}, "
            "and join with a new token"
        )
    if theirs is not None and _is_copy(home, Path(theirs.home)):
        raise Copied(
            f"{home} is a copy of {theirs.home}, which is there still: they cannot both be one node. "
            f"To go on here, stop the agent there and remove {theirs.home}; else remove {home}, and join "
            "with a new token"
        )
    draft = home / f".{_FILE}.{os.getpid()}"
    draft.write_text(json.dumps(ours._asdict()) + "\n")
    draft.replace(home / _FILE)


def _is_copy(home: Path, original: Path) -> bool:
    """Whether the node is in another directory too."""
    try:
        return not home.samefile(original) and _node(home) == _node(original)
    except (OSError, ValueError, KeyError, TypeError):
        # It was moved, or is no node's; what may not be looked at is another account's.
        return False


def _node(home: Path) -> str:
    """Raises OSError, ValueError, KeyError and TypeError."""
    return str(json.loads((home / "identity.json").read_bytes())["node"])


def _hashed(id_file: Path) -> str:
    try:
        text = id_file.read_text().strip()
    except (OSError, ValueError):
        return ""
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        # 'uninitialized', or an empty file: the machine gets its id later.
        return ""
    return hmac.digest(bytes.fromhex(text), _APPLICATION, hashlib.sha256)[:16].hex()


def _recorded(home: Path) -> _Place | None:
    """None where it is nobody's yet."""
    try:
        text = json.loads((home / _FILE).read_bytes())
        return _Place(str(text["machine"]), str(text["boot"]), str(text["home"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        # A power cut came while it was written.
        return None

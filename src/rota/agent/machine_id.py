"""Which machine an agent's home is of: a copy of it on another one must not pass for the node.

The controller takes a node that comes with another boot id for the machine after a reboot, once it has not
heard it for a while. So a copy would be believed whenever the original is away, and what still runs there
would be taken for ended. The home tells the two apart: `HOME/machine.json` names the machine by its
/etc/machine-id, hashed for this use alone (as sd_id128_get_machine_app_specific(3) does, since the id itself
is not to be shown around), and by the boot id, which tells that it is the same one where a container has got
another id. A machine without an id is not told from others.
"""

import hashlib
import hmac
import json
import os
import re
from pathlib import Path

from rota.agent.facts import boot_id

_FILE = "machine.json"
_MACHINE_ID = Path("/etc/machine-id")
# What the ids are hashed for; made at random, once.
_APPLICATION = bytes.fromhex("9f0c3be15d7a4c0e8b6f2a41d3c57e90")


class AnotherMachine(Exception):
    """The home is another machine's; the message says what to do."""


def claim(home: Path, id_file: Path = _MACHINE_ID) -> None:
    """Makes the home this machine's, if it is no other's. Raises AnotherMachine and OSError."""
    ours = (_hashed(id_file), boot_id())
    theirs = _recorded(home)
    if theirs == ours:
        return
    if theirs is not None and theirs[0] not in ("", ours[0]) and theirs[1] != ours[1]:
        raise AnotherMachine(
            f"{home} was copied or moved from another machine. If its agent there will never run again, "
            f"remove {home / _FILE}, and this one takes its place; else remove {home}, "
            "and join with a new token"
        )
    draft = home / f".{_FILE}.{os.getpid()}"
    draft.write_text(json.dumps({"machine": ours[0], "boot": ours[1]}) + "\n")
    draft.replace(home / _FILE)


def _hashed(id_file: Path) -> str:
    try:
        text = id_file.read_text().strip()
    except (OSError, ValueError):
        return ""
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        # 'uninitialized', or an empty file: the machine gets its id later.
        return ""
    return hmac.digest(bytes.fromhex(text), _APPLICATION, hashlib.sha256)[:16].hex()


def _recorded(home: Path) -> tuple[str, str] | None:
    """None where it is nobody's yet."""
    try:
        text = json.loads((home / _FILE).read_bytes())
        return str(text["machine"]), str(text["boot"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        # A power cut came while it was written.
        return None

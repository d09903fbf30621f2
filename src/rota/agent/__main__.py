"""The supervisor as a process: `python -m rota.agent --home DIR`. Amounts are in thousandths and bytes.

`rota agent` makes the machine a node and then becomes this, with what people wrote turned into numbers.
"""

import argparse
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from rota.agent.facts import Declared
from rota.agent.log import log_to_stderr
from rota.agent.supervisor import GRACE_MS_DEFAULT, Config, supervise


def main() -> int:
    """Reads the arguments and supervises."""
    parser = argparse.ArgumentParser(prog="python -m rota.agent", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the agent's own directory")
    parser.add_argument("--pid-file", type=Path)
    parser.add_argument("--link-pid-file", type=Path)
    parser.add_argument("--ready-fd", type=int, help="'ready' is written to it, or why not")
    parser.add_argument("--share", type=_share, default=(0, 1), metavar="I/N", help="of the machine")
    parser.add_argument("--cpu", type=int, metavar="THOUSANDTHS")
    parser.add_argument("--memory", type=int, metavar="BYTES")
    parser.add_argument("--disk", type=int, metavar="BYTES")
    parser.add_argument("--gpu", type=int, metavar="THOUSANDTHS")
    parser.add_argument("--resource", type=_amount, action="append", default=[], metavar="NAME=THOUSANDTHS")
    parser.add_argument("--label", type=_pair, action="append", default=[], metavar="K=V")
    parser.add_argument("--scripts-dir", default="", metavar="DIR")
    parser.add_argument("--map-user", type=_pair, action="append", default=[], metavar="USER=ACCOUNT")
    parser.add_argument("--grace-ms", type=int, default=GRACE_MS_DEFAULT)
    parser.add_argument("--link", action="append", metavar="WORD", help="a word of another link's command")
    given = parser.parse_args()
    _keep_descriptors()
    home = given.home.absolute()
    log_to_stderr(home.parent / "log")
    link = given.link or [sys.executable, "-m", "rota.agent.link", "--home", str(home)]
    declared = Declared(
        given.cpu,
        given.memory,
        given.gpu,
        given.disk,
        tuple(given.resource),
        tuple(given.label),
        given.share,
    )
    config = Config(
        home=home,
        link_command=tuple(link),
        declared=declared,
        cluster=_cluster(home),
        scripts_dir=given.scripts_dir,
        map_user=tuple(given.map_user),
        pid_file=given.pid_file,
        link_pid_file=given.link_pid_file,
        grace_ms=given.grace_ms,
    )
    return supervise(config, given.ready_fd)


def _keep_descriptors() -> None:
    """What this process was given, `--ready-fd` and what a shell left open, is no task's."""
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if descriptor > 2:
            # That of the listing itself is gone by now.
            with suppress(OSError):
                os.set_inheritable(descriptor, False)


def _pair(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE")
    return key, value


def _amount(text: str) -> tuple[str, int]:
    key, value = _pair(text)
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=THOUSANDTHS")
    return key, int(value)


def _share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    return int(number), int(count)


def _cluster(home: Path) -> str:
    """The cluster that enrolment wrote down; empty where it did not."""
    try:
        return str(json.loads((home / "identity.json").read_bytes()).get("cluster", ""))
    except (OSError, ValueError, AttributeError):
        return ""


if __name__ == "__main__":
    sys.exit(main())

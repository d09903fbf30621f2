"""A home: where the parts of a cluster on this machine keep what they have.

HOME/             mode 0700
  client/         how the command line reaches the controller, and as whom
  run/            controller.pid, agent-0.pid, link-0.pid, ...
  log/            controller.log, agent-0.log, ...
  up.json         what `rota up` was told
  agent-0/        one agent: its identity, its journal, what its tasks wrote
  tls/ ...        the controller's own
"""

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

_AGENT = re.compile(r"agent-([0-9]+)\.pid")


@dataclass(frozen=True, slots=True)
class Home:
    """The paths of one home."""

    path: Path

    @property
    def run(self) -> Path:
        """Where the pid files are."""
        return self.path / "run"

    @property
    def log(self) -> Path:
        """Where the logs are."""
        return self.path / "log"

    @property
    def context(self) -> Path:
        """What the command line needs to reach the controller; it is there from its first start on."""
        return self.path / "client" / "context.json"

    @property
    def settings(self) -> Path:
        """What `rota up` was told."""
        return self.path / "up.json"

    @property
    def controller_pid(self) -> Path:
        """The controller's pid file."""
        return self.run / "controller.pid"

    def agent_pid(self, number: int) -> Path:
        """The pid file of a supervisor."""
        return self.run / f"agent-{number}.pid"

    def link_pid(self, number: int) -> Path:
        """The pid file of a link."""
        return self.run / f"link-{number}.pid"

    def agent(self, number: int) -> Path:
        """The home of an agent."""
        return self.path / f"agent-{number}"

    def node_name(self, number: int) -> str | None:
        """The name of an agent's node; None where it has not joined."""
        try:
            return str(json.loads((self.agent(number) / "identity.json").read_bytes())["name"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def agent_count(self) -> int:
        """How many agents of the home have joined, counted from the first."""
        number = 0
        while self.node_name(number) is not None:
            number += 1
        return number

    def agents(self) -> list[int]:
        """The numbers of the agents that have a pid file, ascending."""
        try:
            names = [file.name for file in self.run.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for name in names if (match := _AGENT.fullmatch(name)))

    def make(self) -> None:
        """Makes the home where it is missing, for its owner alone. Raises ClickException."""
        try:
            for directory in (self.path, self.run, self.log):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise click.ClickException(
                f"{error.filename or self.path} cannot be made: {error.strerror}; "
                "choose another home with --home or ROTA_HOME"
            ) from error

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Held while parts are started or stopped, so that nobody else does so at the same time."""
        with (self.run / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                click.echo(f"waiting for another 'rota up' or 'rota down' in {self.path}", err=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

"""What `rota up` was told, kept in HOME/up.json: it holds at the next start too.

A plain `rota up` after a crash, a reboot or `rota down` so brings back what the home had, and not some other
cluster with the same name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from rota.client.context import expanded
from rota.main.home import Home


@dataclass(frozen=True, slots=True)
class Settings:
    """None, and what is missing in `machine` (texts by the name of the option), is what nobody has said."""

    nodes: int | None = None
    lost_after_ms: int | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)

    def changed_by(self, later: "Settings") -> "Settings":
        """These with what was said later in their place; an empty text takes back, of the machine."""
        return Settings(
            self.nodes if later.nodes is None else later.nodes,
            self.lost_after_ms if later.lost_after_ms is None else later.lost_after_ms,
            {
                name: said
                for name, said in {**self.machine, **later.machine}.items()
                if said and list(said) != [""]
            },
        )


def said(nodes: int | None, lost_after_ms: int | None, options: Mapping[str, Any]) -> Settings:
    """What a command line says; a directory in it is meant from where the command is given."""
    machine = {name: said for name, said in options.items() if said not in (None, ())}
    if machine.get("scripts_dir"):
        machine["scripts_dir"] = str(expanded(machine["scripts_dir"]))
    return Settings(nodes, lost_after_ms, machine)


def kept(home: Home) -> Settings:
    """What was said before. Raises ClickException."""
    try:
        found = json.loads(home.settings.read_bytes())
        return Settings(found["nodes"], found["lost_after_ms"], dict(found["machine"]))
    except FileNotFoundError:
        return Settings()
    except (ValueError, KeyError, TypeError) as wrong:
        raise click.ClickException(
            f"{home.settings} is damaged; remove it, and say again what the nodes are to offer"
        ) from wrong


def keep(home: Home, settings: Settings) -> None:
    """Remembers them. Raises ClickException."""
    text = json.dumps(
        {
            "nodes": settings.nodes,
            "lost_after_ms": settings.lost_after_ms,
            "machine": dict(settings.machine),
        },
        indent=2,
    )
    draft = home.settings.with_suffix(".draft")
    try:
        draft.write_text(text + "\n")
        draft.replace(home.settings)
    except OSError as error:
        raise click.ClickException(f"{home.settings} cannot be written: {error.strerror}") from error

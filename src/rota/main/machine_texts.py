"""What a machine offers, as options say it: `power=100`, `rack=7`."""

from collections.abc import MutableMapping

from rota.client.messages import Resources
from rota.client.texts import RESOURCES, pair, set_named
from rota.client.units import UnitError


def add_named(resources: Resources, text: str) -> str:
    """Adds a resource that the cluster's owners named; its name. Raises UnitError."""
    name, value = pair(text, "power=100")
    if name in RESOURCES:
        raise UnitError(f"'{name}' has an option of its own: --{name} {value}")
    if name in resources.named:
        raise UnitError(f"'{name}' is given twice")
    set_named(resources, name, value)
    return name


def add_label(labels: MutableMapping[str, str], text: str) -> str:
    """Adds a label; its name. Raises UnitError."""
    name, value = pair(text, "rack=7")
    if name in labels:
        raise UnitError(f"'{name}' is given twice")
    labels[name] = value
    return name

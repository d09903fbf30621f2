"""Signals as a job names them: `USR1@60s`, a name and how long before the time limit it is sent."""

import re
from functools import lru_cache
from signal import Signals

SIGTERM = int(Signals.SIGTERM)

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


@lru_cache(maxsize=256)
def parse(text: str) -> tuple[int, int] | None:
    """Number and milliseconds ahead; without `@` it is sent at the limit. None for what names no signal."""
    name, _, ahead_text = text.partition("@")
    name = name.strip().upper().removeprefix("SIG")
    try:
        number = int(Signals["SIG" + name])
    except KeyError:
        return None
    parts = _PART.findall(ahead_text)
    return number, round(sum(float(amount) * _UNITS_MS[unit] for amount, unit in parts))

"""Amounts as people write them, and as the wire has them. The standard library alone is needed here.

- thousandths: `2`, `0.5`; at most three decimals
- sizes: `2GiB 500MB 1.5TiB`; KB MB GB TB PB are powers of 1000, KiB MiB GiB TiB PiB of 1024, in capitals or
  not, B is bytes; a letter alone (`500M`) and no unit at all (`4000`) mean one thing here and another there,
  and are refused; `0` is nothing; a part of a byte is dropped
- durations: `250ms 90s 1h30m 2d`, or `0`; a number without unit is refused
- signals: `TERM`, or `USR1@60s` for so long before the time limit
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Commands start with this, and most are given no amount.
    from fractions import Fraction

INT64_MAX = 2**63 - 1
TEXT_LENGTH_MAX = 64
# A bare number of so many, where a size is wanted, is likely to mean MB.
SIZE_IN_MB_MIN = 1_000

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
_DURATION = re.compile(r"(?:([0-9]+(?:\.[0-9]+)?)(ms|[dhms]))")

_BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_DECIMAL = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_SIZES = {unit.lower(): amount for unit, amount in {**_BINARY, **_DECIMAL, "B": 1}.items()}
_DURATIONS = {"d": DAY_MS, "h": HOUR_MS, "m": MINUTE_MS, "s": SECOND_MS, "ms": 1}

# By name, because clients on other systems know other numbers.
SIGNALS = frozenset(
    {
        "HUP",
        "INT",
        "QUIT",
        "ILL",
        "TRAP",
        "ABRT",
        "BUS",
        "FPE",
        "KILL",
        "USR1",
        "SEGV",
        "USR2",
        "PIPE",
        "ALRM",
    }
    | {
        "TERM",
        "STKFLT",
        "CHLD",
        "CONT",
        "STOP",
        "TSTP",
        "TTIN",
        "TTOU",
        "URG",
        "XCPU",
        "XFSZ",
        "VTALRM",
        "PROF",
    }
    | {"WINCH", "IO", "PWR", "SYS"}
)


class UnitError(ValueError):
    """A text that is no amount; the message says what would be one."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal's name without SIG, and how long before the time limit it is sent; 0 means at the limit."""

    name: str
    ahead_ms: int = 0


def quoted(text: str) -> str:
    """A text for an error message: in quotes, cut where it is long, on one line."""
    shown = text if len(text) <= TEXT_LENGTH_MAX else text[: TEXT_LENGTH_MAX - 3] + "..."
    return f"'{printable(shown)}'"


def printable(text: str) -> str:
    """The text on one line, with escapes for what cannot be printed."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _check(text: str) -> None:
    if text.startswith("-") and _NUMBER.match(text, 1):
        raise UnitError(f"{quoted(text)} is negative; the least is 0")


def _fraction(number: str) -> "Fraction":
    from fractions import Fraction

    return Fraction(number)


def _integer(amount: "Fraction", text: str) -> int:
    if amount > INT64_MAX:
        raise UnitError(f"{quoted(text)} is far too large")
    return int(amount)


# ---------------------------------------------------------------- from people


def parse_thousandths(text: str) -> int:
    """`0.5` is 500. Raises UnitError."""
    _check(text)
    if len(text) > TEXT_LENGTH_MAX or not _NUMBER.fullmatch(text):
        milli = re.fullmatch(r"([0-9]{1,9})m", text)
        example = thousandths_text(int(milli[1])) if milli else "2 or 0.5"
        raise UnitError(f"{quoted(text)} is not a number; try {example}")
    amount = _fraction(text) * 1000
    if amount.denominator != 1:
        nearest = thousandths_text(max(1, round(amount)))
        raise UnitError(f"{quoted(text)} has more than three decimals; try {nearest}")
    return _integer(amount, text)


def parse_bytes(text: str) -> int:
    """`2GiB` is 2147483648. Raises UnitError."""
    _check(text)
    if text == "0":
        return 0
    match = _SIZE.fullmatch(text) if len(text) <= TEXT_LENGTH_MAX else None
    unit = _SIZES.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise UnitError(f"{quoted(text)} is not a size; try {_sizes_like(text)}")
    return _integer(_fraction(match[1]) * unit, text)


def _sizes_like(text: str) -> str:
    if len(text) <= TEXT_LENGTH_MAX and re.fullmatch(r"[0-9]{7,}", text):
        return f"{text}B"
    match = re.match(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([KMGTPkmgtp]?)", text)
    if match is None:
        return "500MB or 2GiB"
    letter = match[2].upper() or ("M" if float(match[1]) >= SIZE_IN_MB_MIN else "G")
    return f"{match[1]}{letter}B or {match[1]}{letter}iB"


def parse_milliseconds(text: str) -> int:
    """`1h30m` is 5400000. Raises UnitError."""
    _check(text)
    if text == "0":
        return 0
    if len(text) <= TEXT_LENGTH_MAX and _NUMBER.fullmatch(text):
        raise UnitError(f"{quoted(text)} has no unit; try {text}s")
    total = _fraction("0")
    position = 0
    smallest = DAY_MS + 1
    while match := _DURATION.match(text, position) if len(text) <= TEXT_LENGTH_MAX else None:
        unit = _DURATIONS[match[2]]
        if unit >= smallest:
            break
        total += _fraction(match[1]) * unit
        smallest = unit
        position = match.end()
    if not position or position != len(text):
        raise UnitError(f"{quoted(text)} is not a duration; try {_duration_like(text)}")
    if total.denominator != 1:
        raise UnitError(f"{quoted(text)} is not a whole number of milliseconds")
    return _integer(total, text)


def _duration_like(text: str) -> str:
    match = re.fullmatch(r"([0-9]{1,9}) ?([dhms])[a-z]*", text.lower())
    return match[1] + match[2] if match else "90s, 1h30m or 2d"


def parse_signal(text: str) -> Signal:
    """`USR1@60s`. Raises UnitError."""
    name, at, ahead = text.partition("@")
    if name not in SIGNALS:
        plain = name.upper().removeprefix("SIG")
        example = plain + at + ahead if plain in SIGNALS else "TERM or USR1@60s"
        raise UnitError(f"{quoted(text)} is not a signal; try {quoted(example)[1:-1]}")
    return Signal(name, parse_milliseconds(ahead) if at else 0)


# ---------------------------------------------------------------- for people


def thousandths_text(amount: int) -> str:
    """500 is `0.5`: exact, and read again as the same."""
    sign = "-" if amount < 0 else ""
    whole, rest = divmod(abs(amount), 1000)
    return f"{sign}{whole}" + (f".{rest:03}".rstrip("0") if rest else "")


def bytes_text(amount: int) -> str:
    """2147483648 is `2GiB`: the shortest text that is read again as the same."""
    units = {**_BINARY, **_DECIMAL}.items()
    texts = [f"{amount // size}{unit}" for unit, size in units if amount and amount % size == 0]
    return min([*texts, f"{amount}B" if amount > 0 else str(amount)], key=len)


def milliseconds_text(amount: int) -> str:
    """5400000 is `1h30m`: exact, and read again as the same."""
    if amount <= 0:
        return "0" if amount == 0 else "-" + milliseconds_text(-amount)
    parts = []
    for unit, size in _DURATIONS.items():
        count, amount = divmod(amount, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def bytes_about(amount: int) -> str:
    """1500000000 is `1.4GiB`: three digits at most, for tables."""
    for unit, size in reversed(_BINARY.items()):
        if amount >= size:
            shown = (
                f"{amount / size:.1f}".removesuffix(".0") if amount < 99.95 * size else f"{amount / size:.0f}"
            )
            return shown + unit
    return f"{amount}B"


def milliseconds_about(amount: int) -> str:
    """5400123 is `1h30m`: the two largest units, for tables."""
    if amount < SECOND_MS:
        return f"{amount}ms"
    if amount < 10 * SECOND_MS:
        return f"{amount / SECOND_MS:.1f}s"
    smallest = next(small for large, small in pairwise(_DURATIONS.values()) if amount >= large)
    return milliseconds_text(amount - amount % max(smallest, SECOND_MS))

"""What a history says of messages, inputs and records: one short line each."""

from dataclasses import fields, is_dataclass
from enum import Enum

from pyroaring import BitMap

from rota.core.model import columns, indexset
from rota.core.model.protocol import Columns, Inventory
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec

CHARS_MAX = 400
_TEXT_CHARS_MAX = 40
# Said by nothing but their names: long, and the same each time.
_LEFT_OUT = (Inventory,)


def describe(value: object) -> str:
    """A message, an input or a record: its type, and every field that is not empty."""
    text = _text(value)
    return text if len(text) <= CHARS_MAX else f"{text[: CHARS_MAX - 3]}..."


def _text(value: object) -> str:
    match value:
        case Enum():
            return value.name
        case BitMap():
            return f"[{indexset.text(value)}]"
        case str():
            return value if len(value) <= _TEXT_CHARS_MAX else f"{value[:_TEXT_CHARS_MAX]}..."
        case Columns():
            return _exits(value)
        case Resources():
            return "+".join(f"{amount} {name}" for name, amount in value.items()) or "nothing"
        case JobSpec():
            return f"JobSpec({value.name or 'unnamed'})"
        case tuple() | list() if value and all(_is_range(item) for item in value):
            return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in value)
        case tuple() | list():
            return f"({', '.join(_text(item) for item in value)})"
    if is_dataclass(value):
        shown = [(one.name, getattr(value, one.name)) for one in fields(value) if one.repr]
        said = [f"{name}={_text(part)}" for name, part in shown if _says(part)]
        return f"{type(value).__name__}({', '.join(said)})"
    return str(value)


def _exits(value: Columns) -> str:
    """Which tasks exited with which code."""
    indices = columns.indices(value)
    by_code: dict[int, list[int]] = {}
    for index, code in zip(indices, columns.unpack(value.code, len(indices)), strict=True):
        by_code.setdefault(code, []).append(index)
    return " ".join(f"{code}:[{indexset.text(by_code[code])}]" for code in sorted(by_code))


def _says(part: object) -> bool:
    return not isinstance(part, _LEFT_OUT) and part is not None and part not in ((), "", 0, False, Columns())


def _is_range(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(type(end) is int for end in item)

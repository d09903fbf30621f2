"""A text as the value of a field: read by the field's type, and in the unit that the contract gives it."""

import re
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from rota.wire.gen.v1 import rules_pb2
from rota.wire.units import UnitError, parse_bytes, parse_milliseconds, parse_thousandths, quoted
from rota.wire.validate import enum_choices

_UNITS: dict[int, Callable[[str], int]] = {
    rules_pb2.UNIT_THOUSANDTHS: parse_thousandths,
    rules_pb2.UNIT_BYTES: parse_bytes,
    rules_pb2.UNIT_MILLISECONDS: parse_milliseconds,
}

_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,19})")


def value_of(text: str, field: Any, unit: int) -> Any:
    """The value for a field that is one text, number or enum, `unit` being its rules'. Raises UnitError."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return text
    if field.enum_type is not None:
        choices = enum_choices(field.enum_type)
        if text not in choices:
            raise UnitError(f"{quoted(text)} is not known; try one of {', '.join(choices)}")
        return choices[text]
    if field.type == FieldDescriptor.TYPE_BOOL:
        if text.lower() not in ("true", "false"):
            raise UnitError(f"{quoted(text)} is neither true nor false; write one of them")
        return text.lower() == "true"
    if unit in _UNITS:
        return _UNITS[unit](text)
    return _integer(text, *_INTEGERS[field.type])


def _integer(text: str, low: int, high: int) -> int:
    if not _INTEGER.fullmatch(text):
        example = text.lstrip("0") if re.fullmatch(r"0+[1-9][0-9]{0,9}", text) else "1 or 10"
        raise UnitError(f"{quoted(text)} is not a whole number; try {example}")
    number = int(text)
    if number < low:
        raise UnitError(
            f"{quoted(text)} is negative; the least is 0" if low == 0 else f"{quoted(text)} is too small"
        )
    if number > high:
        raise UnitError(f"{quoted(text)} is far too large")
    return number

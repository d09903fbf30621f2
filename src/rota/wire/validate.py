"""Checks any message by the `rules` options of its fields, and by the few rules of `rules.py`.

The checks of a message type are compiled once, from its descriptor. What is not set is not checked, unless it
is required: in proto3, an empty text and a zero are the same as nothing.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from rota.core.model import indexset
from rota.wire.gen.v1 import rules_pb2
from rota.wire.problems import PROBLEMS_MAX, Path, Problem
from rota.wire.rules import WHOLE
from rota.wire.units import (
    UnitError,
    bytes_text,
    milliseconds_text,
    parse_signal,
    quoted,
    thousandths_text,
)

Check = Callable[[Any, Path, list[Problem]], None]
"""Checks a value that stands at a path, and adds the problems that it finds."""

_AMOUNTS: dict[int, Callable[[int], str]] = {
    rules_pb2.UNIT_THOUSANDTHS: thousandths_text,
    rules_pb2.UNIT_BYTES: bytes_text,
    rules_pb2.UNIT_MILLISECONDS: milliseconds_text,
}


def validate(message: Message) -> list[Problem]:
    """All that is wrong with a message, empty where nothing is; at most about PROBLEMS_MAX."""
    problems: list[Problem] = []
    _message(message.DESCRIPTOR)(message, (), problems)
    for whole in WHOLE.get(message.DESCRIPTOR.full_name, ()):
        problems.extend(whole(message))
    return sorted(problems, key=_item) if problems else problems


def _item(problem: Problem) -> int:
    """What is wrong with one job stays together."""
    return next((step for step in problem.path if isinstance(step, int)), -1)


@cache
def _message(descriptor: Any) -> Check:
    """The check of a message type: of its fields that are set, and for those that must be."""
    checks: dict[int, tuple[str, Check]] = {}
    required: dict[int, tuple[str, str]] = {}
    for field in descriptor.fields:
        rules = rules_of(field)
        checks[field.number] = field.name, _field(field, rules)
        if rules.required:
            required[field.number] = field.name, _missing(field)

    def check(message: Any, path: Path, problems: list[Problem]) -> None:
        missing = len(required)
        for field, value in message.ListFields():
            number = field.number
            name, one = checks[number]
            one(value, (*path, name), problems)
            missing -= number in required
        if missing:
            there = {field.number for field, _ in message.ListFields()}
            rest = (says for number, says in required.items() if number not in there)
            problems.extend(Problem((*path, name), says) for name, says in rest)

    return check


def rules_of(field: Any) -> rules_pb2.Rules:
    """The rules of a field, all unset where it has none."""
    rules: rules_pb2.Rules = field.GetOptions().Extensions[rules_pb2.rules]
    return rules


def _missing(field: Any) -> str:
    if field.is_repeated:
        return "is empty; at least one is needed"
    return "is missing"


# ---------------------------------------------------------------- fields


def _field(field: Any, rules: rules_pb2.Rules) -> Check:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map(field.message_type, rules)
    one = _one(field, rules)
    return _list(one, field, rules) if field.is_repeated else one


def _one(field: Any, rules: rules_pb2.Rules) -> Check:
    """The check of one value of the field."""
    if field.message_type is not None:
        return _message(field.message_type)
    if field.enum_type is not None:
        return _enum(field)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _text(rules)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes(rules)
    return _number(rules)


def _list(one: Check, field: Any, rules: rules_pb2.Rules) -> Check:
    are_texts = field.type == FieldDescriptor.TYPE_STRING
    are_plain = are_texts and not (rules.HasField("pattern") or rules.unit or rules.HasField("length_min"))
    items_max, total_bytes_max = _limit(rules, "items_max"), _limit(rules, "total_bytes_max")
    # A character has four bytes at most.
    short_max = min(_limit(rules, "bytes_max") // 4, _limit(rules, "length_max"))

    def check(values: Sequence[Any], path: Path, problems: list[Problem]) -> None:
        if len(values) > items_max:
            problems.append(Problem(path, f"has {len(values):,} items; at most {items_max:,} are allowed"))
            return
        if are_texts:
            joined = "".join(values)
            # Most are short, and need not be encoded to know it.
            if len(joined) * 4 > total_bytes_max and (size := len(joined.encode())) > total_bytes_max:
                most = bytes_text(total_bytes_max)
                problems.append(Problem(path, f"is {size:,} bytes in all; at most {most} are allowed"))
                return
            if are_plain and "\0" not in joined and max(map(len, values), default=0) <= short_max:
                return  # the usual case, without a call for each of a million lines
        for number, value in enumerate(values):
            if len(problems) >= PROBLEMS_MAX:
                return
            one(value, (*path, number), problems)

    return check


_Limit = Literal["items_max", "total_bytes_max", "bytes_max", "length_max"]


def _limit(rules: rules_pb2.Rules, name: _Limit) -> int:
    """A limit of the rules, or one that nothing reaches."""
    return getattr(rules, name) if rules.HasField(name) else sys.maxsize


def _map(entry: Any, rules: rules_pb2.Rules) -> Check:
    one = _one(entry.fields_by_name["value"], rules)
    key_is_text = entry.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING
    pattern = re.compile(rules.key_pattern) if rules.HasField("key_pattern") else None

    def check(values: Any, path: Path, problems: list[Problem]) -> None:
        if rules.HasField("items_max") and len(values) > rules.items_max:
            problems.append(
                Problem(path, f"has {len(values):,} entries; at most {rules.items_max:,} are allowed")
            )
            return
        for key in sorted(values):
            if len(problems) >= PROBLEMS_MAX:
                return
            if pattern is not None and not pattern.fullmatch(key):
                says = f"{quoted(key)} is no name for it; use {rules.key_pattern_says}"
                problems.append(Problem(path, says))
            elif key_is_text and "\0" in key:
                problems.append(Problem(path, f"the name {quoted(key)} has a NUL character; remove it"))
            one(values[key], (*path, key if key_is_text else str(key)), problems)

    return check


# ---------------------------------------------------------------- values


def _number(rules: rules_pb2.Rules) -> Check:
    least = rules.min if rules.HasField("min") else None
    most = rules.max if rules.HasField("max") else None
    shown = _AMOUNTS.get(rules.unit, str)

    def check(value: Any, path: Path, problems: list[Problem]) -> None:
        if least is not None and value < least:
            problems.append(Problem(path, f"'{shown(value)}' is too small; the least is {shown(least)}"))
        elif most is not None and value > most:
            problems.append(Problem(path, f"'{shown(value)}' is too large; the most is {shown(most)}"))

    return check


def _enum(field: Any) -> Check:
    numbers = field.enum_type.values_by_number
    choices = ", ".join(enum_choices(field.enum_type))

    def check(value: int, path: Path, problems: list[Problem]) -> None:
        if value not in numbers:
            problems.append(Problem(path, f"{value} is not known; try one of {choices}"))

    return check


def enum_choices(descriptor: Any) -> dict[str, int]:
    """The names that people write, and their numbers: `rerun_fenced` for ON_NODE_LOSS_RERUN_FENCED."""
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {
        value.name.removeprefix(prefix).lower(): value.number for value in descriptor.values if value.number
    }


def _bytes(rules: rules_pb2.Rules) -> Check:
    def check(value: bytes, path: Path, problems: list[Problem]) -> None:
        if rules.HasField("length_max") and len(value) > rules.length_max:
            says = f"is {len(value):,} bytes long; at most {rules.length_max:,} are allowed"
            problems.append(Problem(path, says))
        elif rules.HasField("length_min") and len(value) < rules.length_min:
            problems.append(
                Problem(path, f"is {len(value)} bytes long; at least {rules.length_min} are needed")
            )

    return check


def _text(rules: rules_pb2.Rules) -> Check:
    pattern = re.compile(rules.pattern) if rules.HasField("pattern") else None
    of_unit = _UNITS.get(rules.unit)
    length_min = rules.length_min if rules.HasField("length_min") else 0
    length_max, bytes_max = _limit(rules, "length_max"), _limit(rules, "bytes_max")
    nul_allowed = rules.nul_allowed

    def wrong(value: str) -> str | None:
        length = len(value)
        if length > length_max:
            return f"is {length:,} characters long; at most {length_max:,} are allowed"
        if length * 4 > bytes_max and (size := len(value.encode())) > bytes_max:
            return f"is {size:,} bytes long; at most {bytes_max:,} are allowed"
        if length < length_min:
            return f"is {length} characters long; at least {length_min} are needed"
        if not nul_allowed and "\0" in value:
            return f"has a NUL character at position {value.index(chr(0))}; remove it"
        if pattern is not None and not pattern.fullmatch(value):
            return f"{quoted(value)} is not allowed; use {rules.pattern_says}"
        return of_unit(value) if of_unit is not None else None

    def check(value: str, path: Path, problems: list[Problem]) -> None:
        says = wrong(value)
        if says is not None:
            problems.append(Problem(path, says))

    return check


def _indices(value: str) -> str | None:
    try:
        indexset.parse(value, indexset.TASK_COUNT_MAX)
    except indexset.NotIndices as error:
        return str(error)
    return None


def _signal(value: str) -> str | None:
    try:
        parse_signal(value)
    except UnitError as error:
        return str(error)
    return None


_UNITS: dict[int, Callable[[str], str | None]] = {
    rules_pb2.UNIT_INDICES: _indices,
    rules_pb2.UNIT_SIGNAL: _signal,
}

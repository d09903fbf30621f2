"""Plain values as bytes and back: for the journal, and between the agent's processes.

A value of a dataclass is the JSON array of its fields, without names; one of a union has its place
in the union in front. The functions that do it are made once for each type, from its annotations.
Fields that come to be later stand at the end with a default, so that what was written before can
still be read. Reading is strict: whatever is not exactly the type raises `Malformed`.

On a socket each value is a frame: its length in four bytes, and itself.
"""

import base64
import binascii
import json
import struct
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import IntEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# Larger than any template, however much its texts grow by escapes.
FRAME_BYTES_MAX = 32 * 1024 * 1024

_LENGTH = struct.Struct("<I")
_INT_MAX = 2**64
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode

_Convert = Callable[[Any], Any]


class Malformed(ValueError):
    """These bytes are no such value; the message says why."""


class Codec(Generic[T]):
    """Values of one type, a dataclass or a union of them, as bytes."""

    def __init__(self, kind: Any) -> None:
        self._name = getattr(kind, "__name__", str(kind))
        write, self._read = _of(kind)
        assert write is not None, kind
        self._write = write

    def encode(self, value: T) -> bytes:
        """The value's bytes. Text that is no Unicode loses what is not."""
        return _to_json(self._write(value)).encode("utf-8", "replace")

    def decode(self, data: bytes) -> T:
        """The value of these bytes. Raises Malformed."""
        try:
            return typing.cast("T", self._read(json.loads(data)))
        except (ValueError, TypeError, RecursionError) as error:
            raise Malformed(f"{self._name}: {error}") from None


def frame(data: bytes) -> bytes:
    """What goes over a socket."""
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Takes what comes over a socket apart."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are whole now. Raises Malformed for one above the limit."""
        rest = self._rest
        rest += data
        at = 0
        try:
            while len(rest) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(rest, at)
                if length > FRAME_BYTES_MAX:
                    raise Malformed(f"a frame of {length} bytes; at most {FRAME_BYTES_MAX} are taken")
                end = at + _LENGTH.size + length
                if len(rest) < end:
                    break
                yield bytes(rest[at + _LENGTH.size : end])
                at = end
        finally:
            del rest[:at]


# ---------------------------------------------------------------- making the functions


def _of(kind: Any) -> tuple[_Convert | None, _Convert]:
    """How values of a type become JSON (None: as they are), and come back."""
    if not isinstance(kind, types.UnionType) and typing.get_origin(kind) is not typing.Union:
        return _one(kind)
    members = [member for member in typing.get_args(kind) if member is not type(None)]
    converts = _of(members[0]) if len(members) == 1 else _union(members)
    return converts if len(members) == len(typing.get_args(kind)) else _or_none(*converts)


def _or_none(write: _Convert | None, read: _Convert) -> tuple[_Convert | None, _Convert]:
    def write_some(value: Any) -> Any:
        return value if value is None or write is None else write(value)

    return write and write_some, lambda value: None if value is None else read(value)


def _one(kind: Any) -> tuple[_Convert | None, _Convert]:
    if is_dataclass(kind):
        return _dataclass(kind)
    if typing.get_origin(kind) is tuple:
        return _tuple(typing.get_args(kind))
    if kind is bytes:
        return lambda value: base64.b64encode(value).decode(), _read_bytes
    if kind is int:
        return None, _read_int
    if kind is str:
        return None, _read_str
    if kind is bool:
        return None, _read_bool
    assert issubclass(kind, IntEnum), kind
    return None, _enum(kind)


def _dataclass(kind: Any) -> tuple[_Convert, _Convert]:
    """Both functions written out as source, which is several times faster than a loop over the fields."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind) if field.init]
    scope: dict[str, Any] = {"kind": kind}
    written, taken = [], []
    for at, name in enumerate(names):
        write, scope[f"read_{name}"] = _of(hints[name])
        scope[f"write_{name}"] = write
        written.append(f"value.{name}" if write is None else f"write_{name}(value.{name})")
        taken.append(f"read_{name}(plain[{at}])")
    required = [field for field in fields(kind) if field.init and _required(field)]
    source = (
        f"def write(value): return [{', '.join(written)}]\n"
        f"def read(plain):\n"
        f"  if type(plain) is not list or len(plain) != {len(names)}: return short(plain)\n"
        f"  return kind({', '.join(taken)})\n"
    )

    def short(plain: Any) -> Any:
        """What was written when there were fewer fields."""
        if type(plain) is not list or not len(required) <= len(plain) <= len(names):
            raise Malformed(f"not the {len(names)} fields of a {kind.__name__}")
        return kind(*(scope[f"read_{name}"](value) for name, value in zip(names, plain, strict=False)))

    scope["short"] = short
    exec(source, scope)
    return scope["write"], scope["read"]


def _required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _union(members: list[Any]) -> tuple[_Convert, _Convert]:
    converts = [_dataclass(member) for member in members]
    writes = {member: (at, converts[at][0]) for at, member in enumerate(members)}
    reads = [read for _, read in converts]

    def write(value: Any) -> Any:
        at, write_fields = writes[type(value)]
        plain = write_fields(value)
        plain.insert(0, at)
        return plain

    def read(plain: Any) -> Any:
        at = plain[0] if type(plain) is list and plain else None
        if type(at) is not int or not 0 <= at < len(reads):
            raise Malformed("no known kind of value")
        return reads[at](plain[1:])

    return write, read


def _tuple(items: tuple[Any, ...]) -> tuple[_Convert | None, _Convert]:
    if len(items) == 2 and items[1] is Ellipsis:
        write, read = _of(items[0])

        def read_all(plain: Any) -> Any:
            if type(plain) is not list:
                raise Malformed("not a list")
            return tuple([read(value) for value in plain])

        return None if write is None else lambda value: [write(item) for item in value], read_all
    converts = [_of(item) for item in items]
    assert all(write is None for write, _ in converts), items
    reads = [read for _, read in converts]

    def read_each(plain: Any) -> Any:
        if type(plain) is not list or len(plain) != len(reads):
            raise Malformed(f"not {len(reads)} values")
        return tuple([read(value) for read, value in zip(reads, plain, strict=True)])

    return None, read_each


def _enum(kind: type[IntEnum]) -> _Convert:
    members = {int(member): member for member in kind}

    def read(plain: Any) -> Any:
        if type(plain) is not int or plain not in members:
            raise Malformed(f"no {kind.__name__}")
        return members[plain]

    return read


def _read_int(plain: Any) -> int:
    if type(plain) is not int or not -_INT_MAX < plain < _INT_MAX:
        raise Malformed("not a whole number")
    return plain


def _read_str(plain: Any) -> str:
    if type(plain) is not str:
        raise Malformed("not a text")
    return plain


def _read_bool(plain: Any) -> bool:
    if type(plain) is not bool:
        raise Malformed("not true or false")
    return plain


def _read_bytes(plain: Any) -> bytes:
    try:
        return base64.b64decode(_read_str(plain), validate=True)
    except binascii.Error:
        raise Malformed("not base64") from None

"""Values of the core to protobuf messages and back, field by field, by name.

A codec is made once for a pair of a dataclass and a message, from the dataclass's type hints and the
message's descriptor: a row of functions that write a field, and a row of functions that read one. A pair
that does not fit together is a TypeError when the codec is made.

How values look on both sides:

====================================  ==================================================================
value                                 message
====================================  ==================================================================
`Ranges`                              `rota.v1.Ranges`, flattened; absent for none
`BitMap`                              bytes, Roaring's portable serialisation; no bytes for the empty set
pairs `(key, value)`, sorted by key   map
an `IntEnum`                          enum; `UNSPECIFIED` is the field's default, or None where it may be
`X | None`                            `optional`, or a message or enum; absent for None
`Resources`                           `rota.v1.Resources`; an absent `cpu` is that of the field's default
anything else                         the same; where zero is not the field's default, zero means the default
====================================  ==================================================================
"""

import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import IntEnum
from itertools import chain
from operator import attrgetter
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from pyroaring import BitMap

from rota.core.cluster.records import empty
from rota.core.model.protocol import Ranges
from rota.core.model.resources import NOTHING, Resources
from rota.wire.gen.v1 import job_pb2, link_pb2

T = TypeVar("T")
M = TypeVar("M", bound=Message)

Write = Callable[[Any, Any], None]
"""Writes a field of a message, given the message and the field's value."""

Read = Callable[[Any], Any]
"""Reads a field's value from a message."""

# Descriptors of fields are `Any` below: their published types differ between protobuf's implementations.


class ConvertError(ValueError):
    """A message that is no value: `path` says where in it, `says` what is wrong."""

    def __init__(self, says: str, path: str = "") -> None:
        super().__init__(f"{path}: {says}" if path else says)
        self.path = path
        self.says = says

    def within(self, name: str) -> "ConvertError":
        """The same error, seen from the message whose field `name` holds this one."""
        joint = "" if not self.path or self.path.startswith("[") else "."
        return ConvertError(self.says, f"{name}{joint}{self.path}")


class Codec(Generic[T, M]):
    """Converts between the values of one type and the messages of one type."""

    def __init__(self, value_type: type[T], message_type: type[M], write: Write, read: Read) -> None:
        self.value_type = value_type
        self.message_type = message_type
        self.write = write
        self.read = read

    def to_message(self, value: T) -> M:
        """A new message. Raises ValueError or TypeError for a number that the field cannot hold."""
        message = self.message_type()
        self.write(message, value)
        return message

    def from_message(self, message: M) -> T:
        """The value of a message. Raises ConvertError for one that is none."""
        value: T = self.read(message)
        return value


def codec(value_type: type[T], message_type: type[M]) -> Codec[T, M]:
    """The codec of a dataclass and a message. Raises TypeError where they do not fit."""
    made = _MADE.get((value_type, message_type))
    if made is None:
        made = _MADE[value_type, message_type] = _make(value_type, message_type)
    return made


_MADE: dict[tuple[type, type], Codec[Any, Any]] = {}


def _make(value_type: Any, message_type: Any) -> Codec[Any, Any]:
    if value_type is Resources:
        return Codec(value_type, message_type, _write_resources, _resources_reader(NOTHING))
    hints = typing.get_type_hints(value_type)
    of_dataclass = fields(value_type)
    of_message = message_type.DESCRIPTOR.fields_by_name
    differing = {field.name for field in of_dataclass} ^ set(of_message)
    if differing:
        raise TypeError(f"{value_type.__name__} and {message_type.__name__} differ: {sorted(differing)}")
    writers: list[tuple[str, Write]] = []
    readers: list[Read] = []
    for field in of_dataclass:
        try:
            write, read = _field(hints[field.name], _default(field), of_message[field.name])
        except TypeError as error:
            raise TypeError(f"{value_type.__name__}.{field.name}: {error}") from error
        writers.append((field.name, write))
        readers.append(read)

    def write_all(message: Any, value: Any) -> None:
        for name, write in writers:
            write(message, getattr(value, name))

    def read_all(message: Any) -> Any:
        return value_type(*[read(message) for read in readers])

    return Codec(value_type, message_type, write_all, read_all)


def _default(field: Field[Any]) -> Any:
    """The field's default, MISSING where it has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


# ---------------------------------------------------------------- a field


def _field(hint: Any, default: Any, field: Any) -> tuple[Write, Read]:
    """How a field is written and read."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (hint,) = [argument for argument in arguments if argument is not type(None)]
        return _optional(hint, field)
    if field.message_type is link_pb2.Ranges.DESCRIPTOR:
        _expect(hint == Ranges, hint, field)
        return _ranges(field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map(origin, arguments, field)
    if origin in (tuple, list):
        return _repeated(origin, arguments[0], field)
    _expect(not field.is_repeated, hint, field)
    if hint is BitMap:
        _expect(field.type == FieldDescriptor.TYPE_BYTES, hint, field)
        return _bitmap(field.name)
    if is_dataclass(hint):
        return _message(hint, default, field)
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        return _enum(hint, default, field)
    return _scalar(hint, default, field)


def _expect(fits: bool, hint: Any, field: Any) -> None:
    if not fits:
        raise TypeError(f"{hint} does not fit the message's field")


_SCALARS = {
    FieldDescriptor.TYPE_INT32: int,
    FieldDescriptor.TYPE_INT64: int,
    FieldDescriptor.TYPE_UINT32: int,
    FieldDescriptor.TYPE_UINT64: int,
    FieldDescriptor.TYPE_SINT32: int,
    FieldDescriptor.TYPE_SINT64: int,
    FieldDescriptor.TYPE_BOOL: bool,
    FieldDescriptor.TYPE_STRING: str,
    FieldDescriptor.TYPE_BYTES: bytes,
}


def _setter(name: str) -> Write:
    def write(message: Any, value: Any) -> None:
        setattr(message, name, value)

    return write


def _scalar(hint: Any, default: Any, field: Any) -> tuple[Write, Read]:
    _expect(_SCALARS.get(field.type) is hint, hint, field)
    name = field.name
    if field.has_presence:
        _expect(default is not MISSING, hint, field)

        def read_or_default(message: Any) -> Any:
            return getattr(message, name) if message.HasField(name) else default

        return _setter(name), read_or_default
    if hint is not bool and default is not MISSING and default != field.default_value:

        def read_default_for_zero(message: Any) -> Any:
            return getattr(message, name) or default

        return _setter(name), read_default_for_zero
    return _setter(name), attrgetter(name)


def _optional(hint: Any, field: Any) -> tuple[Write, Read]:
    """A field that may be None: absent then, and there, however empty, otherwise."""
    name = field.name
    _expect(field.has_presence or field.enum_type is not None, hint, field)
    if field.enum_type is not None:
        write_value, read_value = _enum(hint, None, field)
    elif field.message_type is not None:
        write_value, read_value = _message(hint, MISSING, field)
    else:
        write_value, read_value = _scalar(hint, 0, field)

    def write(message: Any, value: Any) -> None:
        if value is not None:
            write_value(message, value)

    def write_message(message: Any, value: Any) -> None:
        if value is not None:
            getattr(message, name).SetInParent()
            write_value(message, value)

    def read(message: Any) -> Any:
        return read_value(message) if message.HasField(name) else None

    if field.message_type is not None:
        return write_message, read
    return write, read if field.has_presence else read_value


# ---------------------------------------------------------------- enums


def _members(hint: type[IntEnum], field: Any) -> dict[int, IntEnum]:
    numbers = {value.number for value in field.enum_type.values} if field.enum_type is not None else set()
    _expect(numbers == {member.value for member in hint} | {0}, hint, field)
    return {member.value: member for member in hint}


def _enum(hint: type[IntEnum], default: Any, field: Any) -> tuple[Write, Read]:
    name = field.name
    members: dict[int, IntEnum | None] = {**_members(hint, field)}
    if default is not MISSING:
        members[0] = default

    def read(message: Any) -> Any:
        number = getattr(message, name)
        try:
            return members[number]
        except KeyError:
            raise _no_member(hint, number).within(name) from None

    return _setter(name), read


def _no_member(hint: type[IntEnum], number: int) -> ConvertError:
    return ConvertError("is not set" if number == 0 else f"{number} is no {hint.__name__}")


# ---------------------------------------------------------------- messages


def _message(hint: Any, default: Any, field: Any) -> tuple[Write, Read]:
    name = field.name
    inner = _inner(hint, field)
    write_inner = inner.write
    read_inner = _resources_reader(default) if hint is Resources and default is not MISSING else inner.read

    def write(message: Any, value: Any) -> None:
        write_inner(getattr(message, name), value)

    def read(message: Any) -> Any:
        try:
            return read_inner(getattr(message, name))
        except ConvertError as error:
            raise error.within(name) from None

    return write, read


def _inner(hint: type, field: Any) -> Codec[Any, Any]:
    if field.message_type is None:
        raise TypeError(f"{hint} is no message")
    return codec(hint, GetMessageClass(field.message_type))


def _write_resources(message: Any, value: Resources) -> None:
    """All amounts, so that a cpu of 0 is not taken for one that was left out."""
    message.cpu = value.cpu
    message.memory = value.memory
    message.gpu = value.gpu
    message.disk = value.disk
    if value.named:
        message.named.update(value.named)


def _resources_reader(default: Resources) -> Read:
    cpu_default = default.cpu

    def read(message: job_pb2.Resources) -> Resources:
        cpu = message.cpu if message.HasField("cpu") else cpu_default
        named = tuple(sorted(pair for pair in message.named.items() if pair[1])) if message.named else ()
        return Resources(cpu, message.memory, message.gpu, message.disk, named)

    return read


# ---------------------------------------------------------------- sets of indices


def _ranges(name: str) -> tuple[Write, Read]:
    def write(message: Any, value: Ranges) -> None:
        if value:
            getattr(message, name).bounds.extend(chain.from_iterable(value))

    def read(message: Any) -> Ranges:
        bounds = getattr(message, name).bounds
        try:
            return ranges(bounds) if bounds else ()
        except ConvertError as error:
            raise error.within(name) from None

    return write, read


def ranges(bounds: Sequence[int]) -> Ranges:
    """Pairs of the flat bounds. Raises ConvertError unless they ascend and do not touch."""
    if len(bounds) % 2:
        raise ConvertError(f"{len(bounds)} bounds are no pairs")
    flat = list(bounds)
    result = tuple(zip(flat[::2], flat[1::2], strict=True))
    before = -2
    for first, last in result:
        if not before + 1 < first <= last:
            raise ConvertError(f"the range {first}-{last} does not follow {before}")
        before = last
    return result


def _bitmap(name: str) -> tuple[Write, Read]:
    def write(message: Any, value: BitMap) -> None:
        if value:
            setattr(message, name, bitmap_to_bytes(value))

    def read(message: Any) -> BitMap:
        data = getattr(message, name)
        try:
            return bitmap_from_bytes(data) if data else empty()
        except ConvertError as error:
            raise error.within(name) from None

    return write, read


def bitmap_to_bytes(value: BitMap) -> bytes:
    """The portable serialisation, the same bytes for equal sets; the set itself is left alone.

    A copy is what is compressed: to compress the set itself would break whoever iterates over it.
    """
    if not value:
        return b""
    compressed = value.copy()
    compressed.run_optimize()
    data: bytes = compressed.serialize()
    return data


def bitmap_from_bytes(data: bytes) -> BitMap:
    """A new set. Raises ConvertError for bytes that are none."""
    try:
        return BitMap.deserialize(data) if data else BitMap()
    except ValueError:
        raise ConvertError(f"{len(data)} bytes are no Roaring bitmap") from None


# ---------------------------------------------------------------- many of one


def _repeated(container: type, item: Any, field: Any) -> tuple[Write, Read]:
    name = field.name
    _expect(field.is_repeated, container, field)
    if item is BitMap:
        _expect(field.type == FieldDescriptor.TYPE_BYTES, item, field)
        return _repeated_by(name, container, bitmap_to_bytes, bitmap_from_bytes)
    if isinstance(item, type) and issubclass(item, IntEnum):
        members = _members(item, field)

        def member(number: int) -> IntEnum:
            try:
                return members[number]
            except KeyError:
                raise _no_member(item, number) from None

        return _repeated_by(name, container, int, member)
    if is_dataclass(item):
        return _repeated_messages(container, item, field)
    _expect(_SCALARS.get(field.type) is item, item, field)

    def write(message: Any, value: Any) -> None:
        if value:
            getattr(message, name).extend(value)

    def read(message: Any) -> Any:
        return container(getattr(message, name))

    return write, read


def _repeated_by(name: str, container: type, to_wire: Read, from_wire: Read) -> tuple[Write, Read]:
    def write(message: Any, value: Any) -> None:
        if value:
            getattr(message, name).extend([to_wire(item) for item in value])

    def read(message: Any) -> Any:
        return container(_each(name, from_wire, getattr(message, name)))

    return write, read


def _repeated_messages(container: type, item: Any, field: Any) -> tuple[Write, Read]:
    name = field.name
    inner = _inner(item, field)
    write_inner, read_inner = inner.write, inner.read

    def write(message: Any, value: Any) -> None:
        if value:
            add = getattr(message, name).add
            for one in value:
                write_inner(add(), one)

    def read(message: Any) -> Any:
        return container(_each(name, read_inner, getattr(message, name)))

    return write, read


def _each(name: str, read: Read, items: Sequence[Any]) -> Iterator[Any]:
    number = 0
    try:
        for number, item in enumerate(items):  # noqa: B007 the number is for the error
            yield read(item)
    except ConvertError as error:
        raise error.within(f"[{number}]").within(name) from None


def _map(origin: Any, arguments: tuple[Any, ...], field: Any) -> tuple[Write, Read]:
    """Pairs in a tuple, or a dict."""
    name = field.name
    pair = typing.get_args(arguments[0]) if origin is tuple else arguments
    entry = field.message_type.fields_by_name
    for hint, side in zip(pair, ("key", "value"), strict=True):
        _expect(_SCALARS.get(entry[side].type) is hint, hint, field)

    def write(message: Any, value: Any) -> None:
        if value:
            getattr(message, name).update(value)

    def read_pairs(message: Any) -> Any:
        pairs = getattr(message, name)
        return tuple(sorted(pairs.items())) if pairs else ()

    def read_dict(message: Any) -> Any:
        return dict(getattr(message, name))

    return write, read_dict if origin is dict else read_pairs

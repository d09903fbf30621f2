"""Values of the core to protobuf messages and back, field by field, by name.

A codec is made once for a pair of a dataclass and a message, from the dataclass's type hints and the
message's descriptor: for each field how it is written, how it is read, and what it is where it is absent.
Only what is there is looked at: most fields of most messages are absent. A pair that does not fit together is
a TypeError when the codec is made.

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
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
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
"""Reads a field's value from what the message has in the field."""


@dataclass(frozen=True, slots=True)
class _Field:
    """How a field is converted. Raises ConvertError where it is absent and must not be.

    `write` is None for what is set as it is; what is zero or empty is written only where `always` is.
    `fresh`: the value of an absent field is not to be shared, and is made by `absent` for each message.
    """

    write: Write | None
    read: Read
    absent: Any
    always: bool = False
    fresh: bool = False


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
    parts: list[_Field] = []
    for field in of_dataclass:
        try:
            parts.append(_field(hints[field.name], _default(field), of_message[field.name]))
        except TypeError as error:
            raise TypeError(f"{value_type.__name__}.{field.name}: {error}") from error
    names = [field.name for field in of_dataclass]
    read = _reader(value_type, of_message, names, parts)
    return Codec(value_type, message_type, _writer(names, parts), read)


def _writer(names: list[str], parts: list[_Field]) -> Write:
    """Writes all fields of a value into a message."""
    rows = tuple((name, part.write, part.always) for name, part in zip(names, parts, strict=True))
    values_of = attrgetter(*names) if len(names) > 1 else lambda value: (getattr(value, names[0]),)

    def write_all(message: Any, value: Any) -> None:
        for one, (name, write, always) in zip(values_of(value), rows, strict=True):
            if one or always:
                if write is None:
                    setattr(message, name, one)
                else:
                    write(message, one)

    return write_all if names else lambda message, value: None


def _reader(value_type: Any, of_message: Any, names: list[str], parts: list[_Field]) -> Read:
    """Makes a value of a message."""
    rows = {
        of_message[name].number: (place, name, part.read)
        for place, (name, part) in enumerate(zip(names, parts, strict=True))
    }
    absent = [None if part.fresh else part.absent for part in parts]
    fresh = [(place, part.absent) for place, part in enumerate(parts) if part.fresh]
    required = [(place, name) for place, name in enumerate(names) if absent[place] is MISSING]

    def read_all(message: Any) -> Any:
        found = absent.copy()
        for place, make in fresh:
            found[place] = make()
        for field, raw in message.ListFields():
            place, name, read = rows[field.number]
            try:
                found[place] = read(raw)
            except ConvertError as error:
                raise error.within(name) from None
        for place, name in required:
            if found[place] is MISSING:
                raise ConvertError("is not set", name)
        return value_type(*found)

    return read_all


def _default(field: Field[Any]) -> Any:
    """The field's default, MISSING where it has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


# ---------------------------------------------------------------- a field


def _field(hint: Any, default: Any, field: Any) -> _Field:
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


def _same(raw: Any) -> Any:
    return raw


def _scalar(hint: Any, default: Any, field: Any) -> _Field:
    _expect(_SCALARS.get(field.type) is hint, hint, field)
    if field.has_presence:
        _expect(default is not MISSING, hint, field)
        return _Field(None, _same, default, always=True)
    # Zero means the default where there is another.
    return _Field(None, _same, field.default_value if default is MISSING or hint is bool else default)


def _optional(hint: Any, field: Any) -> _Field:
    """A field that may be None: absent then, and there, however empty, otherwise."""
    name = field.name
    _expect(field.has_presence or field.enum_type is not None, hint, field)
    if field.enum_type is not None:
        return _enum(hint, None, field)
    if field.message_type is not None:
        # No value of a message is false; None alone is passed over.
        inner = _message(hint, MISSING, field)
        return _Field(inner.write, inner.read, None)
    inner = _scalar(hint, 0, field)

    def write(message: Any, value: Any) -> None:
        if value is not None:
            setattr(message, name, value)

    return _Field(write, inner.read, None, always=True)


# ---------------------------------------------------------------- enums


def _members(hint: type[IntEnum], field: Any) -> dict[int, IntEnum]:
    numbers = {value.number for value in field.enum_type.values} if field.enum_type is not None else set()
    _expect(numbers == {member.value for member in hint} | {0}, hint, field)
    return {member.value: member for member in hint}


def _enum(hint: type[IntEnum], default: Any, field: Any) -> _Field:
    members = _members(hint, field)

    def read(raw: Any) -> Any:
        try:
            return members[raw]
        except KeyError:
            raise _no_member(hint, raw) from None

    return _Field(None, read, default)


def _no_member(hint: type[IntEnum], number: int) -> ConvertError:
    return ConvertError("is not set" if number == 0 else f"{number} is no {hint.__name__}")


# ---------------------------------------------------------------- messages


def _message(hint: Any, default: Any, field: Any) -> _Field:
    name = field.name
    inner = _inner(hint, field)
    write_inner = inner.write
    read = _resources_reader(default) if hint is Resources and default is not MISSING else inner.read

    def write(message: Any, value: Any) -> None:
        part = getattr(message, name)
        part.SetInParent()
        write_inner(part, value)

    try:
        absent = read(inner.message_type())
    except ConvertError:
        absent = MISSING
    return _Field(write, read, absent)


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


def _ranges(name: str) -> _Field:
    def write(message: Any, value: Ranges) -> None:
        getattr(message, name).bounds.extend(chain.from_iterable(value))

    def read(raw: Any) -> Ranges:
        return ranges(raw.bounds)

    return _Field(write, read, ())


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


def _bitmap(name: str) -> _Field:
    def write(message: Any, value: BitMap) -> None:
        setattr(message, name, bitmap_to_bytes(value))

    return _Field(write, bitmap_from_bytes, empty())


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


def _repeated(container: type, item: Any, field: Any) -> _Field:
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
        getattr(message, name).extend(value)

    return _contained(container, write, container)


def _contained(container: type, write: Write, read: Read) -> _Field:
    """A tuple, or a list or dict, which whoever gets it may change."""
    return _Field(write, read, () if container is tuple else container, fresh=container is not tuple)


def _repeated_by(name: str, container: type, to_wire: Read, from_wire: Read) -> _Field:
    def write(message: Any, value: Any) -> None:
        getattr(message, name).extend([to_wire(item) for item in value])

    return _contained(container, write, lambda raw: container(_each(from_wire, raw)))


def _repeated_messages(container: type, item: Any, field: Any) -> _Field:
    name = field.name
    inner = _inner(item, field)
    write_inner, read_inner = inner.write, inner.read

    def write(message: Any, value: Any) -> None:
        add = getattr(message, name).add
        for one in value:
            write_inner(add(), one)

    return _contained(container, write, lambda raw: container(_each(read_inner, raw)))


def _each(read: Read, items: Sequence[Any]) -> Iterator[Any]:
    number = 0
    try:
        for number, item in enumerate(items):  # noqa: B007 the number is for the error
            yield read(item)
    except ConvertError as error:
        raise error.within(f"[{number}]") from None


def _map(origin: Any, arguments: tuple[Any, ...], field: Any) -> _Field:
    """Pairs in a tuple, or a dict."""
    name = field.name
    pair = typing.get_args(arguments[0]) if origin is tuple else arguments
    entry = field.message_type.fields_by_name
    for hint, side in zip(pair, ("key", "value"), strict=True):
        _expect(_SCALARS.get(entry[side].type) is hint, hint, field)

    def write(message: Any, value: Any) -> None:
        getattr(message, name).update(value)

    def read_pairs(raw: Any) -> Any:
        return tuple(sorted(raw.items()))

    return _contained(origin, write, dict if origin is dict else read_pairs)

"""The node protocol's messages as protobuf: which field of the envelope each is, and templates in pieces.

A template is larger than a message may be, so it travels as pieces of its serialisation, one behind the
other and with one message number. Everything else is one message for one value.
"""

import typing
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from rota.core.model.protocol import MESSAGE_BYTES_MAX, Body, Down, Template, Up
from rota.core.model.spec import JobSpec
from rota.wire.convert import Codec, ConvertError, codec
from rota.wire.gen.v1 import job_pb2, link_pb2

PIECE_BYTES_MAX = 192 * 1024
TEMPLATE_BYTES_MAX = 1536 * 1024
PIECES_MAX = TEMPLATE_BYTES_MAX // PIECE_BYTES_MAX

_SPEC = codec(JobSpec, job_pb2.JobSpec)


def _members(
    union: Any, envelope: type[Message]
) -> tuple[dict[type, tuple[str, Any]], dict[str, Codec[Any, Any]]]:
    """The field and the codec of each type in the union, and the codec of each field of the envelope."""
    body: Any = envelope.DESCRIPTOR.oneofs_by_name["body"]
    fields = {field.message_type.name: field for field in body.fields}
    types = {value.__name__: value for value in typing.get_args(union)}
    if set(fields) != set(types):
        raise TypeError(f"{envelope.__name__} and its values differ: {sorted(set(fields) ^ set(types))}")
    by_type: dict[type, tuple[str, Any]] = {}
    by_field: dict[str, Codec[Any, Any]] = {}
    for name, value in types.items():
        if value is not Template:
            made: Codec[Any, Any] = codec(value, GetMessageClass(fields[name].message_type))
            by_type[value] = (fields[name].name, made.write)
            by_field[fields[name].name] = made
    return by_type, by_field


_UP_WRITERS, _UP_CODECS = _members(Up, link_pb2.ConnectRequest)
_DOWN_WRITERS, _DOWN_CODECS = _members(Body, link_pb2.ConnectResponse)


def up_to_message(value: Up) -> link_pb2.ConnectRequest:
    """A message from a node, in its envelope."""
    message = link_pb2.ConnectRequest()
    _write_body(message, *_UP_WRITERS[type(value)], value)
    return message


def up_from_message(message: link_pb2.ConnectRequest) -> Up:
    """The message in the envelope. Raises ConvertError for one that is none, or not known."""
    value: Up = _read_body(message, _UP_CODECS)
    return value


def down_to_messages(down: Down) -> list[link_pb2.ConnectResponse]:
    """A message to a node, in its envelope: one, or the pieces of a template.

    Raises ConvertError for a template over TEMPLATE_BYTES_MAX.
    """
    if isinstance(down.body, Template):
        messages = []
        for piece in _cut(down.body):
            message = _envelope(down)
            message.template.CopyFrom(piece)
            messages.append(message)
        return messages
    message = _envelope(down)
    _write_body(message, *_DOWN_WRITERS[type(down.body)], down.body)
    return [message]


def joined(messages: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    """Serialised messages to a node in as few envelopes as their size allows, each with how many are in it.

    A call costs the same for one message and for a hundred, and the next waits until it is through.
    """
    made = bytearray()
    count = 0
    for message in messages:
        length = _varint(len(message))
        if made and len(made) + len(_MORE) + len(length) + len(message) > MESSAGE_BYTES_MAX:
            yield bytes(made), count
            made.clear()
            count = 0
        made += _MORE + length + message if made else message
        count += 1
    if count:
        yield bytes(made), count


def apart(message: link_pb2.ConnectResponse) -> Iterator[link_pb2.ConnectResponse]:
    """The messages in an envelope. Raises ConvertError where there are more within those."""
    yield message
    for one in message.more:
        if one.more:
            raise ConvertError("has messages of its own", "more")
        yield one


class DownReader:
    """Reads one stream's messages to a node, and joins templates out of their pieces."""

    def __init__(self) -> None:
        self._pieces: list[link_pb2.ConnectResponse] = []

    def read(self, message: link_pb2.ConnectResponse) -> Down | None:
        """The message, without those behind it, or None where it is a piece and more of it are to come.

        Raises ConvertError for what is no message, and for pieces that do not follow one another.
        """
        if message.WhichOneof("body") != "template":
            if self._pieces:
                raise ConvertError("a template's pieces are interrupted", "template")
            return _down(message, _read_body(message, _DOWN_CODECS))
        self._check(message)
        self._pieces.append(message)
        if len(self._pieces) < message.template.parts:
            return None
        pieces, self._pieces = self._pieces, []
        return _down(message, _join(message.template, b"".join(piece.template.data for piece in pieces)))

    def _check(self, message: link_pb2.ConnectResponse) -> None:
        piece = message.template
        if not 1 <= piece.parts <= PIECES_MAX:
            raise ConvertError(f"{piece.parts} pieces; 1 to {PIECES_MAX} are allowed", "template.parts")
        if len(piece.data) > PIECE_BYTES_MAX:
            raise ConvertError(
                f"{len(piece.data)} bytes; at most {PIECE_BYTES_MAX} are allowed", "template.data"
            )
        if piece.part != len(self._pieces):
            raise ConvertError(f"piece {piece.part} came where {len(self._pieces)} was due", "template.part")
        if self._pieces and _identity(self._pieces[0]) != _identity(message):
            raise ConvertError("a piece of another template came between", "template")


def _varint(number: int) -> bytes:
    """As protobuf writes lengths and tags: seven bits a byte, the low ones first."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


# The tag of the field: its number, and that what follows has a length.
_MORE = _varint(link_pb2.ConnectResponse.MORE_FIELD_NUMBER << 3 | 2)


def _identity(message: link_pb2.ConnectResponse) -> tuple[int, ...]:
    piece = message.template
    return message.term, message.session, message.number, piece.job, piece.version, piece.parts


def _envelope(down: Down) -> link_pb2.ConnectResponse:
    return link_pb2.ConnectResponse(term=down.term, session=down.session, number=down.number)


def _down(message: link_pb2.ConnectResponse, body: Body) -> Down:
    return Down(message.term, message.session, message.number, body)


def _write_body(message: Any, name: str, write: Any, value: Any) -> None:
    body = getattr(message, name)
    body.SetInParent()  # a body without a field that is set is there none the less
    write(body, value)


def _read_body(message: Any, codecs: dict[str, Codec[Any, Any]]) -> Any:
    name = message.WhichOneof("body")
    if name is None:
        raise ConvertError("the message is empty, or of a kind that this version does not know")
    try:
        return codecs[name].read(getattr(message, name))
    except ConvertError as error:
        raise error.within(name) from None


def _cut(template: Template) -> list[link_pb2.Template]:
    body = link_pb2.TemplateBody(
        spec=_SPEC.to_message(template.spec), task_count=template.task_count, account=template.account
    )
    data = body.SerializeToString(deterministic=True)
    if len(data) > TEMPLATE_BYTES_MAX:
        raise ConvertError(f"{len(data)} bytes; at most {TEMPLATE_BYTES_MAX} are allowed", "template")
    cuts = range(0, len(data), PIECE_BYTES_MAX)
    return [
        link_pb2.Template(
            job=template.job,
            version=template.version,
            part=part,
            parts=len(cuts),
            data=data[start : start + PIECE_BYTES_MAX],
        )
        for part, start in enumerate(cuts)
    ]


def _join(piece: link_pb2.Template, data: bytes) -> Template:
    try:
        body = link_pb2.TemplateBody.FromString(data)
        spec = _SPEC.from_message(body.spec)
    except (DecodeError, ConvertError) as error:
        raise ConvertError(f"the pieces are no template: {error}", "template.data") from None
    return Template(piece.job, piece.version, spec, body.task_count, body.account)

"""Whatever a message holds, as far as protobuf lets it: it is read or refused, and nothing else."""

from contextlib import suppress
from functools import cache
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from rota.wire.convert import ConvertError
from rota.wire.gen.v1 import (
    cluster_pb2,
    enrol_pb2,
    job_service_pb2,
    link_pb2,
    node_pb2,
)
from rota.wire.link import DownReader, up_from_message
from rota.wire.validate import validate
from tests.wire.values import BOUNDS

DEPTH_MAX = 4
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["0-9", "9-0", "0-4294967294:4000000", "٠-٩", "USR1@1h", "x" * 200, "a b", "\0", "job", "41", "-1", "²"]
)
KINDS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=12),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_ENUM: st.integers(-1, 12) | st.just(2**31 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
    **{
        kind: st.sampled_from([least, most]) | st.integers(least, most)
        for kind, (least, most) in BOUNDS.items()
    },
}


@cache
def messages(descriptor: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Any message of a type, with any of its fields set; nested up to DEPTH_MAX."""
    below = depth < DEPTH_MAX
    fields = [field for field in descriptor.fields if below or field.message_type is None]
    if not fields:
        return st.builds(GetMessageClass(descriptor))

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        message = GetMessageClass(descriptor)()
        for field in draw(st.lists(st.sampled_from(fields), max_size=5)):
            fill(draw, message, field, depth)
        return message

    return build()


def fill(draw: st.DrawFn, message: Any, field: Any, depth: int) -> None:
    count = draw(st.integers(0, 3))
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        for _ in range(count):
            getattr(message, field.name)[draw(KINDS[key.type])] = draw(KINDS[value.type])
    elif field.message_type is not None:
        made = messages(field.message_type, depth + 1)
        if field.is_repeated:
            getattr(message, field.name).extend(draw(made) for _ in range(count))
        else:
            getattr(message, field.name).CopyFrom(draw(made))
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(KINDS[field.type]) for _ in range(count))
    else:
        setattr(message, field.name, draw(KINDS[field.type]))


REQUESTS = [
    descriptor
    for module in (job_service_pb2, node_pb2, cluster_pb2, enrol_pb2)
    for name, descriptor in module.DESCRIPTOR.message_types_by_name.items()
    if name.endswith("Request")
]


def test_requests_are_found() -> None:
    assert len(REQUESTS) > 25


@pytest.mark.parametrize("descriptor", REQUESTS, ids=lambda descriptor: descriptor.name)
@given(data=st.data())
def test_any_request_is_checked_without_failing(descriptor: Any, data: st.DataObject) -> None:
    for problem in validate(data.draw(messages(descriptor))):
        line = str(problem)
        assert line.isprintable()
        assert len(line) < 1_000


@given(messages(link_pb2.ConnectRequest.DESCRIPTOR))
def test_any_message_from_a_node_is_read_or_refused(message: link_pb2.ConnectRequest) -> None:
    with suppress(ConvertError):
        up_from_message(message)


@given(st.lists(messages(link_pb2.ConnectResponse.DESCRIPTOR), min_size=1, max_size=3))
def test_any_messages_to_a_node_are_read_or_refused(given_: list[link_pb2.ConnectResponse]) -> None:
    reader = DownReader()
    for message in given_:
        with suppress(ConvertError):
            reader.read(message)

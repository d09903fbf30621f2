"""The node protocol's envelopes, and templates in pieces."""

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota.core.model import protocol
from rota.core.model.protocol import MESSAGE_BYTES_MAX, Ack, Body, Down, HoldingEnd, Template, Up
from rota.core.model.spec import JobSpec
from rota.wire.convert import ConvertError
from rota.wire.gen.v1 import link_pb2
from rota.wire.link import (
    PIECE_BYTES_MAX,
    PIECES_MAX,
    DownReader,
    apart,
    down_to_messages,
    joined,
    up_from_message,
    up_to_message,
)
from tests.wire.values import SPECS, values

NUMBERS = st.integers(0, 2**64 - 1)
TEMPLATES = st.builds(
    Template, NUMBERS, st.integers(0, 2**32 - 1), SPECS, st.integers(0, 2**32 - 1), st.text("ab", max_size=3)
)


def a_template(size: int, job: int = 1) -> Template:
    """A template of a little more than `size` bytes."""
    return Template(job, 1, JobSpec(script="x" * size), 1, "nobody")


def sent(message: link_pb2.ConnectResponse) -> link_pb2.ConnectResponse:
    return link_pb2.ConnectResponse.FromString(message.SerializeToString())


@pytest.mark.parametrize("value_type", typing.get_args(Up), ids=lambda value: value.__name__)
@given(data=st.data())
def test_what_goes_up_comes_out_alike(value_type: type, data: st.DataObject) -> None:
    value = data.draw(values(value_type))
    message = link_pb2.ConnectRequest.FromString(up_to_message(value).SerializeToString())
    assert up_from_message(message) == value


@pytest.mark.parametrize("value_type", typing.get_args(Body), ids=lambda value: value.__name__)
@given(data=st.data())
def test_what_goes_down_comes_out_alike(value_type: type, data: st.DataObject) -> None:
    body = data.draw(TEMPLATES if value_type is Template else values(value_type))
    down = Down(data.draw(NUMBERS), data.draw(NUMBERS), data.draw(NUMBERS), body)
    (message,) = down_to_messages(down)
    assert DownReader().read(sent(message)) == down


@pytest.mark.parametrize(
    "message", [link_pb2.ConnectRequest(), link_pb2.ConnectRequest.FromString(b"\xa2\x01\x00")]
)
def test_an_empty_envelope_and_one_of_a_later_version_are_refused(message: link_pb2.ConnectRequest) -> None:
    with pytest.raises(ConvertError, match="empty, or of a kind"):
        up_from_message(message)


def test_an_error_names_the_body() -> None:
    message = link_pb2.ConnectRequest(report=link_pb2.Report())
    message.report.allocations.add(started=link_pb2.Ranges(bounds=[2, 1]))
    with pytest.raises(ConvertError, match=r"^report\.allocations\[0\]\.started: "):
        up_from_message(message)


@given(
    sizes=st.lists(
        st.one_of(st.integers(0, 300), st.integers(60_000, 70_000), st.integers(200_000, 262_000)),
        max_size=12,
    )
)
def test_many_messages_travel_in_few_envelopes_and_come_apart_in_their_order(sizes: list[int]) -> None:
    made = [
        link_pb2.ConnectResponse(number=number, refused=link_pb2.Refused(message="x" * size))
        for number, size in enumerate(sizes, 1)
    ]
    envelopes = list(joined([message.SerializeToString() for message in made]))
    assert sum(count for _, count in envelopes) == len(made)
    assert all(len(data) <= MESSAGE_BYTES_MAX for data, _ in envelopes)
    # As few as their order allows: no two that follow one another would have been one.
    filled = [len(data) for data, _ in envelopes]
    firsts = [
        len(made[sum(count for _, count in envelopes[:number])].SerializeToString())
        for number in range(len(envelopes))
    ]
    assert all(one + first + 8 > MESSAGE_BYTES_MAX for one, first in zip(filled, firsts[1:], strict=False))
    read = [one for data, _ in envelopes for one in apart(link_pb2.ConnectResponse.FromString(data))]
    for one in read:
        one.ClearField("more")
    assert read == made


def test_messages_within_messages_within_messages_are_refused() -> None:
    nested = link_pb2.ConnectResponse(ack=link_pb2.Ack(sequence=1))
    nested.more.add().more.add()
    with pytest.raises(ConvertError, match=r"^more: has messages of its own"):
        list(apart(nested))


def test_a_body_without_fields_is_sent() -> None:
    assert up_to_message(HoldingEnd()).WhichOneof("body") == "holding_end"


def test_a_large_template_travels_in_pieces_that_are_small_enough() -> None:
    down = Down(7, 8, 9, a_template(1024 * 1024))
    messages = [sent(message) for message in down_to_messages(down)]
    assert len(messages) == 6
    assert all(message.ByteSize() < MESSAGE_BYTES_MAX for message in messages)
    reader = DownReader()
    assert [reader.read(message) for message in messages] == [None] * 5 + [down]
    (ack,) = down_to_messages(Down(7, 8, 10, Ack(1)))
    assert reader.read(ack) == Down(7, 8, 10, Ack(1)), "the reader is ready for what comes next"


def test_the_largest_template_is_sent_and_a_larger_one_is_not() -> None:
    most = PIECES_MAX * PIECE_BYTES_MAX
    around = len(down_to_messages(Down(1, 1, 1, a_template(most - 200)))[0].template.data)
    assert around == PIECE_BYTES_MAX
    assert len(down_to_messages(Down(1, 1, 1, a_template(most - 200)))) == PIECES_MAX
    with pytest.raises(ConvertError, match="at most 1572864 are allowed"):
        down_to_messages(Down(1, 1, 1, a_template(most)))


def pieces(job: int = 1, number: int = 1) -> list[link_pb2.ConnectResponse]:
    made = down_to_messages(Down(1, 1, number, a_template(3 * PIECE_BYTES_MAX - 1000, job)))
    assert len(made) == 3
    return made


def test_pieces_out_of_order_are_refused() -> None:
    first, _, third = pieces()
    reader = DownReader()
    assert reader.read(first) is None
    with pytest.raises(ConvertError, match="piece 2 came where 1 was due"):
        reader.read(third)
    with pytest.raises(ConvertError, match="piece 2 came where 0 was due"):
        DownReader().read(third)


def test_a_piece_twice_is_refused() -> None:
    first, *_ = pieces()
    reader = DownReader()
    reader.read(first)
    with pytest.raises(ConvertError, match="piece 0 came where 1 was due"):
        reader.read(first)


def test_pieces_of_two_templates_are_not_mixed() -> None:
    for other in (pieces(job=2), pieces(number=2)):
        reader = DownReader()
        reader.read(pieces()[0])
        with pytest.raises(ConvertError, match="another template"):
            reader.read(other[1])


def test_nothing_comes_between_pieces() -> None:
    reader = DownReader()
    reader.read(pieces()[0])
    with pytest.raises(ConvertError, match="interrupted"):
        reader.read(down_to_messages(Down(1, 1, 2, Ack(1)))[0])


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        (link_pb2.Template(parts=PIECES_MAX + 1), "9 pieces; 1 to 8"),
        (link_pb2.Template(parts=0), "0 pieces"),
        (link_pb2.Template(parts=1, data=b"x" * (PIECE_BYTES_MAX + 1)), "at most 196608"),
        (link_pb2.Template(parts=1, data=b"\xff\xff"), "no template"),
        (link_pb2.Template(parts=1, part=1), "piece 1 came"),
    ],
)
def test_pieces_have_limits(piece: link_pb2.Template, says: str) -> None:
    with pytest.raises(ConvertError, match=says):
        DownReader().read(link_pb2.ConnectResponse(template=piece))


def test_the_protocol_is_numbered() -> None:
    assert protocol.PROTOCOL_VERSION == 1

"""Values as bytes and back."""

import json
import typing
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota.agent.codec import FRAME_BYTES_MAX, Codec, Frames, Malformed, frame
from rota.agent.link_frames import FromLink, ToLink
from rota.agent.spawn_frames import FromSpawner, ToSpawner
from rota.core.model.protocol import Ended, Input
from rota.core.model.resources import Resources
from rota.core.model.states import Cause
from rota.core.node.entries import End, Entry, Resize, Unacknowledged

counts = st.integers(0, 2**63)
st.register_type_strategy(int, counts)
st.register_type_strategy(str, st.text(st.characters(codec="utf-8"), max_size=20))
st.register_type_strategy(
    Resources, st.builds(Resources, cpu=counts, memory=counts, gpu=counts, disk=counts, named=st.just(()))
)


@pytest.mark.parametrize("union", [Entry, FromLink, ToLink, FromSpawner, ToSpawner])
@given(data=st.data())
def test_every_value_comes_back(union: typing.Any, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(typing.get_args(union)))
    value = data.draw(st.from_type(kind))
    codec: Codec[typing.Any] = Codec(union)
    assert codec.decode(codec.encode(value)) == value


def test_values_are_small() -> None:
    codec: Codec[Entry] = Codec(Entry)
    assert codec.encode(End(10, Ended(3, Cause.EXIT))) == b'[7,10,[3,1,0,1,"",0,0,0,0,0,true,true]]'
    assert codec.encode(Unacknowledged(Resize(1, (2,)))) == b"[12,[3,1,[2]]]"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "7",
        "[]",
        "[99]",
        "[-1]",
        "[true]",
        "[9,1]",
        "[9,1,[2],3]",
        "[9,1,2]",
        '[9,"1",[2]]',
        "[9,1.0,[2]]",
        "[9,true,[2]]",
        "[9,1,[null]]",
        "[9,18446744073709551616,[2]]",
        '[7,10,[3,77,0,1,"",0,0,0,0,0,true,true]]',
        "[7,10,[3,1,0,1,7,0,0,0,0,0,true,true]]",
        '[7,10,[3,1,0,1,"",0,0,0,0,0,1,true]]',
        "[" * 100_000,
        "\xff",
    ],
)
def test_what_is_no_value_is_refused(text: str) -> None:
    codec: Codec[Entry] = Codec(Entry)
    with pytest.raises(Malformed):
        codec.decode(text.encode("latin-1"))


@given(st.binary(max_size=60))
def test_bytes_at_random_are_refused_or_read(data: bytes) -> None:
    codec: Codec[Entry] = Codec(Entry)
    try:
        entry = codec.decode(data)
    except Malformed:
        return
    assert codec.decode(codec.encode(entry)) == entry


def test_bytes_travel_as_text() -> None:
    codec: Codec[Input] = Codec(Input)
    piece = Input(1, 2, 3, bytes(range(256)), True)
    assert codec.decode(codec.encode(piece)) == piece
    with pytest.raises(Malformed):
        codec.decode(b'[1,2,3,"#",true]')


@dataclass
class Old:
    a: int


@dataclass
class New:
    a: int
    b: str = "later"


def test_fields_that_came_later_have_their_defaults() -> None:
    old: Codec[Old] = Codec(Old)
    new: Codec[New] = Codec(New)
    assert new.decode(old.encode(Old(1))) == New(1, "later")
    with pytest.raises(Malformed):
        new.decode(b"[]")


def test_text_that_is_no_unicode_does_not_stop_anything() -> None:
    codec: Codec[Ended] = Codec(Ended)
    ended = codec.decode(codec.encode(Ended(1, Cause.EXIT, message="caf\udce9")))
    assert ended.message == "caf?"


@given(st.lists(st.binary(max_size=30)), st.integers(1, 40))
def test_frames_are_found_however_they_are_cut(payloads: list[bytes], step: int) -> None:
    data = b"".join(map(frame, payloads))
    frames = Frames()
    found = [one for at in range(0, len(data), step) for one in frames.feed(data[at : at + step])]
    assert found == payloads


def test_a_frame_above_the_limit_is_refused() -> None:
    with pytest.raises(Malformed):
        list(Frames().feed((FRAME_BYTES_MAX + 1).to_bytes(4, "little")))


def test_json_has_no_way_around_the_limit_of_digits() -> None:
    codec: Codec[Old] = Codec(Old)
    with pytest.raises(Malformed):
        codec.decode(json.dumps([10**30]).encode())
    with pytest.raises(Malformed):
        codec.decode(b"[" + b"9" * 5_000 + b"]")

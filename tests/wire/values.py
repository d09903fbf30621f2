"""Any value of any dataclass that has a message, for property tests."""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import IntEnum
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from hypothesis import strategies as st
from pyroaring import BitMap

from rota.core.cluster import records
from rota.core.model import indexset
from rota.core.model.protocol import Ranges
from rota.core.model.resources import Resources
from rota.core.model.spec import JobSpec
from rota.wire.gen.store.v1 import records_pb2
from rota.wire.gen.v1 import cluster_pb2, job_pb2, link_pb2, node_pb2

BOUNDS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)

INDICES = st.sets(st.integers(0, indexset.INDEX_MAX) | st.integers(0, 40), max_size=12)
BITMAPS = st.builds(
    lambda indices, first, count: BitMap(indices) | BitMap(range(first, first + count)),
    INDICES,
    st.integers(0, 200_000),
    st.sampled_from([0, 1, 70_000]),
)
RANGES = BITMAPS.map(indexset.to_ranges)

AMOUNTS = st.integers(-(2**63), 2**63 - 1)
RESOURCES = st.builds(
    lambda cpu, memory, gpu, disk, named: Resources.of(
        cpu=cpu, memory=memory, gpu=gpu, disk=disk, named=named
    ),
    AMOUNTS,
    AMOUNTS,
    AMOUNTS,
    AMOUNTS,
    st.dictionaries(TEXTS, AMOUNTS, max_size=3),
)


def message_of(value_type: type) -> Any:
    """The message of a dataclass, found by its name."""
    if value_type.__module__ == records.__name__ and value_type is not records.Event:
        return getattr(records_pb2, value_type.__name__)
    for module in (job_pb2, node_pb2, link_pb2, cluster_pb2):
        if hasattr(module, value_type.__name__):
            return getattr(module, value_type.__name__)
    raise LookupError(value_type)


def values(value_type: Any) -> st.SearchStrategy[Any]:
    """Any value of a dataclass."""
    return _values(value_type)


@cache
def _values(value_type: Any) -> st.SearchStrategy[Any]:
    if value_type is Resources:
        return RESOURCES
    hints = typing.get_type_hints(value_type)
    descriptor = message_of(value_type).DESCRIPTOR
    return st.builds(
        value_type,
        **{
            field.name: _values_of(hints[field.name], field.default, descriptor.fields_by_name[field.name])
            for field in fields(value_type)
        },
    )


def _values_of(hint: Any, default: Any, field: Any) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return st.none() | _values_of(inner, MISSING, field)
    if hint == Ranges and field.message_type is link_pb2.Ranges.DESCRIPTOR:
        return RANGES
    if origin is Mapping:
        key = fields(arguments[1])[0].name
        return st.lists(values(arguments[1]), max_size=3).map(
            lambda items: {getattr(item, key): item for item in items}
        )
    if origin is dict or typing.get_origin(arguments[0] if arguments else None) is tuple:
        entry = field.message_type.fields_by_name
        pair = arguments if origin is dict else typing.get_args(arguments[0])
        sides = [_one(side, entry[name]) for side, name in zip(pair, ("key", "value"), strict=True)]
        maps = st.dictionaries(*sides, max_size=3)
        return maps if origin is dict else maps.map(lambda made: tuple(sorted(made.items())))
    if origin in (tuple, list):
        return st.lists(_one(arguments[0], field), max_size=3).map(origin)
    made = _one(hint, field)
    if hint is not bool and not field.has_presence and default is not MISSING and default:
        return made.filter(bool)  # on the wire nothing means the default
    return made


def _one(hint: Any, field: Any) -> st.SearchStrategy[Any]:
    if hint is BitMap:
        return BITMAPS
    if hint is str:
        return TEXTS
    if hint is bytes:
        return st.binary(max_size=8)
    if hint is bool:
        return st.booleans()
    if hint is int:
        low, high = BOUNDS[field.type]
        return st.integers(low, high)
    if issubclass(hint, IntEnum):
        return st.sampled_from(list(hint))
    assert is_dataclass(hint), hint
    return values(hint)


SPECS = values(JobSpec)

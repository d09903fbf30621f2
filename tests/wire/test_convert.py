"""The contract and the core's values say the same, and each value survives the wire."""

import inspect
import typing
from dataclasses import dataclass, fields, is_dataclass
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from rota.core.cluster import records
from rota.core.model import protocol, spec, states
from rota.core.model.resources import Resources
from rota.core.model.spec import GRACE_MS_DEFAULT, RETENTION_MS_DEFAULT, Dependency, JobSpec
from rota.core.model.states import JobKind, OnNodeLoss
from rota.wire.convert import ConvertError, bitmap_from_bytes, bitmap_to_bytes, codec, ranges
from rota.wire.gen.store.v1 import records_pb2
from rota.wire.gen.v1 import cluster_pb2, enrol_pb2, job_pb2, job_service_pb2, link_pb2, node_pb2, rules_pb2
from tests.wire.values import BITMAPS, RANGES, message_of, values

CONTRACT = (job_pb2, job_service_pb2, node_pb2, cluster_pb2, link_pb2, enrol_pb2)

# Values that are made by hand: envelopes, what is cut in pieces, and what is not of the node protocol.
BY_HAND = {protocol.Down, protocol.Template, records.JobBlock, records.Key}

# Messages of the node protocol and the records that are no value of the core: the shells' own.
SHELLS = {"ArchivedRecord", "JobBlock", "OutputPiece", "Ranges", "Template", "TemplateBody"} | {
    name + side for name in ("Connect", "PushOutput") for side in ("Request", "Response")
}

# Enums of the contract that the core does not see.
EDGES = {"OutputStream", "Unit"}


def dataclasses_of(*modules: Any) -> list[type]:
    return [
        value
        for module in modules
        for _, value in inspect.getmembers(module, inspect.isclass)
        if is_dataclass(value) and value.__module__ == module.__name__
    ]


VALUES = [value for value in dataclasses_of(protocol, spec, records) if value not in BY_HAND] + [Resources]
ENUMS = [
    value
    for _, value in inspect.getmembers(states, inspect.isclass)
    if issubclass(value, IntEnum) and value is not IntEnum
]


@pytest.mark.parametrize("value_type", VALUES, ids=lambda value: value.__name__)
def test_a_value_has_the_fields_of_its_message(value_type: type) -> None:
    message = message_of(value_type)
    assert {field.name for field in fields(value_type) if field.init} == set(
        message.DESCRIPTOR.fields_by_name
    )
    codec(value_type, message)  # which compares the types


def test_every_message_between_the_machines_and_in_the_store_has_a_value() -> None:
    messages = set(link_pb2.DESCRIPTOR.message_types_by_name) | set(
        records_pb2.DESCRIPTOR.message_types_by_name
    )
    assert messages - SHELLS == {value.__name__ for value in VALUES} & messages


def test_every_record_has_a_message() -> None:
    assert {value.__name__ for value in typing.get_args(records.Record)} <= {
        value.__name__ for value in VALUES
    }


@pytest.mark.parametrize("enum", ENUMS, ids=lambda value: value.__name__)
def test_an_enum_has_the_numbers_of_the_contract(enum: type[IntEnum]) -> None:
    contract: Any = next(
        module.DESCRIPTOR.enum_types_by_name[enum.__name__]
        for module in CONTRACT
        if enum.__name__ in module.DESCRIPTOR.enum_types_by_name
    )
    names = {value.name: value.number for value in contract.values}
    unspecified = next(name for name, number in names.items() if number == 0)
    prefix = unspecified.removesuffix("UNSPECIFIED")
    assert names == {unspecified: 0} | {prefix + member.name: member.value for member in enum}


def test_every_enum_of_the_contract_is_one_of_the_core() -> None:
    contract = {name for module in (*CONTRACT, rules_pb2) for name in module.DESCRIPTOR.enum_types_by_name}
    assert contract - EDGES == {enum.__name__ for enum in ENUMS}


@pytest.mark.parametrize("value_type", VALUES, ids=lambda value: value.__name__)
@given(data=st.data())
def test_a_value_survives_the_wire(value_type: type, data: st.DataObject) -> None:
    value = data.draw(values(value_type))
    made: Any = codec(value_type, message_of(value_type))
    sent = made.to_message(value).SerializeToString()
    assert made.from_message(made.message_type.FromString(sent)) == value


JOB = codec(JobSpec, job_pb2.JobSpec)


def test_a_job_that_says_nothing_gets_the_defaults() -> None:
    assert JOB.from_message(job_pb2.JobSpec()) == JobSpec()
    assert JobSpec().resources.cpu == 1000
    assert JobSpec().grace == GRACE_MS_DEFAULT
    assert JobSpec().retention == RETENTION_MS_DEFAULT


def test_what_a_job_says_is_kept_also_where_it_is_zero() -> None:
    said = job_pb2.JobSpec(grace=0, retention=0, max_failures=0, resources=job_pb2.Resources(cpu=0, memory=5))
    value = JOB.from_message(said)
    assert (value.grace, value.retention, value.max_failures) == (0, 0, 0)
    assert value.resources == Resources(memory=5)
    back = JOB.to_message(value)
    assert all(back.HasField(name) for name in ("grace", "retention", "max_failures"))
    assert back.resources.HasField("cpu")


def test_a_cpu_left_out_is_one_core_in_a_job_and_none_in_a_node() -> None:
    memory_alone = job_pb2.Resources(memory=7)
    assert JOB.from_message(job_pb2.JobSpec(resources=memory_alone)).resources == Resources(
        cpu=1000, memory=7
    )
    pool = codec(protocol.Pool, node_pb2.Pool).from_message(node_pb2.Pool(resources=memory_alone))
    assert pool.resources == Resources(memory=7)


def test_an_accepted_job_says_its_defaults_so_that_later_ones_do_not_change_it() -> None:
    message = JOB.to_message(JobSpec())
    assert [message.kind, message.on_node_loss] == [int(JobKind.BATCH), int(OnNodeLoss.RERUN)]
    assert (message.grace, message.retention, message.resources.cpu, message.queue) == (
        GRACE_MS_DEFAULT,
        RETENTION_MS_DEFAULT,
        1000,
        "default",
    )
    assert not message.HasField("max_failures")


def test_nothing_is_told_apart_from_something_empty() -> None:
    queue = codec(records.QueueConfig, records_pb2.QueueConfig)
    for quota in (None, Resources()):
        assert queue.from_message(queue.to_message(records.QueueConfig(quota=quota))).quota == quota


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (link_pb2.Ended(index=1), "cause: is not set"),
        (link_pb2.Ended(index=1, cause=99), "cause: 99 is no Cause"),  # type: ignore[arg-type]
    ],
)
def test_an_enum_that_is_not_known_is_refused(message: link_pb2.Ended, says: str) -> None:
    with pytest.raises(ConvertError, match=says):
        codec(protocol.Ended, link_pb2.Ended).from_message(message)


def test_an_error_names_the_place() -> None:
    report = link_pb2.Report(journal_id="j", first_sequence=1, last_sequence=2)
    report.allocations.add(allocation=1)
    report.allocations.add(allocation=2).ended.add(index=3, cause=job_pb2.CAUSE_EXIT)
    report.allocations[1].ended.add(index=4)
    with pytest.raises(ConvertError) as error:
        codec(protocol.Report, link_pb2.Report).from_message(report)
    assert str(error.value) == "allocations[1].ended[1].cause: is not set"


@pytest.mark.parametrize("bounds", [[1], [5, 4], [0, 3, 3, 4], [0, 3, 4, 5], [5, 6, 0, 1]])
def test_ranges_that_do_not_ascend_or_that_touch_are_refused(bounds: list[int]) -> None:
    with pytest.raises(ConvertError):
        ranges(bounds)
    grant = link_pb2.Grant(indices=link_pb2.Ranges(bounds=bounds))
    with pytest.raises(ConvertError, match=r"^indices: "):
        codec(protocol.Grant, link_pb2.Grant).from_message(grant)


@given(RANGES)
def test_ranges_are_flat_on_the_wire(value: protocol.Ranges) -> None:
    assert ranges([bound for pair in value for bound in pair]) == value


@given(BITMAPS)
def test_equal_sets_have_equal_bytes(indices: BitMap) -> None:
    one_by_one = BitMap()
    for index in indices:
        one_by_one.add(index)
    assert bitmap_to_bytes(one_by_one) == bitmap_to_bytes(indices)
    assert bitmap_from_bytes(bitmap_to_bytes(indices)) == indices


def test_a_set_is_left_alone_so_that_others_may_walk_over_it() -> None:
    indices = BitMap()
    for index in range(70_000):
        indices.add(index)
    as_it_is = indices.get_statistics()
    assert len(bitmap_to_bytes(indices)) < 100, "compressed into runs"
    assert indices.get_statistics() == as_it_is


@given(BITMAPS.filter(bool), st.data())
def test_bytes_that_are_no_set_are_refused(indices: BitMap, data: st.DataObject) -> None:
    sound = bitmap_to_bytes(indices)
    cut = sound[: data.draw(st.integers(1, len(sound) - 1))]
    with pytest.raises(ConvertError, match=f"^{len(cut)} bytes are no"):
        bitmap_from_bytes(cut)


def test_types_that_do_not_fit_are_found_when_the_codec_is_made() -> None:
    with pytest.raises(TypeError, match="differ"):
        codec(Dependency, job_pb2.JobSpec)
    with pytest.raises(TypeError, match=r"Restarted\.run"):
        codec(_Restarted, link_pb2.Restarted)


@dataclass
class _Restarted:
    index: int
    run: str

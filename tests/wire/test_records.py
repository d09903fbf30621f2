"""Records and blocks as bytes."""

import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota.core.cluster import records as core
from rota.core.cluster.records import (
    META_COMMIT,
    Commit,
    Exceptions,
    JobBlock,
    JobConfig,
    ResultBlock,
)
from rota.wire.gen.store.v1 import records_pb2
from rota.wire.records import RecordError, decode, decode_job, decode_results, encode, encode_block
from tests.wire.values import values

KEYS: dict[type, str] = {
    core.ClusterMeta: core.META_CLUSTER,
    core.Commit: core.META_COMMIT,
    core.JobConfig: core.job_key(2**64 - 1),
    core.JobVersion: core.version_key(1, 2),
    core.QueueConfig: core.queue_key("default"),
    core.TokenConfig: core.token_key("t"),
    core.UserConfig: core.user_key("anna"),
    core.NodeConfig: core.node_key("n"),
    core.NodeInventory: core.inventory_key("n"),
    core.NodeStatus: core.node_status_key("n"),
    core.LeaseDesired: core.lease_key("n", 3),
    core.AllocationDesired: core.allocation_key("n", 4),
    core.AllocationStatus: core.allocation_status_key("n", 4),
    core.JobStatus: core.job_status_key(1),
    core.Segment: core.segment_key(1, 0),
    core.Exceptions: core.exceptions_key(1, 0),
    core.NodeTally: core.tally_key(1, "n"),
    core.EventRecord: core.event_key(9),
    core.Idempotency: core.idempotency_key("anna", "a/b"),
}


def test_every_record_has_a_key_here() -> None:
    assert set(KEYS) == set(typing.get_args(core.Record))


@pytest.mark.parametrize("record_type", KEYS, ids=lambda value: value.__name__)
@given(data=st.data())
def test_a_record_survives_as_bytes(record_type: type, data: st.DataObject) -> None:
    record: Any = data.draw(values(record_type))
    assert decode(KEYS[record_type], encode(record)) == record


@pytest.mark.parametrize("key", [META_COMMIT, core.segment_key(7, 1)])
def test_bytes_that_are_no_record_are_named_by_their_key(key: str) -> None:
    with pytest.raises(RecordError, match=f"'{key}' is no record: "):
        decode(key, b"\xff\xff\xff")


def test_a_bitmap_that_is_damaged_is_named() -> None:
    data = records_pb2.Segment(failed=b"damaged").SerializeToString()
    with pytest.raises(RecordError, match=r"is no record: failed: 7 bytes are no Roaring bitmap"):
        decode(core.segment_key(7, 1), data)


def test_a_key_that_is_none_is_named() -> None:
    with pytest.raises(RecordError, match="'nonsense/1' is not the key"):
        decode("nonsense/1", b"")


def test_a_number_that_does_not_fit_is_not_written() -> None:
    with pytest.raises(ValueError, match="range"):
        encode(Commit(term=-1))


@given(values(ResultBlock))
def test_a_block_of_results_survives_as_bytes(block: ResultBlock) -> None:
    assert decode_results(encode_block(block)) == block


@given(values(JobConfig), values(Exceptions))
def test_an_archived_job_survives_as_bytes(config: JobConfig, exceptions: Exceptions) -> None:
    block = JobBlock(
        7, [(core.job_key(7), config), (core.exceptions_key(7, 0), exceptions)], 1_700_000_000_000
    )
    assert decode_job(encode_block(block)) == block


def test_blocks_that_are_damaged_are_refused() -> None:
    with pytest.raises(RecordError, match="archive"):
        decode_results(b"\xff")
    with pytest.raises(RecordError, match="archive"):
        decode_job(b"\xff")
    inner = records_pb2.JobBlock(job=1)
    inner.records.add(key=core.job_key(1), value=b"\xff")
    with pytest.raises(RecordError, match="cfg/job/0000000000000001"):
        decode_job(inner.SerializeToString())

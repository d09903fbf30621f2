"""The bytes of records and of the archive's blocks, the same in all stores."""

import typing
from typing import Any

from google.protobuf.message import DecodeError, Message

from rota.core.cluster.records import Block, JobBlock, Record, ResultBlock, parse_key
from rota.wire.convert import Codec, ConvertError, codec
from rota.wire.gen.store.v1 import records_pb2


class RecordError(ValueError):
    """Stored bytes that are no record: they are damaged, or of another version."""


_CODECS: dict[type, Codec[Any, Any]] = {
    record: codec(record, getattr(records_pb2, record.__name__)) for record in typing.get_args(Record)
}


def encode(record: Record) -> bytes:
    """The bytes of a record; the same for equal records.

    Raises ValueError or TypeError for a value that its field cannot hold.
    """
    return _serialised(_CODECS[type(record)].to_message(record))


def decode(key: str, data: bytes) -> Record:
    """The record under a key. Raises RecordError, which names the key, for bytes that are none."""
    try:
        made = _CODECS[parse_key(key).kind]
        record: Record = made.from_message(made.message_type.FromString(data))
    except (DecodeError, ValueError) as error:
        raise RecordError(f"'{key}' is no record: {error}") from error
    return record


def _serialised(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


# ---------------------------------------------------------------- blocks of the archive

_RESULTS = codec(ResultBlock, records_pb2.ResultBlock)


def encode_block(block: Block) -> bytes:
    """The bytes of a block of the archive."""
    if isinstance(block, ResultBlock):
        return _serialised(_RESULTS.to_message(block))
    message = records_pb2.JobBlock(job=block.job, archived_at_ms=block.archived_at_ms)
    for key, record in block.records:
        message.records.add(key=key, value=encode(record))
    return _serialised(message)


def decode_results(data: bytes) -> ResultBlock:
    """A block of results. Raises RecordError for bytes that are none."""
    try:
        return _RESULTS.from_message(records_pb2.ResultBlock.FromString(data))
    except (DecodeError, ConvertError) as error:
        raise RecordError(f"a block of results in the archive cannot be read: {error}") from error


def decode_job(data: bytes) -> JobBlock:
    """An archived job. Raises RecordError for bytes that are none."""
    try:
        message = records_pb2.JobBlock.FromString(data)
    except DecodeError as error:
        raise RecordError(f"a job in the archive cannot be read: {error}") from error
    records = [(record.key, decode(record.key, record.value)) for record in message.records]
    return JobBlock(message.job, records, message.archived_at_ms)

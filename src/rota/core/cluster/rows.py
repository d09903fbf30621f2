"""Attempts in packed columns, many at a time: checked, chosen, summed and put together with NumPy.

`rota.core.model.columns` says what the columns are, and makes and reads them without NumPy.
"""

import array as arrays
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from rota.core.cluster.records import ResultBlock
from rota.core.model import columns as packed
from rota.core.model.columns import NUMBER_MAX, WALL_MS_MAX
from rota.core.model.protocol import Columns, Ended
from rota.core.model.states import Cause

if TYPE_CHECKING:
    from rota.core.cluster.state import Allocation

Numbers = npt.NDArray[Any]

_DTYPES = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}
_CODE_MAX = 255
# Of so few numbers a sum takes longer with NumPy than without.
FEW = 16
# Every column but that of the indices, and the most that may stand in it.
_MOST = {
    "code": _CODE_MAX,
    "started_after_ms": WALL_MS_MAX,
    "duration_ms": NUMBER_MAX,
    "cpu_user_ms": NUMBER_MAX,
    "cpu_system_ms": NUMBER_MAX,
    "memory_peak_kib": NUMBER_MAX,
}


def problem(columns: Columns) -> str:
    """Why these columns, which somebody has sent, cannot be read; empty where they can."""
    count, rest = divmod(len(columns.index), packed.INDEX_BYTES)
    if rest:
        return f"index: {len(columns.index)} bytes are no numbers of {packed.INDEX_BYTES}"
    if count > 1:
        indices = np.frombuffer(columns.index, "<u4")
        if (indices[1:] <= indices[:-1]).any():
            return "index: the indices do not ascend"
    for name, most in _MOST.items():
        column: bytes = getattr(columns, name)
        if not column:
            continue
        width, rest = divmod(len(column), count) if count else (0, 1)
        if rest or width not in _DTYPES:
            return f"{name}: {len(column)} bytes are no column of {count} numbers"
        if most >> 8 * width == 0 and (found := highest(column, count)) > most:
            return f"{name}: {found} is too large; the most is {most}"
    return ""


def tasks(columns: Columns) -> BitMap:
    """The tasks whose attempts they are."""
    return BitMap(packed.indices(columns))


def total(column: bytes, count: int) -> int:
    """The sum of a column's numbers."""
    if count <= FEW:
        return sum(_few(column, count))
    return int(_numbers(column, count).sum(dtype=np.int64)) if column else 0


def highest(column: bytes, count: int) -> int:
    """The highest of a column's numbers."""
    if count <= FEW:
        return max(_few(column, count), default=0)
    return int(_numbers(column, count).max()) if column else 0


def first_start_ms(columns: Columns) -> int:
    """When the first of them started."""
    column, count = columns.started_after_ms, packed.count(columns)
    first_ms = min(_few(column, count)) if count <= FEW else int(_numbers(column, count).min())
    return columns.started_at_ms + first_ms


def succeeded_ms(columns: Columns) -> int:
    """How long those that exited with 0 took, all together."""
    count = packed.count(columns)
    all_ms = total(columns.duration_ms, count)
    if not columns.code or not columns.duration_ms:
        return all_ms
    failed = _numbers(columns.code, count) != 0
    return all_ms - int(_numbers(columns.duration_ms, count)[failed].sum(dtype=np.int64))


def failed_by_code(columns: Columns) -> Iterator[tuple[int, BitMap]]:
    """The codes other than 0, ascending, and the tasks that exited with each."""
    if columns.code:
        codes = _numbers(columns.code, packed.count(columns))
        failed = np.flatnonzero(codes)
        codes, indices = codes[failed], np.frombuffer(columns.index, "<u4")[failed]
        for code in np.unique(codes).tolist():
            yield code, bitmap(indices[codes == code])


def of(columns: Columns, indices: BitMap) -> Columns:
    """The attempts at these tasks, each of which has one; the columns' indices ascend."""
    count = packed.count(columns)
    if len(indices) == count:
        return columns
    all_ = np.frombuffer(columns.index, "<u4")
    places = np.searchsorted(all_, array(indices))
    found = Columns(all_[places].tobytes(), started_at_ms=columns.started_at_ms)
    for name in _MOST:
        column: bytes = getattr(columns, name)
        setattr(found, name, column and _numbers(column, count)[places].tobytes())
    return found


def both(one: Columns, other: Columns) -> Columns:
    """All attempts of two, in the order of the tasks, of which none is in both."""
    counts = packed.count(one), packed.count(other)
    order = np.argsort(np.frombuffer(one.index + other.index, "<u4"))
    base_ms = min(one.started_at_ms, other.started_at_ms)
    found = Columns(np.frombuffer(one.index + other.index, "<u4")[order].tobytes(), started_at_ms=base_ms)
    for name in _MOST:
        parts = []
        for columns, count in zip((one, other), counts, strict=True):
            numbers = _numbers(getattr(columns, name), count).astype(np.int64)
            parts.append(numbers + columns.started_at_ms - base_ms if name == "started_after_ms" else numbers)
        setattr(found, name, pack(np.concatenate(parts)[order]))
    return found


def array(indices: BitMap) -> npt.NDArray[np.uint32]:
    """The indices of a set, ascending."""
    return np.array(indices.to_array(), np.uint32)


def bitmap(indices: Numbers) -> BitMap:
    """The set of these indices; the quicker for being ascending."""
    found = arrays.array("I")
    found.frombytes(indices.astype(np.uint32).tobytes())
    return BitMap(found)


def pack(numbers: Numbers) -> bytes:
    """A column of these numbers, none of which is below 0."""
    most = int(numbers.max()) if len(numbers) else 0
    if not most:
        return b""
    return numbers.astype(np.min_scalar_type(most).newbyteorder("<")).tobytes()


def _few(column: bytes, count: int) -> Sequence[int]:
    """A column of few numbers, to go through one by one."""
    return column if len(column) == count else packed.unpack(column, count)


def _numbers(column: bytes, count: int) -> Numbers:
    if not column:
        return np.zeros(count, np.uint8)
    return np.frombuffer(column, _DTYPES[len(column) // count])


# ---------------------------------------------------------------- blocks of the archive


@dataclass(frozen=True, slots=True)
class Result:
    """One attempt's outcome, as a block has it."""

    index: int
    attempt: int
    cause: Cause
    code: int
    started_at_ms: int
    duration_ms: int
    cpu_user_ms: int
    cpu_system_ms: int
    memory_peak_kib: int


def block_of(allocation: "Allocation", columns: Columns, cause: Cause = Cause.EXIT) -> ResultBlock:
    """The first attempts of an allocation, all of which ended alike."""
    count = packed.count(columns)
    return ResultBlock(
        allocation.job.id,
        allocation.id,
        allocation.node.id,
        columns,
        packed.repeated(allocation.desired.first_attempt, count),
        packed.repeated(cause, count),
    )


def block_of_ends(allocation: "Allocation", ends: Sequence[Ended], chars_max: int) -> ResultBlock:
    """Attempts that a node tells of one by one, with their messages cut."""
    ends = sorted(ends, key=lambda ended: (ended.index, ended.run))
    before = allocation.desired.first_attempt - 1
    return ResultBlock(
        allocation.job.id,
        allocation.id,
        allocation.node.id,
        packed.columns_of(ends),
        packed.pack([before + ended.run for ended in ends]),
        packed.pack([ended.cause for ended in ends]),
        {ended.index: ended.message[:chars_max] for ended in ends if ended.message},
    )


def results(block: ResultBlock, indices: BitMap | None = None) -> Iterator[Result]:
    """The attempts of a block, at these tasks or at all, in the order of the tasks and attempts."""
    columns, count = block.columns, packed.count(block.columns)
    all_ = np.frombuffer(columns.index, "<u4")
    places = np.arange(count)
    if indices is not None:
        places = np.flatnonzero(np.isin(all_, array(indices)))
    for index, attempt, cause, code, after_ms, *used in zip(
        all_[places].tolist(),
        _numbers(block.attempt, count)[places].tolist(),
        _numbers(block.cause, count)[places].tolist(),
        *(_numbers(getattr(columns, name), count)[places].tolist() for name in _MOST),
        strict=True,
    ):
        yield Result(index, attempt, Cause(cause), code, columns.started_at_ms + after_ms, *used)

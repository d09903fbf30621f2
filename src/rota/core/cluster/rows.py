"""Attempts in packed columns, many at a time: as arrays of NumPy, an attempt a row.

`rota.core.model.columns` says what the columns are.
"""

import array as arrays
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from rota.core.cluster.records import ResultBlock
from rota.core.model.columns import INDEX_BYTES, NUMBER_MAX, WALL_MS_MAX, columns_of, repeated
from rota.core.model.columns import pack as pack_list
from rota.core.model.protocol import Columns, Ended
from rota.core.model.states import Cause

if TYPE_CHECKING:
    from rota.core.cluster.state import Allocation

Numbers = npt.NDArray[np.int64]

_DTYPES = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}
_CODE_MAX = 255
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
    count, rest = divmod(len(columns.index), INDEX_BYTES)
    if rest:
        return f"index: {len(columns.index)} bytes are no numbers of {INDEX_BYTES}"
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
        highest = int(np.frombuffer(column, _DTYPES[width]).max())
        if highest > most:
            return f"{name}: {highest} is too large; the most is {most}"
    return ""


@dataclass(slots=True)
class Rows:
    """One number an attempt in each array. `started_at_ms` is 0 where it was not measured."""

    index: Numbers
    code: Numbers
    started_at_ms: Numbers
    duration_ms: Numbers
    cpu_user_ms: Numbers
    cpu_system_ms: Numbers
    memory_peak_kib: Numbers

    def __len__(self) -> int:
        return len(self.index)

    @property
    def cpu_ms(self) -> int:
        """Of all together."""
        return int(self.cpu_user_ms.sum() + self.cpu_system_ms.sum())

    def indices(self) -> BitMap:
        """The tasks."""
        return bitmap(self.index)

    def take(self, places: npt.NDArray[np.intp]) -> "Rows":
        """The rows at these places."""
        return Rows(*(getattr(self, field.name)[places] for field in fields(self)))

    def of(self, indices: BitMap) -> "Rows":
        """The rows of these tasks, of which each has one; the indices ascend."""
        if len(indices) == len(self):
            return self
        return self.take(np.searchsorted(self.index, array(indices)))

    def and_(self, other: "Rows") -> "Rows":
        """Those of both, in the order of their indices; of the same task, `other` has none."""
        names = [field.name for field in fields(self)]
        both = Rows(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))
        return both.take(np.argsort(both.index))

    def columns(self) -> Columns:
        """Packed."""
        first_ms = int(self.started_at_ms.min()) if len(self) else 0
        return Columns(
            self.index.astype("<u4").tobytes(),
            pack(self.code),
            first_ms,
            pack(self.started_at_ms - first_ms),
            pack(self.duration_ms),
            pack(self.cpu_user_ms),
            pack(self.cpu_system_ms),
            pack(self.memory_peak_kib),
        )


def read(columns: Columns) -> Rows:
    """The rows of columns in which there is no problem."""
    count = len(columns.index) // INDEX_BYTES
    return Rows(
        np.frombuffer(columns.index, "<u4").astype(np.int64),
        _unpacked(columns.code, count),
        _unpacked(columns.started_after_ms, count) + columns.started_at_ms,
        _unpacked(columns.duration_ms, count),
        _unpacked(columns.cpu_user_ms, count),
        _unpacked(columns.cpu_system_ms, count),
        _unpacked(columns.memory_peak_kib, count),
    )


def unmeasured(indices: BitMap) -> Rows:
    """Rows of these tasks, with nothing but zeros."""
    zeros = np.zeros(len(indices), np.int64)
    return Rows(array(indices), *(zeros for _ in fields(Rows)[1:]))


def array(indices: BitMap) -> Numbers:
    """The indices of a set, ascending."""
    return np.array(indices.to_array(), np.int64)


def bitmap(indices: Numbers) -> BitMap:
    """The set of these indices."""
    found = arrays.array("I")
    found.frombytes(indices.astype(np.uint32).tobytes())
    return BitMap(found)


def pack(numbers: Numbers) -> bytes:
    """A column of these numbers, none of which is below 0."""
    highest = int(numbers.max()) if len(numbers) else 0
    if not highest:
        return b""
    return numbers.astype(np.min_scalar_type(highest).newbyteorder("<")).tobytes()


def _unpacked(column: bytes, count: int) -> Numbers:
    if not column:
        return np.zeros(count, np.int64)
    return np.frombuffer(column, _DTYPES[len(column) // count]).astype(np.int64)


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
    count = len(columns.index) // INDEX_BYTES
    return ResultBlock(
        allocation.job.id,
        allocation.id,
        allocation.node.id,
        columns,
        repeated(allocation.desired.first_attempt, count),
        repeated(cause, count),
    )


def block_of_ends(allocation: "Allocation", ends: Sequence[Ended], chars_max: int) -> ResultBlock:
    """Attempts that a node tells of one by one, with their messages cut."""
    ends = sorted(ends, key=lambda ended: (ended.index, ended.run))
    before = allocation.desired.first_attempt - 1
    return ResultBlock(
        allocation.job.id,
        allocation.id,
        allocation.node.id,
        columns_of(ends),
        pack_list([before + ended.run for ended in ends]),
        pack_list([ended.cause for ended in ends]),
        {ended.index: ended.message[:chars_max] for ended in ends if ended.message},
    )


def results(block: ResultBlock, indices: BitMap | None = None) -> Iterator[Result]:
    """The attempts of a block, of these tasks or of all, in the order of their indices and numbers."""
    rows = read(block.columns)
    count = len(rows)
    attempt, cause = _unpacked(block.attempt, count), _unpacked(block.cause, count)
    if indices is not None:
        places = np.flatnonzero(np.isin(rows.index, array(indices)))
        rows, attempt, cause = rows.take(places), attempt[places], cause[places]
    for row in zip(
        rows.index.tolist(),
        attempt.tolist(),
        map(Cause, cause.tolist()),
        *(getattr(rows, field.name).tolist() for field in fields(Rows)[1:]),
        strict=True,
    ):
        yield Result(*row)

"""Attempts in packed columns: made and read with the standard library alone.

A column holds one unsigned number an attempt, all of the same width: 1, 2, 4 or 8 bytes, little-endian. The
width follows from the column's length and the number of attempts; a column of nothing but zeros is empty.
The column of the indices alone has four bytes a number, so that how many there are is known.

What takes many at a time, with NumPy, is `rota.core.cluster.rows`.
"""

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence

from rota.core.model.protocol import Columns, Ended
from rota.core.model.states import Cause

INDEX_BYTES = 4
WALL_MS_MAX = 2**48
# Of a duration in milliseconds, or an amount of memory in KiB: beyond any truth.
NUMBER_MAX = 2**40

_TYPES = {1: "B", 2: "H", 4: "I", 8: "Q"}


def pack(numbers: Sequence[int], width: int = 1) -> bytes:
    """A column of these numbers, no narrower than `width` bytes. Raises OverflowError for one below 0."""
    highest = max(numbers, default=0)
    if not highest and not min(numbers, default=0):
        return b""
    while highest >> 8 * width:
        width *= 2
    return _packed(numbers, width)


def pack_indices(indices: Iterable[int]) -> bytes:
    """The column of the indices."""
    return _packed(indices, INDEX_BYTES)


def repeated(number: int, count: int) -> bytes:
    """A column of `count` equal numbers."""
    return pack([number]) * count


def unpack(column: bytes, count: int) -> Sequence[int]:
    """The `count` numbers of a column. Raises ValueError where its length does not fit."""
    if not column:
        return [0] * count
    width, rest = divmod(len(column), count) if count else (0, 1)
    if rest or width not in _TYPES:
        raise ValueError(f"{len(column)} bytes are no column of {count} numbers")
    numbers = array(_TYPES[width], column)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _packed(numbers: Iterable[int], width: int) -> bytes:
    packed = array(_TYPES[width], numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


# ---------------------------------------------------------------- attempts


def count(columns: Columns) -> int:
    """How many attempts there are."""
    return len(columns.index) // INDEX_BYTES


def indices(columns: Columns) -> Sequence[int]:
    """The tasks' indices."""
    return unpack(columns.index, count(columns))


def columns_of(rows: Sequence[Ended]) -> Columns:
    """The columns of these, in the order given; they have no place for causes, runs and messages."""
    started_at_ms = [row.started_at_ms for row in rows]
    first_ms = min(started_at_ms, default=0)
    return Columns(
        pack_indices(row.index for row in rows),
        pack([row.code for row in rows]),
        first_ms,
        pack([at_ms - first_ms for at_ms in started_at_ms]),
        pack([row.duration_ms for row in rows]),
        pack([row.cpu_user_ms for row in rows]),
        pack([row.cpu_system_ms for row in rows]),
        pack([row.memory_peak_kib for row in rows]),
    )


def exited(columns: Columns) -> Iterator[Ended]:
    """One after the other, each as an attempt that exited."""
    number = count(columns)
    for index, code, after_ms, duration_ms, cpu_user_ms, cpu_system_ms, memory_peak_kib in zip(
        indices(columns),
        unpack(columns.code, number),
        unpack(columns.started_after_ms, number),
        unpack(columns.duration_ms, number),
        unpack(columns.cpu_user_ms, number),
        unpack(columns.cpu_system_ms, number),
        unpack(columns.memory_peak_kib, number),
        strict=True,
    ):
        yield Ended(
            index,
            Cause.EXIT,
            code,
            started_at_ms=columns.started_at_ms + after_ms,
            duration_ms=duration_ms,
            cpu_user_ms=cpu_user_ms,
            cpu_system_ms=cpu_system_ms,
            memory_peak_kib=memory_peak_kib,
        )

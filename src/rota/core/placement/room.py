"""What is free and where, as columns of NumPy: one row a unit of capacity of a node, one column a resource.

A shape is scored over all rows once; from then on only over the rows that changed since it was last asked
for. The log of changed rows is what ties the two together.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rota.core.model.resources import BUILT_IN, Resources

Rows = NDArray[np.intp]
Counts = NDArray[np.int64]
Scores = NDArray[np.float64]

# Scored shapes that are kept, in rows of all of them together, 8 bytes each: what a processor has at hand.
SCORED_ROWS_MAX = 200_000
WHOLE_DEVICE = 1000
"""Thousandths of one device."""

FULL = 1.0
"""How full a row is of which nothing is left."""

_ROWS_MIN = 64
# So few rows are scored without columns.
ONE_BY_ONE_MAX = 8
_LOG_MIN = 1_024


@dataclass(slots=True)
class Unit:
    """One unit of a pool of a node, as it is now.

    `slots` is how many more it may get, whatever amounts are free: none where nothing new may go.
    `devices` are the thousandths left of each GPU that the pool names. `there`: its node is not lost.
    """

    node: str
    pool: str
    unit: int
    free: Resources
    whole: Resources
    slots: int
    there: bool = True
    devices: Sequence[int] = ()


@dataclass(slots=True)
class Scored:
    """Of one shape, by row: how full it is with one slot more; beyond `FULL` none fits."""

    score: Scores
    # Where in the log of changed rows it stands.
    seen: int = 0


class Room:
    """The columns. Rows are taken and given back; a row that is nobody's has no room for anything."""

    def __init__(self) -> None:
        self.size = 0
        self.units: list[Unit | None] = []
        self._names = list(BUILT_IN)
        self._columns = {name: number for number, name in enumerate(BUILT_IN)}
        self._free = np.zeros((len(BUILT_IN), _ROWS_MIN), np.int64)
        self._whole = np.zeros((len(BUILT_IN), _ROWS_MIN), np.int64)
        # What is used, infinite where there is nothing to be had, so that no shape fits; and what there is
        # (at least 1) as what it is divided by. Amounts are far below 2**53, so floats hold them exactly:
        # what fits is at most FULL, and what does not is beyond it.
        self._used = np.full((len(BUILT_IN), _ROWS_MIN), np.inf)
        self._over = np.ones((len(BUILT_IN), _ROWS_MIN))
        self._part = np.zeros(_ROWS_MIN)
        self._slots = np.zeros(_ROWS_MIN, np.int64)
        self._there = np.zeros(_ROWS_MIN, np.bool_)
        # Thousandths left of each device, -1 for none; the rows that have any.
        self._devices = np.full((_ROWS_MIN, 0), -1, np.int64)
        self._named = np.zeros(_ROWS_MIN, np.bool_)
        self._unused: list[int] = []
        self._scored: OrderedDict[Resources, Scored] = OrderedDict()
        self._log: list[int] = []
        self._log_start = 0
        # For tests and figures: how often a shape was scored over all rows, and how many rows again.
        self.shapes_scored = 0
        self.rows_rescored = 0

    # ------------------------------------------------------------ rows

    def take(self, unit: Unit) -> int:
        """A row for a unit: the lowest that is free, for rows break ties."""
        if self._unused:
            row = heapq.heappop(self._unused)
        else:
            row = self.size
            self.size += 1
            self.units.append(None)
            if row == len(self._slots):
                self._grow()
            # One row more: what is scored is of another length.
            self._scored.clear()
        self.set(row, unit)
        return row

    def give(self, row: int) -> None:
        """The row is nobody's any more."""
        self.units[row] = None
        self._free[:, row] = self._whole[:, row] = 0
        self._used[:, row] = np.inf
        self._over[:, row] = 1
        self._slots[row] = 0
        self._there[row] = self._named[row] = False
        heapq.heappush(self._unused, row)
        self._changed(row)

    def set(self, row: int, unit: Unit) -> bool:
        """What the row's unit is now. Returns whether it may have become room for something."""
        before = self.units[row]
        self.units[row] = unit
        alike = before is not None and (before.whole is unit.whole or before.whole == unit.whole)
        if before is None or not alike or (before.slots > 0) != (unit.slots > 0):
            for name in (name for name, _ in unit.whole.items() if name not in self._columns):
                self._add_column(name)
            pairs = zip(self._amounts(unit.whole), self._amounts(unit.free), strict=True)
            for column, (whole, free) in enumerate(pairs):
                self._free[column, row] = free
                self._whole[column, row] = whole
                self._over[column, row] = max(whole, 1)
                self._used[column, row] = whole - free if whole and unit.slots else np.inf
        elif before.free is not unit.free:
            pairs = zip(self._amounts(unit.free), self._amounts(before.free), strict=True)
            for column, (free, had) in enumerate(pairs):
                if free != had:
                    self._free[column, row] = free
                    self._used[column, row] -= free - had
        self._slots[row] = unit.slots
        self._there[row] = unit.there
        self._named[row] = bool(unit.devices)
        if unit.devices:
            self._put_devices(row, unit.devices)
        self._changed(row)
        if before is None or before.slots < unit.slots or not alike:
            return unit.slots > 0
        return unit.slots > 0 and (
            _more(before.free, unit.free)
            or any(left > had for had, left in zip(before.devices, unit.devices, strict=False))
        )

    def _amounts(self, amounts: Resources) -> Sequence[int]:
        """What is to be written into each column."""
        built_in = (amounts.cpu, amounts.memory, amounts.gpu, amounts.disk)
        if len(self._names) == len(built_in):
            return built_in
        return (*built_in, *map(amounts.get, self._names[len(built_in) :]))

    def _put_devices(self, row: int, left: Sequence[int]) -> None:
        more = len(left) - self._devices.shape[1]
        if more > 0:
            self._devices = np.pad(self._devices, ((0, 0), (0, more)), constant_values=-1)
        self._devices[row] = -1
        self._devices[row, : len(left)] = left

    def _add_column(self, name: str) -> None:
        self._columns[name] = len(self._names)
        self._names.append(name)
        self._free = np.pad(self._free, ((0, 1), (0, 0)))
        self._whole = np.pad(self._whole, ((0, 1), (0, 0)))
        self._used = np.pad(self._used, ((0, 1), (0, 0)), constant_values=np.inf)
        self._over = np.pad(self._over, ((0, 1), (0, 0)), constant_values=1)

    def _grow(self) -> None:
        more = len(self._slots)
        self._free = np.pad(self._free, ((0, 0), (0, more)))
        self._whole = np.pad(self._whole, ((0, 0), (0, more)))
        self._used = np.pad(self._used, ((0, 0), (0, more)), constant_values=np.inf)
        self._over = np.pad(self._over, ((0, 0), (0, more)), constant_values=1)
        self._slots = np.pad(self._slots, (0, more))
        self._part = np.zeros(len(self._slots))
        self._there = np.pad(self._there, (0, more))
        self._named = np.pad(self._named, (0, more))
        self._devices = np.pad(self._devices, ((0, more), (0, 0)), constant_values=-1)

    def _changed(self, row: int) -> None:
        self._log.append(row)
        if len(self._log) > max(2 * self.size, _LOG_MIN):
            # Who has not looked for so long looks at all.
            self._log_start += len(self._log)
            self._log.clear()

    # ------------------------------------------------------------ shapes

    def scored(self, shape: Resources) -> Scores:
        """The shape's score by row, as it is now. The array must not be changed."""
        now = self._log_start + len(self._log)
        found = self._scored.get(shape)
        if found is None or found.seen < self._log_start:
            found = Scored(self.score(shape, slice(0, self.size)), now)
            self.shapes_scored += 1
            self._scored[shape] = found
            while len(self._scored) * self.size > SCORED_ROWS_MAX and len(self._scored) > 1:
                self._scored.popitem(last=False)
        elif found.seen < now:
            changed = set(self._log[found.seen - self._log_start :])
            self.rows_rescored += len(changed)
            if len(changed) <= ONE_BY_ONE_MAX:
                for row in changed:
                    found.score[row] = self._score_one(shape, row)
            else:
                rows = np.array(sorted(changed), np.intp)
                found.score[rows] = self.score(shape, rows)
            found.seen = now
        self._scored.move_to_end(shape)
        return found.score

    def _score_one(self, shape: Resources, row: int) -> float:
        """The same as `score` of one row: quicker than columns are for so little."""
        unit = self.units[row]
        if unit is None or not unit.slots:
            return np.inf
        score = 0.0
        for name, amount in shape.items():
            whole = unit.whole.get(name)
            if not whole:
                return np.inf
            score = max(score, (whole - unit.free.get(name) + amount) / whole)
        return np.inf if shape.gpu and unit.devices and not _of_devices(unit, shape.gpu) else score

    def score(self, shape: Resources, rows: Rows | slice) -> Scores:
        """Of these rows: how full each is with one slot of the shape."""
        score: Scores | None = None
        for name, amount in shape.items():
            column = self._columns.get(name)
            if column is None:
                return np.full(len(self._slots[rows]), np.inf)
            used, over = self._used[column][rows], self._over[column][rows]
            if score is None:
                score = used + amount
                score /= over
            else:
                # Memory that was just used is at hand, new memory is not.
                part = self._part[: len(used)]
                np.add(used, amount, out=part)
                part /= over
                np.maximum(score, part, out=score)
        if score is None:
            return np.where(self._slots[rows] > 0, 0.0, np.inf)
        if shape.gpu and self._devices.shape[1]:
            score[self._named[rows] & (_devices_room(self._devices[rows], shape.gpu) <= 0)] = np.inf
        return score

    def slots(self, shape: Resources, rows: Rows) -> Counts:
        """How many slots of the shape fit into each of these rows."""
        room = self._slots[rows]
        for name, amount in shape.items():
            column = self._columns.get(name)
            if column is None:
                return np.zeros_like(room)
            np.minimum(room, self._free[column][rows] // amount, out=room)
        if shape.gpu and self._devices.shape[1]:
            named = self._named[rows]
            np.minimum(room, _devices_room(self._devices[rows], shape.gpu), out=room, where=named)
        return np.maximum(room, 0, out=room)

    def slots_of(self, shape: Resources, row: int) -> int:
        """The same of one row."""
        unit = self.units[row]
        if unit is None:
            return 0
        count = shape.times_in(unit.free, unit.slots)
        if count and shape.gpu and unit.devices:
            count = min(count, _of_devices(unit, shape.gpu))
        return count

    def levels(self, shape: Resources, rows: Rows) -> "Levels":
        """How full these rows become as they get slots of the shape."""
        used, whole, amounts = [], [], []
        for name, amount in shape.items():
            column = self._columns[name]
            used.append(self._used[column][rows])
            whole.append(self._over[column][rows])
            amounts.append(amount)
        return Levels(used, whole, amounts)

    def fits(self, shapes: Counts, rows: Sequence[int]) -> NDArray[np.bool_]:
        """Which of the shapes (one a line, as `line` writes it) fit into any of these rows by amounts."""
        open_ = np.array([row for row in rows if self._slots[row] > 0], np.intp)
        if not len(open_):
            return np.zeros(len(shapes), np.bool_)
        width = shapes.shape[1]
        free = self._free[:width][:, open_]
        result: NDArray[np.bool_] = (shapes <= free.max(axis=1)).all(axis=1)
        if len(open_) > 1:
            for number in np.flatnonzero(result):
                result[number] = (shapes[number][:, None] <= free).all(axis=0).any()
        return result

    def line(self, shape: Resources) -> list[int] | None:
        """A shape as the amounts of the columns; None where it asks for what no node has ever had."""
        result = [0] * len(self._columns)
        for name, amount in shape.items():
            if name not in self._columns:
                return None
            result[self._columns[name]] = amount
        return result

    def free_at_least(self, rows: Rows, shape: Resources, beside: Resources) -> NDArray[np.bool_]:
        """In which of these rows the shape has room by its amounts once `beside` is free as well."""
        result = np.ones(len(rows), np.bool_)
        for name, amount in shape.items():
            column = self._columns.get(name)
            free = self._free[column][rows] if column is not None else 0
            result &= free + beside.get(name) >= amount
        return result

    def could_ever(self, shape: Resources) -> NDArray[np.bool_]:
        """By row, whether the shape fits into the unit when it is empty; of no lost node."""
        return self.holds(shape) & self._there[: self.size]

    def holds(self, shape: Resources) -> NDArray[np.bool_]:
        """By row, whether the shape fits into the unit when it is empty."""
        result = np.ones(self.size, np.bool_)
        for name, amount in shape.items():
            column = self._columns.get(name)
            result &= (self._whole[column][: self.size] if column is not None else 0) >= amount
        return result

    def open(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of these rows may get more slots, whatever is free there."""
        return self._slots[rows] > 0

    def most_whole(self, name: str, rows: Rows) -> int | None:
        """Of these rows one with the most of a resource when it is empty; None of none."""
        return self._most(self._whole, name, rows)

    def most_free(self, name: str, rows: Rows) -> int | None:
        """Of these rows one with the most of a resource free; None of none."""
        return self._most(self._free, name, rows)

    def _most(self, table: Counts, name: str, rows: Rows) -> int | None:
        if not len(rows):
            return None
        column = self._columns.get(name)
        return int(rows[0] if column is None else rows[table[column][rows].argmax()])

    def columns_count(self) -> int:
        """How many resources there are a column of."""
        return len(self._columns)


class Levels:
    """How full rows become, by the resource of which the smallest part is left, as they get more slots."""

    def __init__(self, used: list[Scores], whole: list[Scores], amounts: Iterable[int]) -> None:
        self._used, self._whole, self._amounts = used, whole, list(amounts)

    def at(self, slots: Counts) -> Scores:
        """How full each is with so many slots more."""
        result = np.zeros(len(slots))
        for used, whole, amount in zip(self._used, self._whole, self._amounts, strict=True):
            np.maximum(result, (used + amount * slots) / whole, out=result)
        return result

    def count_up_to(self, level: float, room: Counts) -> Counts:
        """How many slots each may get, of its room, without becoming fuller than the level."""
        result = room.copy()
        for used, whole, amount in zip(self._used, self._whole, self._amounts, strict=True):
            count = np.clip((level * whole - used) / amount, 0, room).astype(np.int64)
            # Division rounds: the same sum that gives the level decides.
            count -= (count > 0) & ((used + amount * count) / whole > level)
            count += (used + amount * (count + 1)) / whole <= level
            np.minimum(result, count, out=result)
        return result


def _more(before: Resources, now: Resources) -> bool:
    """Whether there is more of anything."""
    return (
        now.cpu > before.cpu
        or now.memory > before.memory
        or now.gpu > before.gpu
        or now.disk > before.disk
        or (now.named != before.named and any(now.get(name) > before.get(name) for name, _ in now.named))
    )


def _devices_room(left: Counts, gpu: int) -> Counts:
    """How many slots of `gpu` thousandths each row's devices have room for: a part of one, or whole ones."""
    result: Counts
    if gpu < WHOLE_DEVICE:
        result = (np.maximum(left, 0) // gpu).sum(axis=1)
    else:
        result = (left == WHOLE_DEVICE).sum(axis=1) // -(-gpu // WHOLE_DEVICE)
    return result


def _of_devices(unit: Unit, gpu: int) -> int:
    """The same of one unit, which has some."""
    return int(_devices_room(np.array([unit.devices], np.int64), gpu)[0])

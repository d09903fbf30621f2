"""Small numbers for many indices as bit planes: the k-th set holds the indices whose number has bit k.

An index that is in no set has zero. Numbers that are alike cost almost nothing, and adding one to a
million of them is a few operations on bitmaps (bit-sliced numbers: O'Neil and Quass, "Improved Query
Performance with Variant Indexes", 1997).
"""

from collections.abc import Sequence

from pyroaring import BitMap

Planes = tuple[BitMap, ...]


def number(planes: Sequence[BitMap], index: int) -> int:
    """The number of one index."""
    return sum(1 << bit for bit, plane in enumerate(planes) if index in plane)


def alike(planes: Sequence[BitMap], indices: BitMap) -> list[tuple[int, BitMap]]:
    """These indices by their number: each number that one of them has, and those that have it."""
    groups = [(0, indices)]
    for bit, plane in enumerate(planes):
        groups = [
            (value, part)
            for before, whole in groups
            for value, part in ((before, whole - plane), (before + (1 << bit), whole & plane))
            if part
        ]
    return groups


def increased(planes: Planes, indices: BitMap) -> Planes:
    """One more for each of these: an addition that carries over the planes."""
    result, carry = list(planes), indices
    for bit, plane in enumerate(planes):
        if not carry:
            break
        result[bit], carry = plane ^ carry, carry & plane
    if carry:
        result.append(carry.copy())
    return tuple(result)


def decreased(planes: Planes, indices: BitMap) -> Planes:
    """One less for each of these, none of which may have zero: a subtraction that borrows."""
    result, borrow = list(planes), indices
    for bit, plane in enumerate(planes):
        if not borrow:
            break
        result[bit], borrow = plane ^ borrow, borrow - plane
    assert not borrow, "one less than zero"
    return _trimmed(result)


def cleared(planes: Planes, indices: BitMap) -> Planes:
    """Zero for each of these."""
    return _trimmed([plane - indices for plane in planes])


def any_of(planes: Sequence[BitMap]) -> BitMap:
    """The indices whose number is not zero."""
    return BitMap.union(*planes) if planes else BitMap()


def _trimmed(planes: list[BitMap]) -> Planes:
    while planes and not planes[-1]:
        planes.pop()
    return tuple(planes)

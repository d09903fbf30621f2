"""What tasks need and nodes have. Integers only, so that ten times 0.1 is 1.

`cpu`, `gpu` and named resources are in thousandths, `memory` and `disk` in bytes.
"""

from collections.abc import Iterator
from dataclasses import field

from rota.core.model.values import value

BUILT_IN = ("cpu", "memory", "gpu", "disk")
"""The resources that every node may have; all others are named by the cluster's owners."""


@value(frozen=True, slots=True)
class Resources:
    """An amount of each resource; `named` is sorted by name and has no zeros."""

    cpu: int = 0
    memory: int = 0
    gpu: int = 0
    disk: int = 0
    named: tuple[tuple[str, int], ...] = ()
    # Of a shape, which is asked for it again and again; of an amount nobody asks.
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __hash__(self) -> int:
        if not self._hash:
            found = hash((self.cpu, self.memory, self.gpu, self.disk, self.named))
            object.__setattr__(self, "_hash", found)
        return self._hash

    @classmethod
    def of(
        cls,
        *,
        cpu: int = 0,
        memory: int = 0,
        gpu: int = 0,
        disk: int = 0,
        named: dict[str, int] | None = None,
    ) -> "Resources":
        """Like the constructor, with the named resources in any order."""
        pairs = tuple(sorted((name, amount) for name, amount in (named or {}).items() if amount))
        return cls(cpu, memory, gpu, disk, pairs)

    def plus(self, other: "Resources", times: int = 1) -> "Resources":
        """This and `times` the other; `times` may be negative."""
        named = self.named
        if other.named:
            amounts = dict(named)
            for name, amount in other.named:
                amounts[name] = amounts.get(name, 0) + amount * times
            named = tuple(sorted((name, amount) for name, amount in amounts.items() if amount))
        return Resources(
            self.cpu + other.cpu * times,
            self.memory + other.memory * times,
            self.gpu + other.gpu * times,
            self.disk + other.disk * times,
            named,
        )

    def items(self) -> Iterator[tuple[str, int]]:
        """Every resource that is not zero, by name."""
        for name, amount in (
            ("cpu", self.cpu),
            ("memory", self.memory),
            ("gpu", self.gpu),
            ("disk", self.disk),
        ):
            if amount:
                yield name, amount
        yield from self.named

    def get(self, name: str) -> int:
        """The amount of one resource, 0 where there is none."""
        if name in BUILT_IN:
            return int(getattr(self, name))
        return dict(self.named).get(name, 0)

    def times_in(self, free: "Resources", times_max: int) -> int:
        """How many of this fit into `free`, at most `times_max`."""
        count = times_max
        if self.cpu:
            count = min(count, free.cpu // self.cpu)
        if self.memory:
            count = min(count, free.memory // self.memory)
        if self.gpu:
            count = min(count, free.gpu // self.gpu)
        if self.disk:
            count = min(count, free.disk // self.disk)
        for name, amount in self.named:
            count = min(count, free.get(name) // amount)
        return max(count, 0)

    def missing_in(self, free: "Resources") -> list[str]:
        """The names of the resources of which `free` has too little."""
        return [name for name, amount in self.items() if free.get(name) < amount]

    @property
    def negative(self) -> bool:
        """Whether any amount is below zero: more was charged than there is."""
        return (
            self.cpu < 0
            or self.memory < 0
            or self.gpu < 0
            or self.disk < 0
            or any(amount < 0 for _, amount in self.named)
        )


NOTHING = Resources()


def amount_text(name: str, amount: int) -> str:
    """An amount as people read it: bytes in GiB and the like, others with at most three decimals."""
    if name not in ("memory", "disk"):
        return f"{amount / 1000:g}" if amount % 1000 else str(amount // 1000)
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if amount >= size:
            return f"{amount // size} {unit}" if amount % size == 0 else f"{amount / size:.1f} {unit}"
    return f"{amount} B"

"""Values that are never changed, of which a busy leader makes hundreds of thousands a second.

`@value(frozen=True, slots=True)` is `@dataclass` to the type checker, which refuses whatever sets a field.
The interpreter does not look: a frozen dataclass sets each of its own fields by a call, and so takes 2 to
3 µs to be made where 0.5 would do (docs/performance/placement.md).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

__all__ = ["value"]

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:

    def value(*, frozen, slots):
        """A dataclass that is compared and hashed by its fields."""
        assert (frozen, slots) == (True, True)

        def made(kind):
            return dataclass(slots=True, unsafe_hash="__hash__" not in kind.__dict__)(kind)

        return made

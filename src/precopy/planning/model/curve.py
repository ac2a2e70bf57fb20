"""How much a guest dirties in an interval, as a function of the interval's length.

A guest rewrites pages: 1 s dirties less than ten times what 100 ms do, and never more than its writable working set.
So the dirty bytes W of an interval are a concave function of its length that begins at 0. Here it is a sum of
*classes* of memory, each a set of ``size`` bytes that is rewritten at ``rate`` bytes a second:

    W(interval) = sum over classes of min(rate * interval, size)

which is any concave piecewise-linear function: a hot set is a class with a high rate and a small size, pages that are
written once in a while are one with a low rate and a large size. A guest that writes everywhere at random, where W is
size * (1 - exp(-rate * interval / size)), is several classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Number


@dataclass(frozen=True, slots=True)
class DirtyClass:
    """``size`` bytes of memory that are rewritten at ``rate`` bytes a second (``size`` may be infinite)."""

    rate: Number
    size: Number


@dataclass(frozen=True, slots=True)
class DirtyCurve:
    """The sum of its classes, in order of falling rate for their size (the hottest first)."""

    classes: Annotated[tuple[DirtyClass, ...], Meta(max_length=10_000)]

    @classmethod
    def of(cls, rate: float, size: float) -> DirtyCurve:
        """One class: D and the writable working set."""
        return cls((DirtyClass(rate, size),) if rate > 0 and size > 0 else ())

    @property
    def rate(self) -> float:
        """D: bytes dirtied a second in a very short interval."""
        return sum(part.rate for part in self.classes)

    @property
    def working_set(self) -> float:
        """Bytes that a very long interval dirties; infinite where nothing bounds them."""
        return sum(part.size for part in self.classes)

    def dirty_bytes(self, interval_s: float) -> float:
        """W: bytes dirtied in an interval of ``interval_s`` seconds."""
        total = 0.0
        for part in self.classes:
            total += min(part.rate * interval_s, part.size)
        return total

    def scaled(self, factor: float) -> DirtyCurve:
        """The guest at ``factor`` times its speed: what it writes stays the same, how soon changes."""
        return DirtyCurve(tuple(DirtyClass(part.rate * factor, part.size) for part in self.classes))

    def times(self, factor: float) -> DirtyCurve:
        """The same guest with ``factor`` times its dirty bytes in every interval."""
        return DirtyCurve(tuple(DirtyClass(part.rate * factor, part.size * factor) for part in self.classes))

    def fixed_point(self, seconds_per_byte: float, fixed_s: float) -> float:
        """The interval that rounds settle at, in seconds, where sending W bytes takes ``W * seconds_per_byte`` and a
        round and its sync ``fixed_s`` more: the solution of ``interval = fixed_s + W(interval) * seconds_per_byte``.
        Infinite where there is none.

        It is the patch series' critical point (docs/patch-series.md): with one unbounded class of rate D it is
        ``B x / (B - D)``.
        """
        # W is concave, so the right side crosses the left once, from above: take classes as saturated one by one, the
        # hottest first, until the solution lies before the next one's saturation.
        saturated, rate = 0.0, self.rate
        for part in self.classes:
            slope = rate * seconds_per_byte
            if slope < 1:
                interval = (fixed_s + saturated * seconds_per_byte) / (1 - slope)
                if interval * part.rate <= part.size:
                    return interval
            saturated += part.size
            rate -= part.rate
        return fixed_s + saturated * seconds_per_byte

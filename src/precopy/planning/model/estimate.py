"""A figure that was estimated, and how far it may be off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """``value`` with the range in which the truth should lie about nine times in ten; an exact figure has
    ``low == value == high``. The unit is in the name of the field that holds it."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        return cls(value, value, value)

    def __add__(self, more: float) -> Estimate:
        return Estimate(self.value + more, self.low + more, self.high + more)

    @classmethod
    def within(cls, value: float, share: float) -> Estimate:
        """``value``, give or take ``share`` of it."""
        return cls(value, value * (1 - share), value * (1 + share))

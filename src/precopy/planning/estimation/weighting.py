"""Weighted statistics over rounds: newer rounds weigh more, and no single round decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from precopy.planning.model.metrics import RoundSample

FORGET = 0.65
"""Weight ratio of successive rounds. Below 0.618 the newest round alone could outvote the two before it; above 0.707
all earlier rounds together could outvote the two newest."""

_MOST = 10
"""Rounds that are looked at, at most: with `FORGET` a round before the last nine weighs 2 % of the newest or less."""


def recent_rounds(rounds: Sequence[RoundSample]) -> Sequence[RoundSample]:
    """The rounds that estimates are made from: the first, which is the longest, and the last nine."""
    return rounds if len(rounds) <= _MOST else (rounds[0], *rounds[1 - _MOST :])


def weighted_median(pairs: Iterable[tuple[float, float]]) -> float:
    """The weighted median of (value, weight) pairs; 0 where all weights are 0."""
    ordered = sorted(pair for pair in pairs if pair[1] > 0)
    rest = sum(weight for _, weight in ordered) / 2
    for value, weight in ordered:
        rest -= weight
        if rest <= 0:
            return value
    return ordered[-1][0] if ordered else 0.0


def pooled(values: Iterable[tuple[float, float]]) -> list[float]:
    """The series nearest to (value, weight) pairs, by weighted squares, that never falls: pool adjacent violators
    (Ayer, Brunk, Ewing, Reid and Silverman, 1955)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in values:
        block = (value, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            other, heavy, more = blocks.pop()
            both = block[1] + heavy
            block = ((block[0] * block[1] + other * heavy) / both, both, block[2] + more)
        blocks.append(block)
    return [value for value, _, count in blocks for _ in range(count)]

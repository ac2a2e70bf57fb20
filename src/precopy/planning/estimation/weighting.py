"""What several rounds say together: the newer count more, and none alone decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from precopy.planning.model.metrics import RoundSample

FORGET = 0.65
"""A round counts so much of what the one after it does: then any two outweigh the newest one where they come right
before it, and the two newest outweigh all others together."""

_MOST = 10


def telling(rounds: Sequence[RoundSample]) -> Sequence[RoundSample]:
    """The rounds that are still worth looking at: the last ones, and the first, which is the longest."""
    return rounds if len(rounds) <= _MOST else (rounds[0], *rounds[1 - _MOST :])


def weighted_median(pairs: Iterable[tuple[float, float]]) -> float:
    """The value at the middle of (value, weight) pairs by weight; 0 where nothing has weight."""
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

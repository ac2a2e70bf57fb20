"""How much a guest dirties in an interval, from what rounds found."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

from precopy.planning.estimation.weighting import FORGET, pooled, recent_rounds, weighted_median
from precopy.planning.model.curve import DirtyClass, DirtyCurve
from precopy.planning.model.metrics import RoundSample

_BINS_PER_E = 1 / math.log(1.25)
"""Bins for each factor e of an interval's length: each bin is 1.25 times wide, and its rounds are one point."""
_GAIN = 2.0
"""Weight of a round's point over that of the round before it, as a ratio."""
_NOISE = 0.1
"""Shrinkage: of a jump of the level by this much (natural logarithm), half is applied to older points; of a larger one,
more."""
_LARGEST_STEP = 8.0
"""Largest factor by which one round may change the level."""
_TICK_S = 1e-6
"""Seconds. Rounds with a shorter interval are left out: a rate over them would be noise."""
_STOPPED = 0.999
"""Cap on the throttled share of time when an interval is stretched to full speed, which divides by 1 minus it."""

_FIRST = 0.3
"""Weight of the first round for W's shape, times what its age gives it. It is low because with deferred clears that
round arms pages only as it reads them, so that its interval is not the same for all pages."""
_KEPT = 0.75
"""Weight of each other round for W's shape, against the round after it."""
_NOISE_OF_SHAPE = 0.02
"""Deviation of a round from W (natural logarithm) that is assumed before any round is known."""
_SURE = 6.0
"""Weight of that assumption, in rounds."""
_ALIKE = 0.03
"""Rounds count as equal in length where each differs from the one before by about this share or less."""
_STRAIGHT = 0.9
"""Elasticity of W from which it counts as proportional to the interval. Such rounds shrink or grow."""
_BY_CHANCE = 0.05
"""Rounds of equal length divide the probability of such a W by about 1 over this: the guest would have to write exactly
as fast as is sent."""
_APART = 1.5
"""Least ratio of two points' intervals for the slope between them to be used; nearer ones give mostly noise."""
_HALVINGS = 7
"""W is estimated down to 1 / 2**7 of the shortest interval; below that it is a straight line from 0."""

_FLAT = 0.12
"""The whole working set counts as written where doubling the interval to its longest added at most this share of it."""
_NEGLIGIBLE = 1e-6
"""Share of all dirty bytes below which a class is left out: a step of this size is rounding."""

_DEVIATIONS = 1.645
"""Standard deviations of a normal distribution within which nine in ten values lie."""
_NINE_IN_TEN = _DEVIATIONS * 1.4826
"""The same in median absolute deviations, of which 1.4826 are a standard deviation."""
_FIRST_SPREAD = 0.16
"""Relative spread assumed after one round (divided by n after n)."""
_LEAST_SPREAD, _MOST_SPREAD = 0.03, 1.0
"""Its floor and its cap."""

_Point = tuple[float, float, float]
"""(interval in seconds, bytes dirtied in it, weight)."""
_Floats = npt.NDArray[np.float64]


def estimate_dirtying(
    rounds: Sequence[RoundSample], ram_bytes: float, throttled_share: float
) -> tuple[DirtyCurve, float]:
    """W, the dirty bytes of an interval, for a guest at ``throttled_share``; and its relative spread: nine times in
    ten, the next round's dirty bytes differ from W by no more than this share.

    Each round is a point (interval, dirty bytes); intervals at another throttle are stretched to the guest's speed at
    this one. Points of similar intervals are averaged, a newer round's with twice the weight of the one's before it.
    Where a round differs from older points, those are scaled to it: the shape comes from all rounds, the level from
    the newest. The points are then made a concave function from 0, and the steps of its slopes are the
    curve's classes. Below the shortest interval it follows the shape that all rounds make most probable (`_Shape`).
    Beyond the longest one it keeps its slope up to ``ram_bytes``, or stays constant if the whole working set had been
    written.

    Source: a window's working set is a concave function of its length (Denning and Schwartz, Properties of the
    Working-Set Model, 1972); what goes wrong with a dirty rate instead is in Nathan, Bellur and Kulkarni, Towards a
    Comprehensive Performance Model of Virtual Machine Live Migration, 2015.
    """
    known = _Known()
    found, ahead = [], 0.0
    for sample in recent_rounds(rounds):
        interval = _stretched(sample.interval_s, sample.throttled_share, throttled_share)
        dirty = min(sample.dirty_bytes, ram_bytes)
        if interval > _TICK_S:
            found.append((interval, dirty, known.follow(interval, dirty)))
            known.add(interval, dirty)
            ahead = interval * min(sample.remaining_bytes / max(sample.read_bytes, 1.0), _LARGEST_STEP)
    points = [(interval, min(dirty, ram_bytes), weight) for interval, dirty, weight in known.points()]
    corners, doubt = _concave(points), 0.0
    if len(corners) > 1 and corners[1][1] > 0:
        alone = known.rounds()
        shape = _Shape.of(alone, _settled([interval for interval, _, _ in alone], ahead))
        doubt = shape.doubt(ahead)
        corners = _below(corners, points[0][0], shape) if len(found) > 1 else corners
    curve = _classes(corners, ram_bytes)
    return curve, _spread(curve, found, doubt)


def _stretched(interval_s: float, throttled_share: float, now: float) -> float:
    """The interval, throttled by ``now``, in which a guest writes as much as it did in ``interval_s`` at
    ``throttled_share``."""
    if throttled_share == now:
        return interval_s
    return interval_s * (1 - min(throttled_share, _STOPPED)) / (1 - min(now, _STOPPED))


def _settled(intervals: list[float], ahead: float) -> float:
    """From 0 (rounds still shrink or grow) to 1 (all of one length), by the intervals of the last rounds. The first
    round is left out, and the next one, of ``ahead`` seconds, included."""
    if len(intervals) < 2 or ahead <= _TICK_S:
        return 0.0
    last = [*intervals[1:], ahead][-3:]
    shrunk = math.log(last[-1] / last[0]) / (len(last) - 1)
    return math.exp(-((shrunk / _ALIKE) ** 2) / 2)


class _Known:
    """The rounds so far: points of similar intervals averaged, and all scaled to the level of the newest."""

    def __init__(self) -> None:
        self._bins: dict[int, list[float]] = {}  # weight, and weighted sums of intervals and of dirty bytes / level
        self._rounds: list[tuple[float, float]] = []  # interval, dirty bytes / level
        self._weight = self._level = 1.0

    def add(self, interval: float, dirty: float) -> None:
        """Adds a round's point; those before it lose weight."""
        self._weight *= _GAIN
        self._rounds.append((interval, dirty / self._level))
        sums = self._bins.setdefault(math.floor(math.log(interval) * _BINS_PER_E), [0.0, 0.0, 0.0])
        sums[0] += self._weight
        sums[1] += self._weight * interval
        sums[2] += self._weight * dirty / self._level

    def rounds(self) -> list[_Point]:
        """Each round, with its weight for W's shape."""
        weights = [_KEPT**age for age in reversed(range(len(self._rounds)))]
        weights[0] *= _FIRST
        return [
            (interval, dirty * self._level, weight)
            for (interval, dirty), weight in zip(self._rounds, weights, strict=True)
        ]

    def points(self) -> list[_Point]:
        """In order of their intervals."""
        level = self._level
        return [
            (intervals / weight, dirty / weight * level, weight)
            for _, (weight, intervals, dirty) in sorted(self._bins.items())
        ]

    def follow(self, interval: float, dirty: float) -> float:
        """Moves the level towards a new round's; returns the factor between the round and what was known.

        The factor is 1 where a concave function through the points that never falls could have the round's value."""
        least, most = _between(self.points(), interval)
        nearest = min(max(dirty, least), most)
        if nearest <= 0:
            return 1.0
        factor = min(max(dirty / nearest, 1 / _LARGEST_STEP), _LARGEST_STEP)
        step = abs(math.log(factor))
        self._level *= factor ** (step / (step + _NOISE))
        return factor


def _between(points: list[_Point], interval: float) -> tuple[float, float]:
    """The least and the most dirty bytes at ``interval`` of any concave function from 0 through ``points`` that never
    falls."""
    place = bisect_left(points, (interval, -1.0, 0.0))
    since, below, _ = points[place - 1] if place else (0.0, 0.0, 0.0)
    most = below * interval / since if place else math.inf
    if place == len(points):
        return below, most
    until, above, _ = points[place]
    return below + (above - below) * (interval - since) / (until - since), min(most, above)


def _concave(points: list[_Point]) -> list[tuple[float, float]]:
    """Corners (interval, dirty bytes) of a concave function near ``points`` that begins at 0 and never falls.

    Such a function's mean slope from 0 never rises either. Pooling enforces both and averages errors. The least
    concave majorant comes last, because on its own it would follow the largest errors."""
    grown = pooled([(dirty, weight) for _, dirty, weight in points])
    falling = pooled([(-dirty / interval, weight) for dirty, (interval, _, weight) in zip(grown, points, strict=True)])
    return _majorant([(interval, -slope * interval) for slope, (interval, _, _) in zip(falling, points, strict=True)])


def _majorant(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the least concave function from 0 that never falls and lies below none of ``points``, in order."""
    corners = [(0.0, 0.0)]
    for interval, dirty in points:
        corner = (interval, max(dirty, corners[-1][1]))
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(corners[-1], corner):
            corners.pop()
        corners.append(corner)
    return corners


def _guesses() -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """Of each of `_Shape`'s guesses: its prior probability (as a logarithm; the random writers come last), and of the
    others the hot bytes, the interval that writes all of them once, and the other bytes written in a unit of time."""
    gone_round = [(1.0, 2.0**step, 0.0) for step in np.arange(-4, 12, 0.5)]
    hot_and_cold = [(hot, knee, 1.0) for knee, hot in product((1 / 32, 1 / 8, 1 / 2, 2.0, 8.0), (0.25, 1.0, 4.0, 16.0))]
    kinds = ((0.3, 1), (0.35, len(gone_round)), (0.2, len(hot_and_cold)), (0.15, len(_RANDOM)))
    likely = np.concatenate([np.full(count, share / count) for share, count in kinds])
    hot, knee, cold = np.array([(0.0, 1.0, 1.0), *gone_round, *hot_and_cold]).T
    return np.log(likely), hot[:, None], knee[:, None], cold[:, None]


_RANDOM = 2.0 ** np.arange(-3, 5)[:, None]
_LIKELY, _HOT, _KNEE, _COLD = _guesses()


@dataclass(frozen=True, slots=True)
class _Shape:
    """W at intervals shorter than every round. Concavity leaves open whether W is the chord from 0 there (a guest that
    has not yet written any page twice) or flat (a guest that has written its whole working set many times).

    Four kinds of guest are tried: W is proportional to the interval; it is proportional up to a working set; it is
    proportional plus a hot set; or pages are written at random, W = 1 - exp(-interval). ``share`` is the probability of
    each guess, from the distance of the rounds to it at its best ``level`` (the logarithm of a factor) with an unknown
    deviation (Student's t). Intervals are in units of the ``shortest``.

    Rounds of equal length fit every guess. But where W is proportional to the interval, rounds shrink or grow unless
    the guest writes just as fast as is sent, so equal rounds make that guess less probable (`_BY_CHANCE`).
    """

    shortest: float
    share: _Floats
    level: _Floats

    @classmethod
    def of(cls, points: list[_Point], settled: float) -> _Shape:
        """At least one of ``points`` has dirty bytes; for ``settled`` see `_settled`."""
        interval, dirty, weight = np.array([point for point in points if point[1] > 0]).T
        shortest, total = float(interval.min()), float(weight.sum())
        off = np.log(dirty) - _logs(interval / shortest)
        level = off @ weight / total
        squares = (off - level[:, None]) ** 2 @ weight
        score = _LIKELY - (_SURE + total) / 2 * np.log(_SURE * _NOISE_OF_SHAPE**2 + squares)
        score -= _GROWING * math.log1p(settled / _BY_CHANCE)
        share = np.exp(score - score.max())
        return cls(shortest, share / share.sum(), level)

    def dirty_bytes(self, intervals: list[float]) -> list[float]:
        """The geometric mean of all guesses, weighted by probability. It is concave, as the guesses are, and improbable
        guesses move it little."""
        logs = self.level[:, None] + _logs(np.array(intervals) / self.shortest)
        return [math.exp(log) for log in self.share @ logs]

    def doubt(self, interval: float) -> float:
        """Standard deviation of the guesses' logarithms at ``interval``."""
        logs = self.level + _logs(np.array([max(interval / self.shortest, 2.0**-_HALVINGS)]))[:, 0]
        return math.sqrt(max(float(self.share @ logs**2 - (self.share @ logs) ** 2), 0.0))


def _logs(times: _Floats) -> _Floats:
    """Logarithms of the dirty bytes of each guess (a row) in intervals of ``times`` units (a column), at level 0."""
    found: _Floats = np.vstack([_HOT * np.minimum(times / _KNEE, 1.0) + _COLD * times, -np.expm1(-times * _RANDOM)])
    return np.log(found)


_GROWING = (_logs(np.array([1.0])) - _logs(np.array([0.9])))[:, 0] > -_STRAIGHT * math.log(0.9)


def _below(corners: list[tuple[float, float]], interval: float, shape: _Shape) -> list[tuple[float, float]]:
    """``corners`` with the shape's corners added below the shortest ``interval``, none of them above the line that
    continues the slope after it."""
    dirty, after = corners[1][1] * interval / corners[1][0], [corner for corner in corners if corner[0] > interval]
    slope = next((_slope((interval, dirty), corner) for corner in after if corner[0] > _APART * interval), 0.0)
    shorter = [interval / 2**step for step in range(_HALVINGS, 0, -1)]
    *below, here = shape.dirty_bytes([*shorter, interval])
    ends = zip(shorter, below, strict=True)
    steps = [(at, min(dirty * found / here, dirty - slope * (interval - at))) for at, found in ends]
    return _majorant([*steps, (interval, dirty), *after])


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def _classes(corners: list[tuple[float, float]], ram_bytes: float) -> DirtyCurve:
    """A class for each step of the slope: its rate is the step, its size what that rate writes up to the corner."""
    slopes = [_slope(one, other) for one, other in pairwise(corners)]
    if not slopes:
        return DirtyCurve(())
    last, most = corners[-1]
    half, _ = _between([(*corner, 1.0) for corner in corners[1:]], last / 2)
    beyond = 0.0 if most - half <= _FLAT * most else slopes[-1]
    classes = []
    for (interval, _), slope, after in zip(corners[1:], slopes, [*slopes[1:], beyond], strict=True):
        size = (slope - after) * interval
        if size > _NEGLIGIBLE * most:
            classes.append(DirtyClass(slope - after, size))
    if beyond:
        rest = ram_bytes - sum(dirty_class.size for dirty_class in classes)
        classes.append(DirtyClass(beyond, max(rest, beyond * last)))
    return DirtyCurve(tuple(classes))


def _spread(curve: DirtyCurve, found: list[tuple[float, float, float]], doubt: float) -> float:
    """The spread that `estimate_dirtying` returns. ``found``: each round's interval, dirty bytes, and the factor
    between these and what was known before it; ``doubt``: standard deviation of ln W at the next round's interval."""
    if not found:
        return _MOST_SPREAD
    fits, off, weight = [], [], 1.0
    for interval, dirty, factor in reversed(found):
        expected = curve.dirty_bytes(interval)
        fits.append(abs(dirty / expected - 1) if expected > 0 else 0.0)
        off.append((max(fits[-1], abs(factor - 1)), weight))
        weight *= FORGET
    least = max(_FIRST_SPREAD / len(found), _LEAST_SPREAD)
    noise = max(least, _NINE_IN_TEN * weighted_median(off) * (1 + 2 / len(found)), fits[0])
    return min(math.hypot(noise, _DEVIATIONS * doubt), _MOST_SPREAD)

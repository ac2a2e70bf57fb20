"""How much a guest dirties in an interval, from what rounds found and what looks at the dirty log in mid-round saw."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from precopy.planning.curve import DirtyClass, DirtyCurve
from precopy.planning.metrics import Probe, RoundSample
from precopy.planning.weighting import FORGET, telling, weighted_median

_BINS_PER_E = 1 / math.log(1.25)
"""Intervals within 1.25 times of each other are one point."""
_GAIN = 2.0
"""A round's points count so many times what those of the one before do."""
_LOOK_WEIGHT = 0.5
"""Of a look in mid-round, against what a whole round found."""
_NEAR = 1.35
"""It is known what an interval dirties where there is a point within this factor of it."""
_NOISE = 0.1
"""Older points take up half of a step of the level that is so small (a natural logarithm), and most of a large one."""
_LARGEST_STEP = 8.0
"""No round changes the level by more than this factor."""
_TICK_S = 1e-6
"""Shorter intervals say nothing."""
_UNARMED = 0.2
"""A look that saw less than this share of what the round's mean rate makes of it came before pages were armed."""
_STOPPED = 0.999
"""A guest of which more time than this is taken says nothing of its speed."""

_LINEAR = 0.95
"""From this elasticity on, W is taken to be in proportion to the interval."""
_UNTOLD, _DOUBT = 0.5, 0.003
"""Elasticity where points of one interval are all there is, and how much (as a variance of logarithms of intervals)
that counts beside points of several."""
_HALVINGS = 7
"""Down to a 128th of the shortest interval it goes on so, and is the chord from 0 below that."""

_FLAT = 0.06
"""The working set has been gone round where the last doubling of the interval added no more than this share of it."""
_NEGLIGIBLE = 1e-6
"""Share of all dirty bytes below which a class is left out."""

_NINE_IN_TEN = 1.645 * 1.4826
"""From a median deviation to the range of nine in ten, for a normal distribution."""
_FIRST_SPREAD, _LEAST_SPREAD, _MOST_SPREAD = 0.16, 0.03, 1.0
"""Of one round (of n rounds, an n-th of it), of many, and of any."""


_Point = tuple[float, float, float]
"""(interval in seconds, bytes dirtied in it, weight)."""


def estimate_dirtying(
    rounds: Sequence[RoundSample], probes: Sequence[Probe], ram_bytes: float, throttle: float
) -> tuple[DirtyCurve, float]:
    """W, the dirty bytes of an interval, for a guest at ``throttle``; and its relative spread: how far off a round is
    from it, as a share, about nine times in ten.

    Each round is a point (interval, dirty bytes), and each look in the middle of one is a point of a shorter interval;
    intervals at another throttle are stretched to the guest's speed at this one. Points of similar intervals are
    averaged, a newer round's with twice the weight of the one's before it. Where a round finds another level than
    older points have there, those follow it: the shape comes from all rounds, the level from the newest. The points are
    then made a concave function from 0, and the steps of its slopes are the curve's classes. Below the shortest
    interval it goes on as it came (`_below`). Beyond the longest one it goes on
    as it was up to ``ram_bytes``, or stays where it is if the working set had been gone round.

    Source: a window's working set is a concave function of its length (Denning and Schwartz, Properties of the
    Working-Set Model, 1972); what goes wrong with a dirty rate instead is in Nathan, Bellur and Kulkarni, Towards a
    Comprehensive Performance Model of Virtual Machine Live Migration, 2015.
    """
    looks: dict[int, list[Probe]] = {}
    for probe in probes:
        looks.setdefault(probe.round, []).append(probe)
    known = _Known()
    found = []
    for one in telling(rounds):
        interval, dirty = _stretched(one.interval_s, one.throttle, throttle), min(one.dirty_bytes, ram_bytes)
        if interval > _TICK_S:
            found.append((interval, dirty, known.follow(interval, dirty)))
            known.add([(interval, dirty, 1.0), *_within(interval, dirty, looks.get(one.number, ()), throttle)])
    points = [(interval, min(dirty, ram_bytes), weight) for interval, dirty, weight in known.points()]
    curve = _classes(_below(_concave(points), points, len(found)), ram_bytes)
    return curve, _spread(curve, found)


def _stretched(interval_s: float, throttle: float, now: float) -> float:
    """What an interval with the share ``throttle`` of its time taken is worth where the share ``now`` is."""
    if throttle == now:
        return interval_s
    return interval_s * (1 - min(throttle, _STOPPED)) / (1 - min(now, _STOPPED))


def _within(interval: float, dirty: float, probes: Sequence[Probe], throttle: float) -> list[_Point]:
    """The points that looks in a round are, which itself found ``dirty`` bytes in ``interval``.

    Where clears are deferred, pages are armed only when they are read, and until then nothing is seen of them.
    Therefore intervals begin with the last look that saw hardly anything, and no point lies below the chord to that of
    the whole round, where no concave function does."""
    looks = sorted([(_stretched(one.interval_s, one.throttle, throttle), one.dirty_bytes) for one in probes])
    start, points = 0.0, list[_Point]()
    for when, seen in looks:
        if not _TICK_S < when < interval:
            continue
        if not points and seen * interval < _UNARMED * dirty * when:
            start = when
            continue
        after = when - start
        if after > _TICK_S:
            points.append((after, min(max(seen, dirty * after / interval), dirty), _LOOK_WEIGHT))
    return points


class _Known:
    """What the rounds so far found: points of similar intervals averaged, all at the level of the newest."""

    def __init__(self) -> None:
        self._bins: dict[int, list[float]] = {}  # weight, and weighted sums of intervals and of dirty bytes / level
        self._weight = self._level = 1.0

    def add(self, points: list[_Point]) -> None:
        """The points of one round; all that was there counts less from now on."""
        self._weight *= _GAIN
        for interval, dirty, share in points:
            weight = share * self._weight
            sums = self._bins.setdefault(math.floor(math.log(interval) * _BINS_PER_E), [0.0, 0.0, 0.0])
            sums[0] += weight
            sums[1] += weight * interval
            sums[2] += weight * dirty / self._level

    def points(self) -> list[_Point]:
        """In order of their intervals."""
        level = self._level
        return [(i / w, d / w * level, w) for _, (w, i, d) in sorted(self._bins.items())]

    def follow(self, interval: float, dirty: float) -> float:
        """Takes up the level of a new round; returns by which factor that is off from what was known.

        Where no point is near, what is known is only the least that a concave function can be there: to find more than
        that is no news."""
        least, near = _between(self.points(), interval)
        if least <= 0:
            return 1.0
        factor = min(max(dirty / least, 1 / _LARGEST_STEP), _LARGEST_STEP if near else 1.0)
        step = abs(math.log(factor))
        self._level *= factor ** (step / (step + _NOISE))
        return factor


def _between(points: list[_Point], interval: float) -> tuple[float, bool]:
    """Dirty bytes on the lines from 0 through ``points``, flat after the last; and whether one of them is near."""
    place = bisect_left(points, (interval, -1.0, 0.0))
    since, below, _ = points[place - 1] if place else (0.0, 0.0, 0.0)
    near = interval <= since * _NEAR
    if place == len(points):
        return below, near
    until, above, _ = points[place]
    dirty = below + (above - below) * (interval - since) / (until - since)
    return dirty, near or until <= interval * _NEAR


def _concave(points: list[_Point]) -> list[tuple[float, float]]:
    """Corners (interval, dirty bytes) of a concave function near ``points`` that begins at 0 and never falls.

    Neither do such functions' mean slopes from 0 rise. Pooling gives both, and evens errors out; the least concave
    majorant, which alone would follow the highest errors, does the little that is left."""
    grown = _pooled([(dirty, weight) for _, dirty, weight in points])
    falling = _pooled([(-dirty / one, weight) for dirty, (one, _, weight) in zip(grown, points, strict=True)])
    corners = [(0.0, 0.0)]
    for slope, (interval, _, _) in zip(falling, points, strict=True):
        corner = (interval, max(-slope * interval, corners[-1][1]))
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(corners[-1], corner):
            corners.pop()
        corners.append(corner)
    return corners


def _below(corners: list[tuple[float, float]], points: list[_Point], rounds: int) -> list[tuple[float, float]]:
    """``corners`` with more of them below the first, which W reaches as ``interval ** elasticity``.

    Of a concave function it is only known there that it lies between its chord from 0 (elasticity 1: a guest that has
    not begun to write the same pages twice) and the level that it has already (0: one that has written all it ever will
    many times over). Points of longer intervals tell which, the nearest most. Where all rounds took about as long, they
    have settled, and half-way is as good a guess as any; after a single round, the chord is."""
    if len(corners) < 2 or corners[1][1] <= 0 or rounds < 2:
        return corners
    interval, dirty = corners[1]
    elasticity = _elasticity([(one / interval, found / dirty, weight) for one, found, weight in points if found > 0])
    if elasticity > _LINEAR:
        return corners
    steps = [(interval / 2**step, dirty * 2 ** (-elasticity * step)) for step in range(_HALVINGS, 0, -1)]
    return [corners[0], *steps, *corners[1:]]


def _elasticity(points: list[_Point]) -> float:
    """Slope, from 0 to 1, of the line through the logarithms of (interval, dirty bytes, weight), the first interval
    being about 1: by weighted squares, with as much doubt as a few points side by side leave (ridge regression towards
    `_UNTOLD`)."""
    logs = [(math.log(one), math.log(found), weight / max(one, 1.0)) for one, found, weight in points]
    total = sum(weight for _, _, weight in logs)
    x, y = (sum(point[axis] * point[2] for point in logs) / total for axis in (0, 1))
    run = sum(weight * (one - x) ** 2 for one, _, weight in logs) / total
    rise = sum(weight * (one - x) * (other - y) for one, other, weight in logs) / total
    return min(max((rise + _UNTOLD * _DOUBT) / (run + _DOUBT), 0.0), 1.0)


def _pooled(values: list[tuple[float, float]]) -> list[float]:
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


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def _classes(corners: list[tuple[float, float]], ram_bytes: float) -> DirtyCurve:
    """Each step of the slope is a class, as large as it has become at its corner."""
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
        rest = ram_bytes - sum(one.size for one in classes)
        classes.append(DirtyClass(beyond, max(rest, beyond * last)))
    return DirtyCurve(tuple(classes))


def _spread(curve: DirtyCurve, found: list[tuple[float, float, float]]) -> float:
    """How far off rounds are from ``curve``. ``found`` has of each its interval, its dirty bytes, and by which factor
    these were off from what had been known."""
    if not found:
        return _MOST_SPREAD
    fits, off, weight = [], [], 1.0
    for interval, dirty, factor in reversed(found):
        expected = curve.dirty_bytes(interval)
        fits.append(abs(dirty / expected - 1) if expected > 0 else 0.0)
        off.append((max(fits[-1], abs(factor - 1)), weight))
        weight *= FORGET
    least = max(_FIRST_SPREAD / len(found), _LEAST_SPREAD)
    return min(max(least, _NINE_IN_TEN * weighted_median(off), fits[0]), _MOST_SPREAD)

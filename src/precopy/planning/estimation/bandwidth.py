"""The link's bandwidth, from the bytes of rounds and the time spent sending them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precopy.planning.estimation.weighting import FORGET, recent_rounds, weighted_median
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.metrics import RoundSample

_ENOUGH_S = 0.05
"""Seconds of sending, at the average rate, with which a round has half the weight of a very long one."""
_TELLING = 0.5
"""Weight from which the newest round's rate is always inside the range (1: a very long round)."""
TICK_S = 1e-6
"""Seconds. Shorter times of sending count as this, so that no rate is infinite."""

_NINE_IN_TEN = 1.645 * math.sqrt(math.pi / 2)
"""Factor from a mean absolute deviation to the range of nine in ten values, for a normal distribution."""
_LEAST_SPREAD, _MOST_SPREAD = 0.08, 0.6
"""Relative spread after one long round, and the cap on what differences between rounds make of it."""

_UNKNOWN = Estimate(1e10, 1e9, 1e11)
"""Bytes a second assumed before anything was sent: only the speed of memory is known to limit it."""


def estimate_bandwidth(rounds: Sequence[RoundSample]) -> Estimate:
    """B in bytes a second: the weighted median of the rounds' rates, each ``sent_bytes / send_s``.

    Only the time spent sending counts; syncs, scans and clears do not. A round's weight falls by a constant factor with
    each round after it and grows with its bytes up to a limit, so that a last round of a few pages, whose time is
    mostly the round trip, has almost no weight. From the third round on, one stalled round or one burst does not
    move the median, and the range includes it while that round is the newest; a change of the link is accepted after
    two rounds.

    The range covers rounds like these; doubt.py widens it for later rounds on a busy machine.

    Source: the sliding percentile of ExoPlayer's bandwidth meter, which takes the median of transfer rates weighted by
    size, because sliding means and exponential averages suffer from outliers and follow steps slowly. A windowed
    maximum, as in BBR (draft-ietf-ccwg-bbr), would follow the burst; all bytes over all time would follow the stall.
    QEMU takes the last window of at least 100 ms as it is, its sync included.
    """
    samples = [
        (sample.sent_bytes, max(sample.send_s, TICK_S)) for sample in recent_rounds(rounds) if sample.sent_bytes >= 1
    ]
    if not samples:
        return _UNKNOWN
    enough = _ENOUGH_S * sum(sent for sent, _ in samples) / sum(took for _, took in samples)
    rates, recency = [], 1.0
    for sent, took in reversed(samples):
        share = sent / (sent + enough)
        rates.append((sent / took, recency * share))
        recency *= FORGET**share  # a round of little weight does not age the others
    value, weights = weighted_median(rates), sum(weight for _, weight in rates)
    off = sum(weight * min(abs(rate / value - 1), 1.0) for rate, weight in rates) / weights
    share = min(max(_NINE_IN_TEN * off, _LEAST_SPREAD / math.sqrt(weights)), _MOST_SPREAD)
    newest, weight = rates[0]
    if weight < _TELLING:
        newest = value
    return Estimate(value, min(value * (1 - share), newest), max(value * (1 + share), newest))

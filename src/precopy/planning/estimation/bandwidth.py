"""How fast the link is, from what rounds sent and how long that took."""

from __future__ import annotations

import math
from collections.abc import Sequence

from precopy.planning.estimation.weighting import FORGET, telling, weighted_median
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.metrics import RoundSample

_ENOUGH_S = 0.05
"""A round that lasts so long at the average rate counts half of what a very long one does."""
_TELLING = 0.5
"""Weight from which on the newest round's rate is within the range in any case."""
_TICK_S = 1e-6
"""No sending takes less than this, whatever the clock says."""

_NINE_IN_TEN = 1.645 * math.sqrt(math.pi / 2)
"""From a mean deviation to the range of nine in ten, for a normal distribution."""
_LEAST_SPREAD, _MOST_SPREAD = 0.08, 0.6
"""Of one long round; and the most that the rounds' rates may make of it."""

_UNKNOWN = Estimate(1e10, 1e9, 1e11)
"""Where nothing was sent yet, the speed of memory is all that is known to limit it."""


def estimate_bandwidth(rounds: Sequence[RoundSample]) -> Estimate:
    """B in bytes a second: the weighted median of the rounds' rates, each ``sent_bytes / send_s``.

    Only the time spent sending counts; syncs, scans and clears do not. A round's weight falls by a constant factor with
    each round after it and grows with its bytes up to a limit, so that a last round of a few pages, which is mostly
    the way to the peer and back, says next to nothing. From the third round on, one stalled round or one burst does not
    move the median, and the range reaches as far while that round is the newest; a link that has changed is believed
    after two.

    The range is of what rounds like these do; what a busy machine does to those to come is added where it is stated
    (doubt.py).

    Source: the sliding percentile of ExoPlayer's bandwidth meter, which takes the median of transfer rates weighted by
    size, because sliding means and exponential averages suffer from outliers and follow steps slowly. A windowed
    maximum, as BBR has it (draft-ietf-ccwg-bbr), would believe the burst; all bytes over all time, the stall. QEMU
    takes the last window of at least 100 ms as it is, its sync included.
    """
    samples = [(one.sent_bytes, max(one.send_s, _TICK_S)) for one in telling(rounds) if one.sent_bytes >= 1]
    if not samples:
        return _UNKNOWN
    enough = _ENOUGH_S * sum(sent for sent, _ in samples) / sum(took for _, took in samples)
    rates, recency = [], 1.0
    for sent, took in reversed(samples):
        share = sent / (sent + enough)
        rates.append((sent / took, recency * share))
        recency *= FORGET**share  # a round that says little makes others no older
    value, weights = weighted_median(rates), sum(weight for _, weight in rates)
    off = sum(weight * min(abs(rate / value - 1), 1.0) for rate, weight in rates) / weights
    share = min(max(_NINE_IN_TEN * off, _LEAST_SPREAD / math.sqrt(weights)), _MOST_SPREAD)
    newest, weight = rates[0]
    if weight < _TELLING:
        newest = value
    return Estimate(value, min(value * (1 - share), newest), max(value * (1 + share), newest))

"""How much further from its forecast a migration may end than the ranges of guest and link make it.

A forecast carries a migration on in a world that stays as it is. On a machine whose cores others want, too, threads
wait for their turn: a round of some tens of milliseconds then takes and dirties something else than the one before, and
a downtime has waits in it that are none of its parts'. Rates that differ from round to round tell of that; a single
round tells nothing of it, and is taken for one of a busy machine.

The figures are of 79 migrations of ``precopy bench predict`` on two cores that 13 to 18 threads wanted at a time
(docs/planning.md): with them nine in ten downtimes and total times lay within the ranges stated after rounds 1 to 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from precopy.planning.estimation.weighting import telling, weighted_median
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.metrics import RoundSample

_LESS, _MORE = 1.1, 0.8
"""How far a downtime on a busy machine may be below and above its range, as natural logarithms."""
_PHASE = 0.5
"""Share of ``_LESS`` that holds on any machine while rounds are to come: the last may leave less than would fit."""
_SOONER, _LATER = 0.5, 1.5
"""The same for the time from now until the end."""
_SLOWER, _FASTER = 1.0, 0.4
"""The same for the bandwidth of the rounds to come: short ones wait for their turn for more of their time."""
_STEADY, _GAIN = 0.02, 8.0
"""Rounds whose rates differ by the first (a natural logarithm) are those of a machine of one's own; each unit beyond it
is worth so much of a busy one."""
_FEW = 2.0
"""Of n rounds, differences are taken for larger by this over n - 1."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """``busy``: from 0, a machine of one's own, to 1, one that others want as much."""

    busy: float

    def bandwidth(self, known: Estimate) -> Estimate:
        """The range of the bandwidth of rounds to come."""
        low, high = known.low * math.exp(-self.busy * _SLOWER), known.high * math.exp(self.busy * _FASTER)
        return Estimate(known.value, low, high)

    def downtime(self, forecast: Estimate, *, ahead: bool) -> Estimate:
        """The range of a downtime; ``ahead`` where there are rounds before it."""
        less = _LESS * max(self.busy, _PHASE if ahead else 0.0)
        return Estimate(forecast.value, forecast.low * math.exp(-less), forecast.high * math.exp(self.busy * _MORE))

    def total(self, forecast: Estimate, now: float) -> Estimate:
        """The range of a total time, of which ``now`` seconds are over."""
        low = max(forecast.low - now, 0.0) * math.exp(-self.busy * _SOONER)
        high = max(forecast.high - now, 0.0) * math.exp(self.busy * _LATER)
        return Estimate(forecast.value, min(now + low, forecast.low), max(now + high, forecast.high))


def doubt(rounds: Sequence[RoundSample]) -> Doubt:
    """What these rounds leave open; nothing where there are none, and numbers are given instead."""
    sent = [(one.sent_bytes / one.send_s, one.send_s) for one in telling(rounds) if one.sent_bytes > 0 < one.send_s]
    if len(sent) < 2:
        return Doubt(1.0 if rounds else 0.0)
    middle, time = weighted_median(sent), sum(took for _, took in sent)
    squares = sum(math.log(rate / middle) ** 2 * took for rate, took in sent) / time
    differ = (1 + _FEW / (len(sent) - 1)) * math.sqrt(squares)
    return Doubt(min(_GAIN * max(differ - _STEADY, 0.0), 1.0))

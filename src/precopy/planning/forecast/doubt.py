"""The widening of a forecast's ranges for a busy machine.

A forecast assumes that guest and link stay as they are. On a machine with more threads than cores, threads wait for a
core: the times and dirty bytes of short rounds then vary from round to round, and a downtime contains waits that belong
to none of its parts. The variation of the rounds' rates measures that. After a single round there is no variation to
measure, and the machine is assumed to be busy.

The figures are of 79 migrations of ``precopy bench predict`` on two cores that 13 to 18 threads wanted at a time
(docs/planning.md): with them nine in ten downtimes and total times lay within the ranges stated after rounds 1 to 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from precopy.planning.estimation.bandwidth import TICK_S
from precopy.planning.estimation.weighting import recent_rounds, weighted_median
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.metrics import RoundSample

_LESS, _MORE = 1.1, 0.8
"""Natural logarithms by which a downtime's range is extended downwards and upwards on a fully busy machine."""
_OVERRUN = 0.22
"""Least extension upwards on any machine, where rounds were seen: the switchover comes in another moment of a round.
Of 50 migrations on two idle cores the ranges after round 3 held 56 % of downtimes without it; all others lay above, by
1 to 30 %. With it they would have held 96 %."""
_PHASE = 0.5
"""Share of ``_LESS`` that applies on every machine before the last round, which may leave less than the limit
allows."""
_SOONER, _LATER = 0.5, 1.5
"""The same logarithms for the time from now until the end."""
_SLOWER, _FASTER = 1.0, 0.4
"""The same for the bandwidth of later rounds: in short rounds waiting for a core takes a larger part of the time."""
_STEADY = 0.02
"""Deviation of the rounds' rates (natural logarithm) up to which the machine counts as idle."""
_GAIN = 8.0
"""Busyness for each unit of deviation above that; it is 1 from a deviation of 0.145 on."""
_FEW = 2.0
"""The deviation of n rounds is multiplied by 1 + this / (n - 1), because few rounds underestimate it."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """``busy``: from 0 (an idle machine) to 1 (as busy as those that the constants were taken from). ``measured``:
    whether the forecast is of a running migration, not of given numbers."""

    busy: float
    measured: bool = True

    def bandwidth(self, known: Estimate) -> Estimate:
        """The range of the bandwidth of rounds to come."""
        low, high = known.low * math.exp(-self.busy * _SLOWER), known.high * math.exp(self.busy * _FASTER)
        return Estimate(known.value, low, high)

    def downtime(self, forecast: Estimate, *, ahead: bool) -> Estimate:
        """The range of a downtime; ``ahead`` where there are rounds before it."""
        less = _LESS * max(self.busy, _PHASE if ahead else 0.0)
        most = max(self.held_up(forecast.high), forecast.high * math.exp(_OVERRUN if self.measured else 0.0))
        return Estimate(forecast.value, forecast.low * math.exp(-less), most)

    def held_up(self, downtime_s: float) -> float:
        """A downtime with the waits for a core that it may contain. The policy switches over where the downtime that it
        expects then is within the limit, so this alone may make a downtime exceed a limit that the forecast's keeps."""
        return downtime_s * math.exp(self.busy * _MORE)

    def total(self, forecast: Estimate, now: float) -> Estimate:
        """The range of a total time, of which ``now`` seconds have passed."""
        low = max(forecast.low - now, 0.0) * math.exp(-self.busy * _SOONER)
        high = max(forecast.high - now, 0.0) * math.exp(self.busy * _LATER)
        return Estimate(forecast.value, min(now + low, forecast.low), max(now + high, forecast.high))


def doubt(rounds: Sequence[RoundSample]) -> Doubt:
    """The doubt after these rounds; 0 without rounds, where a plan gives the numbers."""
    sent = [
        (sample.sent_bytes / sample.send_s, sample.send_s)
        for sample in recent_rounds(rounds)
        if sample.sent_bytes >= 1 and sample.send_s >= TICK_S
    ]
    if len(sent) < 2:
        return Doubt(1.0 if rounds else 0.0, measured=bool(rounds))
    middle, time = weighted_median(sent), sum(took for _, took in sent)
    squares = sum(math.log(rate / middle) ** 2 * took for rate, took in sent) / time
    differ = (1 + _FEW / (len(sent) - 1)) * math.sqrt(squares)
    return Doubt(min(_GAIN * max(differ - _STEADY, 0.0), 1.0))

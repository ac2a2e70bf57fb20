"""Migrations on paper for the tests of planning."""

from __future__ import annotations

import math

from precopy.planning import Costs, DirtyCurve, Estimate, Forecast, Limits, Metrics, RoundSample, decide, forecast

GB = 1e9


def metrics(
    *,
    bandwidth: float = GB,
    rate: float = 0.3 * GB,
    working_set: float = math.inf,
    ram: float = 16 * GB,
    remaining: float | None = None,
    x: float = 0.01,
    overhead: float = 0.0,
    spread: float = 0.0,
    rounds: tuple[RoundSample, ...] = (),
    throttle: float = 0.0,
    asked: float | None = None,
) -> Metrics:
    """A guest with one class of pages over a link, everything known to within ``spread``. ``throttle`` is taken of its
    time, and ``asked`` was asked for (None: just that)."""
    return Metrics(
        ram_bytes=int(ram),
        rounds=rounds,
        remaining_bytes=ram if remaining is None else remaining,
        dirty=DirtyCurve.of(rate, working_set),
        dirty_spread=spread,
        costs=Costs(Estimate.within(bandwidth, spread), 1.0, 0.0, x, 0.0, Estimate.exact(overhead)),
        throttled_share=throttle,
        asked_share=throttle if asked is None else asked,
    )


def sample(number: int, remaining: float, *, ended: float | None = None, throttle: float = 0.0) -> RoundSample:
    """A round of which only what remains after it is told apart."""
    return RoundSample(
        number=number,
        ended_s=float(number) if ended is None else ended,
        transfer_s=0.9,
        send_s=0.9,
        scan_s=0.0,
        clear_s=0.0,
        sync_s=0.1,
        sent_bytes=0.9 * GB,
        read_bytes=0.9 * GB,
        dirty_bytes=remaining,
        remaining_bytes=remaining,
        throttled_share=throttle,
    )


def samples(*remaining: float, throttle: float = 0.0) -> tuple[RoundSample, ...]:
    return tuple(sample(number, left, throttle=throttle) for number, left in enumerate(remaining, 1))


def forecast_of(known: Metrics, limits: Limits, now: float) -> Forecast:
    """Under our policy, as it decides now."""
    return forecast(known, limits, now, decide(known, limits, now))

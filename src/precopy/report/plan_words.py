"""A plan in words: whether it converges, with which figures, and what a change of one number would bring.

What a reader may set is rounded to the safe side: a rate down, a limit up, so that what is shown is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from precopy.migration.results import Range
from precopy.planning import Estimate
from precopy.planning.forecast.simulate import MOST_ROUNDS
from precopy.planning.plan.advice import Lever
from precopy.planning.plan.plan import Plan, downtime_after
from precopy.units import format_duration, format_rate

UNITS: dict[str, Callable[[float], str]] = {
    "bandwidth": format_rate,
    "dirty rate": format_rate,
    "sync time": format_duration,
    "downtime limit": format_duration,
    "rounds": lambda count: f"{count:.0f}",
}
"""How the figure is written that an advice is about."""
_EXACT = 1e-6
"""Share of a step that a figure may be off it and still counts as on it."""


def verdict(made: Plan) -> str:
    """One sentence: whether it converges, and what that depends on."""
    asked, forecast = made.input, made.forecast
    worse = f"bandwidth, dirty rate and working set are {100 * asked.uncertainty:.3g} %"
    if forecast.converges:
        doubt = "" if forecast.sure else f", but not if {worse} worse"
        count = forecast.rounds.value
        return (
            f"converges in {count:.0f} round{'' if count == 1 else 's'}{doubt}: "
            f"{ranged(forecast.total_s, format_duration)} in all, "
            f"downtime {ranged(forecast.downtime_s, format_duration)}"
        )
    doubt = "" if forecast.sure else f", unless {worse} better"
    rounds = f" in {asked.max_rounds} rounds" if downtime_after(asked, MOST_ROUNDS) <= asked.downtime_limit_s else ""
    return (
        f"will not converge{rounds}{doubt}: dirty rate is {_share(made)} of the bandwidth, sync time is "
        f"{format_duration(forecast.likely.rounds[-1].sync_s)}; smallest downtime limit "
        f"{ranged(forecast.smallest_downtime_limit_s, duration_up)}"
    )


def _share(made: Plan) -> str:
    return f"{made.input.dirty_rate_bytes_per_s / made.input.bandwidth_bytes_per_s:.2g}"


def lever_sentence(lever: Lever, converges: bool) -> str:
    """What to change, by how much, and what comes of it."""
    unit = UNITS[lever.what]
    if lever.wanted is None or lever.factor is None or lever.total_s is None or lever.downtime_s is None:
        return f"{lever.what}: none would make it converge by itself"
    change = f"{lever.what} {unit(lever.value)} -> {unit(lever.wanted)}"
    ratio = f"{lever.factor:.3g} times" if lever.wanted > lever.value else f"1/{lever.factor:.3g}"
    clears = "".join(f"; --clear {name} has {format_duration(sync_s)}" for name, sync_s in lever.clears[:2])
    comes = f"{format_duration(lever.total_s)} in all, downtime {format_duration(lever.downtime_s)}"
    return f"{change} ({ratio}): {'' if converges else 'converges, '}{comes}{clears}"


def unlimited(figure: float | None) -> float:
    """None stands for an infinity, which JSON does not have."""
    return math.inf if figure is None else figure


def rate_down(rate: float) -> str:
    """Rounded down: with what is shown it still converges."""
    if math.isinf(rate):
        return "any"
    step = 1e7 if rate >= 1e9 else 1e6 if rate >= 1e6 else 1e3 if rate >= 1e3 else 1.0
    return format_rate(math.floor(rate / step + _EXACT) * step)


def duration_up(seconds: float) -> str:
    """Rounded up: what is shown is enough as a limit."""
    if math.isinf(seconds):
        return format_duration(seconds)
    step = 1e-6 if seconds < 1e-3 else 1e-4 if seconds < 1 else 1e-2
    return format_duration(math.ceil(seconds / step - _EXACT) * step)


def ranged(figure: Range | Estimate, unit: Callable[[float], str]) -> str:
    """The likely value, and from where to where it may be."""
    value, low, high = (unit(unlimited(end)) for end in (figure.value, figure.low, figure.high))
    return value if low == high else f"{value} ({low} to {high})"

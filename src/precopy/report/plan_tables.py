"""``precopy plan`` for a terminal: verdict, figures, what to change first, the rounds, the patch series' answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from precopy.planning import Estimate, RoundSample
from precopy.planning.forecast.simulate import MOST_ROUNDS
from precopy.planning.plan.advice import Advice, Lever
from precopy.planning.plan.plan import Plan, PlanInput, downtime_after, downtime_with
from precopy.report.kinds.kind import TextPart
from precopy.report.kinds.migrate import bandwidth
from precopy.report.table import Column, Shown, Table, tabulate
from precopy.units import format_duration, format_rate, format_size

_FIRST_ROUNDS, _LAST_ROUNDS = 9, 3


def verdict(made: Plan) -> str:
    """One sentence: whether it converges, and what that depends on."""
    asked, forecast = made.input, made.forecast
    worse = f"bandwidth, dirty rate and working set are {100 * asked.uncertainty:.3g} %"
    if forecast.converges:
        doubt = "" if forecast.sure else f", but not if {worse} worse"
        count = forecast.rounds.value
        return (
            f"converges in {count:.0f} round{'' if count == 1 else 's'}{doubt}: "
            f"{_range(forecast.total_s, format_duration)} in all, "
            f"downtime {_range(forecast.downtime_s, format_duration)}"
        )
    doubt = "" if forecast.sure else f", unless {worse} better"
    rounds = f" in {asked.max_rounds} rounds" if downtime_after(asked, MOST_ROUNDS) <= asked.downtime_limit_s else ""
    return (
        f"will not converge{rounds}{doubt}: dirty rate is {_share(made)} of the bandwidth, sync time is "
        f"{format_duration(forecast.likely.rounds[-1].sync_s)}; smallest downtime limit "
        f"{_range(forecast.smallest_downtime_limit_s, _duration_up)}"
    )


def _share(made: Plan) -> str:
    return f"{made.input.dirty_rate_bytes_per_s / made.input.bandwidth_bytes_per_s:.2g}"


def lever_sentence(lever: Lever, converges: bool) -> str:
    """What to change, by how much, and what comes of it."""
    unit = _UNITS[lever.what]
    if lever.wanted is None or lever.factor is None or lever.total_s is None or lever.downtime_s is None:
        return f"{lever.what}: none would make it converge by itself"
    change = f"{lever.what} {unit(lever.value)} -> {unit(lever.wanted)}"
    ratio = f"{lever.factor:.3g} times" if lever.wanted > lever.value else f"1/{lever.factor:.3g}"
    clears = "".join(f"; --clear {name} has {format_duration(x)}" for name, x in lever.clears[:2])
    comes = f"{format_duration(lever.total_s)} in all, downtime {format_duration(lever.downtime_s)}"
    return f"{change} ({ratio}): {'' if converges else 'converges, '}{comes}{clears}"


_UNITS: dict[str, Callable[[float], str]] = {
    "bandwidth": format_rate,
    "dirty rate": format_rate,
    "sync time": format_duration,
    "downtime limit": format_duration,
    "rounds": lambda count: f"{count:.0f}",
}


def plan_text(made: Plan, advice: Advice, source: str) -> list[TextPart]:
    """All of it; ``source`` is where the numbers come from."""
    forecast, asked = made.forecast, made.input
    share = 100 * asked.uncertainty
    ranges = f"; ranges: bandwidth, dirty rate and working set {share:.3g} % better and worse" if share else ""
    ends = "" if forecast.converges else " (given up)"
    figures = (
        (f"rounds{ends}", _range(forecast.rounds, _UNITS["rounds"])),
        (f"total time{ends}", _range(forecast.total_s, format_duration)),
        (f"downtime{ends}", _range(forecast.downtime_s, format_duration)),
        ("smallest downtime limit", _range(forecast.smallest_downtime_limit_s, _duration_up)),
        ("largest dirty rate", _range(forecast.largest_dirty_rate_bytes_per_s, _rate)),
    )
    columns = (Column("figure", numeric=False), Column("value", numeric=False))
    parts: list[TextPart] = [verdict(made), "", _input_line(asked, source) + ranges, ""]
    parts += [Table("What is forecast", columns, figures, heads=False), "", *_advice_lines(advice)]
    return [*parts, _rounds_table(made), _letter_line(made)]


def _input_line(asked: PlanInput, source: str) -> str:
    zero = "" if asked.first_bytes is None else " (zero pages apart)"
    return (
        f"{source + ': ' if source else ''}{format_size(asked.ram_bytes)} of memory{zero}, dirty rate "
        f"{format_rate(asked.dirty_rate_bytes_per_s)} of {format_size(asked.working_set_bytes)}, bandwidth "
        f"{bandwidth(asked.bandwidth_bytes_per_s)}, sync time {_sync(asked)}, downtime limit "
        f"{format_duration(asked.downtime_limit_s)} in {asked.max_rounds} rounds, "
        f"switchover overhead {format_duration(asked.switchover_overhead_s)}"
    )


def _sync(asked: PlanInput) -> str:
    grows = asked.sync_s_per_byte * 2**20
    return format_duration(asked.sync_s) + (f" + {format_duration(grows)} for each dirty MiB" if grows else "")


def _advice_lines(advice: Advice) -> list[str]:
    if not advice.levers:
        return ["nothing that is tried here would make it sooner and shorter"]
    head = "twice as good, each alone:" if advice.converges else "what would make it converge, each alone:"
    first = advice.first
    lines = [f"change first: {lever_sentence(first, advice.converges)}"] if first else ["no single change helps"]
    rest = [one for one in advice.levers if one is not first]
    return [*lines, *([head] if rest else []), *(f"  {lever_sentence(one, advice.converges)}" for one in rest)]


_ROUNDS: tuple[Shown[tuple[PlanInput, RoundSample]], ...] = (
    Shown("round", lambda made: str(made[1].number)),
    Shown("reads", lambda made: format_size(made[1].read_bytes)),
    Shown("transfer time", lambda made: format_duration(made[1].transfer_s)),
    Shown("sync time", lambda made: format_duration(made[1].sync_s)),
    Shown("then remaining", lambda made: format_size(made[1].remaining_bytes)),
    Shown("downtime then", lambda made: format_duration(downtime_with(made[0], made[1].remaining_bytes))),
    Shown("at", lambda made: format_duration(made[1].ended_s)),
)


def _rounds_table(made: Plan) -> Table:
    """A line a round; of many, the first and the last ones."""
    rounds = [(made.input, planned) for planned in made.forecast.likely.rounds]
    table = tabulate("The rounds that are likely", _ROUNDS, rounds)
    if len(rounds) <= _FIRST_ROUNDS + _LAST_ROUNDS:
        return table
    rows = (*table.rows[:_FIRST_ROUNDS], ("...",) * len(_ROUNDS), *table.rows[-_LAST_ROUNDS:])
    return replace(table, rows=rows)


_UNSETTLED = "rounds do not settle: the dirty rate is not below the bandwidth"


def _letter_line(made: Plan) -> str:
    letter = made.qemu_model
    limit, critical = letter.smallest_downtime_limit_s, letter.critical_transfer_s
    settles = _UNSETTLED if math.isinf(critical) else f"transfer time {format_duration(critical)}"
    return (
        'QEMU as the patch series "migration: merge fragmented clear_dirty ioctls" models it (no working set, no '
        f"switchover overhead): {settles}, bandwidth as QEMU measures it "
        f"{_rate(letter.estimated_bandwidth_bytes_per_s)}; "
        + (
            "no downtime limit will do"
            if math.isinf(limit)
            else f"the downtime limit has to be above {format_duration(limit)}"
        )
        + f", the dirty rate below {_rate(letter.largest_dirty_rate_bytes_per_s)}"
    )


def _rate(rate: float) -> str:
    """Rounded down: with what is shown it still converges."""
    if math.isinf(rate):
        return "any"
    step = 1e7 if rate >= 1e9 else 1e6 if rate >= 1e6 else 1e3 if rate >= 1e3 else 1.0
    return format_rate(math.floor(rate / step + _EXACT) * step)


def _duration_up(seconds: float) -> str:
    """Rounded up: what is shown is enough as a limit."""
    if math.isinf(seconds):
        return format_duration(seconds)
    step = 1e-6 if seconds < 1e-3 else 1e-4 if seconds < 1 else 1e-2
    return format_duration(math.ceil(seconds / step - _EXACT) * step)


_EXACT = 1e-6


def _range(figure: Estimate, unit: Callable[[float], str]) -> str:
    value, low, high = unit(figure.value), unit(figure.low), unit(figure.high)
    return value if low == high else f"{value} ({low} to {high})"

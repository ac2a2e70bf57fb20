"""Verdicts in words: whether a migration converges, with which downtime, and what would help.

Figures of a verdict are estimates, so they are shown with no more than two or three digits. The limit that would help
is rounded up: what is shown, set as the limit, is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from precopy.migration.results import Migrated, Range, Verdict
from precopy.planning import Action
from precopy.units import format_duration, format_rate, parse_duration

_SURE_ROUND = 3
"""The round whose verdict is held against what came: enough was seen by then, and much is still to come."""


def sentence(verdict: Verdict) -> str:
    """One sentence, such as ``converges in 3 more rounds, downtime 41 to 55 ms, done in 2.1 s``."""
    if verdict.action == Action.SWITCH_OVER.value:
        above = " above the downtime limit" if verdict.converges is False else ""
        return f"switching over{above}: downtime {durations(verdict.downtime_s)}"
    return "; ".join(filter(None, (_meanwhile(verdict), _outlook(verdict))))


def after_round(verdict: Verdict) -> str:
    """The same, preceded by the number of the round."""
    return f"after round {verdict.round}: {sentence(verdict)}"


def expected_line(done: Migrated) -> str:
    """What the third round's verdict (the last one, where there were fewer) said, beside what came; verification, which
    no verdict expects, excluded. Empty where there was no verdict."""
    if not done.verdicts:
        return ""
    verdict = done.verdicts[min(_SURE_ROUND, len(done.verdicts)) - 1]
    return (
        f"after round {verdict.round}: expected downtime {durations(verdict.downtime_s)}, "
        f"total {durations(verdict.total_s)}; measured {_duration(done.downtime.total_s)}, "
        f"{_duration(done.total_s - done.verify_s)}"
    )


def durations(seconds: Range) -> str:
    """A range of durations: ``41 to 55 ms``; once, where both ends print the same."""
    return _between(seconds.low, seconds.high, _duration)


def _meanwhile(verdict: Verdict) -> str:
    """What is done about it in the next round."""
    share = f"{100 * verdict.throttle_to:.0f} %"
    if verdict.action == Action.THROTTLE.value:
        return f"throttling by {share}"
    waiting = "waiting for a local minimum" if verdict.action == Action.WAIT.value else ""
    return ", ".join(filter(None, (waiting, f"throttled by {share}" if verdict.throttle_to else "")))


def _outlook(verdict: Verdict) -> str:
    if verdict.converges:
        return (
            f"converges in {_rounds(verdict.more_rounds)}, downtime {durations(verdict.downtime_s)}, "
            f"done in {durations(_from_now(verdict))}"
        )
    doubt = "may not converge" if verdict.converges is None else "will not converge"
    enough, likely = verdict.smallest_downtime_limit_s.high, verdict.downtime_s.value
    within = enough is not None and enough <= verdict.downtime_limit_s
    if within and verdict.converges is None and likely is not None and likely <= verdict.downtime_limit_s:
        return (
            f"probably converges in {_rounds(verdict.more_rounds)}, downtime {durations(verdict.downtime_s)} "
            f"(limit {_duration(verdict.downtime_limit_s)}), done in {durations(_from_now(verdict))}"
        )
    if within:
        return f"{doubt} in the rounds and the time that it has: {_load(verdict)}"
    return f"{doubt}: {_load(verdict)}; {_limits_that_help(verdict)}"


def _limits_that_help(verdict: Verdict) -> str:
    """The downtime limit that makes it converge, or what does where no limit is sure to."""
    smallest = verdict.smallest_downtime_limit_s
    if smallest.low is None:
        return f"no downtime limit helps: {_else_needed(verdict)}"
    if smallest.high is None:
        return f"smallest downtime limit at least {_duration(smallest.low)}; to be sure, {_else_needed(verdict)}"
    if verdict.converges is None:
        return f"smallest downtime limit {_between(smallest.low, smallest.high, _duration_up)}"
    return f"smallest downtime limit {_duration_up(smallest.high)}"


def _else_needed(verdict: Verdict) -> str:
    """Which dirty rate or which bandwidth would make it converge. The bandwidth is approximate: it is scaled as if only
    the ratio of both counted, which leaves out the time of reading pages."""
    bandwidth, most = verdict.bandwidth_bytes_per_s.value, verdict.largest_dirty_rate_bytes_per_s
    if not most or not bandwidth:
        return "the dirty rate has to fall or the bandwidth to rise, and a higher limit is needed besides"
    needed = bandwidth * verdict.dirty_rate_bytes_per_s / most
    rise = f"the bandwidth to rise above about {format_rate(needed)}"
    return f"the dirty rate has to fall below {format_rate(most)} or {rise}"


def _load(verdict: Verdict) -> str:
    """The dirty rate as a share of the bandwidth; a range where it is uncertain whether the migration converges."""
    rate, bandwidth = verdict.dirty_rate_bytes_per_s, verdict.bandwidth_bytes_per_s
    if not bandwidth.value:
        return f"dirty rate is {format_rate(rate)}"
    if verdict.converges is not None:
        return f"dirty rate is {_share(rate / bandwidth.value)}"
    low = rate / bandwidth.high if bandwidth.high else None
    high = rate / bandwidth.low if bandwidth.low else None
    return f"dirty rate is {_between(low, high, _share)}"


def _from_now(verdict: Verdict) -> Range:
    value, low, high = (
        None if end is None else max(end - verdict.elapsed_s, 0.0)
        for end in (verdict.total_s.value, verdict.total_s.low, verdict.total_s.high)
    )
    return Range(value, low, high)


def _rounds(rounds: Range) -> str:
    return f"{_between(rounds.low, rounds.high, _count)} more round{'' if rounds.high == 1 else 's'}"


def _between(low: float | None, high: float | None, show: Callable[[float], str]) -> str:
    """Both ends, with the unit once where they share it; None is infinite."""
    if low is None:
        return "without end"
    if high is None:
        return f"at least {show(low)}"
    first, last = show(low), show(high)
    if first == last:
        return first
    number, _, unit = first.partition(" ")
    return f"{number if unit and last.endswith(f' {unit}') else first} to {last}"


def _count(number: float) -> str:
    return f"{number:.0f}"


def _share(ratio: float) -> str:
    return f"{ratio:.2f} of the bandwidth" if ratio < 9.995 else f"{ratio:.0f} times the bandwidth"


def _duration_up(seconds: float) -> str:
    return _duration(seconds, lambda steps: math.ceil(steps - 1e-6))


def _duration(seconds: float, whole: Callable[[float], int] = round) -> str:
    """Two digits, or three from 100 on, in the unit that `format_duration` takes."""
    unit = format_duration(seconds).partition(" ")[2]
    figure = seconds / parse_duration(f"1{unit}")
    digits = 1 if figure < 9.95 and unit != "us" else 0
    return f"{whole(figure * 10**digits) / 10**digits:.{digits}f} {unit}"

"""Replays as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

from rich.console import RenderableType
from rich.text import Text

from precopy.migration.results import finite
from precopy.planning import Limits
from precopy.planning.model.trace import Trace
from precopy.report.console import table
from precopy.report.kinds.compare import EXPECTED, NOT_THE_LAST, downtime_of, yes
from precopy.report.replay_documents import Replayed, ReplayRound, caution, replay_rounds, time_lost_s
from precopy.units import format_duration, format_rate, format_size

_ROUND_COLUMNS: tuple[tuple[str, Callable[[ReplayRound], str]], ...] = (
    ("sync time", lambda one: "-" if one.sync_s is None else format_duration(one.sync_s)),
    ("dirtied", lambda one: format_size(one.dirty_bytes)),
    ("transfer time", lambda one: format_duration(one.transfer_s)),
    ("sent", lambda one: format_size(one.sent_bytes)),
    ("throttle", lambda one: f"{one.throttled_share:.0%}"),
)


def replay_summary(trace: Trace, done: Replayed) -> list[RenderableType]:
    """The recording, and two lines: the recorded migration and the replayed one."""
    facts, end, outcome = trace.facts, trace.outcome, done.outcome
    shown = table(
        ("", "l"), ("policy", "l"), ("clear", "l"), ("link", "r"), ("downtime limit", "r"), ("rounds", "r"),
        ("completed", "l"), ("downtime", "r"), ("total", "r"), ("bytes", "r"), ("guest lost", "r"),
    )  # fmt: skip
    recorded_s = 0.0 if end is None else end.downtime_s
    shown.add_row(
        "recorded",
        facts.policy,
        facts.clear,
        "no limit" if facts.max_bandwidth is None else format_rate(facts.max_bandwidth),
        _limit(facts.limits),
        str(len(trace.rounds)),
        "?" if end is None else yes(end.completed),
        format_duration(recorded_s) if end is not None and end.completed else "-",
        "?" if end is None else format_duration(end.total_s),
        "?" if end is None else format_size(end.sent_bytes),
        format_duration(time_lost_s(trace.samples, recorded_s)),
    )
    shown.add_row(
        "replayed",
        done.policy,
        done.clear,
        "as recorded" if done.bandwidth is None else format_rate(done.bandwidth),
        _limit(done.limits),
        str(len(outcome.rounds)),
        yes(outcome.completed),
        downtime_of(outcome.completed, finite(outcome.downtime_s)),
        format_duration(outcome.total_s),
        format_size(outcome.sent_bytes),
        format_duration(outcome.guest_time_lost_s),
    )
    what = f"{facts.guest} guest, {format_size(trace.ram_bytes)} in {len(trace.layout.blocks)} RAM blocks"
    parts: list[RenderableType] = [Text(f"{what}, tracker {facts.tracker}"), shown]
    parts += [Text(f"note: {trace.note}")] if trace.note else []
    parts += [Text(f"recorded: {end.error}")] if end is not None and end.error else []
    parts += [Text(f"caution: {caution(done)}")] if caution(done) else []
    parts.append(Text(NOT_THE_LAST))
    parts.append(Text(f"replayed: {outcome.decision.action.value}, {outcome.decision.reason}"))
    return [*parts, Text(EXPECTED)] if outcome.completed else parts


def replay_table(trace: Trace, done: Replayed) -> list[RenderableType]:
    """A line a round: the recorded round beside the replayed one."""
    sides = [(f"{side}{name}", "r") for side in ("was: ", "") for name, _ in _ROUND_COLUMNS]
    shown = table(("round", "r"), *sides)
    first_s = trace.facts.first_sync_s
    was, would = (replay_rounds(samples, first_s, trace.ram_bytes) for samples in (trace.samples, done.outcome.rounds))
    for number, pair in enumerate(zip_longest(was, would), 1):
        cells = ["" if one is None else value(one) for one in pair for _, value in _ROUND_COLUMNS]
        shown.add_row(str(number), *cells)
    return [shown]


def _limit(limits: Limits) -> str:
    return format_duration(limits.downtime_limit_s)

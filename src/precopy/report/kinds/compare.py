"""``precopy compare``: what each policy made of the same recorded migrations."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.migration.results import finite
from precopy.planning.replay.compare import Score, Scores
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.kinds.shared import Failed
from precopy.report.table import Shown, tabulate
from precopy.units import format_duration, format_size


@dataclass(frozen=True)
class PolicyScore:
    """What a policy made of a recorded migration. One that did not complete has the downtime that switching over would
    have had when it ended; ``rounds`` is their number, without the last one. None is infinite. ``on_front``: no other
    one completed it that was better both in downtime and in total time."""

    policy: Text
    completed: bool
    downtime_s: Number | None
    total_s: Number | None
    sent_bytes: Number | None
    guest_time_lost_s: Number | None
    rounds: Count
    reason: Text
    on_front: bool

    @classmethod
    def of(cls, score: Score) -> PolicyScore:
        outcome = score.outcome
        return cls(
            policy=score.policy,
            completed=outcome.completed,
            downtime_s=finite(outcome.downtime_s),
            total_s=finite(outcome.total_s),
            sent_bytes=finite(outcome.sent_bytes),
            guest_time_lost_s=finite(outcome.guest_time_lost_s),
            rounds=len(outcome.rounds),
            reason=outcome.decision.reason,
            on_front=score.on_front,
        )


@dataclass(frozen=True)
class ScoredTrace:
    name: Text
    results: Annotated[tuple[PolicyScore, ...], Meta(min_length=1, max_length=100)]


@dataclass(frozen=True)
class PolicyComparison:
    """``traces`` in the order in which they were given; ``failed`` could not be read or replayed."""

    traces: Annotated[tuple[ScoredTrace, ...], Meta(min_length=1, max_length=200)]
    failed: Annotated[tuple[Failed, ...], Meta(max_length=10_000)] = ()

    @classmethod
    def of(cls, scored: list[Scores], failed: list[Failed]) -> PolicyComparison:
        traces = (ScoredTrace(trace.name, tuple(map(PolicyScore.of, trace.results))) for trace in scored)
        return cls(tuple(traces), tuple(failed))


NOT_THE_LAST = (
    "rounds are those before the switchover; the last one, with the guest paused, is not among them but is in bytes, "
    "downtime and total"
)

EXPECTED = (
    "a range of downtime in a reason is what the policy expected from the rounds that it had seen; the downtime beside "
    "it is what the recorded guest and the link then made of it"
)


def downtime_of(completed: bool, downtime_s: float | None) -> str:
    """In brackets where the migration did not complete."""
    if downtime_s is None:
        return "-"
    return format_duration(downtime_s) if completed else f"({format_duration(downtime_s)})"


def yes(completed: bool) -> str:
    return "yes" if completed else "no"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)


_SCORES: tuple[Shown[PolicyScore], ...] = (
    Shown("policy", lambda score: score.policy, numeric=False),
    Shown("completed", lambda score: yes(score.completed), numeric=False),
    Shown("downtime", lambda score: downtime_of(score.completed, score.downtime_s)),
    Shown("total", lambda score: _duration(score.total_s)),
    Shown("bytes", lambda score: "-" if score.sent_bytes is None else format_size(score.sent_bytes)),
    Shown("guest lost", lambda score: _duration(score.guest_time_lost_s)),
    Shown("rounds", lambda score: str(score.rounds)),
    Shown("front", lambda score: "*" if score.on_front else "", numeric=False),
    Shown("reason", lambda score: score.reason, numeric=False),
)
_Summed = tuple[str, list[PolicyScore]]
"""A policy, and its score on each migration."""


def _median(scores: list[PolicyScore], what: str) -> str:
    """Of those that it completed."""
    found = [value for score in scores if score.completed and (value := getattr(score, what)) is not None]
    return format_duration(median(found)) if found else "-"


_SUMMARY: tuple[Shown[_Summed], ...] = (
    Shown("policy", lambda summed: summed[0], numeric=False),
    Shown("completed", lambda summed: f"{sum(score.completed for score in summed[1])} of {len(summed[1])}"),
    Shown("on the front", lambda summed: f"{sum(score.on_front for score in summed[1])} of {len(summed[1])}"),
    Shown("median downtime", lambda summed: _median(summed[1], "downtime_s")),
    Shown("median total", lambda summed: _median(summed[1], "total_s")),
)


def _text(compared: PolicyComparison) -> list[TextPart]:
    """A line a policy for each recording, and over all recordings."""
    parts: list[TextPart] = []
    for trace in compared.traces:
        parts += [trace.name, tabulate(f"Policies on {trace.name}", _SCORES, trace.results)]
    parts += [NOT_THE_LAST, EXPECTED]
    if len(compared.traces) > 1:
        scores = [score for trace in compared.traces for score in trace.results]
        summed = [
            (name, [score for score in scores if score.policy == name])
            for name in {score.policy: 0 for score in scores}
        ]
        caption = f"all {len(compared.traces)} recordings"
        parts += [caption, tabulate(caption, _SUMMARY, summed)]
    return parts


KIND = Kind(PolicyComparison, _text)

"""``precopy bench predict``: what was said after the first rounds of migrations, beside what then happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number, Signed, Text
from precopy.migration.results import Range
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.kinds.shared import Failed
from precopy.report.table import Shown, tabulate
from precopy.units import format_duration

Shares = Annotated[dict[Text, Number], Meta(max_length=20)]
"""Of migrations, by how many per cent a prediction was off at most."""


@dataclass(frozen=True)
class Case:
    """A guest of ``ram`` bytes that writes ``write_rate`` pages a second (None: as fast as it goes) into
    ``working_set`` bytes (None: all) as ``workload`` does, migrated over a link capped at ``max_bandwidth`` bytes a
    second with ``downtime_limit_s``. ``converges``: whether it should, by its figures."""

    workload: Text
    write_rate: Count | None
    working_set: Count | None
    max_bandwidth: Count
    downtime_limit_s: Number
    ram: Count
    converges: bool = True


@dataclass(frozen=True)
class Said:
    """What was said after round ``after``, and whether each range held what was then measured."""

    after: Count
    converges: bool | None
    downtime_s: Range
    downtime_held: bool
    total_s: Range
    total_held: bool


@dataclass(frozen=True)
class Predicted:
    """A migration that completed; ``name`` is its case in words. Predictions are those after round
    ``predicted_after``, of ``rounds`` in all; the errors are shares of what was measured. ``said``: the ranges after
    each of the first rounds, where the migration had that many before the switchover."""

    name: Text
    case: Case
    rounds: Count
    predicted_after: Count
    predicted_downtime_s: Range
    measured_downtime_s: Number
    downtime_error: Signed
    predicted_total_s: Range
    measured_total_s: Number
    total_error: Signed
    said: Annotated[tuple[Said, ...], Meta(max_length=100)] = ()

    @property
    def error(self) -> float:
        """The larger of the two errors, as a share of what was measured."""
        return max(abs(self.downtime_error), abs(self.total_error))


@dataclass(frozen=True)
class Hopeless:
    """A migration that could not converge: after which round it was named so (None: never), with which smallest
    downtime limit; and how the same migration went with that limit."""

    name: Text
    case: Case
    named_after: Count | None
    smallest_downtime_limit_s: Number | None
    then_completed: bool
    then_rounds: Count
    then_downtime_s: Number | None
    detail: Text


@dataclass(frozen=True)
class Missed:
    """A migration that should have converged and did not complete: why, and after which round it was named so first
    (None: never)."""

    name: Text
    case: Case
    failed: Failed
    rounds: Count
    named_after: Count | None


@dataclass(frozen=True)
class Held:
    """Of the ranges stated after round ``after`` of ``migrations`` that completed: which share held what came, of the
    downtime, the total time and both; and how wide they were, as upper over lower end (medians; None: without end)."""

    after: Count
    migrations: Count
    downtime: Number
    total: Number
    both: Number
    downtime_width: Number | None
    total_width: Number | None


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """All of it. ``migrations`` completed, ``missed`` did not; shares are of those that completed. ``share_within``:
    by per cent, the share of migrations of which both downtime and total time were predicted that well;
    ``downtime_within`` and ``total_within`` each by itself. ``held``: how often ranges held. ``ahead``: how many of the
    predictions had at least one more round before them than that of the switchover, and ``share_within_ahead`` is of
    these."""

    migrations: Annotated[tuple[Predicted, ...], Meta(max_length=5000)]
    missed: Annotated[tuple[Missed, ...], Meta(max_length=5000)] = ()
    held: Annotated[tuple[Held, ...], Meta(max_length=100)] = ()
    hopeless: Annotated[tuple[Hopeless, ...], Meta(max_length=5000)] = ()
    share_within: Shares
    downtime_within: Shares
    total_within: Shares
    ahead: Count
    share_within_ahead: Shares
    hopeless_named: Number | None
    hopeless_completed: Number | None


def _text(done: Predictions) -> list[TextPart]:
    """A line a migration, a line one that did not complete, a line one that cannot converge, and the shares."""
    shown: list[TextPart] = []
    if done.migrations:
        shown += [tabulate("Every migration that completed", _MIGRATIONS, done.migrations), *_shares(done)]
    if done.held:
        shown.append(tabulate("How often the ranges held that were stated after the first rounds", _HELD, done.held))
        shown.append("width: upper over lower end of a range, median")
    if done.missed:
        tried = len(done.migrations) + len(done.missed)
        shown += [f"{len(done.missed)} of {tried} migrations did not complete:", *map(_missed, done.missed)]
    if done.hopeless:
        named, completed = (100 * (share or 0.0) for share in (done.hopeless_named, done.hopeless_completed))
        shown += [
            tabulate("Migrations that cannot converge", _HOPELESS, done.hopeless),
            f"cannot converge: {named:.0f} % named so within five rounds; {completed:.0f} % converge with that limit",
        ]
    return shown


def _range(estimate: Range) -> str:
    parts = (estimate.value, estimate.low, estimate.high)
    value, low, high = ("?" if part is None else format_duration(part) for part in parts)
    return f"{value} ({low} to {high})"


def _off(predicted: Range, error: float) -> str:
    """By how much the predicted value is off the measured one; unknown where no end was predicted."""
    return "?" if predicted.value is None else f"{100 * error:+.0f} %"


_MIGRATIONS: tuple[Shown[Predicted], ...] = (
    Shown("migration", lambda predicted: predicted.name, numeric=False),
    Shown("rounds", lambda predicted: str(predicted.rounds)),
    Shown("after", lambda predicted: str(predicted.predicted_after)),
    Shown("downtime: predicted", lambda predicted: _range(predicted.predicted_downtime_s)),
    Shown("measured", lambda predicted: format_duration(predicted.measured_downtime_s)),
    Shown("off", lambda predicted: _off(predicted.predicted_downtime_s, predicted.downtime_error)),
    Shown("total: predicted", lambda predicted: _range(predicted.predicted_total_s)),
    Shown("measured", lambda predicted: format_duration(predicted.measured_total_s)),
    Shown("off", lambda predicted: _off(predicted.predicted_total_s, predicted.total_error)),
)


def _shares(done: Predictions) -> list[str]:
    count = len(done.migrations)
    named = (
        (f"both, of {count} migrations", done.share_within),
        (f"both, of the {done.ahead} with more rounds before the switchover's", done.share_within_ahead),
        (f"downtime, of {count}", done.downtime_within),
        (f"total time, of {count}", done.total_within),
    )
    return [
        f"{what}: {', '.join(f'{100 * share:.0f} % within {per_cent} %' for per_cent, share in shares.items())}"
        for what, shares in named
    ]


def _width(width: float | None) -> str:
    return "without end" if width is None else f"{width:.3g}"


_HELD: tuple[Shown[Held], ...] = (
    Shown("ranges after round", lambda held: str(held.after)),
    Shown("migrations", lambda held: str(held.migrations)),
    Shown("downtime held", lambda held: f"{100 * held.downtime:.0f} %"),
    Shown("total held", lambda held: f"{100 * held.total:.0f} %"),
    Shown("both", lambda held: f"{100 * held.both:.0f} %"),
    Shown("width: downtime", lambda held: _width(held.downtime_width)),
    Shown("total", lambda held: _width(held.total_width)),
)


def _missed(missed: Missed) -> str:
    named = f"named so after round {missed.named_after}" if missed.named_after else "never named so"
    return f"  {missed.name}: {missed.failed.message}" + (f"; {named}" if missed.failed.converged is False else "")


def _then(hopeless: Hopeless) -> str:
    then = hopeless.then_downtime_s
    return f"{format_duration(then)} in {hopeless.then_rounds} rounds" if then is not None else hopeless.detail


def _limit(limit: float | None) -> str:
    return "none" if limit is None else format_duration(limit)


_HOPELESS: tuple[Shown[Hopeless], ...] = (
    Shown("cannot converge", lambda hopeless: hopeless.name, numeric=False),
    Shown("named after round", lambda hopeless: str(hopeless.named_after or "never")),
    Shown("smallest limit", lambda hopeless: _limit(hopeless.smallest_downtime_limit_s)),
    Shown("with that limit", _then, numeric=False),
)


KIND = Kind(Predictions, _text)

"""What was predicted while a migration ran, against what was measured at its end."""

from __future__ import annotations

from collections.abc import Callable

from precopy.migration.results import Migrated, Range, Verdict
from precopy.report.html.charts.bars import MOST_ROWS, RangeBar, ranges
from precopy.report.html.charts.plot import Reference
from precopy.report.html.charts.scale import SECONDS, Axis, fitting
from precopy.report.html.parts import Figure, Key
from precopy.report.html.words import NONE, duration, span
from precopy.report.table import Column, Table

_READING = (
    "A dot is what was predicted, the line through it the range in which the truth should lie about nine times in ten. "
    "An arrow means that there was no end in sight."
)
_FAR = 50
"""Factor over the largest other value from which the end of a range is drawn as open."""


def prediction_figures(done: Migrated, prefix: str) -> list[Figure]:
    """Downtime and total time, each as predicted after every round. None in older files."""
    if not done.verdicts:
        return []
    return [
        _figure(
            done, f"{prefix}predicted-downtime", "downtime", done.downtime.total_s, lambda verdict: verdict.downtime_s
        ),
        _figure(
            done,
            f"{prefix}predicted-total",
            "total time",
            done.total_s - done.verify_s,
            lambda verdict: verdict.total_s,
        ),
    ]


def _figure(done: Migrated, name: str, what: str, measured: float, of: Callable[[Verdict], Range]) -> Figure:
    verdicts = done.verdicts
    inside = sum(_inside(of(verdict), measured) for verdict in verdicts)
    title = (
        f"The {what} that was predicted after each round, against the {duration(measured)} that were then measured: "
        f"{inside} of {len(verdicts)} ranges have it inside."
    )
    shown = verdicts[:MOST_ROWS]
    axis = _axis(what, [of(verdict) for verdict in shown], measured)
    rows = [_row(verdict, of(verdict), measured) for verdict in shown]
    reading = [_READING]
    if what == "total time":
        reading.append("Total time is without the time that verification took.")
    if len(shown) < len(verdicts):
        reading.append(f"Only the first {MOST_ROWS} rounds are drawn; the table has all.")
    return Figure(
        name,
        f"Predicted {what}",
        title,
        ranges(rows, axis, title, (Reference(measured, f"measured {duration(measured)}"),)),
        (Key(1, "range", "predicted, with its range"), Key(6, "line", "measured")),
        tuple(reading),
        _table(done, what, measured, of),
    )


def _inside(estimate: Range, measured: float) -> bool:
    low, high = estimate.low, estimate.high
    return low is not None and low <= measured and (high is None or measured <= high)


def _row(verdict: Verdict, estimate: Range, measured: float) -> RangeBar:
    """``estimate`` as it is drawn: what is far beyond the measured value is an open end."""

    def near(value: float | None) -> float | None:
        return value if value is not None and value <= _FAR * max(measured, 1e-9) else None

    low = near(estimate.low)
    said = span(estimate, duration)
    return RangeBar(f"round {verdict.round}", near(estimate.value), low, near(estimate.high), said)


def _axis(what: str, estimates: list[Range], measured: float) -> Axis:
    values = [measured]
    for estimate in estimates:
        values += [value for value in (estimate.value, estimate.low, estimate.high) if value is not None]
    near = [value for value in values if value <= _FAR * max(measured, 1e-9)]
    return fitting(what, [*near, max(measured, 1e-9)], SECONDS)


def _table(done: Migrated, what: str, measured: float, of: Callable[[Verdict], Range]) -> Table:
    columns = (
        Column("after round"),
        Column(f"predicted {what}"),
        Column("range"),
        Column("off by"),
        Column("more rounds"),
        Column("smallest limit"),
        Column("said", False),
    )
    rows = tuple(
        (
            f"{verdict.round}",
            duration(of(verdict).value),
            span(of(verdict), duration),
            _off(of(verdict).value, measured),
            span(verdict.more_rounds, lambda value: f"{value:.0f}"),
            span(verdict.smallest_downtime_limit_s, duration),
            f"{_converges(verdict.converges)}; {verdict.action}: {verdict.reason}",
        )
        for verdict in done.verdicts
    )
    return Table(f"The {what} as predicted after each round; measured: {duration(measured)}", columns, rows)


def _off(value: float | None, measured: float) -> str:
    return NONE if value is None or not measured else f"{100 * (value / measured - 1):+.0f} %"


def _converges(said: bool | None) -> str:
    return {True: "converges", False: "will not converge", None: "not known yet"}[said]

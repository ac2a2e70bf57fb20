"""The page of ``precopy bench predict``: ends of migrations, predicted and measured."""

from __future__ import annotations

from precopy.migration.results import Range
from precopy.report.html.charts.scale import SECONDS, around
from precopy.report.html.charts.scatter import Point, scatter
from precopy.report.html.parts import Figure, Headline, Key, Part, Report, Tile
from precopy.report.html.words import NONE, PREDICT_TERMS, duration, several, span
from precopy.report.kinds.bench_predict import Predicted, Predictions
from precopy.report.table import Column, Table

_BAND = 0.2
_READING = (
    "On the middle line both are the same; between the dotted ones the prediction is at most 20 % off. The line "
    "through a point is the range that was predicted with it."
)
Pair = tuple[Predicted, Range, float, float]
"""A migration, its estimate with the estimate's value, and what was measured."""


def bench_predict_report(bench: Predictions, prefix: str) -> Report:
    figures = [
        _figure(bench, f"{prefix}predicted-{short}", what, short)
        for what, short in (("downtime", "downtime"), ("total time", "total"))
    ]
    figures += [_held(bench, prefix)] if bench.held else []
    figures += [_table(bench, prefix)] if bench.migrations else []
    figures += [_missed(bench, prefix)] if bench.missed else []
    figures += [_hopeless(bench, prefix)] if bench.hopeless else []
    intro = "Each migration's end was predicted while it ran, and then measured."
    parts = (Part(f"{prefix}predicted", "Predicted and measured", intro, tuple(figures)),)
    title = f"Prediction benchmark, {several(len(bench.migrations), 'migration')}"
    return Report(title, _verdict(bench), parts, PREDICT_TERMS)


def _verdict(bench: Predictions) -> Headline:
    tiles = tuple(
        Tile(f"Within {name} %", f"{100 * value:.0f} %", "of the predictions")
        for name, value in list(bench.share_within.items())[:6]
    )
    within = bench.share_within.get("20")
    said = "" if within is None else f": {100 * within:.0f} % of the predictions were within 20 % of what was measured"
    missed = f" {len(bench.missed)} more did not complete." if bench.missed else ""
    headline = f"The ends of {several(len(bench.migrations), 'migration')} were predicted and measured{said}.{missed}"
    return Headline("plain", "measured", headline, (), tiles)


def _pairs(bench: Predictions, short: str) -> list[Pair]:
    figures = [
        (migration, migration.predicted_downtime_s, migration.measured_downtime_s)
        if short == "downtime"
        else (migration, migration.predicted_total_s, migration.measured_total_s)
        for migration in bench.migrations
    ]
    return [(migration, said, said.value, measured) for migration, said, measured in figures if said.value and measured]


def _figure(bench: Predictions, name: str, what: str, short: str) -> Figure:
    pairs = _pairs(bench, short)
    near = sum(abs(value / measured - 1) <= _BAND for _, _, value, measured in pairs)
    title = f"The {what} as predicted, against the one that was measured: {near} of {len(pairs)} are within 20 %."
    if not pairs:
        return Figure(name, f"Predicted {what}", f"No {what} was both predicted and measured.")
    values = [value for pair in pairs for value in pair[2:]]
    low, high = min(values), max(values)
    across, upward = (around(f"{which} {what}", [low, high], SECONDS) for which in ("measured", "predicted"))
    points = [
        Point(x, y, 1, _said(migration, y, x), y_range=_range(estimate, y)) for migration, estimate, y, x in pairs
    ]
    lines = [("reference", _line(low, high, 1.0))]
    lines += [("leader dotted", _line(low, high, share)) for share in (1 + _BAND, 1 - _BAND)]
    return Figure(
        name,
        f"Predicted {what}",
        title,
        scatter(points, across, upward, title, lines),
        (Key(1, "range", "a migration, with its range"), Key(6, "line", "predicted = measured")),
        (_READING,),
    )


def _said(migration: Predicted, value: float, measured: float) -> str:
    return f"{migration.name}: predicted {duration(value)}, measured {duration(measured)}"


def _range(estimate: Range, value: float) -> tuple[float, float]:
    return (estimate.low or value, estimate.high if estimate.high is not None else value)


def _line(low: float, high: float, share: float) -> list[Point]:
    """Where predicted is ``share`` of measured, as far as both are between ``low`` and ``high``."""
    first, last = max(low, low / share), min(high, high / share)
    return [Point(x, x * share, 1, "") for x in (first, last)]


def _table(bench: Predictions, prefix: str) -> Figure:
    names = ("predicted downtime", "range", "measured", "off by", "predicted total", "range", "measured", "off by")
    rows = tuple(
        (f"{number}", migration.name, *_cells(migration)) for number, migration in enumerate(bench.migrations, start=1)
    )
    title = "Every migration of the benchmark."
    columns = (Column("number"), Column("migration", False), *map(Column, names))
    return Figure(f"{prefix}migrations", "In numbers", title, table=Table(title, columns, rows))


def _held(bench: Predictions, prefix: str) -> Figure:
    first = bench.held[0]
    title = (
        f"How often the ranges that were stated after the first rounds held what came: after round {first.after}, "
        f"{100 * first.downtime:.0f} % of the downtimes and {100 * first.total:.0f} % of the total times."
    )
    names = ("migrations", "downtime held", "total held", "both", "width of downtime", "width of total")
    rows = tuple(
        (
            f"{held.after}",
            f"{held.migrations}",
            *(f"{100 * share:.0f} %" for share in (held.downtime, held.total, held.both)),
            *(NONE if width is None else f"{width:.3g}" for width in (held.downtime_width, held.total_width)),
        )
        for held in bench.held
    )
    table = Table(title, (Column("after round"), *map(Column, names)), rows)
    reading = ("The width of a range is its upper end over its lower one; the median is shown.",)
    return Figure(f"{prefix}held", "Ranges", title, reading=reading, table=table)


def _missed(bench: Predictions, prefix: str) -> Figure:
    title = "Migrations that should have converged, and did not complete."
    rows = tuple(
        (missed.name, NONE if missed.named_after is None else f"{missed.named_after}", missed.failed.message)
        for missed in bench.missed
    )
    columns = (Column("migration", False), Column("named after round"), Column("why", False))
    return Figure(f"{prefix}missed", "Those that did not complete", title, table=Table(title, columns, rows))


def _cells(migration: Predicted) -> tuple[str, ...]:
    return (
        *_four(migration.predicted_downtime_s, migration.measured_downtime_s),
        *_four(migration.predicted_total_s, migration.measured_total_s),
    )


def _four(estimate: Range, measured: float) -> tuple[str, str, str, str]:
    value = estimate.value
    off = NONE if value is None or not measured else f"{100 * (value / measured - 1):+.0f} %"
    return duration(value), span(estimate, duration), duration(measured), off


def _hopeless(bench: Predictions, prefix: str) -> Figure:
    named = sum(case.named_after is not None for case in bench.hopeless)
    title = (
        f"{named} of {several(len(bench.hopeless), 'migration')} that could not converge were named so, with a "
        f"smallest downtime limit; with it, {sum(case.then_completed for case in bench.hopeless)} completed."
    )
    names = ("named after round", "smallest limit", "then completed", "rounds", "downtime")
    rows = tuple(
        (
            case.name,
            NONE if case.named_after is None else f"{case.named_after}",
            duration(case.smallest_downtime_limit_s),
            "yes" if case.then_completed else "no",
            f"{case.then_rounds}",
            duration(case.then_downtime_s),
            case.detail,
        )
        for case in bench.hopeless
    )
    table = Table(title, (Column("migration", False), *map(Column, names), Column("", False)), rows)
    return Figure(f"{prefix}hopeless", "Those that cannot converge", title, table=table)

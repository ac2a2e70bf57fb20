"""Horizontal bars: stacked, in groups, and ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precopy.report.html.charts.plot import BELOW, EDGE, LINE, Plot, Reference, label_room
from precopy.report.html.charts.scale import Axis
from precopy.report.html.charts.svg import WIDTH, Bar, Chart, Dot, Line, Mark, Text, short, text_width

MOST_ROWS = 40
"""Rows that are drawn; of more, the first and the last ones (`ends`)."""
_ALONE, _PITCH, _TIGHT, _ALL_ROWS = 36.0, 24.0, 15.5, 640.0
_LEAST = 2.0
"""Units: what is not 0 can be seen."""


@dataclass(frozen=True)
class Segment:
    series: int
    value: float
    title: str


@dataclass(frozen=True)
class Row:
    """``said`` stands behind its bar."""

    label: str
    segments: tuple[Segment, ...]
    said: str


@dataclass(frozen=True)
class RangeBar:
    """``value`` with ``low`` and ``high``; those that are None have no end, or are not known."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    said: str
    series: int = 1


def ends(rows: Sequence[Row]) -> tuple[Row, ...]:
    """All ``rows``, or the first and the last, with a row between them that says how many are not drawn."""
    if len(rows) <= MOST_ROWS:
        return tuple(rows)
    half = MOST_ROWS // 2
    return (*rows[:half], Row("…", (), f"{len(rows) - 2 * half} rounds"), *rows[-half:])


def _pitch(rows: int) -> float:
    return _ALONE if rows == 1 else max(_TIGHT, min(_PITCH, _ALL_ROWS / rows))


def _frame(labels: Sequence[str], said: Sequence[str], rows_height: float, references: int) -> Plot:
    top = 6.0 + LINE * references + (2 if references else 0)
    right = WIDTH - max(max(map(text_width, said), default=0.0) + 6, EDGE)
    return Plot(label_room(labels), right, top, top + rows_height)


def stacked(rows: Sequence[Row], axis: Axis, label: str, references: Sequence[Reference] = ()) -> Chart:
    """A bar a row, its segments one after the other."""
    pitch = _pitch(len(rows))
    names = [short(row.label) for row in rows]
    plot = _frame(names, [row.said for row in rows], pitch * len(rows), len(references))
    marks = plot.across(axis)
    for index, row in enumerate(rows):
        middle = plot.top + pitch * (index + 0.5)
        x = plot.left
        for segment in row.segments:
            width = max(plot.x(axis.at(segment.value)) - plot.left, _LEAST if segment.value else 0.0)
            marks.append(Bar(x, middle - 0.32 * pitch, width, 0.64 * pitch, segment.series, segment.title))
            x += width
        if names[index]:
            marks.append(Text(plot.left - 7, middle + 4, names[index], "label", "end"))
        marks.append(Text(x + 5, middle + 4, row.said, "value"))
    marks += plot.references(axis, references)
    return Chart(plot.bottom + BELOW, marks, label)


def grouped(groups: Sequence[tuple[str, Sequence[Row]]], axis: Axis, label: str) -> Chart:
    """Bars of one segment each, in groups that have a name; rows' own labels are in the legend."""
    names = [short(name) for name, _ in groups]
    bars = sum(len(rows) for _, rows in groups)
    gap = 9.0
    height = _TIGHT * bars + gap * len(groups)
    plot = _frame(names, [row.said for _, rows in groups for row in rows], height, 0)
    marks = plot.across(axis)
    y = plot.top + gap / 2
    for name, (_, rows) in zip(names, groups, strict=True):
        marks.append(Text(plot.left - 7, y + _TIGHT * len(rows) / 2 + 4, name, "label", "end"))
        for row in rows:
            for segment in row.segments:
                width = max(plot.x(axis.at(segment.value)) - plot.left, _LEAST if segment.value else 0.0)
                marks.append(Bar(plot.left, y + 2, width, _TIGHT - 4, segment.series, segment.title))
                marks.append(Text(plot.left + width + 5, y + _TIGHT / 2 + 4, row.said, "value"))
            y += _TIGHT
        y += gap
    return Chart(plot.bottom + BELOW, marks, label)


def ranges(rows: Sequence[RangeBar], axis: Axis, label: str, references: Sequence[Reference] = ()) -> Chart:
    """A dot a row, and a line from its low to its high end."""
    pitch = _pitch(len(rows))
    names = [short(row.label) for row in rows]
    plot = _frame(names, [row.said for row in rows], pitch * len(rows), len(references))
    marks = plot.across(axis)
    for index, row in enumerate(rows):
        y = plot.top + pitch * (index + 0.5)
        marks.append(Text(plot.left - 7, y + 4, names[index], "label", "end"))
        marks.append(Text(plot.right + 6, y + 4, row.said, "value"))
        marks += _range(row, axis, plot, y)
    marks += plot.references(axis, references)
    return Chart(plot.bottom + BELOW, marks, label)


def _range(row: RangeBar, axis: Axis, plot: Plot, y: float) -> list[Mark]:
    if row.value is None and row.low is None:
        return []
    low = plot.x(axis.at(row.low if row.low is not None else 0.0))
    high = plot.right if row.high is None else plot.x(axis.at(row.high))
    style = f"s{row.series} series"
    marks: list[Mark] = [Line(((low, y), (high, y)), style), Line(((low, y - 4), (low, y + 4)), style)]
    # Without a high end there is an arrow head.
    tip = ((high - 5, y - 4), (high, y), (high - 5, y + 4)) if row.high is None else ((high, y - 4), (high, y + 4))
    marks.append(Line(tip, style))
    if row.value is not None:
        marks.append(Dot(plot.x(axis.at(row.value)), y, row.series, f"{row.label}: {row.said}"))
    return marks

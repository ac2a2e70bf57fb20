"""Values by round, as lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precopy.report.html.charts.plot import BELOW, Plot, label_room
from precopy.report.html.charts.scale import Axis
from precopy.report.html.charts.svg import WIDTH, Chart, Dot, Line, Mark, Text, text_width

_HEIGHT = 230.0


@dataclass(frozen=True)
class Series:
    """A value for each round that has one; a ``dashed`` line's points are rings."""

    series: int
    points: tuple[tuple[str, float | None, str], ...]
    dashed: bool = False


def by_round(lines: Sequence[Series], axis: Axis, label: str) -> Chart:
    """Rounds from left to right, all lines over the same ones; each point is (round, value, title)."""
    names = [name for name, _, _ in lines[0].points]
    plot = Plot(label_room(tick for _, tick in axis.ticks), WIDTH - 16, 34, 34 + _HEIGHT)
    step = (plot.right - plot.left) / len(names)
    marks = plot.upward(axis)
    marks.append(Line(((plot.left, plot.bottom), (plot.right, plot.bottom)), "axis"))
    every = max(1, int(max(map(text_width, names)) + 6) // max(int(step), 1) + 1)
    for index, name in enumerate(names):
        if index % every == 0:
            marks.append(Text(plot.left + step * (index + 0.5), plot.bottom + 15, name, "tick", "middle"))
    marks.append(Text((plot.left + plot.right) / 2, plot.bottom + 34, "round", "title", "middle"))
    for line in lines:
        marks += _line(line, axis, plot, step)
    return Chart(plot.bottom + BELOW, marks, label)


def _line(line: Series, axis: Axis, plot: Plot, step: float) -> list[Mark]:
    places = [
        (plot.left + step * (index + 0.5), plot.y(axis.at(value)), title)
        for index, (_, value, title) in enumerate(line.points)
        if value is not None
    ]
    style = f"s{line.series} {'dashed' if line.dashed else 'series'}"
    path: list[Mark] = [Line(tuple((x, y) for x, y, _ in places), style)] if len(places) > 1 else []
    return path + [Dot(x, y, line.series, title, line.dashed) for x, y, title in places]

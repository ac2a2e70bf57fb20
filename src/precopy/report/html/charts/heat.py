"""A heat map: where something happened (across) by when (down)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precopy.report.html.charts.plot import BELOW, Plot, label_room
from precopy.report.html.charts.scale import Axis
from precopy.report.html.charts.svg import WIDTH, Cell, Chart, Mark, Text

LEVELS = (0.0, 0.02, 0.1, 0.3, 0.6)
"""Level 0 is nothing at all; level n is more than ``LEVELS[n - 1]``, up to the next."""
_ALL_ROWS, _PITCH, _LEAST = 420.0, 22.0, 5.0


@dataclass(frozen=True)
class HeatRow:
    """``shares`` from 0 to 1, one for each column."""

    label: str
    shares: tuple[float, ...]


def level(share: float) -> int:
    """0 to 5."""
    return sum(share > level for level in LEVELS)


def heat(rows: Sequence[HeatRow], axis: Axis, named: str, label: str) -> Chart:
    """``axis`` is the one across; ``named`` is what rows are."""
    pitch = max(_LEAST, min(_PITCH, _ALL_ROWS / len(rows)))
    names = [row.label for row in rows]
    left = label_room(names)
    plot = Plot(left, WIDTH - 26, 26, 26 + pitch * len(rows))
    marks: list[Mark] = [Text(2, 14, named, "title")]
    every = max(1, int(15.5 / pitch) + (1 if pitch < 15.5 else 0))
    for index, row in enumerate(rows):
        y = plot.top + pitch * index
        if index % every == 0:
            marks.append(Text(plot.left - 7, y + pitch / 2 + 4, names[index], "label", "end"))
        marks += _cells(row, plot, y, pitch)
    axis_marks = [mark for mark in plot.across(axis) if isinstance(mark, Text)]
    return Chart(plot.bottom + BELOW, [*marks, *axis_marks], label)


def _cells(row: HeatRow, plot: Plot, y: float, pitch: float) -> list[Cell]:
    """One cell for each run of columns of the same level."""
    step = (plot.right - plot.left) / len(row.shares)
    levels = [level(share) for share in row.shares]
    cells, start = [], 0
    for end in range(1, len(levels) + 1):
        if end < len(levels) and levels[end] == levels[start]:
            continue
        width = step * (end - start)
        shares = row.shares[start:end]
        title = (
            f"{row.label}, parts {start + 1} to {end} of {len(levels)}: {100 * min(shares):.0f} to "
            f"{100 * max(shares):.0f} % of the pages"
        )
        cells.append(Cell(plot.left + step * start, y, width, pitch - 1, levels[start], title))
        start = end
    return cells

"""The rectangle in which values are drawn, with its axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from precopy.report.html.charts.scale import Axis
from precopy.report.html.charts.svg import WIDTH, Line, Mark, Text, text_width

BELOW = 42.0
"""Units below a plot: its ticks' labels, and the axis' title."""
LINE = 15.0
"""Units between lines of text."""
EDGE = 14.0
"""Units beside a plot that the labels of its first and last tick may need."""


@dataclass(frozen=True)
class Reference:
    """A value that others are to be seen against: a line across the plot, with its name."""

    value: float
    text: str


@dataclass(frozen=True)
class Plot:
    """``left``, ``right``, ``top`` and ``bottom`` are units of the picture."""

    left: float
    right: float
    top: float
    bottom: float

    def x(self, place: float) -> float:
        return self.left + place * (self.right - self.left)

    def y(self, place: float) -> float:
        return self.bottom - place * (self.bottom - self.top)

    def across(self, axis: Axis) -> list[Mark]:
        """A horizontal axis: grid lines, labels below, and the title below them."""
        marks: list[Mark] = []
        taken = -1e9
        for place, label in axis.ticks:
            x = self.x(place)
            marks.append(Line(((x, self.top), (x, self.bottom)), "grid"))
            half = text_width(label) / 2
            if x - half > taken + 4 and x + half <= WIDTH:
                marks.append(Text(x, self.bottom + 15, label, "tick", "middle"))
                taken = x + half
        marks.append(Line(((self.left, self.bottom), (self.right, self.bottom)), "axis"))
        marks.append(Text((self.left + self.right) / 2, self.bottom + 34, axis.title, "title", "middle"))
        return marks

    def upward(self, axis: Axis) -> list[Mark]:
        """A vertical axis: grid lines, labels on the left, and the title above them."""
        marks: list[Mark] = []
        taken = 1e9
        for place, label in axis.ticks:
            y = self.y(place)
            marks.append(Line(((self.left, y), (self.right, y)), "grid"))
            if y < taken - LINE:
                marks.append(Text(self.left - 7, y + 4, label, "tick", "end"))
                taken = y
        marks.append(Text(2, self.top - 14, axis.title, "title", "start"))
        return marks

    def references(self, axis: Axis, given: Sequence[Reference]) -> list[Mark]:
        """Vertical lines, with their names above the plot, one line of text each."""
        marks: list[Mark] = []
        for index, reference in enumerate(given):
            x = self.x(axis.at(reference.value))
            y = self.top - 6 - LINE * (len(given) - 1 - index)
            marks.append(Line(((x, y - 10), (x, self.bottom)), "reference"))
            room = text_width(reference.text) + 5
            if x + room <= WIDTH:
                marks.append(Text(x + 5, y, reference.text, "note", "start"))
            else:
                marks.append(Text(max(x - 5, room), y, reference.text, "note", "end"))
        return marks


def label_room(labels: Iterable[str]) -> float:
    """Units to the left of a plot that ``labels`` need."""
    return max((text_width(label) for label in labels), default=0.0) + 9

"""Points in two dimensions, with names that do not cover each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from precopy.report.html.charts.plot import BELOW, EDGE, Plot, label_room
from precopy.report.html.charts.scale import Axis
from precopy.report.html.charts.svg import WIDTH, Anchor, Chart, Dot, Line, Mark, Text, short, text_width

_HEIGHT = 300.0
_TEXT, _DOT = 13.5, 6.0
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """``name`` is written beside it, if it has one; ``x_range`` and ``y_range`` are how sure it is."""

    x: float
    y: float
    series: int
    title: str
    name: str = ""
    hollow: bool = False
    y_range: tuple[float, float] | None = None


def scatter(
    points: Sequence[Point], across: Axis, upward: Axis, label: str, lines: Sequence[tuple[str, Sequence[Point]]] = ()
) -> Chart:
    """``lines``: a style, and the places that the line goes through."""
    left = label_room(tick for _, tick in upward.ticks)
    plot = Plot(left, WIDTH - EDGE, 34, 34 + _HEIGHT)
    marks = plot.upward(upward) + plot.across(across)

    def place(point: Point) -> tuple[float, float]:
        return plot.x(across.at(point.x)), plot.y(upward.at(point.y))

    marks += [Line(tuple(place(corner) for corner in through), style) for style, through in lines]
    for point in points:
        if point.y_range:
            x = place(point)[0]
            low, high = (plot.y(upward.at(value)) for value in point.y_range)
            marks.append(Line(((x, low), (x, high)), f"s{point.series} series thin"))
    marks += [Dot(*place(shown), shown.series, shown.title, shown.hollow) for shown in points]
    taken = [_box(*place(shown), *place(shown), _DOT) for shown in points]
    taken += [_box(*place(one), *place(other), 2.0) for _, through in lines for one, other in pairwise(through)]
    marks += _names([(*place(shown), short(shown.name, 24)) for shown in points if shown.name], plot, taken)
    return Chart(plot.bottom + BELOW, marks, label)


def staircase(front: Sequence[tuple[float, float]], right: float, top: float) -> list[tuple[float, float]]:
    """The line below and left of which nothing lies, through ``front`` in the order of its x; it comes down from
    ``top`` and leaves to the ``right``."""
    ordered = sorted(front)
    corners = [(ordered[0][0], top), ordered[0]]
    for (_, y), (x, lower) in pairwise(ordered):
        corners += [(x, y), (x, lower)]
    return [*corners, (right, ordered[-1][1])]


def _box(x: float, y: float, other_x: float, other_y: float, room: float) -> Box:
    return min(x, other_x) - room, min(y, other_y) - room, max(x, other_x) + room, max(y, other_y) + room


def _names(named: Sequence[tuple[float, float, str]], plot: Plot, taken: list[Box]) -> list[Mark]:
    """Each name at the first place beside its point that covers nothing; from further away, with a line to it."""
    marks: list[Mark] = []
    for x, y, name in named:
        places = [
            (anchor, box, distance)
            for distance in range(0, 130, 8)
            for anchor, box in _around(x, y, text_width(name), distance)
            if _inside(box, plot)
        ]
        free = (place for place in places if not any(_overlap(place[1], other) for other in taken))
        anchor, box, distance = next(free, places[0])
        taken.append(box)
        at = {"start": box[0], "middle": (box[0] + box[2]) / 2, "end": box[2]}[anchor]
        if distance:
            marks.append(Line(((x, y), (at, (box[1] + box[3]) / 2)), "leader"))
        marks.append(Text(at, box[3] - 3, name, "label", anchor))
    return marks


def _around(x: float, y: float, width: float, distance: float) -> list[tuple[Anchor, Box]]:
    """Places for a text: right, left, above, below, and the corners; with the end of it that is at the point."""
    far, half = distance + _DOT + 3, _TEXT / 2
    above, below = y - far - half, y + far + half
    near = 0.7 * far
    centres: list[tuple[Anchor, float, float]] = [("start", x + far, y), ("end", x - far, y)]
    centres += [("middle", x, above), ("middle", x, below)]
    centres += [
        ("start", x + near, above),
        ("start", x + near, below),
        ("end", x - near, above),
        ("end", x - near, below),
    ]
    left = {"start": 0.0, "middle": width / 2, "end": width}
    return [
        (anchor, (at - left[anchor], y0 - half, at - left[anchor] + width, y0 + half)) for anchor, at, y0 in centres
    ]


def _inside(box: Box, plot: Plot) -> bool:
    return box[0] >= plot.left and box[2] <= WIDTH and box[1] >= plot.top - 8 and box[3] <= plot.bottom


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

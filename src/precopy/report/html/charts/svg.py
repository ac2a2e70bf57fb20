"""Marks of a picture, in its own units; `templates/svg.html.j2` writes them as SVG.

A picture is `WIDTH` units wide. Texts are 11 units high, and 13.5 on a narrow screen, where the whole picture is
smaller: what places them leaves room for the larger ones (`text_width`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH = 560.0
Anchor = Literal["start", "middle", "end"]
_CHARACTER = 8.6
"""Units that a digit takes in DejaVu Sans at 13.5 units, the size of texts on narrow screens."""


def text_width(text: str) -> float:
    """Units that ``text`` takes at most, or nearly so."""
    return _CHARACTER * len(text)


def short(text: str, characters: int = 18) -> str:
    """``text``, or its beginning, where it has to fit."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


@dataclass(frozen=True)
class Bar:
    """A rectangle in the colour and the hatching of ``series``; ``title`` is its tooltip."""

    x: float
    y: float
    width: float
    height: float
    series: int
    title: str
    kind: Literal["bar"] = "bar"


@dataclass(frozen=True)
class Cell:
    """A rectangle of a heat map, of ``level`` 0 to 5."""

    x: float
    y: float
    width: float
    height: float
    level: int
    title: str
    kind: Literal["cell"] = "cell"


@dataclass(frozen=True)
class Line:
    """From point to point. ``style`` is a class: ``grid``, ``axis``, ``reference``, ``leader``, or a series' own."""

    points: tuple[tuple[float, float], ...]
    style: str
    kind: Literal["line"] = "line"

    @property
    def path(self) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Dot:
    """A point in the colour of ``series``; ``hollow`` ones are rings."""

    x: float
    y: float
    series: int
    title: str
    hollow: bool = False
    kind: Literal["dot"] = "dot"


@dataclass(frozen=True)
class Text:
    """``anchor``: which end of it is at ``x``; ``style``: ``tick``, ``label``, ``value``, ``title`` or ``note``."""

    x: float
    y: float
    text: str
    style: str
    anchor: Anchor = "start"
    kind: Literal["text"] = "text"


Mark = Bar | Cell | Line | Dot | Text


@dataclass(frozen=True)
class Chart:
    """``height`` units of marks, later ones above earlier ones; ``label`` says in words what is to be seen."""

    height: float
    marks: Sequence[Mark]
    label: str
    width: float = WIDTH

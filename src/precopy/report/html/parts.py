"""What a page consists of, before it is HTML. All text in it is plain text; escaping is the templates' business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precopy.report.html.charts.svg import Chart
from precopy.report.table import Table


@dataclass(frozen=True)
class Key:
    """An entry of a legend: how ``series`` is drawn."""

    series: int
    kind: Literal["bar", "line", "dash", "dot", "ring", "range", "heat"]
    label: str


@dataclass(frozen=True)
class Figure:
    """``heading`` in a word or two, ``title`` in one sentence, ``reading``: how to read it, for a reader who sees
    such a picture for the first time. ``compact``: the table is narrow enough to stand beside the picture."""

    id: str
    heading: str
    title: str
    chart: Chart | None = None
    legend: tuple[Key, ...] = ()
    reading: tuple[str, ...] = ()
    table: Table | None = None
    compact: bool = False


@dataclass(frozen=True)
class Part:
    """Figures under one heading."""

    id: str
    heading: str
    intro: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Tile:
    """One figure of the verdict. ``share``: of its limit, drawn as a meter."""

    label: str
    value: str
    said: str
    share: float | None = None


Mood = Literal["good", "warn", "bad", "plain"]


@dataclass(frozen=True)
class Headline:
    """What the document says, in plain words: ``status`` in a few, ``headline`` in one sentence, then sentences."""

    mood: Mood
    status: str
    headline: str
    sentences: tuple[str, ...] = ()
    tiles: tuple[Tile, ...] = ()


@dataclass(frozen=True)
class Report:
    """One document's part of the page. ``terms``: words that it uses; ``workload``: what the guest did, where that is
    known. `precopy.report.html.page` adds ``schema``, and as ``facts`` what is known of the machine; terms and facts
    are names and texts."""

    title: str
    verdict: Headline
    parts: tuple[Part, ...]
    terms: tuple[tuple[str, str], ...] = ()
    workload: str = ""
    schema: str = ""
    facts: tuple[tuple[str, str], ...] = ()

"""The pages of documents that have no pictures: their fields as tables; and of a command that failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from precopy.report.html.parts import Figure, Headline, Part, Report
from precopy.report.html.reading import Document
from precopy.report.html.words import NONE, several
from precopy.report.kinds import text_of
from precopy.report.kinds.error import Failure
from precopy.report.table import Column, Table
from precopy.units import format_duration, format_rate, format_size

_DEEP, _MOST_ROWS, _MOST_COLUMNS = 6, 500, 40


def failure_report(failure: Failure, prefix: str) -> Report:
    """What ``precopy.error/1`` says."""
    error = failure.error
    said = Headline("bad", f"failed, exit code {error.exit_code}", f"The command failed: {error.message}.")
    table = Table(
        "The error",
        (Column("field", False), Column("value", False)),
        (("kind", error.kind), ("exit code", f"{error.exit_code}"), ("message", error.message)),
    )
    figure = Figure(f"{prefix}error", "The error", "What the command said when it ended.", table=table)
    parts = [Part(f"{prefix}failure", "What happened", "", (figure,))]
    rounds = [msgspec.to_builtins(made) for made in failure.migration.rounds] if failure.migration else []
    if rounds:
        until = "The migration until then, round by round."
        parts.append(Part(f"{prefix}migration", "Its rounds", until, (_list("rounds", rounds, f"{prefix}rounds"),)))
    title = f"Failed, exit code {error.exit_code}"
    return Report(title, said, tuple(parts))


def other_report(document: Document, prefix: str) -> Report:
    """Fields that stand alone in one table, and a table for each list of objects."""
    said = ("There are no pictures for this kind of document; its figures are below, in the units that fit them.",)
    return _report(document, said, (), prefix)


def recorded_report(document: Document, prefix: str) -> Report:
    """The sentences and the tables that a terminal shows, and below them every figure."""
    text = text_of(document.kind, document.record)
    tables = [part for part in text if isinstance(part, Table)]
    figures = tuple(
        Figure(f"{prefix}table-{number}", "Result", f"{table.caption}.", table=table)
        for number, table in enumerate(tables, start=1)
    )
    sentences = tuple(f"{part[:1].upper()}{part[1:]}." for part in text if isinstance(part, str) and part)
    result = (Part(f"{prefix}result", "As a terminal shows it", "", figures),) if figures else ()
    return _report(document, sentences, result, prefix)


def _report(document: Document, sentences: tuple[str, ...], result: tuple[Part, ...], prefix: str) -> Report:
    verified, said = document.body.get("verified"), document.body.get("verdict")
    kind = document.kind.replace("-", " ").capitalize()
    verdict = Headline(
        "bad" if verified is False else "plain",
        {True: "verified", False: "not verified"}[verified] if isinstance(verified, bool) else "as printed",
        f"{kind}: {said}." if isinstance(said, str) else f"The figures of precopy's {kind.lower()}.",
        sentences,
    )
    return Report(kind, verdict, (*result, _every_figure(document.body, prefix)))


def _every_figure(body: dict[str, Any], prefix: str) -> Part:
    single = [(name, value) for name, value in _flat(body) if not _is_table(value)]
    figures = []
    if single:
        rows = tuple((name, _text(name, value)) for name, value in single[:_MOST_ROWS])
        columns = (Column("field", False), Column("value", False))
        title = "Figures of the whole document."
        figures.append(Figure(f"{prefix}fields", "In all", title, table=Table(title, columns, rows)))
    lists = [(name, value) for name, value in _flat(body) if _is_table(value)]
    figures += [_list(name, value, f"{prefix}list-{number}") for number, (name, value) in enumerate(lists, start=1)]
    return Part(f"{prefix}tables", "In numbers", "", tuple(figures))


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _flat(value: dict[str, Any], before: str = "", deep: int = 0) -> Iterator[tuple[str, Any]]:
    """Fields of ``value`` and of objects in it, their names joined by points."""
    for name, field in value.items():
        if isinstance(field, dict) and deep < _DEEP:
            yield from _flat(field, f"{before}{name}.", deep + 1)
        else:
            yield f"{before}{name}", field


def _list(name: str, values: list[dict[str, Any]], identity: str) -> Figure:
    flat = [dict(_flat(row)) for row in values[:_MOST_ROWS]]
    names = list(dict.fromkeys(field for row in flat for field in row))
    shown = names[:_MOST_COLUMNS]
    columns = (Column(""), *(Column(field, _numeric(field, flat)) for field in shown))
    rows = tuple(
        (f"{number}", *(_text(field, row.get(field)) for field in shown)) for number, row in enumerate(flat, start=1)
    )
    left = [] if len(values) <= _MOST_ROWS else [f"the first {_MOST_ROWS} of {len(values):,} rows"]
    left += [] if len(names) <= _MOST_COLUMNS else [f"the first {_MOST_COLUMNS} of {len(names)} columns"]
    title = f"Entries of {name}" + (f": {' and '.join(left)}." if left else ".")
    return Figure(identity, name, title, table=Table(title, columns, rows))


def _numeric(field: str, rows: list[dict[str, Any]]) -> bool:
    return all(isinstance(row.get(field), int | float | None) for row in rows)


def _text(name: str, value: Any) -> str:
    """``value`` in the unit that its name says."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(name, value)
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"{several(len(value), 'entry').replace('entrys', 'entries')}" if value else "none"
    return "…"


def _number(name: str, value: float) -> str:
    parts = name.split(".")
    ending = next(
        (part for part in reversed(parts) if part not in ("median", "min", "max", "value", "low", "high")), ""
    )
    if abs(value) > 1e24:
        return f"{value:g}" if isinstance(value, float) else "more than 10^24"
    if ending.endswith("bytes_per_s"):
        return format_rate(value)
    if ending.endswith("_per_s"):
        return f"{value:,.4g}"
    if ending.endswith("_s") or ending in ("seconds", "s"):
        return format_duration(value) if value >= 0 else f"-{format_duration(-value)}"
    if ending.endswith("bytes") or ending in ("size", "ram"):
        return format_size(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

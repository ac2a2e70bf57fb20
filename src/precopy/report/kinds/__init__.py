"""The kinds of document that ``--json`` prints: one table of all, and a module for each, which has the kind's name.
Importing this costs next to nothing.

A module has the record, a frozen dataclass with a bound on every field (`precopy.bounds`), its columns and its
sentences. Text, JSON and page are made of it by `report.console`, `cli.facts.show_result` and `report.html.other`. What
measures makes the record itself: there is no other class for a result. The records of migrations and rounds are the
engine's own, `migration.results` and `planning.model.round`.

- A new kind is a module here and its line in the table, from which ``precopy bench --help`` comes, too, and a document
  in tests/golden/documents/ (one of each kind, as version 0.1 printed it), which a test holds the record to. `precopy
  report` then shows its sentences, tables and figures; pictures of its own are a module of report/html/ and a line of
  report/html/page.py.
- A new field is a line of the record, what measures it and, where people are to see it, a column or a sentence in the
  record's module: two files, and three where the record is the engine's. One that older documents lack has a default;
  what reads an old name or an old meaning stands in `older`, and the kind's schema has the next number.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precopy.report.kinds.kind import Kind, TextPart


class Entry(NamedTuple):
    """``version`` is the number of its schema, which goes up where a field's name or meaning changes. `precopy report`
    reads all numbers up to it: its record is made of those from ``oldest`` on, through `Kind.today`; older ones are
    shown as their fields. ``about``: its benchmark's line of help."""

    version: int = 1
    oldest: int = 1
    about: str = ""


KINDS = {
    "bench-sync": Entry(about="A sync of a running guest, with every variant of the patch series."),
    "bench-bitmap": Entry(about="The bitmap part of it for large guests, beside a C loop."),
    "bench-display": Entry(about="A framebuffer kept current by what its guest wrote."),
    "bench-track": Entry(about="Finding what a Python program wrote, beside what it can do today."),
    "bench-snapshot": Entry(about="Incremental snapshots, beside saving everything."),
    "bench-predict": Entry(about="Predicted downtime and total time, beside what then happened."),
    "bench-guest": Entry(about="What migrations take from the guest before its switchover."),
    "bench-migrate": Entry(
        3, about="Whole migrations, beside the raw socket and beside QEMU."
    ),  # its ratio is to the fastest QEMU
    "check": Entry(),
    "compare": Entry(),
    "demo": Entry(2),  # throttling, rounds and limits have other names
    "demo-memory": Entry(),
    "error": Entry(),
    "layout": Entry(),
    "migrate": Entry(2),  # throttling, rounds and limits have other names
    "migrate-event": Entry(2),  # throttling, rounds and limits have other names
    "plan": Entry(2),  # the switchover overhead has another name
    "plan-sweep": Entry(2),  # the switchover overhead has another name
    "receive": Entry(),
    "replay": Entry(2, oldest=2),  # a round's sync is the one that begins it
    "report": Entry(),
    "run": Entry(),
    "snapshot-compact": Entry(),
    "snapshot-export": Entry(),
    "snapshot-list": Entry(),
    "snapshot-verify": Entry(),
    "status": Entry(),
}


def schema(kind: str) -> str:
    """``precopy.<kind>/<number>`` as it is written today."""
    return f"precopy.{kind}/{KINDS[kind].version}"


def load(kind: str) -> Kind[Any]:
    """What documents of this kind are made of: the module of its name."""
    made_of: Kind[Any] = importlib.import_module(f"{__name__}.{kind.replace('-', '_')}").KIND
    return made_of


def text_of(kind: str, record: object) -> Sequence[TextPart]:
    """``record`` for people."""
    return load(kind).text(record)


def body_of(kind: str, record: object) -> dict[str, Any]:
    """``record`` as a document's fields."""
    return load(kind).body(record)

"""The kinds of document that ``--json`` prints: one table of all, and a module for each that more than its fields is
made of. Importing this costs next to nothing.

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
  what reads an old name or an old meaning stands in `older`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precopy.report.kinds.kind import Kind, TextPart


class Entry(NamedTuple):
    """``version`` is the number of its schema, which goes up where a field's name or meaning changes; `precopy report`
    reads all numbers up to it. ``module`` of this package has its `Kind`; none where its fields are all there is to
    it. ``about``: its benchmark's line of help."""

    version: int = 1
    module: str = ""
    about: str = ""


KINDS = {
    "bench-sync": Entry(1, "bench_sync", "A sync of a running guest, with every variant of the patch series."),
    "bench-bitmap": Entry(1, "bench_bitmap", "The bitmap part of it for large guests, beside a C loop."),
    "bench-display": Entry(1, "bench_display", "A framebuffer kept current by what its guest wrote."),
    "bench-track": Entry(1, "bench_track", "Finding what a Python program wrote, beside what it can do today."),
    "bench-snapshot": Entry(1, "bench_snapshot", "Incremental snapshots, beside saving everything."),
    "bench-predict": Entry(1, "bench_predict", "Predicted downtime and total time, beside what then happened."),
    "bench-migrate": Entry(1, "bench_migrate", "Whole migrations, beside the raw socket and beside QEMU."),
    "check": Entry(1, "check"),
    "compare": Entry(1, "compare"),
    "demo": Entry(1, "demo"),
    "demo-memory": Entry(1, "demo_memory"),
    "error": Entry(1, "error"),
    "layout": Entry(1, "layout"),
    "migrate": Entry(1, "migrate"),
    "migrate-event": Entry(),
    "plan": Entry(1, "plan"),
    "plan-sweep": Entry(1, "plan_sweep"),
    "receive": Entry(1, "receive"),
    "replay": Entry(2, "replay"),  # a round's sync is the one that begins it
    "report": Entry(1, "report"),
    "run": Entry(1, "run"),
    "snapshot-compact": Entry(1, "snapshot_compact"),
    "snapshot-export": Entry(1, "snapshot_export"),
    "snapshot-list": Entry(1, "snapshot_list"),
    "snapshot-verify": Entry(1, "snapshot_verify"),
    "status": Entry(1, "status"),
}


def schema(kind: str) -> str:
    """``precopy.<kind>/<number>`` as it is written today."""
    return f"precopy.{kind}/{KINDS[kind].version}"


def text_of(kind: str, record: object) -> Sequence[TextPart]:
    """``record`` for people."""
    return _loaded(kind).text(record)


def body_of(kind: str, record: object) -> dict[str, Any]:
    """``record`` as a document's fields."""
    return _loaded(kind).body(record)


def _loaded(kind: str) -> Kind[Any]:
    loaded: Kind[Any] = importlib.import_module(f"{__name__}.{KINDS[kind].module}").KIND
    return loaded


def load(kind: str) -> Kind[Any] | None:
    """What documents of this kind are made of; None where it has no module."""
    return _loaded(kind) if KINDS[kind].module else None

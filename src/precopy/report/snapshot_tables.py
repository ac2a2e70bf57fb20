"""Snapshots of a directory, and the snapshot benchmark, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import RenderableType

from precopy.report.console import table
from precopy.units import format_duration, format_size


@dataclass(frozen=True)
class SnapshotRow:
    """A snapshot of a directory: what it follows (None: it is full), sizes in bytes, seconds since 1970, and what is
    wrong with it (None: nothing that its header shows)."""

    number: int
    parent: int | None
    size: int
    pages: int
    zero_pages: int
    bytes: int
    compression: str
    created_s: float
    damage: str | None


@dataclass(frozen=True)
class SnapshotBenchRow:
    """One way of saving a memory: seconds and bytes, and how many times as long and as large our full snapshot of the
    same repeat was (None: not measured)."""

    directory: str
    what: str
    seconds: float
    bytes: int
    faster: float | None
    smaller: float | None


def snapshots_table(rows: Sequence[SnapshotRow]) -> RenderableType:
    """A line a snapshot, ascending."""
    columns = (
        ("snapshot", "r"), ("kind", "l"), ("created (UTC)", "l"), ("memory", "r"), ("pages", "r"), ("zero", "r"),
        ("on disk", "r"), ("compressed", "l"), ("state", "l"),
    )  # fmt: skip
    shown = table(*columns)
    for row in rows:
        shown.add_row(
            str(row.number),
            "?" if not row.size else "full" if row.parent is None else f"changes to {row.parent}",
            _time(row.created_s),
            format_size(row.size),
            str(row.pages),
            str(row.zero_pages),
            format_size(row.bytes),
            row.compression,
            "complete" if row.damage is None else "damaged",
        )
    return shown


def snapshot_bench_table(rows: Sequence[SnapshotBenchRow]) -> RenderableType:
    """A line a way and directory, in the order in which they were measured."""
    shown = table(("directory", "l"), ("", "l"), ("time", "r"), ("bytes", "r"), ("full / it", "r"), ("bytes / it", "r"))
    for row in rows:
        shown.add_row(
            row.directory,
            row.what,
            format_duration(row.seconds),
            format_size(row.bytes),
            "-" if row.faster is None else f"{row.faster:.2f} x",
            "-" if row.smaller is None else f"{row.smaller:.2f} x",
        )
    return shown


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") if seconds else "?"
    except (OverflowError, ValueError, OSError):
        return "?"

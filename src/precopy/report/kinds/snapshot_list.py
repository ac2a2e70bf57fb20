"""``precopy snapshot list``: what lies in a directory of snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.table import Shown, tabulate
from precopy.units import counted, format_size


@dataclass(frozen=True)
class Stored:
    """A snapshot as it lies in a directory. ``damage`` says why it cannot be restored, None where its header and those
    that it follows are whole; then the other fields are what is known (0 where nothing is).

    ``size`` is the memory's, ``bytes`` what the file takes of the disk, ``created_s`` seconds since 1970. A full
    one's ``zero_pages`` are all but its ``pages``.
    """

    number: Count
    parent: Count | None
    size: Count
    pages: Count
    zero_pages: Count
    bytes: Count
    compression: Text
    created_s: Number
    damage: Text | None

    @property
    def full(self) -> bool:
        return self.parent is None


@dataclass(frozen=True)
class SnapshotList:
    directory: Text
    snapshots: Annotated[tuple[Stored, ...], Meta(max_length=100_000)]


def _kind(one: Stored) -> str:
    if not one.size:
        return "?"
    return "full" if one.full else f"changes to {one.parent}"


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") if seconds else "?"
    except (OverflowError, ValueError, OSError):
        return "?"


_COLUMNS: tuple[Shown[Stored], ...] = (
    Shown("snapshot", lambda one: str(one.number)),
    Shown("kind", _kind, numeric=False),
    Shown("created (UTC)", lambda one: _time(one.created_s), numeric=False),
    Shown("memory", lambda one: format_size(one.size)),
    Shown("pages", lambda one: str(one.pages)),
    Shown("zero", lambda one: str(one.zero_pages)),
    Shown("on disk", lambda one: format_size(one.bytes)),
    Shown("compressed", lambda one: one.compression, numeric=False),
    Shown("state", lambda one: "complete" if one.damage is None else "damaged", numeric=False),
)


def _text(listed: SnapshotList) -> list[TextPart]:
    stored = listed.snapshots
    return [
        tabulate("The directory's snapshots, ascending", _COLUMNS, stored),
        *(f"snapshot {one.number}: {one.damage}" for one in stored if one.damage is not None),
        f"{counted(len(stored), 'snapshot')}, {format_size(sum(one.bytes for one in stored))} on disk",
    ]


KIND = Kind(SnapshotList, _text)

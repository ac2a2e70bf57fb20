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


def _kind(snapshot: Stored) -> str:
    if not snapshot.size:
        return "?"
    return "full" if snapshot.full else f"changes to {snapshot.parent}"


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") if seconds else "?"
    except (OverflowError, ValueError, OSError):
        return "?"


_COLUMNS: tuple[Shown[Stored], ...] = (
    Shown("snapshot", lambda snapshot: str(snapshot.number)),
    Shown("kind", _kind, numeric=False),
    Shown("created (UTC)", lambda snapshot: _time(snapshot.created_s), numeric=False),
    Shown("memory", lambda snapshot: format_size(snapshot.size)),
    Shown("pages", lambda snapshot: str(snapshot.pages)),
    Shown("zero", lambda snapshot: str(snapshot.zero_pages)),
    Shown("on disk", lambda snapshot: format_size(snapshot.bytes)),
    Shown("compressed", lambda snapshot: snapshot.compression, numeric=False),
    Shown("state", lambda snapshot: "complete" if snapshot.damage is None else "damaged", numeric=False),
)


def _text(listed: SnapshotList) -> list[TextPart]:
    stored = listed.snapshots
    return [
        tabulate("The directory's snapshots, ascending", _COLUMNS, stored),
        *(f"snapshot {snapshot.number}: {snapshot.damage}" for snapshot in stored if snapshot.damage is not None),
        f"{counted(len(stored), 'snapshot')}, {format_size(sum(snapshot.bytes for snapshot in stored))} on disk",
    ]


KIND = Kind(SnapshotList, _text)

"""``precopy bench snapshot``: seconds and bytes of each way to save a memory, and of restoring it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.kinds.shared import Failed, Spread
from precopy.report.table import Shown, tabulate
from precopy.units import counted, format_duration, format_size


@dataclass(frozen=True)
class Place:
    """A directory to save in: ``kind`` is ``memory`` or ``disk``."""

    kind: Text
    path: Text
    file_system: Text

    def __str__(self) -> str:
        return f"{self.kind} ({self.file_system})"


@dataclass(frozen=True)
class SnapshotCase:
    """One way. ``full_s_to_it`` and ``full_bytes_to_it`` are our full snapshot of the same repeat over this way:
    medians of the repeats' own, None for that one itself. ``flushed`` says whether the time holds the way to disk."""

    place: Text
    what: Text
    dirty_share: Number | None
    pages: Count
    flushed: bool
    seconds: Spread
    bytes: Count
    full_s_to_it: Number | None
    full_bytes_to_it: Number | None


@dataclass(frozen=True)
class RestoreCase:
    """The newest of ``snapshots`` snapshots of ``size`` bytes, until its memory was read and written: ``seconds`` at
    once, ``verified`` with all of its content checked before (None: not measured)."""

    place: Text
    size: Count
    snapshots: Count
    seconds: Spread
    verified: Spread | None = None


@dataclass(frozen=True)
class SnapshotBench:
    """All of it, for a memory of ``size`` bytes; ``failed``: places in which it could not be measured."""

    size: Count
    repeats: Count
    places: Annotated[tuple[Place, ...], Meta(max_length=10)]
    cases: Annotated[tuple[SnapshotCase, ...], Meta(max_length=1000)]
    restores: Annotated[tuple[RestoreCase, ...], Meta(max_length=100)]
    failed: Annotated[tuple[Failed, ...], Meta(max_length=100)] = ()


def _what(case: SnapshotCase) -> str:
    share = "" if case.dirty_share is None else f", {100 * case.dirty_share:g} % dirty"
    return case.what + share + ("" if case.flushed else ", not flushed")


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x"


_LEGEND = (
    "full / it, bytes / it: our full snapshot's time and bytes by this way's, the median of the repeats' own "
    "ratios, which need not be that of the medians shown"
)


def _text(bench: SnapshotBench) -> list[TextPart]:
    names = {place.kind: str(place) for place in bench.places}
    columns: tuple[Shown[SnapshotCase], ...] = (
        Shown("directory", lambda case: names.get(case.place, case.place), numeric=False),
        Shown("", _what, numeric=False),
        Shown("time", lambda case: format_duration(case.seconds.median)),
        Shown("bytes", lambda case: format_size(case.bytes)),
        Shown("full / it", lambda case: _times(case.full_s_to_it)),
        Shown("bytes / it", lambda case: _times(case.full_bytes_to_it)),
    )
    table = tabulate("Time and bytes of each way to save the memory", columns, bench.cases)
    return [table, _LEGEND, *(_restored(case, names.get(case.place, case.place)) for case in bench.restores)]


def _restored(case: RestoreCase, place: str) -> str:
    verified = "" if case.verified is None else f" (verified: {format_duration(case.verified.median)})"
    return (
        f"restored in {format_duration(case.seconds.median)}{verified}: {format_size(case.size)}, "
        f"{counted(case.snapshots, 'snapshot')}, {place}"
    )


KIND = Kind(SnapshotBench, _text)

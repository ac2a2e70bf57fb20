"""``precopy bench track``: what it costs to find the pages that a program wrote, and what that costs the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number, Signed, Text
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.kinds.shared import Failed, Spread
from precopy.report.table import Shown, tabulate
from precopy.units import format_duration, format_size


@dataclass(frozen=True)
class SyncFigures:
    """Syncs of one way: ``sync_s`` is all of a sync, ``later_s`` the clears that its policy leaves for when pages are
    read; ``ioctls`` are those of both (median)."""

    sync_s: Spread
    later_s: Spread
    ioctls: Count


@dataclass(frozen=True)
class TrackCase:
    """One share of dirty pages in one pattern. Ratios are the alternative's seconds over those of a sync in one step,
    medians of the repeats' own: how many times faster a sync is. ``two_step`` is by clear policy."""

    size_bytes: Count
    dirty_share: Number
    pattern: Text
    dirty_pages: Count
    one_step: SyncFigures
    two_step: Annotated[dict[Text, SyncFigures], Meta(max_length=20)]
    compare_s: Spread
    hash_s: Spread
    write_all_s: Spread
    ratio_to_compare: Number
    ratio_to_hash: Number
    ratio_to_write_all: Number


@dataclass(frozen=True)
class RelaxedWriter:
    """The same thread in memory that is tracked with ``exact=False``, in the same run; its figures as in
    `WriterFigures`. ``slowdown_all`` is that of all slices together by CPU time, those included in which chunks are
    found to be written all the time; ``unarmed_pages`` are those that a sync counted because they were not armed, the
    median over the second half of the slices."""

    gb_per_s: Number
    cpu_gb_per_s: Number
    faults: Count
    sync_s: Spread
    slowdown: Signed
    slowdown_wall: Signed
    slowdown_all: Signed
    unarmed_pages: Count


@dataclass(frozen=True)
class WriterFigures:
    """A thread that adds 1 to every word of the memory, over and over; GB/s of memory, by the clock, and by the CPU
    time of its thread (``_cpu``), so that what else runs on the machine counts for less.

    ``fault_s`` is the CPU time that each first write to a page after a sync costs more than another, ``faults`` how
    many there were in a slice. Speeds, ``fault_s`` and ``faults`` are medians. ``slowdown`` is the share of its speed
    by CPU time that tracking costs, ``slowdown_wall`` that of its speed by the clock.
    """

    size_bytes: Count
    slices: Count
    syncs_per_s: Number
    untracked_gb_per_s: Number
    tracked_gb_per_s: Number
    untracked_cpu_gb_per_s: Number
    tracked_cpu_gb_per_s: Number
    fault_s: Signed
    faults: Count
    sync_s: Spread
    slowdown: Signed
    slowdown_wall: Signed
    relaxed: RelaxedWriter | None = None


@dataclass(frozen=True)
class TrackBench:
    """All cases; a writer for each size; the sizes of which something ``failed`` have what was measured before it."""

    repeats: Count
    cases: Annotated[tuple[TrackCase, ...], Meta(max_length=1000)]
    writers: Annotated[tuple[WriterFigures, ...], Meta(max_length=1000)]
    failed: Annotated[tuple[Failed, ...], Meta(max_length=1000)] = ()


def _sync(figures: SyncFigures | None) -> str:
    if figures is None:
        return "-"
    return f"{format_duration(figures.sync_s.median + figures.later_s.median)} ({figures.ioctls})"


def _two_step(policy: str) -> Shown[TrackCase]:
    return Shown(policy.replace("-", " "), lambda case: _sync(case.two_step.get(policy)))


def _alternative(seconds: Spread, ratio: float) -> str:
    return f"{format_duration(seconds.median)} ({ratio:.0f}x)"


_COLUMNS: tuple[Shown[TrackCase], ...] = (
    Shown("memory", lambda case: format_size(case.size_bytes)),
    Shown("dirty", lambda case: f"{100 * case.dirty_share:g} %"),
    Shown("pattern", lambda case: case.pattern, numeric=False),
    Shown("pages", lambda case: str(case.dirty_pages)),
    Shown("one step", lambda case: _sync(case.one_step)),
    *map(_two_step, ("merged", "deferred", "per-page")),
    Shown("comparing", lambda case: _alternative(case.compare_s, case.ratio_to_compare)),
    Shown("hashing", lambda case: _alternative(case.hash_s, case.ratio_to_hash)),
    Shown("writing all", lambda case: _alternative(case.write_all_s, case.ratio_to_write_all)),
)

_LEGEND = (
    "syncs with their clears, wherever those come (ioctls); merged, deferred and per page are in two steps; "
    "x: times a sync in one step, the median of the repeats' own ratios, which need not be that of the medians shown"
)


def _text(bench: TrackBench) -> list[TextPart]:
    table = tabulate("Median seconds of a sync, and of each other way to find what was written", _COLUMNS, bench.cases)
    return [table, _LEGEND, *(line for writer in bench.writers for line in (_writer(writer), *_relaxed(writer)))]


def _writer(writer: WriterFigures) -> str:
    by_cpu = _slower(writer.untracked_cpu_gb_per_s, writer.tracked_cpu_gb_per_s, writer.slowdown)
    by_clock = _slower(writer.untracked_gb_per_s, writer.tracked_gb_per_s, writer.slowdown_wall)
    return (
        f"a writer that streams through {format_size(writer.size_bytes)}, tracked with {writer.syncs_per_s:g} sync a "
        f"second of {format_duration(writer.sync_s.median)}: by its CPU time {by_cpu}, by "
        f"the clock {by_clock}; a first write costs {format_duration(writer.fault_s)}"
    )


def _relaxed(writer: WriterFigures) -> list[str]:
    relaxed = writer.relaxed
    if relaxed is None:
        return []
    by_cpu = _slower(writer.untracked_cpu_gb_per_s, relaxed.cpu_gb_per_s, relaxed.slowdown)
    by_clock = _slower(writer.untracked_gb_per_s, relaxed.gb_per_s, relaxed.slowdown_wall)
    said = (
        f"the same with exact=False, a sync {format_duration(relaxed.sync_s.median)}: by its CPU time {by_cpu}, by the "
        f"clock {by_clock}; {_percent(relaxed.slowdown_all)} over all {writer.slices} slices; {relaxed.unarmed_pages} "
        f"pages not armed"
    )
    return [said]


def _slower(plain: float, tracked: float, slowdown: float) -> str:
    """``6.21 GB/s, and 5.53 GB/s tracked (11 % slower)``."""
    return f"{plain:.2f} GB/s, and {tracked:.2f} GB/s tracked ({_percent(slowdown)})"


def _percent(slowdown: float) -> str:
    share = round(100 * slowdown)
    return f"{abs(share)} % {'slower' if share >= 0 else 'faster'}"


KIND = Kind(TrackBench, _text)

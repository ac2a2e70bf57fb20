"""``precopy bench guest``: what migrations took from their guests, as these measured it themselves (docs/stall.md)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.migration.results import GuestStall
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.kinds.shared import Failed, Spread
from precopy.report.table import Shown, tabulate
from precopy.units import format_duration, format_rate, format_size


@dataclass(frozen=True)
class GuestSetup:
    """The guest has ``ram_bytes`` of random content and rewrites ``rewritten_bytes`` of it at ``write_rate`` pages a
    second (None: as fast as it goes)."""

    ram_bytes: Count
    rewritten_bytes: Count
    write_rate: Count | None
    downtime_limit_s: Number


@dataclass(frozen=True)
class Way:
    """How a guest of ``vcpus`` is migrated; chunks have 2 to the ``clear_chunk_shift`` pages, where ``clear`` has
    chunks."""

    tracker: Text
    clear: Text
    clear_chunk_shift: Count
    vcpus: Count


@dataclass(frozen=True)
class GuestRun:
    """One migration: what the guest says, and beside it the rounds, the bytes a second that were sent, the downtime as
    the source measured it, and by the guest's own clock how long it did not go on over the switchover."""

    stall: GuestStall
    rounds: Count
    throughput_bytes_per_s: Number
    downtime_s: Number
    switchover_gap_s: Number | None


@dataclass(frozen=True)
class WayFigures:
    """Medians of the ``runs`` of one way: the ``share`` of the pre-copy time that was in gaps, ``idle_share`` that in
    the window before, and ``share_above_idle`` the median of the runs' own differences. ``longest_s`` is the longest
    gap before the switchover, ``idle_longest_s`` that in the window before."""

    way: Way
    share: Number
    idle_share: Number
    share_above_idle: Number
    longest_s: Spread
    idle_longest_s: Spread
    downtime_s: Spread
    throughput_bytes_per_s: Number
    runs: Annotated[tuple[GuestRun, ...], Meta(min_length=1, max_length=1000)]

    @classmethod
    def of(cls, way: Way, runs: Sequence[GuestRun]) -> Self:
        measured = [
            (run.stall.before, run.stall.precopy, run.stall.share_above_before or 0.0)
            for run in runs
            if run.stall.before is not None and run.stall.precopy is not None
        ]
        return cls(
            way=way,
            share=statistics.median(precopy.share for _, precopy, _ in measured),
            idle_share=statistics.median(before.share for before, _, _ in measured),
            share_above_idle=statistics.median(above for *_, above in measured),
            longest_s=Spread.of([precopy.longest_s for _, precopy, _ in measured]),
            idle_longest_s=Spread.of([before.longest_s for before, _, _ in measured]),
            downtime_s=Spread.of([run.downtime_s for run in runs]),
            throughput_bytes_per_s=statistics.median(run.throughput_bytes_per_s for run in runs),
            runs=tuple(runs),
        )


@dataclass(frozen=True)
class GuestBench:
    """All ways, each ``repeats`` times and in turn; what ``failed`` was left out."""

    setup: GuestSetup
    repeats: Count
    ways: Annotated[tuple[WayFigures, ...], Meta(max_length=1000)]
    failed: Annotated[tuple[Failed, ...], Meta(max_length=1000)] = ()


_COLUMNS: tuple[Shown[WayFigures], ...] = (
    Shown("tracker", lambda row: row.way.tracker, numeric=False),
    Shown("clear", lambda row: row.way.clear, numeric=False),
    Shown("chunk", lambda row: str(row.way.clear_chunk_shift) if row.way.clear == "deferred" else "-"),
    Shown("vCPUs", lambda row: str(row.way.vcpus)),
    Shown("in gaps", lambda row: _share(row.share)),
    Shown("idle", lambda row: _share(row.idle_share)),
    Shown("above idle", lambda row: _share(row.share_above_idle)),
    Shown("longest gap", lambda row: format_duration(row.longest_s.median)),
    Shown("idle longest", lambda row: format_duration(row.idle_longest_s.median)),
    Shown("downtime", lambda row: format_duration(row.downtime_s.median)),
    Shown("throughput", lambda row: format_rate(row.throughput_bytes_per_s)),
)

_LEGEND = (
    "medians of the repeats, by the guests' own clocks: in gaps is the share of the time before the guest was paused "
    "that was in gaps above 0.1 ms; idle is that in a window before the migration, and above idle the median of the "
    "repeats' own differences, none below 0; the longest gap is that before the switchover; chunk: 2^n pages"
)


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _text(bench: GuestBench) -> list[TextPart]:
    setup = bench.setup
    rate = "as fast as it goes" if setup.write_rate is None else f"at {setup.write_rate} pages/s"
    return [
        f"a KVM guest of {format_size(setup.ram_bytes)} rewrites {format_size(setup.rewritten_bytes)} {rate}",
        tabulate("What migrations took from their guests", _COLUMNS, bench.ways),
        _LEGEND,
    ]


KIND = Kind(GuestBench, _text)

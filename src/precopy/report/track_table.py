"""The tracking benchmark as a table, with what it means below."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from precopy.report.console import table
from precopy.units import format_duration, format_size

Body = dict[str, Any]

_COLUMNS = ("one step", "merged", "deferred", "per page", "comparing", "hashing", "writing all")

_LEGEND = (
    "syncs with their clears, wherever those come (ioctls); merged, deferred and per page are in two steps; "
    "x: times a sync in one step, the median of the repeats' own ratios, which need not be that of the medians shown"
)


def track_table(body: Body) -> list[RenderableType]:
    """A line a case, of median seconds; then the writers."""
    shown = table(("memory", "r"), ("dirty", "r"), ("pattern", "l"), *((name, "r") for name in ("pages", *_COLUMNS)))
    for case in body["cases"]:
        two_step = case["two_step"]
        shown.add_row(
            format_size(case["size_bytes"]),
            f"{100 * case['dirty_share']:g} %",
            case["pattern"],
            str(case["dirty_pages"]),
            _sync(case["one_step"]),
            *(_sync(two_step[policy]) for policy in ("merged", "deferred", "per-page")),
            *(
                f"{format_duration(case[f'{way}_s']['median'])} ({case[f'ratio_to_{way}']:.0f}x)"
                for way in ("compare", "hash", "write_all")
            ),
        )
    return [
        shown,
        _LEGEND,
        *map(_writer, body["writers"]),
    ]


def _sync(figures: Body) -> str:
    seconds = figures["sync_s"]["median"] + figures["later_s"]["median"]
    return f"{format_duration(seconds)} ({figures['ioctls']})"


def _slower(one: Body, by: str, slowdown: str) -> str:
    """``6.21 GB/s, and 5.53 GB/s tracked (11 % slower)``."""
    plain, tracked = one[f"untracked{by}_gb_per_s"], one[f"tracked{by}_gb_per_s"]
    share = round(100 * one[slowdown])
    return f"{plain:.2f} GB/s, and {tracked:.2f} GB/s tracked ({abs(share)} % {'slower' if share >= 0 else 'faster'})"


def _writer(one: Body) -> str:
    return (
        f"a writer that streams through {format_size(one['size_bytes'])}, tracked with {one['syncs_per_s']:g} sync a "
        f"second of {format_duration(one['sync_s']['median'])}: by its CPU time {_slower(one, '_cpu', 'slowdown')}, by "
        f"the clock {_slower(one, '', 'slowdown_wall')}; a first write costs {format_duration(one['fault_s'])}"
    )

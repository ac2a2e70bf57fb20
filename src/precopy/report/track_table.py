"""The tracking benchmark as a table, with what it means below."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from precopy.units import format_duration, format_size

Body = dict[str, Any]

_COLUMNS = ("one step", "merged", "deferred", "per page", "comparing", "hashing", "writing all")

_LEGEND = (
    "syncs with their clears, wherever those come (ioctls); merged, deferred and per page are in two steps; "
    "x: times a sync in one step"
)


def track_table(body: Body) -> list[RenderableType]:
    """A line a case, of median seconds; then the writers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("memory", "dirty", "pattern"):
        table.add_column(name, no_wrap=True)
    for name in ("pages", *_COLUMNS):
        table.add_column(name, justify="right", no_wrap=True)
    for case in body["cases"]:
        two_step = case["two_step"]
        table.add_row(
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
        table,
        _LEGEND,
        *map(_writer, body["writers"]),
    ]


def _sync(figures: Body) -> str:
    seconds = figures["sync_s"]["median"] + figures["later_s"]["median"]
    return f"{format_duration(seconds)} ({figures['ioctls']})"


def _writer(one: Body) -> str:
    return (
        f"a writer that streams through {format_size(one['size_bytes'])}: {one['untracked_gb_per_s']:.1f} GB/s, and "
        f"{one['tracked_gb_per_s']:.1f} GB/s tracked with {one['syncs_per_s']:g} sync a second of "
        f"{format_duration(one['sync_s']['median'])}: {100 * one['slowdown']:.0f} % slower by its CPU time, "
        f"{100 * one['slowdown_wall']:.0f} % by the clock; a first write costs {format_duration(one['fault_s'])}"
    )

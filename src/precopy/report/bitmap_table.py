"""The bitmap benchmark as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import RenderableType

from precopy.report.console import table


@dataclass(frozen=True)
class BitmapRow:
    """One case: which guest's bitmap, what is dirty in it, which range; GB/s of each way, and ratios of ours to it.

    None where a way was not measured over that range.
    """

    guest: str
    pattern: str
    pages: str
    ours_gb_per_s: float
    c_gb_per_s: float
    c_per_page_gb_per_s: float | None
    copy_gb_per_s: float
    ratio_to_c: float
    ratio_to_copy: float
    ratio_to_aligned: float | None


_COLUMNS = ("precopy", "C loop", "C by page", "copy", "to C", "to copy", "to aligned")


def bitmap_table(rows: Sequence[BitmapRow]) -> RenderableType:
    """A line a case; speeds in GB/s of bitmap."""
    shown = table(("guest", "r"), ("dirty", "l"), ("pages", "r"), *((name, "r") for name in _COLUMNS))
    for row in rows:
        shown.add_row(
            row.guest,
            row.pattern,
            row.pages,
            f"{row.ours_gb_per_s:.2f}",
            f"{row.c_gb_per_s:.2f}",
            "-" if row.c_per_page_gb_per_s is None else f"{row.c_per_page_gb_per_s:.3f}",
            f"{row.copy_gb_per_s:.2f}",
            f"{row.ratio_to_c:.2f}",
            f"{row.ratio_to_copy:.2f}",
            "-" if row.ratio_to_aligned is None else f"{row.ratio_to_aligned:.2f}",
        )
    return shown

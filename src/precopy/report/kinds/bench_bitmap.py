"""``precopy bench bitmap``: GB/s of bitmap that each way syncs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.table import Shown, figure, tabulate
from precopy.units import format_size


@dataclass(frozen=True)
class BitmapCase:
    """One pattern over one range. Speeds and ratios are medians of the repeats' own.

    ``c_gb_per_s`` of an unaligned range is that of the words that it touches, aligned, with the bits outside clear
    (``sync_words`` knows nothing else); ``c_per_page_gb_per_s`` is what an unaligned range costs page by page.
    ``ratio_to_aligned`` is the speed over that of the aligned range, in the same repeat. ``ours_gb_per_s`` is with
    numpy, ``native_gb_per_s`` with numba, where that is installed.
    """

    guest_bytes: Count
    pages: Count
    pattern: Text
    aligned: bool
    start: Count
    length: Count
    bytes: Count
    new_pages: Count
    ours_gb_per_s: Number
    c_gb_per_s: Number
    c_per_page_gb_per_s: Number | None
    copy_gb_per_s: Number
    ratio_to_c: Number
    ratio_to_copy: Number
    ratio_to_aligned: Number | None
    native_gb_per_s: Number | None = None
    native_ratio_to_c: Number | None = None


@dataclass(frozen=True)
class BitmapBench:
    """All cases, and which compiler built the C loop; the median of the unaligned cases' ``ratio_to_aligned``."""

    compiler: Text
    cases: Annotated[tuple[BitmapCase, ...], Meta(min_length=1, max_length=5000)]
    unaligned_to_aligned: Number


_COLUMNS: tuple[Shown[BitmapCase], ...] = (
    Shown("guest", lambda case: format_size(case.guest_bytes)),
    Shown("dirty", lambda case: case.pattern, numeric=False),
    Shown("pages", lambda case: "whole" if case.aligned else f"{case.start} to {case.start + case.length}"),
    Shown("precopy", lambda case: figure(case.ours_gb_per_s, ".2f")),
    Shown("C loop", lambda case: figure(case.c_gb_per_s, ".2f")),
    Shown("C by page", lambda case: figure(case.c_per_page_gb_per_s, ".3f")),
    Shown("copy", lambda case: figure(case.copy_gb_per_s, ".2f")),
    Shown("to C", lambda case: figure(case.ratio_to_c, ".2f")),
    Shown("numba", lambda case: figure(case.native_gb_per_s, ".2f")),
    Shown("numba to C", lambda case: figure(case.native_ratio_to_c, ".2f")),
    Shown("to copy", lambda case: figure(case.ratio_to_copy, ".2f")),
    Shown("to aligned", lambda case: figure(case.ratio_to_aligned, ".2f")),
)


_LEGEND = (
    "speeds in GB/s of bitmap; speeds and ratios are medians over the repeats, each by itself, so that a ratio "
    "need not be that of the speeds beside it"
)


def _text(bench: BitmapBench) -> list[TextPart]:
    named = (("dense", "dense"), ("1 %", "one-percent"), ("idle", "idle"))
    least = [f"{name} {said}" for name, pattern in named if (said := _least(bench, pattern))]
    return [
        tabulate("Speeds in GB/s of bitmap, and ratios of precopy's to others'", _COLUMNS, bench.cases),
        _LEGEND,
        f"C loop: {bench.compiler}",
        f"at least: {'; '.join([*least, f'unaligned {bench.unaligned_to_aligned:.2f} of aligned (median)'])}",
    ]


def _least(bench: BitmapBench, pattern: str) -> str:
    cases = [case for case in bench.cases if case.pattern == pattern]
    if not cases:
        return ""
    natives = [case.native_ratio_to_c for case in cases if case.native_ratio_to_c is not None]
    native = f" ({min(natives):.2f} with numba)" if natives else ""
    to_c, to_copy = min(case.ratio_to_c for case in cases), min(case.ratio_to_copy for case in cases)
    return f"{to_c:.2f} times the C loop{native} and {to_copy:.2f} of copy speed"


KIND = Kind(BitmapBench, _text)

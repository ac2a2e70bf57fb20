"""The page of ``precopy bench sync``: what a sync costs with every variant of the patch series."""

from __future__ import annotations

from precopy.report.html.charts.bars import RangeBar, Row, Segment, grouped, ranges
from precopy.report.html.charts.scale import SECONDS, count_text, counts, fitting
from precopy.report.html.parts import Figure, Headline, Key, Part, Report, Tile
from precopy.report.html.words import NONE, SYNC_TERMS, duration
from precopy.report.kinds.bench_sync import BlockFigures, SyncBench, SyncParts, VariantFigures
from precopy.report.kinds.shared import Spread
from precopy.report.table import Column, Table
from precopy.units import format_size

_COLOURS = 6
_SYNC_READING = (
    "A sync is one look at what the guest wrote. While it goes on, the guest writes more, so a long one makes every "
    "round of a migration longer."
)
_BLOCKS_READING = (
    "From top to bottom in each block: the variants, in the legend's order. The axis is logarithmic: each step to the "
    "right is ten times as many."
)
_TABLE_READING = (
    "In the table: clears in the sync, then (+) those that are deferred until pages are sent. A block with an asterisk "
    "has a length that is no multiple of 64 pages: this is where one clear a page was made."
)


def bench_sync_report(bench: SyncBench, prefix: str) -> Report:
    intro = (
        f"Layout {bench.layout} with {format_size(bench.ram_bytes)} of RAM; between two syncs the guest writes "
        f"{bench.written_pages:,} pages, and in a sync it {'stands still' if bench.paused else 'runs on'}."
    )
    figures = (_times(bench, prefix), _ioctls(bench, prefix))
    parts = (Part(f"{prefix}sync", "A sync with every variant", intro, figures),)
    title = f"Sync benchmark, {bench.layout}, {format_size(bench.ram_bytes)}"
    return Report(title, _verdict(bench), parts, SYNC_TERMS)


def _verdict(bench: SyncBench) -> Headline:
    slow = max(bench.variants, key=lambda variant: variant.sync_s.median)
    fast = min(bench.variants, key=lambda variant: variant.sync_s.median)
    times = slow.sync_s.median / max(fast.sync_s.median, 1e-9)
    headline = (
        f"Finding out what a running guest wrote takes {duration(fast.sync_s.median)} with {fast.variant} and "
        f"{duration(slow.sync_s.median)} with {slow.variant}"
        + (f", {times:.0f} times as long." if times >= 1.5 else ".")
    )
    tiles = [
        Tile("Shortest sync", duration(fast.sync_s.median), fast.variant),
        Tile("Longest sync", duration(slow.sync_s.median), slow.variant),
        Tile(
            "Clear ioctls",
            f"{count_text(_clears(fast))} or {count_text(_clears(slow))}",
            "of these two, in a sync and deferred from it",
        ),
    ]
    if bench.qemu:
        tiles.append(Tile("QEMU's own sync", duration(bench.qemu.sync_s.median), f"QEMU {bench.qemu.version[:40]}"))
    return Headline("plain", "measured", headline, (), tuple(tiles))


def _clears(figures: SyncParts) -> int:
    return figures.clear_log_ioctls + figures.deferred_clear_ioctls


def _times(bench: SyncBench, prefix: str) -> Figure:
    rows = [_range(variant.variant, variant.sync_s, 1) for variant in bench.variants]
    if bench.qemu:
        rows.append(_range("QEMU", bench.qemu.sync_s, 2))
    values = [value for row in rows for value in (row.low, row.value, row.high) if value]
    title = "How long a sync takes with each variant: the median, and the shortest and longest that were seen."
    columns = (
        Column("variant", False),
        *(Column(name) for name in ("sync time: median", "min", "max", "fetching", "merging", "clearing")),
        *(Column(name) for name in ("dirty pages", "get", "clear", "deferred")),
    )
    table = [_variant_row(variant) for variant in bench.variants]
    if bench.qemu:
        clears = (f"{bench.qemu.clear_log_ioctls:,.0f}", f"{bench.qemu.deferred_clear_ioctls:g}")
        table.append(("QEMU", *_spread(bench.qemu.sync_s), NONE, NONE, NONE, NONE, NONE, *clears))
    return Figure(
        f"{prefix}sync-times",
        "Sync time",
        title,
        ranges(rows, fitting("sync time", values or [1e-6], SECONDS), title),
        (Key(1, "range", "median, from shortest to longest"), *((Key(2, "range", "QEMU"),) if bench.qemu else ())),
        (_SYNC_READING,),
        Table("Sync times and ioctls of each variant", columns, tuple(table)),
    )


def _range(name: str, spread: Spread, series: int) -> RangeBar:
    return RangeBar(name, spread.median, spread.min, spread.max, duration(spread.median), series)


def _spread(spread: Spread) -> tuple[str, str, str]:
    return duration(spread.median), duration(spread.min), duration(spread.max)


def _variant_row(variant: VariantFigures) -> tuple[str, ...]:
    return (
        variant.variant,
        *_spread(variant.sync_s),
        *(duration(part.median) for part in (variant.log_sync_s, variant.bitmap_sync_s, variant.log_clear_s)),
        *(count_text(count) for count in (variant.dirty_pages, variant.get_log_ioctls)),
        *(count_text(count) for count in (variant.clear_log_ioctls, variant.deferred_clear_ioctls)),
    )


def _ioctls(bench: SyncBench, prefix: str) -> Figure:
    """Clears by RAM block and variant."""
    names = [block.name for block in bench.variants[0].blocks if block.slots]
    cells = {(variant.variant, block.name): block for variant in bench.variants for block in variant.blocks}
    groups = [
        (
            name,
            [_bar(index, variant, cells.get((variant.variant, name))) for index, variant in enumerate(bench.variants)],
        )
        for name in names
    ]
    largest = max((_clears(block) for block in cells.values()), default=0)
    title = "How often each variant asks the kernel to re-arm pages of each RAM block, in a sync and deferred from it."
    columns = (Column("RAM block", False), Column("pages"), *(Column(variant.variant) for variant in bench.variants))
    rows = tuple(
        (
            name,
            next((_pages(block) for (_, other), block in cells.items() if other == name), NONE),
            *(_calls(cells.get((variant.variant, name))) for variant in bench.variants),
        )
        for name in names
    )
    return Figure(
        f"{prefix}ioctls",
        "Ioctls by block and variant",
        title,
        grouped(groups, counts("clear ioctls a sync", largest), title) if groups else None,
        tuple(Key(_series(index), "bar", variant.variant) for index, variant in enumerate(bench.variants)),
        (_BLOCKS_READING, _TABLE_READING),
        Table("Clear ioctls by RAM block and variant", columns, rows),
    )


def _series(index: int) -> int:
    return index % _COLOURS + 1


def _bar(index: int, variant: VariantFigures, block: BlockFigures | None) -> Row:
    calls = _clears(block) if block else 0
    segment = Segment(_series(index), calls, f"{variant.variant}: {calls:,} clear ioctls")
    return Row(variant.variant, (segment,), count_text(calls))


def _pages(block: BlockFigures) -> str:
    return f"{block.pages:,}{'' if block.aligned else ' *'}"


def _calls(block: BlockFigures | None) -> str:
    if block is None:
        return NONE
    later = f" + {block.deferred_clear_ioctls:,}" if block.deferred_clear_ioctls else ""
    return f"{block.clear_log_ioctls:,}{later}"

"""``precopy bench sync``: what a sync costs with every variant of the patch series (docs/patch-series.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.kinds.shared import Failed, Spread
from precopy.report.table import Column, Table
from precopy.units import format_duration, format_size


@dataclass(frozen=True)
class SyncParts:
    """Of one sync: counts (medians), and seconds of its parts. ``log_sync_s`` and ``log_clear_s`` are those inside its
    get and clear ioctls; ``bitmap_sync_s`` is merging its words. ``deferred_clear_ioctls`` are those made after the
    sync, before its pages would be read."""

    dirty_pages: Count
    get_log_ioctls: Count
    clear_log_ioctls: Count
    deferred_clear_ioctls: Count
    log_sync_s: Spread
    bitmap_sync_s: Spread
    log_clear_s: Spread


@dataclass(frozen=True)
class BlockFigures(SyncParts):
    """One RAM block in one variant, of which the parts are its share; ``slots`` is 0 where it is not mapped. Its
    ``bitmap_sync_s`` is measured alone, on the same bits."""

    name: Text
    pages: Count
    aligned: bool
    listeners: Count
    slots: Count


@dataclass(frozen=True)
class VariantFigures(SyncParts):
    """One variant: ``sync_s`` is the sync time, the sum of its three parts."""

    variant: Text
    clear: Text
    sync_s: Spread
    blocks: Annotated[tuple[BlockFigures, ...], Meta(max_length=200)]


@dataclass(frozen=True)
class IdleFigures:
    """Syncs of the same guest paused, nothing written (`ours`): in all, inside the get ioctls, and the rest."""

    syncs: Count
    sync_s: Spread
    get_log_s: Spread
    beyond_get_s: Spread


@dataclass(frozen=True)
class Walks:
    """``walks_per_sync`` over the whole log, and the seconds of one log_sync."""

    walks_per_sync: Count
    log_sync_s: Spread


@dataclass(frozen=True)
class VhostFigures:
    """``devices`` processes that log to one shared log: walked once, and, as before the patch, once a device."""

    devices: Count
    logged_pages: Count
    shared: Walks
    per_device: Walks


@dataclass(frozen=True)
class Reported:
    """A line of the patch series: ``clear_log_ioctls`` and seconds of a sync, before and after the patch. None: not
    reported."""

    what: Text
    clear_log_ioctls: Count | None
    before_s: Number
    after_s: Number | None


@dataclass(frozen=True)
class QemuFigures:
    """``syncs`` of the same VM in QEMU: times without its clears traced (``sync_s``) and with them
    (``sync_all_events_s``); clears of a sync, and deferred ones of a migration. ``status`` is QEMU's of the VM."""

    version: Text
    accel: Text
    status: Text
    command: Annotated[tuple[Text, ...], Meta(max_length=1000)]
    syncs: Count
    sync_s: Spread
    sync_all_events_s: Spread
    clear_log_ioctls: Count
    deferred_clear_ioctls: Number


@dataclass(frozen=True)
class Ratios:
    """Of median sync times; None where one was not measured."""

    ours_to_before_patch: Number | None
    ours_to_qemu: Number | None


@dataclass(frozen=True)
class SyncBench:
    """All of it, for a captured ``layout`` with ``ram_bytes`` of main memory, of which the guest writes ``ram_share``.
    ``listeners`` say how the kernel keeps each one's slots; ``repeats`` were made, fewer than wanted where one
    ``failed``. ``seed`` is what the patch series reports."""

    layout: Text
    notes: Annotated[tuple[Text, ...], Meta(max_length=1000)]
    ram_bytes: Count
    ram_share: Number
    paused: bool
    unaligned_mapped_pages: Count
    listeners: Annotated[tuple[Text, ...], Meta(max_length=20)]
    slots: Count
    written_pages: Count
    variants: Annotated[tuple[VariantFigures, ...], Meta(min_length=1, max_length=50)]
    idle: IdleFigures
    vhost: VhostFigures
    repeats: Count
    failed: Annotated[tuple[Failed, ...], Meta(max_length=100)]
    seed: Annotated[tuple[Reported, ...], Meta(max_length=20)]
    qemu: QemuFigures | None
    ratios: Ratios


def _text(bench: SyncBench) -> list[TextPart]:
    """The variants, each variant's blocks, the peers, and the ratios."""
    blocks = bench.variants[0].blocks
    mapped, unmapped = ([block for block in blocks if bool(block.slots) is there] for there in (True, False))
    names = ", ".join(block.name for block in unmapped)
    return [
        *_measured(bench, len(mapped)),
        _variants(bench),
        _blocks(bench),
        *([f"not mapped in this layout, and so without a slot: {names}"] if unmapped else []),
        *_LEGEND,
        *_peers(bench),
        *bench.notes,
    ]


def _measured(bench: SyncBench, mapped: int) -> tuple[str, str]:
    where = f"{mapped} mapped RAM blocks in {bench.slots} slots; {'; '.join(bench.listeners)}"
    written = f"all of the smaller blocks, {100 * bench.ram_share:g} % of main memory"
    runs = "stands still in each sync" if bench.paused else "runs"
    return (
        f"layout {bench.layout} with {format_size(bench.ram_bytes)} of RAM; {where}",
        f"the guest {runs}; between two syncs it writes {bench.written_pages} pages: {written}",
    )


_COUNTS = ("dirty", "get", "clear", "deferred")
_TIMES = ("log_sync us", "bitmap us", "log_clear us")
_LEGEND = (
    "* a length that is no multiple of 64 pages; times of blocks are those in their ioctls (bitmap: alone)",
    "every figure is a median by itself: parts need not add up, but for a variant's ioctls, which are its blocks'",
)


def _counts(figures: SyncParts) -> tuple[str, ...]:
    counts = (figures.dirty_pages, figures.get_log_ioctls, figures.clear_log_ioctls, figures.deferred_clear_ioctls)
    return tuple(map(str, counts))


def _times(figures: SyncParts) -> tuple[str, ...]:
    return tuple(map(_microseconds, (figures.log_sync_s, figures.bitmap_sync_s, figures.log_clear_s)))


def _variants(bench: SyncBench) -> Table:
    names = (*_COUNTS, "sync time us (min to max)", *_TIMES)
    rows = [
        (variant.variant, *_counts(variant), _microseconds(variant.sync_s), *_times(variant))
        for variant in bench.variants
    ]
    if (qemu := bench.qemu) is not None:
        clears = (str(qemu.clear_log_ioctls), f"{qemu.deferred_clear_ioctls:g}", _microseconds(qemu.sync_s))
        version = (qemu.version.split() or ["?"])[0]
        rows.append((f"QEMU {version}, traced", "-", "-", *clears, "-", "-", "-"))
    return Table("A sync with each variant", (Column("variant", False), *map(Column, names)), tuple(rows))


def _blocks(bench: SyncBench) -> Table:
    rows: list[tuple[str, ...]] = []
    for variant in bench.variants:
        rows.append((variant.variant,))
        for block in variant.blocks:
            if block.slots:
                pages = f"{block.pages}{' ' if block.aligned else '*'}"
                rows.append(
                    (f"  {block.name}", pages, str(block.listeners), str(block.slots), *_counts(block), *_times(block))
                )
    names = ("pages", "listeners", "slots", *_COUNTS, *_TIMES)
    columns = (Column("RAM block", False), *map(Column, names))
    return Table("Its share of each RAM block, with each variant", columns, tuple(rows))


def _peers(bench: SyncBench) -> list[str]:
    idle, vhost, qemu = bench.idle, bench.vhost, bench.qemu
    outside = f"{format_duration(idle.beyond_get_s.median)} of it outside its get ioctls (median of {idle.syncs})"
    shared, each = (
        f"{way.walks_per_sync} in {format_duration(way.log_sync_s.median)}" for way in (vhost.shared, vhost.per_device)
    )
    walks = f"walks of it in a sync: {shared}; once a device, as before the patch series' other patch: {each}"
    lines = [
        f"idle: a sync takes {format_duration(idle.sync_s.median)}, {outside}",
        f"vhost log: {vhost.devices} device processes share one; {walks}",
        *map(_reported, bench.seed),
    ]
    if qemu is not None:
        lines.append(
            f"QEMU {qemu.version} on {qemu.accel}, its VM {qemu.status}: {qemu.syncs} syncs without and as many with "
            f"its clears traced ({format_duration(qemu.sync_all_events_s.median)} then)"
        )
    named = ((bench.ratios.ours_to_before_patch, "before-patch"), (bench.ratios.ours_to_qemu, "QEMU"))
    parts = [f"1/{1 / ratio:.1f} of {what}" for ratio, what in named if ratio]
    return [*lines, f"the sync time of ours is {' and '.join(parts)}"] if parts else lines


def _reported(reported: Reported) -> str:
    clears = f"{reported.clear_log_ioctls} ioctls, " if reported.clear_log_ioctls else ""
    after = f", {format_duration(reported.after_s)} after it" if reported.after_s is not None else ""
    before = f"{clears}{format_duration(reported.before_s)} before the patch"
    return f"the patch series reports: {reported.what}: {before}{after}"


def _microseconds(spread: Spread) -> str:
    """``median (min to max)``, all in microseconds; just a 0 where nothing was done."""
    median, low, high = (1e6 * value for value in (spread.median, spread.min, spread.max))
    return f"{median:.0f} ({low:.0f} to {high:.0f})" if high else "0"


KIND = Kind(SyncBench, _text)

"""``precopy bench sync``: a sync with every variant of the patch series (docs/patch-series.md), on one real KVM guest.

One guest runs all the time and writes, again and again, every page of the firmware blocks and a share of main memory.
Between two syncs it is waited for until all of these were written since they were last armed. Each repeat goes through
all variants in turn, so that a machine whose speed drifts moves all of them; after each sync everything found is taken,
as a migration does before it sends, which re-arms what the variant has deferred.

The blocks are mapped as the capture shows them, but writable: a guest can dirty no ROM. What the capture does not map
has no slot, and costs nothing in any variant.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from precopy.bench.failed import Failed, attempt
from precopy.bench.patch_series import REPORTED
from precopy.bench.peers.qemu.trace_events import QemuSyncs
from precopy.bench.vhost import measure_vhost
from precopy.bitmap import Bitmap
from precopy.dirty import LogCounters, MigrationBitmap, SyncStats, clear_policy
from precopy.errors import GuestError, UsageError
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload, params, params_words
from precopy.machines.workload.image import stamped
from precopy.memory import GuestMemory, RamBlock, RamLayout, Section
from precopy.memory.captures.main_memory import main_memory
from precopy.report.kinds.bench_sync import BlockFigures, IdleFigures, QemuFigures, Ratios, SyncBench, VariantFigures
from precopy.report.kinds.layout import unaligned_mapped_pages
from precopy.report.kinds.shared import Spread
from precopy.trackers.kvm_log import KvmDirtyLog
from precopy.units import PAGE_SIZE, GuestPhysicalAddress

VARIANTS = {
    "before-patch": "before-patch",
    "rfc-v1": "rfc-v1",
    "upstream": "upstream",
    "clear-bmap": "clear-bmap",
    "ours-merged": "merged",
    "ours": "deferred",
}
"""The clear policy of each variant, in the order of their history."""

_WARM_UP = 2
"""Rounds through all variants that are not counted."""
_IDLE_SYNCS = 200
"""Syncs of the idle guest, of which the median is shown."""
_PASS_S, _POLL_S = 30.0, 0.001
"""Seconds that the guest may take to write its pages once; seconds between two checks whether it has."""
_MAIN_CHUNK = 64
"""Pages in a run of main memory that the guest writes; the runs are spread evenly over it."""
_WHOLE = (64 << 20) // PAGE_SIZE
"""Pages. Blocks up to this size, such as flash and displays, are written whole; larger ones count as main memory."""


@dataclass(frozen=True)
class _Share:
    """A block's share of one sync: what the kernel was asked in it and after it, dirty pages, merging its words."""

    in_sync: LogCounters
    afterwards: LogCounters
    dirty: int
    merge_s: float


@dataclass(frozen=True)
class _Sample:
    """One sync of one variant."""

    stats: SyncStats
    blocks: dict[str, _Share]


def measure(
    layout: RamLayout,
    name: str = "",
    notes: tuple[str, ...] = (),
    *,
    ram_share: float,
    repeat: int,
    listeners: int = 2,
    paused: bool = False,
    variants: Sequence[str] = tuple(VARIANTS),
    vhost_devices: int = 4,
    tell: Callable[[str], None] = lambda _: None,
) -> SyncBench:
    """Runs the benchmark with ``layout``, of whose main memory the share ``ram_share`` is written too. With
    ``paused`` the guest stands still in each sync, so that no ioctl has to interrupt a vCPU. ``name`` and ``notes`` are
    what the layout's capture says of it.

    Raises `UsageError`, `Unsupported`, `OutOfMemory`, `GuestError`, `LayoutError`.
    """
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown:
        raise UsageError(f"no variant is called {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    sections = written_sections(layout, ram_share)
    tell("the vhost log")  # first, so that nothing is lost where it fails
    vhost = measure_vhost(layout, vhost_devices, repeat)
    with KvmGuest(GuestMemory(layout), smram_listener=listeners > 1) as guest:
        guest.boot(Workload("sequential", rate=None), sections=sections)
        guest.resume()
        failed: Failed | None = None
        run = _Run(guest, sum(section.pages for section in sections), paused)
        guest.dirty.start()
        try:
            samples: dict[str, list[_Sample]] = {variant: [] for variant in variants}
            bitmaps = {
                variant: MigrationBitmap(guest.dirty, clear_policy(VARIANTS[variant], layout)) for variant in variants
            }
            for number in range(_WARM_UP):
                tell(f"warm-up {number + 1}/{_WARM_UP}")
                for bitmap in bitmaps.values():
                    run.sample(bitmap)
            for number in range(1, repeat + 1):
                tell(f"repeat {number}/{repeat}")
                made = attempt(
                    f"repeat {number}", lambda: {variant: run.sample(bitmap) for variant, bitmap in bitmaps.items()}
                )
                if isinstance(made, Failed):
                    failed = made
                    break
                for variant, sample in made.items():
                    samples[variant].append(sample)
            if failed is not None and not all(samples.values()):
                raise failed.error()
            guest.pause()
            idle = run.idle()
        finally:
            guest.dirty.stop()
        how = tuple(listener.how for listener in guest.vm_memory.listeners)
        figures = tuple(_variant(variant, samples[variant], guest) for variant in variants)
        slots = len(guest.vm_memory.slots)
    return SyncBench(
        layout=name,
        notes=notes,
        ram_bytes=sum(block.pages for block in main_memory(layout)) * layout.page_size,
        ram_share=ram_share,
        paused=paused,
        unaligned_mapped_pages=unaligned_mapped_pages(layout),
        listeners=how,
        slots=slots,
        written_pages=run.pages,
        variants=figures,
        idle=idle,
        vhost=vhost,
        repeats=len(samples[variants[0]]),
        failed=(failed,) if failed is not None else (),
        seed=REPORTED,
        qemu=None,
        ratios=Ratios(_ratio(figures, "ours", "before-patch"), None),
    )


def beside_qemu(measured: SyncBench, traced: QemuSyncs | Failed) -> SyncBench:
    """The same with what QEMU's own syncs took, or why that is not known."""
    if isinstance(traced, Failed):
        return replace(measured, failed=(*measured.failed, traced))
    qemu = QemuFigures(
        version=traced.version,
        accel=traced.accel,
        status=traced.status,
        command=traced.command,
        syncs=len(traced.timed),
        sync_s=Spread.of([sync.sync_s for sync in traced.timed]),
        sync_all_events_s=Spread.of([sync.sync_s for sync in traced.counted]),
        clear_log_ioctls=traced.clear_ioctls,
        deferred_clear_ioctls=traced.deferred_clear_ioctls / traced.counted_migrations,
    )
    ours = next((variant.sync_s.median for variant in measured.variants if variant.variant == "ours"), None)
    ratio = None if ours is None else ours / qemu.sync_s.median
    return replace(measured, qemu=qemu, ratios=replace(measured.ratios, ours_to_qemu=ratio))


def _ratio(variants: Sequence[VariantFigures], variant: str, peer: str) -> float | None:
    """Median sync time of one variant over another's, None where either was not measured."""
    medians = {variant.variant: variant.sync_s.median for variant in variants}
    return medians[variant] / medians[peer] if {variant, peer} <= medians.keys() else None


def written_sections(layout: RamLayout, ram_share: float) -> list[Section]:
    """What the guest writes: every mapped page of each block of firmware and devices, once, and the share of main
    memory and of each other block that is longer than `_WHOLE`; nothing of its own image. Raises `LayoutError`."""
    large = {*main_memory(layout), *(block for block in layout.blocks if block.pages > _WHOLE)}
    sections: list[Section] = []
    seen = Bitmap(layout.end_page)
    for section in layout.sections:
        if section.block in large:
            continue
        unseen = Bitmap(section.pages)  # a block may be mapped twice, or a part of it
        unseen.set_all()
        for start, pages in seen.runs(section.first_page, section.pages):
            unseen.clear_range(start - section.first_page, pages)
        for start, pages in unseen.runs():
            gpa = GuestPhysicalAddress(section.gpa + start * PAGE_SIZE)
            sections.append(Section(section.block, section.offset + start, pages, gpa))
        seen.set_range(section.first_page, section.pages)
    own = [section for section in stamped(layout) if section.block in large]
    wanted = int(sum(block.pages for block in large) * ram_share)
    available = sum(section.pages for section in own)
    runs = min(max(wanted // _MAIN_CHUNK, 1), params.MAX_SEGMENTS - len(sections) - len(own)) if wanted else 0
    for section in own:
        part = round(runs * section.pages / available)
        length = min(wanted // max(runs, 1), section.pages // max(part, 1))
        for number in range(part if length else 0):
            offset = number * (section.pages // part)
            gpa = GuestPhysicalAddress(section.gpa + offset * PAGE_SIZE)
            sections.append(Section(section.block, section.offset + offset, length, gpa))
    return sections


class _Run:
    """The guest under measurement: it writes ``pages`` pages over and over, and is ``paused`` for each sync or not."""

    def __init__(self, guest: KvmGuest, pages: int, paused: bool) -> None:
        self.guest, self.pages, self._paused = guest, pages, paused
        self._logs = [log for log in guest.dirty.logs if isinstance(log, KvmDirtyLog)]
        self._params = params_words(guest.memory, 0)

    def sample(self, bitmap: MigrationBitmap) -> _Sample:
        """One sync, once all pages were written since the last one was armed."""
        self._wait_for_a_pass()
        if self._paused:
            self.guest.pause()
        before = self._counters()
        stats = bitmap.sync()
        synced = self._counters()
        for start, count in bitmap.windows(1 << 20):
            bitmap.take(start, count)
        taken = self._counters()
        if self._paused:
            self.guest.resume()
        return _Sample(
            stats,
            {
                block.name: _Share(
                    synced[block.name] - before[block.name],
                    taken[block.name] - synced[block.name],
                    *_merge_alone(bitmap, block),
                )
                for block in bitmap.layout.blocks
            },
        )

    def idle(self) -> IdleFigures:
        """Syncs of the paused guest, with nothing left dirty."""
        layout = self.guest.memory.layout
        bitmap = MigrationBitmap(self.guest.dirty, clear_policy("merged", layout))
        bitmap.sync()
        sync_s, get_s = [], []
        for _ in range(_IDLE_SYNCS):
            before = self.guest.dirty.counters.get_s
            sync_s.append(bitmap.sync().sync_s)
            get_s.append(self.guest.dirty.counters.get_s - before)
        rest = [whole - inside for whole, inside in zip(sync_s, get_s, strict=True)]
        return IdleFigures(_IDLE_SYNCS, Spread.of(sync_s), Spread.of(get_s), Spread.of(rest))

    def _wait_for_a_pass(self) -> None:
        first, end = self._steps(), time.monotonic() + _PASS_S
        while self._steps() - first <= self.pages:
            self.guest.raise_failure()
            if time.monotonic() > end:
                raise GuestError(f"the guest did not write its {self.pages} pages within {_PASS_S:g} s")
            time.sleep(_POLL_S)

    def _steps(self) -> int:
        return int(self._params[params.STEP // 8])

    def _counters(self) -> defaultdict[str, LogCounters]:
        """What the slots of each block have cost so far."""
        by_block: defaultdict[str, LogCounters] = defaultdict(LogCounters)
        for log in self._logs:
            for counted in log.slot_counters:
                by_block[counted.slot.name] += counted.counters
        return by_block


def _merge_alone(bitmap: MigrationBitmap, block: RamBlock) -> tuple[int, float]:
    """Dirty pages of a block after a sync, and the seconds that merging its words takes."""
    found, into = bitmap.dirty.view(block.first_page, block.pages), Bitmap(block.pages)
    start = time.perf_counter()
    into.union(found)
    return found.count(), time.perf_counter() - start


def _variant(name: str, samples: Sequence[_Sample], guest: KvmGuest) -> VariantFigures:
    vm = guest.vm_memory
    slots = Counter(slot.name for slot in vm.slots)
    listeners = Counter(block for listener in vm.listeners for block in {slot.name for slot in listener.slots})
    blocks = tuple(
        _block(block, [sample.blocks[block.name] for sample in samples], listeners[block.name], slots[block.name])
        for block in guest.memory.layout.blocks
    )
    return VariantFigures(
        variant=name,
        clear=VARIANTS[name],
        sync_s=Spread.of([sample.stats.sync_s for sample in samples]),
        log_sync_s=Spread.of([sample.stats.log_sync_s for sample in samples]),
        bitmap_sync_s=Spread.of([sample.stats.bitmap_sync_s for sample in samples]),
        log_clear_s=Spread.of([sample.stats.log_clear_s for sample in samples]),
        dirty_pages=_count([sample.stats.dirty_pages for sample in samples]),
        get_log_ioctls=sum(block.get_log_ioctls for block in blocks),
        clear_log_ioctls=sum(block.clear_log_ioctls for block in blocks),
        deferred_clear_ioctls=sum(block.deferred_clear_ioctls for block in blocks),
        blocks=blocks,
    )


def _block(block: RamBlock, shares: Sequence[_Share], listeners: int, slots: int) -> BlockFigures:
    return BlockFigures(
        name=block.name,
        pages=block.pages,
        aligned=block.aligned,
        listeners=listeners,
        slots=slots,
        dirty_pages=_count([share.dirty for share in shares]),
        get_log_ioctls=_count([share.in_sync.get_calls for share in shares]),
        clear_log_ioctls=_count([share.in_sync.clear_calls for share in shares]),
        deferred_clear_ioctls=_count([share.afterwards.clear_calls for share in shares]),
        log_sync_s=Spread.of([share.in_sync.get_s for share in shares]),
        bitmap_sync_s=Spread.of([share.merge_s for share in shares]),
        log_clear_s=Spread.of([share.in_sync.clear_s for share in shares]),
    )


def _count(values: Sequence[int]) -> int:
    return statistics.median_low(values)

"""Syncs of every QEMU that is here, and ours, of the same work.

Each has a running guest that rewrites the same number of pages as fast as it can, and syncs as far apart (`Pacing`), so
that each sync finds all of these pages; one memory listener, and a flash block whose length is no multiple of 64 pages.
QEMU tracks by the dirty log and by the dirty ring; ours has QEMU's RAM blocks, at the addresses where its monitor shows
them, and each clear policy of ours. All are measured in turn, several times over, so that a machine whose speed drifts
moves all of them. Syncs that found other work are left out.
"""

from __future__ import annotations

import itertools
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from precopy.bench.failed import Failed, attempt
from precopy.bench.pacing import PacedSync, Pacing
from precopy.bench.peers.qemu.launcher import absent_qemus, find_qemus, qemu_name, require_qemu
from precopy.bench.peers.qemu.program import HUGE_PAGE
from precopy.bench.peers.qemu.running import FLASH_BYTES, QemuRun, trace_running
from precopy.dirty import MigrationBitmap, clear_policy
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload
from precopy.machines.workload.image import stamped
from precopy.memory import Capture, GuestMemory, RamLayout, Section
from precopy.memory.captures.main_memory import main_memory
from precopy.report.kinds.bench_sync import EqualWork, RunningSyncs
from precopy.report.kinds.shared import Spread
from precopy.units import PAGE_SIZE, GuestPhysicalAddress

_MOST_RAM, _PAGES, _INTERVAL_S = 512 << 20, 1301, 0.02
"""Bytes of main memory, pages that the guest rewrites, and seconds between two syncs: those of the first comparison
with a QEMU that has the patch series."""
_LEAST_RAM = 16 << 20
"""Bytes that have room for the rewritten pages."""
_TURNS, _SYNCS, _WARM_UP = 2, 6, 5
"""How often each is measured at most, syncs for each repeat, and syncs of ours in a turn that do not count."""
_OURS = (("deferred", "dirty-log"), ("merged", "dirty-log"), ("before-patch", "dirty-log"), ("deferred", "dirty-ring"))
"""Clear policies and trackers."""
_WINDOW_PAGES = 1 << 20
"""Pages taken at once after a sync: more than are dirty."""


@dataclass
class _Measured:
    """Syncs of one, over all turns, and the clears in some of them."""

    syncs: list[PacedSync] = field(default_factory=list)
    clears: list[int] = field(default_factory=list)

    def summary(self, what: str, tracker: str, pacing: Pacing) -> RunningSyncs:
        same = [sync for sync in self.syncs if pacing.equal(sync.pages)]
        used = same or self.syncs
        return RunningSyncs(
            what=what,
            tracker=tracker,
            equal=bool(same),
            syncs=len(used),
            other_syncs=len(self.syncs) - len(used),
            sync_s=Spread.of([sync.sync_s for sync in used]),
            interval_s=statistics.median(sync.interval_s for sync in used),
            pages=statistics.median(sync.pages for sync in used),
            clear_log_ioctls=statistics.median_low(self.clears),
        )


def measure(tell: Callable[[str], None], *, repeat: int, ram: int = _MOST_RAM) -> tuple[EqualWork | None, list[Failed]]:
    """All of them, six syncs of each for each ``repeat``, in two turns where there are several, and what failed. None
    where no QEMU could be traced. Guests have ``ram`` bytes, but whole huge pages, and 16 to 512 MiB. ``tell`` is told
    what is measured next. Raises what a guest of ours does."""
    turns = min(_TURNS, repeat)
    syncs = -(-_SYNCS * repeat // turns)
    ram = min(max(ram, _LEAST_RAM), _MOST_RAM) // HUGE_PAGE * HUGE_PAGE
    if isinstance(unusable := attempt("QEMU", require_qemu), Failed):
        return None, [unusable]
    done: dict[tuple[str, str], _Measured] = {}
    failed: dict[str, Failed] = {}
    layout: RamLayout | None = None
    for turn in range(1, turns + 1):
        for qemu, ring in itertools.product(find_qemus(), (False, True)):
            tracker = "dirty ring" if ring else "dirty log"
            name = f"{qemu_name(qemu)}, {tracker}"
            if name in failed:
                continue
            tell(f"{turn}/{turns}: {name}")
            trace = partial(trace_running, qemu=qemu, ram=ram, pages=_PAGES, interval_s=_INTERVAL_S)
            traced = attempt(name, partial(trace, syncs=syncs, dirty_ring=ring))
            if isinstance(traced, Failed):
                failed[name] = traced
                continue
            layout = layout or _layout_of(traced)
            into = done.setdefault((f"QEMU {traced.version.split()[0]}", tracker), _Measured())
            into.syncs += traced.syncs
            into.clears.append(traced.clear_ioctls)
        if layout is None:
            return None, list(failed.values())
        for policy, tracker in _OURS:
            tell(f"{turn}/{turns}: precopy, {policy}, {tracker}")
            into = done.setdefault((f"precopy, {policy}", tracker.replace("-", " ")), _Measured())
            _sync_ours(_written(layout, _PAGES), layout, (policy, tracker), syncs, into)
    peers = tuple(measured.summary(*names, Pacing(_PAGES, _INTERVAL_S)) for names, measured in done.items())
    work = EqualWork(ram, FLASH_BYTES, _PAGES, _INTERVAL_S, peers, ours_to_newest(peers), tuple(absent_qemus()))
    return work, list(failed.values())


def ours_to_newest(peers: Sequence[RunningSyncs]) -> float | None:
    """Precopy's shortest median sync time over the newest QEMU's shortest; None where either had no equal work."""

    def version(peer: RunningSyncs) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", peer.what))

    ours = [peer for peer in peers if peer.what.startswith("precopy")]
    theirs = [peer for peer in peers if peer.what.startswith("QEMU")]
    newest = max(map(version, theirs), default=())
    best = [
        min((peer.sync_s.median for peer in side if peer.equal), default=None)
        for side in (ours, [peer for peer in theirs if version(peer) == newest])
    ]
    return None if best[0] is None or not best[1] else best[0] / best[1]


def _layout_of(traced: QemuRun) -> RamLayout:
    with TemporaryDirectory() as directory:
        (Path(directory) / "ramblock.txt").write_text(traced.ramblock)
        (Path(directory) / "mtree-flat.txt").write_text(traced.mtree)
        return Capture.read(Path(directory)).layout()


def _sync_ours(section: Section, layout: RamLayout, names: tuple[str, str], syncs: int, into: _Measured) -> None:
    """Adds as many with equal work, timed by the wall clock from before a sync until after it."""
    policy, tracker = names
    pacing = Pacing(section.pages, _INTERVAL_S)
    made: list[PacedSync] = []
    with KvmGuest(GuestMemory(layout), 1, tracker) as guest:
        guest.boot(Workload("sequential", rate=None), sections=[section])
        guest.resume()
        guest.dirty.start()
        bitmap = MigrationBitmap(guest.dirty, clear_policy(policy, layout))
        last = time.perf_counter()
        for number in itertools.count():
            time.sleep(max(last + pacing.wait_s - time.perf_counter(), 0.0))
            started, before = time.perf_counter(), guest.dirty.counters
            found = bitmap.sync().dirty_pages
            ended = time.perf_counter()
            if number >= _WARM_UP:
                made.append(PacedSync(ended - started, started - last, found))
                into.clears.append((guest.dirty.counters - before).clear_calls)
            last = started
            pacing.found(found)
            if pacing.done(made, syncs):
                break
            for first, count in bitmap.windows(_WINDOW_PAGES):
                bitmap.take(first, count)
        guest.dirty.stop()
        guest.pause()
    into.syncs += made


def _written(layout: RamLayout, pages: int) -> Section:
    """``pages`` pages in the middle of main memory."""
    blocks = set(main_memory(layout))
    part = max((section for section in stamped(layout) if section.block in blocks), key=lambda section: section.pages)
    start = part.pages // 2
    gpa = GuestPhysicalAddress(part.gpa + start * PAGE_SIZE)
    return Section(part.block, part.offset + start, min(pages, part.pages - start), gpa)

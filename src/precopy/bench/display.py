"""``precopy bench display``: a framebuffer kept current by what its guest wrote, as the VGA client of dirty memory.

A KVM guest writes its framebuffer (the block vga.vram) at some rate. A display refreshes at a fixed rate: it
takes a snapshot of the block's dirty bits, which re-arms it, and copies the lines that the snapshot names to a surface
of its own. Beside it, in the same run: copying the whole framebuffer every time, and comparing all of it. With a
migration logging at the same time, both harvest the same kernel bits, and neither may miss one: at the end the guest is
paused, and the surface and the migration's copy have to equal the memory byte for byte.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precopy.dirty import MigrationBitmap, clear_policy
from precopy.errors import UsageError, VerificationFailed
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload
from precopy.memory import DirtyClient, GuestMemory, RamBlock
from precopy.memory.captures.machines import machine_layout
from precopy.report.kinds.bench_display import DisplayBench
from precopy.report.kinds.shared import Spread

FRAMEBUFFER = "vga.vram"
_PIXEL = 4
_WINDOW = 4096


@dataclass(frozen=True)
class Mode:
    """``width`` x ``height`` pixels of 4 bytes; lines lie side by side, and so across pages."""

    width: int
    height: int

    @property
    def stride(self) -> int:
        return self.width * _PIXEL

    @property
    def size(self) -> int:
        return self.stride * self.height


class Display:
    """A surface that follows the framebuffer in ``block`` of ``guest``."""

    def __init__(self, guest: KvmGuest, block: RamBlock, mode: Mode) -> None:
        self.guest, self.block, self.mode = guest, block, mode
        visible = guest.memory.host(block).words.view(np.uint8)[: mode.size]
        self.lines: npt.NDArray[np.uint8] = visible.reshape(mode.height, mode.stride)
        """The framebuffer itself, a row a line."""
        self.surface = np.zeros_like(self.lines)
        guest.dirty.start_display(block)

    def changed(self) -> npt.NDArray[np.bool_]:
        """The lines that may have changed since the last call; what is written from now on will be in the next."""
        snapshot = self.guest.dirty.snapshot_and_clear(DirtyClient.VGA, self.block)
        return snapshot.lines(self.mode.stride, self.mode.height)

    def draw(self, changed: npt.NDArray[np.bool_]) -> int:
        """Copies those lines to the surface; returns how many they are."""
        index = np.flatnonzero(changed)
        self.surface[index] = self.lines[index]
        return index.size

    def close(self) -> None:
        self.guest.dirty.stop_display(self.block)


class _Migration:
    """A migration without a wire: what is pending is copied while the guest goes on."""

    def __init__(self, guest: KvmGuest) -> None:
        self._guest, self._layout = guest, guest.memory.layout
        self._bitmap = MigrationBitmap(guest.dirty, clear_policy("deferred", self._layout, 8))
        self._copy = GuestMemory(self._layout)
        self.pages = 0
        guest.dirty.start()
        self._bitmap.mark_all()

    def send(self) -> None:
        self._bitmap.sync()
        for start, count in self._bitmap.windows(_WINDOW):
            runs = self._bitmap.take(start, count)
            self.pages += runs.pages
            for kept, written in zip(self._copy.buffers(runs), self._guest.memory.buffers(runs), strict=True):
                kept[:] = written

    def verify(self) -> None:
        """Raises `VerificationFailed` where the copy is not the paused guest's memory."""
        self.send()
        for block in self._layout.blocks:
            if not np.array_equal(self._guest.memory.host(block).words, self._copy.host(block).words):
                raise VerificationFailed(f"the migration's copy of {block.name!r} is not the guest's memory")


def measure(
    mode: Mode, *, ram: int, write_rate: int | None, refresh: float, seconds: float, migrate: bool
) -> DisplayBench:
    """Raises `UsageError`, `VerificationFailed`, and what running a guest raises."""
    layout = machine_layout("q35", ram)
    block = next(block for block in layout.blocks if block.name == FRAMEBUFFER)
    if mode.size > block.pages * layout.page_size:
        raise UsageError(f"{mode.width}x{mode.height} pixels do not fit into {FRAMEBUFFER}'s {block.pages * 4} KiB")
    section = next(section for section in layout.sections if section.block == block)
    with KvmGuest(GuestMemory(layout)) as guest:
        guest.boot(Workload("random", write_rate), sections=[section])
        display = Display(guest, block, mode)
        migration = _Migration(guest) if migrate else None
        guest.resume()
        timings = _Timings(display, migration)
        frames = max(int(seconds * refresh), 1)
        due = time.monotonic()
        for _ in range(frames):
            timings.frame()
            due += 1 / refresh
            time.sleep(max(due - time.monotonic(), 0))
        guest.pause()
        display.draw(display.changed())
        if not np.array_equal(display.surface, display.lines):
            raise VerificationFailed("the surface is not what the guest's framebuffer holds")
        if migration:
            migration.verify()
            guest.dirty.stop()
        display.close()
        return timings.result(frames, guest.self_check().steps, migration.pages if migration else None)


class _Timings:
    def __init__(self, display: Display, migration: _Migration | None) -> None:
        self._display, self._migration = display, migration
        self._other = np.zeros_like(display.surface)
        self._seconds: dict[str, list[float]] = {"snapshot": [], "draw": [], "copy": [], "compare": []}
        self._lines = self._gets = 0

    def frame(self) -> None:
        """One refresh, and the same by copying and by comparing everything."""
        display, dirty = self._display, self._display.guest.dirty
        gets = dirty.counters.get_calls
        start = time.perf_counter()
        changed = display.changed()
        taken = time.perf_counter()
        self._gets += dirty.counters.get_calls - gets
        self._lines += display.draw(changed)
        drawn = time.perf_counter()
        np.copyto(self._other, display.lines)
        copied = time.perf_counter()
        (self._other != display.lines).any(axis=1)
        compared = time.perf_counter()
        self._seconds["snapshot"].append(taken - start)
        self._seconds["draw"].append(drawn - taken)
        self._seconds["copy"].append(copied - drawn)
        self._seconds["compare"].append(compared - copied)
        if self._migration:
            self._migration.send()

    def result(self, frames: int, writes: int, migration_pages: int | None) -> DisplayBench:
        """After both copies were found to equal the guest's memory."""
        mode = self._display.mode
        return DisplayBench(
            width=mode.width,
            height=mode.height,
            frames=frames,
            lines_drawn=self._lines,
            lines_shown=frames * mode.height,
            bytes_copied=self._lines * mode.stride,
            bytes_shown=frames * mode.size,
            guest_writes=writes,
            get_log_ioctls_per_frame=self._gets / frames,
            snapshot_s=Spread.of(self._seconds["snapshot"]),
            draw_s=Spread.of(self._seconds["draw"]),
            copy_all_s=Spread.of(self._seconds["copy"]),
            compare_all_s=Spread.of(self._seconds["compare"]),
            migration_pages=migration_pages,
            verified=True,
        )

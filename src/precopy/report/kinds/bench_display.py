"""``precopy bench display``: what it costs to keep a framebuffer current by what its guest wrote."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.bounds import Count, Number
from precopy.report.kinds.kind import Kind
from precopy.report.kinds.shared import Spread
from precopy.units import format_duration, format_size


@dataclass(frozen=True)
class DisplayBench:
    """``frames`` refreshes of ``width`` x ``height`` pixels. Seconds of one: ``snapshot_s`` (harvest, take, re-arm) and
    ``draw_s`` (copy the lines that it names), against ``copy_all_s`` and ``compare_all_s``. Bytes and lines are of all
    frames together. ``get_log_ioctls_per_frame`` counts the display's calls; ``migration_pages`` what a migration took
    meanwhile. ``verified``: what was kept equals the paused guest's memory."""

    width: Count
    height: Count
    frames: Count
    lines_drawn: Count
    lines_shown: Count
    bytes_copied: Count
    bytes_shown: Count
    guest_writes: Count
    get_log_ioctls_per_frame: Number
    snapshot_s: Spread
    draw_s: Spread
    copy_all_s: Spread
    compare_all_s: Spread
    migration_pages: Count | None
    verified: bool


def _text(done: DisplayBench) -> list[str]:
    share = done.bytes_copied / max(done.bytes_shown, 1)
    drawn = f"{done.lines_drawn} of {done.lines_shown} lines ({100 * share:.1f} %), {format_size(done.bytes_copied)}"
    snapshot = f"{format_duration(done.snapshot_s.median)} ({done.get_log_ioctls_per_frame:g} get ioctls)"
    draw, copy, compare = (
        format_duration(spread.median) for spread in (done.draw_s, done.copy_all_s, done.compare_all_s)
    )
    everything = f"copying everything {copy}, comparing everything {compare} (medians)"
    lines = [
        f"{done.frames} frames of {done.width}x{done.height}; the guest wrote {done.guest_writes} framebuffer pages",
        f"drawn: {drawn}",
        f"a frame: snapshot {snapshot}, lines {draw}; {everything}",
    ]
    if done.migration_pages is not None:
        lines.append(f"a migration took {done.migration_pages} pages meanwhile, from the same kernel bits")
    if done.verified:
        lines.append("verified: at the end, what was kept is what the paused guest's memory holds, byte for byte")
    return lines


KIND = Kind(DisplayBench, _text)

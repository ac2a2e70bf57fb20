"""``precopy demo --guest memory``: a program's memory that was replicated and saved while it was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number
from precopy.report.kinds.kind import Kind
from precopy.report.kinds.shared import Snapshot
from precopy.units import format_duration, format_size


@dataclass(frozen=True)
class MemoryDemo:
    """A simulation over ``size_bytes`` made ``steps`` steps meanwhile. ``points`` are those of the replication, of
    which ``cutover_s`` is the last one and giving the memory away; ``copy_exact``: the copy is what the simulation had.
    ``restored_exact``: so is the newest of ``snapshots``, restored in ``restore_s``."""

    size_bytes: Count
    steps: Count
    points: Count
    sent_bytes: Count
    cutover_s: Number
    copy_exact: bool
    snapshots: Annotated[tuple[Snapshot, ...], Meta(min_length=1, max_length=1000)]
    restore_s: Number
    restored_exact: bool


def _text(done: MemoryDemo) -> list[str]:
    full, *increments = done.snapshots
    exact = "exact" if done.copy_exact else "NOT exact"
    saved = f"first {full.pages} pages in {format_duration(full.seconds)}"
    later = ", ".join(f"{snapshot.pages} in {format_duration(snapshot.seconds)}" for snapshot in increments)
    same = "what was saved last, byte for byte" if done.restored_exact else "NOT what was saved"
    replicated = (
        f"{done.points} consistent points, {format_size(done.sent_bytes)} sent; the last one and the cutover took "
        f"{format_duration(done.cutover_s)}; the copy is {exact}"
    )
    return [
        f"a simulation over {format_size(done.size_bytes)} made {done.steps} steps while it was replicated and saved",
        f"replicated to another process: {replicated}",
        f"saved: {', then '.join(filter(None, (saved, later)))}",
        f"restored in {format_duration(done.restore_s)}; it is {same}",
    ]


KIND = Kind(MemoryDemo, _text)

"""Which way a guest's syncs are made: numpy, or one native call (extra ``fast``), from a trial of its own.

A native sync takes less time for every guest. But numba's import takes a good part of a second and 100 MB, and the
first time on a machine it compiles for seconds, while the syncs of a small guest take a tenth of a millisecond with
numpy. So a guest tries numpy first, and numba is imported where a sync spends `WORTH_S` or more outside the kernel.
docs/adr/0027-native-way.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from precopy.bitmap import kernels
from precopy.dirty import DirtyMemory, MigrationBitmap, clear_policy
from precopy.errors import PrecopyError, Unsupported
from precopy.memory.topology.log_mask import DirtyClient
from precopy.ports.vm import SyncWay
from precopy.trackers.kvm_log import KvmDirtyLog
from precopy.units import format_duration

WORTH_S = 0.001
"""Seconds outside the kernel from which on numba is imported: the last two syncs are a part of the downtime, and this
is a fiftieth of a downtime limit of 50 ms."""
_TRIES = 4
"""Syncs of a trial, of which the fastest counts: the others had to share the CPU, or found their memory cold."""


def choose(dirty: DirtyMemory) -> SyncWay:
    """Tries the ways with the guest's own memory, which is logged, and has its logs use the better one. Raises what a
    sync raises."""
    logs = [log for log in dirty.logs if isinstance(log, KvmDirtyLog)]
    if not logs:
        return SyncWay("numpy", f"a {dirty.name} is not fetched by calls that could be one")
    _use(logs, native=False)
    took_s, outside_s = _trial(dirty)
    spends = f"a sync spends {format_duration(outside_s)} outside the kernel"
    if outside_s < WORTH_S and not kernels.loaded():
        return SyncWay("numpy", f"{spends}, less than numba's import is worth")
    try:
        _use(logs, native=True)
    except Unsupported as missing:
        return SyncWay("numpy", f"{spends}, and {missing.what}")
    try:
        native_s, _ = _trial(dirty)
    except PrecopyError:
        _use(logs, native=False)
        raise
    both = f"a sync takes {format_duration(native_s)} with numba, {format_duration(took_s)} with numpy"
    if native_s < took_s:
        return SyncWay("numba", both)
    _use(logs, native=False)
    return SyncWay("numpy", both)


def _use(logs: Sequence[KvmDirtyLog], *, native: bool) -> None:
    for log in logs:
        log.use_native(native)


def _trial(dirty: DirtyMemory) -> tuple[float, float]:
    """Seconds of the fastest of `_TRIES` syncs, and what of them was not spent in get ioctls. Nothing is cleared, and
    what was found stays MIGRATION's (law 1)."""
    bitmap = MigrationBitmap(dirty, clear_policy("deferred", dirty.layout))
    fastest = (float("inf"), float("inf"))
    try:
        for _ in range(_TRIES):
            before_s = dirty.counters.get_s
            took_s = bitmap.sync().sync_s
            fastest = min(fastest, (took_s, max(took_s - (dirty.counters.get_s - before_s), 0.0)))
    finally:
        dirty.set_from(bitmap.pending, DirtyClient.MIGRATION)
    return fastest

"""The vhost log's part of ``precopy bench sync``: one walk a sync against one walk a device."""

from __future__ import annotations

import contextlib

from precopy.bench.vhost_device import VhostDevice
from precopy.bitmap import Bitmap
from precopy.memory import Backing, GuestMemory, RamLayout
from precopy.report.kinds.bench_sync import VhostFigures, Walks
from precopy.report.kinds.shared import Spread
from precopy.trackers.shared_log import SharedLog
from precopy.trackers.vhost_log import VhostLog

_FIRST, _PAGES, _STRIDE = 0x100, 256, 7
"""Pages that each device logs before each sync, above 1 MiB and not adjacent."""


def measure_vhost(layout: RamLayout, devices: int, repeat: int) -> VhostFigures:
    """Has real device processes log pages, and syncs both ways in turn. Raises `Unsupported`, `PeerLost`."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(SharedLog.for_layout(layout))
        memory = stack.enter_context(GuestMemory(layout, Backing.MEMFD))
        running = [stack.enter_context(VhostDevice(f"device {number}", log, memory)) for number in range(devices)]
        ways = {shared: VhostLog(layout, log, shared=shared) for shared in (True, False)}
        dirty = Bitmap(layout.end_page)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for number in range(repeat + 1):  # repeat 0 is not counted: no cache is warm yet
            for shared, way in ways.items():
                for place, device in enumerate(running):
                    device.send(f"mark {_FIRST + place * _PAGES * _STRIDE} {_PAGES} {_STRIDE}")
                    device.answer()
                before = way.counters.get_s
                way.harvest(dirty)
                if number:
                    seconds[shared].append(way.counters.get_s - before)
                way.clear(0, layout.end_page)
        walks = {shared: way.counters.get_calls // (repeat + 1) for shared, way in ways.items()}
        return VhostFigures(
            devices, devices * _PAGES, *(Walks(walks[shared], Spread.of(seconds[shared])) for shared in (True, False))
        )

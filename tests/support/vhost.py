"""A guest whose memory is written by a vhost device, which is a process of its own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from precopy.bench.vhost_device import VhostDevice
from precopy.dirty import DirtyMemory
from precopy.memory import Backing, GuestMemory, RamLayout
from precopy.trackers.shared_log import SharedLog
from precopy.trackers.vhost_log import VhostLog
from support.dirty_logs import Places


class VhostHarness:
    """A `VhostLog`, and the device that logs there. Implements `support.dirty_logs.Harness`."""

    def __init__(self, layout: RamLayout) -> None:
        self.layout, self.memory = layout, GuestMemory(layout, Backing.MEMFD)
        self.shared = SharedLog.for_layout(layout)
        self.log = VhostLog(layout, self.shared)
        self.device = VhostDevice("device", self.shared, self.memory)
        self.stamp, self._places = 0, Places(layout)

    def write(self, pages: Iterable[int]) -> None:
        gpas = [self._places.gpa_of(page) for page in pages]
        if gpas:
            self.stamp += 1
            self.device.write(self.stamp, ranges(gpas))

    def close(self) -> None:
        self.device.close()
        self.shared.close()
        self.memory.close()


class RunningVhostGuest:
    """A guest that has devices and no CPU: they write while it runs, and not while it is paused."""

    def __init__(self, layout: RamLayout, devices: int = 2, rate: float = 20_000, *, shared: bool = True) -> None:
        self.layout, self.memory = layout, GuestMemory(layout, Backing.MEMFD)
        self.shared = SharedLog.for_layout(layout)
        self.rate, self.written = rate, 0
        self._log = VhostLog(layout, self.shared, shared=shared)
        self.dirty = DirtyMemory(layout, self._log)
        self._devices: list[VhostDevice] = []
        try:
            for n in range(devices):
                self._devices.append(VhostDevice(f"device {n}", self.shared, self.memory))
        except BaseException:
            self.close()
            raise

    def dirty_log(self) -> VhostLog:
        return self._log

    def resume(self) -> None:
        for seed, device in enumerate(self._devices, 1):
            device.run(self.rate, seed)

    def pause(self) -> None:
        for device in self._devices:
            self.written += device.pause()

    def close(self) -> None:
        for device in self._devices:
            device.close()
        self.shared.close()
        self.memory.close()


def ranges(gpas: list[int], size: int = 4096) -> list[tuple[int, int]]:
    """(gpa, pages) of each row of neighbours among ``gpas``, in their order."""
    rows = groupby(enumerate(gpas), key=lambda one: one[1] - one[0] * size)
    return [(row[0][1], len(row)) for row in (list(group) for _, group in rows)]

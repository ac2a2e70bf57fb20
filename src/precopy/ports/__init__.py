"""The seams: what a migration needs of a tracker, a stream, a guest and a clock, as Protocols.

`DirtyLog` is defined in dirty/, below, because the sync and the clear policies call it.
"""

from precopy.dirty.log import DirtyLog, LogCounters
from precopy.ports.clock import Clock, SystemClock
from precopy.ports.ram import MemoryCopier, MemoryReader, MemoryWriter
from precopy.ports.stall import Stall, StallMeter
from precopy.ports.stream import Buffer, ByteStream, IoVec
from precopy.ports.vm import (
    DestinationVm,
    DeviceStates,
    DirtyLimiting,
    Pausable,
    Rehearsing,
    SelfCheck,
    SelfChecking,
    SourceVm,
    StallMeasuring,
    SyncWay,
    SyncWayChoosing,
    Throttleable,
    Throttled,
    TrackerChoice,
    TrackerChoosing,
    lacks,
)

__all__ = [
    "Buffer",
    "ByteStream",
    "Clock",
    "DestinationVm",
    "DeviceStates",
    "DirtyLimiting",
    "DirtyLog",
    "IoVec",
    "LogCounters",
    "MemoryCopier",
    "MemoryReader",
    "MemoryWriter",
    "Pausable",
    "Rehearsing",
    "SelfCheck",
    "SelfChecking",
    "SourceVm",
    "Stall",
    "StallMeasuring",
    "StallMeter",
    "SyncWay",
    "SyncWayChoosing",
    "SystemClock",
    "Throttleable",
    "Throttled",
    "TrackerChoice",
    "TrackerChoosing",
    "lacks",
]

"""The seams: what a migration needs of a tracker, a stream, a guest and a clock, as Protocols.

`DirtyLog` is defined in dirty/, below, because the sync and the clear policies call it.
"""

from precopy.dirty.log import DirtyLog, LogCounters
from precopy.ports.clock import Clock, SystemClock
from precopy.ports.ram import MemoryReader, MemoryWriter
from precopy.ports.stream import Buffer, ByteStream, IoVec
from precopy.ports.vm import SelfCheck, Throttled, TrackerChoice, VmControl

__all__ = [
    "Buffer",
    "ByteStream",
    "Clock",
    "DirtyLog",
    "IoVec",
    "LogCounters",
    "MemoryReader",
    "MemoryWriter",
    "SelfCheck",
    "SystemClock",
    "Throttled",
    "TrackerChoice",
    "VmControl",
]

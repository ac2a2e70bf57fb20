"""How much memory the system has, and how much of it this process uses, as /proc tells."""

from __future__ import annotations

import contextlib


def available_memory() -> int | None:
    """Bytes that can be used without swapping (``MemAvailable``), or None where the system does not say."""
    return _kib_field("/proc/meminfo", "MemAvailable:")


def total_memory() -> int | None:
    """Bytes of memory that the system has (``MemTotal``)."""
    return _kib_field("/proc/meminfo", "MemTotal:")


def peak_resident() -> int | None:
    """The most bytes of memory that this process has had resident (``VmHWM``), guest RAM included."""
    return _kib_field("/proc/self/status", "VmHWM:")


def _kib_field(path: str, name: str) -> int | None:
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith(name):
                return int(line.split()[1]) << 10
    return None

"""Addresses and page numbers that cannot be mixed up, and the sizes, rates and durations that people write.

Suffixes: a size takes K, M, G or T (powers of 1024); a rate takes the same letters as powers of 1000, as network
rates are given; a duration takes us, ms or s (a bare number is seconds).
"""

from __future__ import annotations

import math
import re
from typing import NewType

from precopy.errors import UsageError

RamPage = NewType("RamPage", int)
"""Index of a page in the ram_addr space, in which all RAM blocks lie side by side."""

GuestPhysicalAddress = NewType("GuestPhysicalAddress", int)
"""Byte address that the guest's CPU sees (gpa)."""

HostAddress = NewType("HostAddress", int)
"""Byte address in this process (hva)."""

PAGE_SIZE = 4096
"""Bytes in a page of every guest that precopy runs itself (x86-64 base pages)."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|)", re.IGNORECASE)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}
_MAX = 1 << 62
_MAX_SECONDS = 2e6
"""23 days: poll(2), and so a socket's time-out in Python, takes no more than 2**31 ms."""


def parse_size(text: str) -> int:
    """Bytes of a size such as ``256M`` or ``1.5G`` (K, M, G, T are powers of 1024). Raises `UsageError`."""
    return _parse_scaled(text, 1024, "a size", "256M or 4G")


def parse_rate(text: str) -> int:
    """Bytes a second of a rate such as ``125M`` or ``1.25G`` (powers of 1000). Raises `UsageError`."""
    return _parse_scaled(text.strip().removesuffix("/s"), 1000, "a rate", "125M or 1.25G (bytes a second)")


def parse_count(text: str) -> int:
    """A plain count such as ``20000`` or ``20K`` (powers of 1000). Raises `UsageError`."""
    return _parse_scaled(text, 1000, "a count", "20000 or 20K")


def _parse_scaled(text: str, base: int, what: str, example: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not {what}; write it like {example}")
    value = float(match[1]) * base ** _POWER[match[2].upper()]
    if not math.isfinite(value) or value > _MAX:
        raise UsageError(f"{text!r} is too large to be {what}")
    return int(value)


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``300ms``, ``2s`` or ``0.5``. Raises `UsageError`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a duration; write it like 300ms or 2s")
    seconds = float(match[1]) * _SECONDS[match[2].lower()]
    if seconds > _MAX_SECONDS:
        raise UsageError(f"{text!r} is too large to be a duration")
    return seconds


def format_size(size: float) -> str:
    """A size for people, in powers of 1024: ``format_size(1966080) == '1.9 MiB'``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_rate(rate: float) -> str:
    """A rate for people, in powers of 1000: ``format_rate(2.5e9) == '2.50 GB/s'``."""
    for unit in ("B/s", "kB/s", "MB/s"):
        if abs(rate) < 1000:
            return f"{rate:.0f} {unit}"
        rate /= 1000
    return f"{rate:.2f} GB/s"


def format_duration(seconds: float) -> str:
    """A duration for people, with the unit that leaves one to four digits before the point."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} us"
    if seconds < 1:
        return f"{1e3 * seconds:.1f} ms"
    return f"{seconds:.2f} s"

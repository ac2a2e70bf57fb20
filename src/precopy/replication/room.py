"""How much of this machine's memory a primary can make a standby take.

Law 5: **The peer is not trusted.** The size of a memory is a claim, and how much a point brings is the primary's
choice. Both are bounded before room is made for them: by what the standby's user allows, and by what the system has
left at that moment.
"""

from __future__ import annotations

from precopy.errors import HelloMismatch, UsageError
from precopy.memory.system_memory import available_memory, total_memory
from precopy.units import check_bytes

_STAGING_PART = 4
"""With ``max_size`` and without ``max_staging``, a point may take a quarter of ``max_size`` at least."""
_LOOK_BYTES = 16 << 20
"""Bytes between two questions to the system, each of about 50 us: less than 1 % of the time these take on any link."""
_RESERVE_PART, _MOST_RESERVE = 32, 512 << 20
"""Memory left to other programs: 1/32 of the system's, and at most 512 MiB."""


class Room:
    """``max_size``: bytes of the memory at most. ``max_staging``: bytes of a point at most that has not come whole;
    without it, what ``max_size`` leaves beside the memory, and a quarter of ``max_size`` in any case. Without either,
    what the system has. Raises `UsageError` for values that cannot be meant."""

    def __init__(self, max_size: int | None, max_staging: int | None) -> None:
        for name, value, least in (("max_size", max_size, 1), ("max_staging", max_staging, 0)):
            if value is not None and check_bytes(name, value) < least:
                raise UsageError(f"{name} is at least {least} bytes, not {value}")
        self._max_size = None if max_size is None else int(max_size)
        self._max_staging = None if max_staging is None else int(max_staging)
        self._unseen = 0
        self._reserve = min((total_memory() or 0) // _RESERVE_PART, _MOST_RESERVE)

    def check_memory(self, size: int) -> None:
        """Raises `HelloMismatch` where a memory of ``size`` bytes does not fit."""
        available = available_memory()
        if self._max_size is not None and size > self._max_size:
            raise HelloMismatch(
                f"the source's memory has {size} bytes, this side takes {self._max_size} at most (max_size)"
            )
        if available is not None and size > available:
            raise HelloMismatch(f"the source's memory has {size} bytes, {available} are available here")
        if self._max_staging is None and self._max_size is not None:
            self._max_staging = max(self._max_size - size, self._max_size // _STAGING_PART)

    def check_staging(self, staged: int, point: int) -> None:
        """Raises `HelloMismatch` where ``staged`` bytes of ``point`` are more than may be held."""
        if self._max_staging is not None and staged > self._max_staging:
            raise HelloMismatch(
                f"point {point} has more than the {self._max_staging} bytes that this side holds of one before it is "
                f"whole; allow more (max_staging) or make points more often"
            )

    def check_system(self, coming: int, later: int = 0) -> None:
        """Raises `HelloMismatch` where the system no longer has the ``coming`` bytes, and ``later`` ones that what has
        come will need. It is not asked for every few bytes."""
        self._unseen += coming
        if self._unseen < _LOOK_BYTES:
            return
        self._unseen = 0
        available = available_memory()
        if available is not None and coming + later + self._reserve > available:
            raise HelloMismatch(
                f"this side runs out of memory: {available} bytes are available, of which {self._reserve} are not "
                f"taken; free some, or replicate less memory"
            )

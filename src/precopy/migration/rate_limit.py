"""Keeping to a bandwidth limit."""

from __future__ import annotations

from precopy.ports import Clock

_BURST_S = 0.005
"""Seconds of unused bandwidth that are kept; more is dropped, so that a pause is not followed by a burst."""


class RateLimiter:
    """Sleeps so that no more than ``rate`` bytes a second pass (None: no limit)."""

    def __init__(self, rate: int | None, clock: Clock) -> None:
        self.rate, self._clock = rate, clock
        self._free_at = clock.now()

    def sent(self, size: int) -> None:
        """Accounts for ``size`` bytes that were just sent, and waits until more may be."""
        if self.rate is None:
            return
        now = self._clock.now()
        self._free_at = max(self._free_at, now - _BURST_S) + size / self.rate
        if self._free_at > now:
            self._clock.sleep(self._free_at - now)

    def batch_pages(self, page_size: int, most: int, seconds: float = 0.05) -> int:
        """Pages in a batch: ``most``, or fewer where that would take longer than ``seconds``."""
        if self.rate is None:
            return most
        return max(min(int(self.rate * seconds) // page_size, most), 1)

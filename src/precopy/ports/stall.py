"""What a guest measures of itself: the gaps in its progress, by its own clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from precopy.bounds import Count, Number

GAP_S = 1e-4
"""Seconds between two steps of a guest's program above which they are a gap. A step takes less than 1 us where nothing
interrupts it; the write to an armed page is a fault of some microseconds, which is no gap."""


@dataclass(frozen=True)
class Stall:
    """What was taken from a guest in a window of ``window_s`` seconds: the gaps of more than `GAP_S` that ended in it.

    - ``longest_s``: the longest gap of any vCPU; ``gaps``: how many there were, of all vCPUs;
    - ``stalled_s``: the sum of the gaps, of each vCPU on average;
    - ``unread``: how many of the gaps were overwritten before they were read. They are in ``stalled_s``, and not in
      ``longest_s``, which is then the longest of the others.
    """

    window_s: Number
    longest_s: Number
    stalled_s: Number
    gaps: Count
    unread: Count = 0

    @property
    def share(self) -> float:
        """The share of the window that was in gaps."""
        return self.stalled_s / max(self.window_s, 1e-9)


def together(stalls: Iterable[Stall]) -> Stall:
    """Several windows, one after the other, as one."""
    windows = tuple(stalls)
    return Stall(
        window_s=sum(stall.window_s for stall in windows),
        longest_s=max((stall.longest_s for stall in windows), default=0.0),
        stalled_s=sum(stall.stalled_s for stall in windows),
        gaps=sum(stall.gaps for stall in windows),
        unread=sum(stall.unread for stall in windows),
    )


class StallMeter(Protocol):
    """Reads the gaps that a running guest writes down. It only reads: nothing in the guest's memory changes."""

    def poll(self) -> None:
        """Takes over the gaps since the last call. More than 128 of a vCPU between two calls are not all read."""
        ...

    def take(self, window_s: float) -> Stall:
        """Of the gaps since this was called last, or since the meter was made; ``window_s`` is how long that was."""
        ...

    def before(self, window_s: float) -> Stall:
        """Of the last ``window_s`` seconds before the meter was made, by the guest's own clock; a shorter window where
        the guest has not run for so long, or had too many gaps in it to tell. A gap counts as far as it lies in it. The
        window ends where the guest was last slower than a step is, some milliseconds before at most."""
        ...

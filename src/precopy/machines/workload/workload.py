"""What a guest is to do: which pattern, how fast."""

from __future__ import annotations

import math
from dataclasses import dataclass

from precopy.defaults import HOT_SHARE, PAGES_PER_S
from precopy.errors import UsageError
from precopy.machines.workload.programs import WORKLOADS
from precopy.units import PAGE_SIZE, format_size

_BURST_S = 0.001
"""Bursts are about this long: short enough to look even, long enough that exits cost little."""


@dataclass(frozen=True)
class Workload:
    """``pattern`` is one of WORKLOADS, ``rate`` pages written a second by all vCPUs together (None: as fast as it
    goes), ``hot_share`` the hot set's share of the pages, ``working_set`` the bytes that are written at all (None: all
    guest RAM but what the program itself needs). Raises `UsageError`."""

    pattern: str = "random"
    rate: int | None = PAGES_PER_S
    hot_share: float = HOT_SHARE
    working_set: int | None = None

    def __post_init__(self) -> None:
        if self.pattern not in WORKLOADS:
            raise UsageError(f"no workload is called {self.pattern!r}; there are {', '.join(WORKLOADS)}")
        if self.rate is not None and self.rate <= 0:
            raise UsageError("the write rate has to be above 0 (the idle workload writes nothing)")
        if self.working_set is not None and self.working_set < 64 * PAGE_SIZE:
            raise UsageError(f"the working set has to be at least {64 * PAGE_SIZE >> 10}K")
        if not 0 < self.hot_share < 1:
            raise UsageError("the hot set's share of the pages has to be above 0 and below 1")

    def __str__(self) -> str:
        """In words: ``hotset (0.0625 of the pages), 20,000 pages/s``."""
        if self.pattern == "idle":
            return self.pattern
        share = f" ({self.hot_share:g} of the pages)" if self.pattern == "hotset" else ""
        within = f" in {format_size(self.working_set)}" if self.working_set is not None else ""
        rate = "as fast as it goes" if self.rate is None else f"{self.rate:,} pages/s"
        return f"{self.pattern}{share}{within}, {rate}"

    def burst(self, vcpus: int) -> tuple[int, int]:
        """(writes in a burst, nanoseconds for it) of each vCPU; (0, 0) where nothing is paced."""
        if self.rate is None:
            return 0, 0
        writes = max(math.ceil(self.rate * _BURST_S / vcpus), 1)
        return writes, int(1e9 * writes * vcpus / self.rate)

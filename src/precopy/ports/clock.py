"""Time, as what measures and what waits see it."""

from __future__ import annotations

import resource
import time
from typing import Protocol

from precopy.progress import CpuTime


class Clock(Protocol):
    """Monotonic seconds, and sleeping."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's monotonic clock."""

    now = staticmethod(time.perf_counter)
    sleep = staticmethod(time.sleep)


def cpu_time() -> CpuTime:
    """Of the calling thread so far (getrusage(2), RUSAGE_THREAD): vCPUs have threads of their own and are not in it."""
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return CpuTime(used.ru_utime, used.ru_stime)

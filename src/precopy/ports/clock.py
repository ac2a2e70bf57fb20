"""Time, as what measures and what waits see it."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Protocol

from precopy.bounds import Number


class Clock(Protocol):
    """Monotonic seconds, and sleeping."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's monotonic clock."""

    now = staticmethod(time.perf_counter)
    sleep = staticmethod(time.sleep)


@dataclass(frozen=True)
class CpuTime:
    """CPU seconds: of the process's own instructions, and of the kernel's on its behalf."""

    user_s: Number = 0.0
    system_s: Number = 0.0

    @property
    def total_s(self) -> float:
        return self.user_s + self.system_s

    def __sub__(self, earlier: CpuTime) -> CpuTime:
        # The kernel shares a thread's run time out by ticks, so that a part may seem to have gone back by one.
        return CpuTime(max(self.user_s - earlier.user_s, 0.0), max(self.system_s - earlier.system_s, 0.0))

    def __add__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user_s + other.user_s, self.system_s + other.system_s)


NO_CPU_TIME = CpuTime()


def cpu_time() -> CpuTime:
    """Of the calling thread so far (getrusage(2), RUSAGE_THREAD): vCPUs have threads of their own and are not in it."""
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return CpuTime(used.ru_utime, used.ru_stime)

"""Slowing a guest down so that its migration converges, and what that takes from it.

Two rules, one of which is in force at a time, each for every vCPU on its own:

- a *duty cycle* takes a share of its time, whatever it does. QEMU's auto-converge does so: it lets a vCPU run for
  10 ms and sleep for share / (1 - share) as long (system/cpu-throttle.c);
- a *dirty quota* takes time only from a vCPU that dirties more than it may, for as long as the excess would have taken
  at the permitted rate. QEMU's dirty limit does so whenever a vCPU's dirty ring is full (system/dirtylimit.c).

While a rule is in force, a thread looks at each vCPU every `_SLICE_S` and has its `VcpuGate` take the time that the
rule says. What was really taken is measured, and the next look makes up for the difference.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from precopy.errors import GuestError, PrecopyError, UsageError
from precopy.machines.vcpu.gate import Times, VcpuGate
from precopy.ports.vm import MAX_THROTTLE, Throttled
from precopy.units import PAGE_SIZE

_SLICE_S = 0.01
"""Seconds from one look at a vCPU's times to the next."""
_LEAST_RUN_S = 0.001
"""Shortest run of a vCPU between two throttle sleeps, in seconds. With a large share sleeps get longer instead of runs
shorter."""
_CREDIT_S = 0.1
"""Seconds of its dirty quota that a vCPU which dirtied less may save up and use at once."""
_LONGEST_SLEEP_S = 1.0
"""Longest sleep for a dirty quota, in seconds. Pages beyond it are not charged: they come only of a late look."""


class Rule(Protocol):
    """What is taken from one vCPU."""

    def look(self, times: Times) -> tuple[float, float]:
        """(seconds to take from it now, seconds from then to the next look), where ``times`` are its so far."""
        ...


class DutyCycle:
    """Takes ``share`` of the time that a vCPU runs from ``times`` on."""

    def __init__(self, share: float, times: Times) -> None:
        self._share, self._last = share, times
        self._slice_s = max(_SLICE_S, _LEAST_RUN_S / (1 - share))
        self._owed_s = 0.0

    def look(self, times: Times) -> tuple[float, float]:
        self._owed_s += self._share * (times.ran_s - self._last.ran_s) - (times.throttled_s - self._last.throttled_s)
        self._last = times
        # A host that was slow is made up for, but not without limit.
        sleep_s = min(max(self._owed_s, 0.0) / (1 - self._share), 2 * self._share * self._slice_s)
        self._owed_s = min(self._owed_s, sleep_s * (1 - self._share))
        return sleep_s, (1 - self._share) * self._slice_s


class DirtyQuota:
    """Lets a vCPU dirty ``pages_per_s`` pages in each second that it is not paused; ``dirtied`` counts those that it
    has dirtied. No more than ``most`` of its time is taken, which a very low quota may need more than."""

    def __init__(
        self, pages_per_s: float, dirtied: Callable[[], int], times: Times, most: float = MAX_THROTTLE
    ) -> None:
        self._most = most
        self._rate, self._dirtied, self._last = pages_per_s, dirtied, times
        self._pages = dirtied()
        self._excess = 0.0

    def look(self, times: Times) -> tuple[float, float]:
        before, self._pages = self._pages, self._dirtied()
        ran_s, worked_s = times.ran_s - self._last.ran_s, self._worked(times) - self._worked(self._last)
        self._last = times
        self._excess = max(self._excess + self._pages - before - self._rate * ran_s, -_CREDIT_S * self._rate)
        most_s = min(worked_s * self._most / (1 - self._most), _LONGEST_SLEEP_S)
        sleep_s = min(max(self._excess, 0.0) / self._rate, most_s)
        self._excess = min(self._excess, sleep_s * self._rate)
        share = sleep_s / (sleep_s + worked_s) if sleep_s else 0.0
        return sleep_s, max((1 - share) * _SLICE_S, _LEAST_RUN_S)

    @staticmethod
    def _worked(times: Times) -> float:
        return times.ran_s - times.throttled_s


class VcpuThrottle:
    """Throttles the vCPUs of ``gates``, of which ``interrupt`` stops the one of a number: out of the guest, in its
    own thread, where it sleeps. Nothing is in force at first; `close` it."""

    def __init__(self, gates: Sequence[VcpuGate], interrupt: Callable[[int], None]) -> None:
        self._gates, self._interrupt = gates, interrupt
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._failed: PrecopyError | None = None
        self._failed_at_s: float | None = None
        self._closed = False
        self._active_s, self._began_s = 0.0, 0.0
        self.limits = False
        """Whether a dirty limit is in force."""

    def throttle_to(self, share: float) -> None:
        """Takes this share of every vCPU's time. Raises `UsageError`, `GuestError`, and what made the last throttle end
        before its time, unless nothing is to be taken (0)."""
        _check_share(share)
        with self._lock:
            self._end()
            if not share:
                self._failed = None
            else:
                self._begin([DutyCycle(share, gate.times) for gate in self._gates])

    def limit(self, bytes_per_s: float, dirtied: Callable[[int], int], most: float = MAX_THROTTLE) -> None:
        """Limits each vCPU to ``bytes_per_s`` of dirty memory, taking at most the share ``most`` of its time.
        ``dirtied(number)`` is the count of pages that vCPU has dirtied. Raises as `throttle_to`."""
        _check_share(most)
        if not 0 < bytes_per_s < math.inf:
            raise UsageError(f"a dirty limit has to be above 0 bytes a second, not {bytes_per_s}")
        with self._lock:
            self._end()
            pages_per_s = bytes_per_s / PAGE_SIZE
            rules = [
                DirtyQuota(pages_per_s, partial(dirtied, number), gate.times, most)
                for number, gate in enumerate(self._gates)
            ]
            self._begin(rules)
            self.limits = True

    def unlimit(self) -> None:
        """Ends a dirty limit."""
        with self._lock:
            if self.limits:
                self._end()

    def throttled(self) -> Throttled:
        """What was taken so far."""
        with self._lock:
            active_s = self._active_s
            if self._thread is not None:
                active_s += (self._ran_s() if self._failed_at_s is None else self._failed_at_s) - self._began_s
            return Throttled(tuple(gate.times.throttled_s for gate in self._gates), active_s)

    def close(self) -> None:
        """Ends throttling for good. May be called twice."""
        with self._lock:
            self._closed = True
            self._end()

    def _ran_s(self) -> float:
        return max(gate.times.ran_s for gate in self._gates)  # all are set and cleared together

    def _begin(self, rules: Sequence[Rule]) -> None:
        if self._closed:
            raise GuestError("a guest that is closed cannot be throttled")
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        self._ended.clear()
        self._began_s = self._ran_s()
        self._thread = threading.Thread(target=self._main, args=(rules,), name="throttle", daemon=True)
        self._thread.start()

    def _end(self) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None
            for gate in self._gates:
                gate.release()
            self._active_s += (self._ran_s() if self._failed_at_s is None else self._failed_at_s) - self._began_s
            self._failed_at_s = None
        self.limits = False

    def _main(self, rules: Sequence[Rule]) -> None:
        due = [time.monotonic() + _LEAST_RUN_S] * len(rules)
        try:
            while not self._ended.wait(max(min(due) - time.monotonic(), 0)):
                for number, rule in enumerate(rules):
                    if due[number] <= time.monotonic():
                        due[number] = self._look(number, rule)
        except PrecopyError as error:
            self._failed, self._failed_at_s = error, self._ran_s()

    def _look(self, number: int, rule: Rule) -> float:
        """Returns when to look next."""
        gate = self._gates[number]
        sleep_s, run_s = rule.look(gate.times)
        gate.sleep_for(sleep_s, partial(self._interrupt, number))
        return time.monotonic() + sleep_s + run_s


def _check_share(share: float) -> None:
    if not 0 <= share <= MAX_THROTTLE:
        raise UsageError(f"the share that is taken of a vCPU's time has to be 0 to {MAX_THROTTLE}, not {share}")

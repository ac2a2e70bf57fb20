"""What stops one vCPU: until further notice, for a pause, or for a while, which is then taken from it.

A vCPU from which time is taken does not know: its own clock stands still meanwhile, so that a guest that is paced
writes less by the share that was taken, and does not catch up with it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

_NEVER = math.inf


class Times(NamedTuple):
    """Seconds in which a vCPU was not paused (``ran_s``), and how many of them were taken from it (``throttled_s``)."""

    ran_s: float
    throttled_s: float


class VcpuGate:
    """Set at first. `set`, `clear` and `is_set` are as a `threading.Event`'s; all but `wait` and `throttle_sleep` may
    be called from any thread at any time, and a vCPU that waits or sleeps ends that at once when the gate is set.

    What is taken is measured: from when the vCPU was stopped until it goes on.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._set = True
        self._cleared_at = self._ran_s = self._throttled_s = 0.0
        self._since: float | None = None  # when the present throttle sleep began; None: there is none
        self._until = _NEVER  # when it ends

    @property
    def sleeping(self) -> bool:
        """Whether the vCPU is to stand still for a while."""
        return self._since is not None

    @property
    def times(self) -> Times:
        """Since it was made."""
        with self._change:
            now = time.monotonic()
            ran_s = self._ran_s if self._set else self._ran_s + now - self._cleared_at
            return Times(ran_s, self._throttled(now))

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        with self._change:
            now = time.monotonic()
            self._end(now)
            if not self._set:
                self._ran_s += now - self._cleared_at
            self._set = True
            self._change.notify_all()

    def clear(self) -> None:
        with self._change:
            if self._set:
                self._cleared_at = time.monotonic()
            self._set = False

    def sleep_for(self, seconds: float, interrupt: Callable[[], None]) -> None:
        """Has the vCPU sleep for ``seconds`` from when ``interrupt`` has stopped it; does nothing where it is paused or
        already sleeps. Raises what ``interrupt`` raises."""
        with self._change:
            if self._set or self._since is not None or seconds <= 0:
                return
            self._since, self._until = time.monotonic(), _NEVER
        try:
            interrupt()
        finally:
            with self._change:
                if self._since is not None:  # it may have been paused meanwhile
                    self._since = time.monotonic()
                    self._until = self._since + seconds
                    self._change.notify_all()

    def release(self) -> None:
        """Ends the present throttle sleep."""
        with self._change:
            self._end(time.monotonic())
            self._change.notify_all()

    # For the vCPU's thread.

    def now(self) -> float:
        """The vCPU's own clock, in seconds."""
        with self._change:
            return self._own(time.monotonic())

    def wait(self, seconds: float = _NEVER) -> None:
        """Waits for ``seconds`` on the vCPU's own clock, or until the gate is set."""
        with self._change:
            end = self._own(time.monotonic()) + seconds
            while not self._set:
                now = time.monotonic()
                if now >= self._until:
                    self._end(self._until)
                left = end - self._own(now)
                if left <= 0:
                    return
                self._sleep(left if self._until == _NEVER else self._until - now)

    def throttle_sleep(self) -> None:
        """Stands still for as long as the vCPU is to sleep."""
        with self._change:
            while self._since is not None and (left := self._until - time.monotonic()) > 0:
                self._sleep(left)
            self._end(time.monotonic())

    # With the lock held.

    def _sleep(self, seconds: float) -> None:
        self._change.wait(None if seconds == _NEVER else seconds)

    def _throttled(self, now: float) -> float:
        if self._since is None or self._until == _NEVER:  # the vCPU may not have stopped yet
            return self._throttled_s
        return self._throttled_s + now - self._since

    def _own(self, now: float) -> float:
        return now - self._throttled(now)

    def _end(self, now: float) -> None:
        self._throttled_s = self._throttled(now)
        self._since, self._until = None, _NEVER

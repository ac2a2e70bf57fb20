"""What a program can set about a replication."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from precopy.errors import UsageError
from precopy.machines.process.locks import check_lock
from precopy.migration.options import MIN_BANDWIDTH
from precopy.replication.progress import ReplicationProgress
from precopy.units import check_bandwidth, check_callback, check_seconds

QUIET_S = 0.01
"""Seconds without a write that are a moment between two steps of a program, where the user names none."""


@dataclass(frozen=True)
class ReplicationOptions:
    """See `precopy.replicate`. Raises `UsageError` for values that cannot be meant."""

    interval: float | None
    lock: AbstractContextManager[object] | None
    quiet: float | None
    max_bandwidth: int | None
    timeout: float
    on_progress: Callable[[ReplicationProgress], object] | None
    on_error: Callable[[BaseException], object] | None

    def __post_init__(self) -> None:
        check_lock(self.lock, "use interval=math.inf and call handle.checkpoint() between them")
        for name in ("on_progress", "on_error"):
            check_callback(name, getattr(self, name))
        # As floats, because a program may give any number, and threads and sockets take few kinds.
        if self.interval is not None:
            object.__setattr__(self, "interval", check_seconds("the interval", self.interval, endless=True))
        object.__setattr__(self, "timeout", check_seconds("the timeout", self.timeout))
        if self.quiet is not None:
            object.__setattr__(self, "quiet", check_seconds("quiet", self.quiet, zero=True))
        self._check_partners()
        if self.max_bandwidth is not None:
            check_bandwidth(self.max_bandwidth, MIN_BANDWIDTH)

    def _check_partners(self) -> None:
        """Refuses what says how points are taken by themselves, where none are, or where another way was asked for."""
        if self.quiet is not None and self.lock is not None:
            raise UsageError("with a lock no quiet moment is waited for; give lock or quiet, not both")
        if self.interval not in (None, math.inf):
            return
        if self.quiet is not None:
            raise UsageError(
                "quiet says when a point is taken every interval seconds, and none is; give an interval in seconds, or "
                "no quiet"
            )
        if self.lock is not None:
            raise UsageError(
                "lock is held for a point that is taken every interval seconds, and none is; give an interval in "
                "seconds, or no lock: during checkpoint() and cutover() the program does not write anyway"
            )

    @property
    def quiet_s(self) -> float:
        """For how long nothing is written where a point is taken without ``lock``."""
        return QUIET_S if self.quiet is None else self.quiet


def patience_of(timeout: float | None) -> float | None:
    """``timeout`` of a call that waits, as a thread takes it: None waits for ever, and so does an infinity. Raises
    `UsageError` for what is no time."""
    if timeout is None:
        return None
    seconds = check_seconds("the timeout", timeout, zero=True, endless=True)
    return None if math.isinf(seconds) else seconds

"""What a program can set about a replication."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from precopy.errors import UsageError
from precopy.machines.process.locks import check_lock
from precopy.migration.options import MIN_BANDWIDTH
from precopy.replication.progress import ReplicationProgress
from precopy.units import check_bandwidth, check_seconds


@dataclass(frozen=True)
class ReplicationOptions:
    """See `precopy.replicate`. Raises `UsageError` for values that cannot be meant."""

    interval: float | None
    lock: AbstractContextManager[object] | None
    quiet: float
    max_bandwidth: int | None
    timeout: float
    on_progress: Callable[[ReplicationProgress], object] | None
    on_error: Callable[[BaseException], object] | None

    def __post_init__(self) -> None:
        check_lock(self.lock, "use interval=math.inf and call handle.checkpoint() between them")
        for name in ("on_progress", "on_error"):
            called = getattr(self, name)
            if called is not None and not callable(called):
                raise UsageError(f"{name} is a function that is called with one argument, not {called!r}")
        if self.interval is not None:
            check_seconds("the interval", self.interval, endless=True)
        check_seconds("the timeout", self.timeout)
        check_seconds("quiet", self.quiet, zero=True)
        if self.max_bandwidth is not None:
            check_bandwidth(self.max_bandwidth, MIN_BANDWIDTH)

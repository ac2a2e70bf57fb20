"""What a program can set about a replication."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from precopy.errors import UsageError
from precopy.migration.options import MIN_BANDWIDTH
from precopy.process.progress import ReplicationProgress


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
        if self.lock is not None and not _can_be_held(self.lock):
            raise UsageError(
                f"lock is a context manager that a thread can hold (with lock:), such as a threading.Lock; "
                f"{_described(self.lock)} is none; where only asyncio tasks write, use interval=math.inf and call "
                f"handle.checkpoint() between them"
            )
        if self.interval is not None and not self.interval > 0:
            raise UsageError(f"an interval is more than 0 seconds, not {self.interval}")
        if not 0 < self.timeout < math.inf or not 0 <= self.quiet < math.inf:
            raise UsageError("the timeout has to be more than 0 seconds, and quiet cannot be negative")
        if self.max_bandwidth is not None and self.max_bandwidth < MIN_BANDWIDTH:
            raise UsageError(f"the largest bandwidth has to be at least {MIN_BANDWIDTH} bytes a second")


def _can_be_held(lock: object) -> bool:
    return not isinstance(lock, type) and all(hasattr(type(lock), name) for name in ("__enter__", "__exit__"))


def _described(lock: object) -> str:
    kind = lock if isinstance(lock, type) else type(lock)
    return f"{'the class' if kind is lock else 'an object of'} {kind.__module__}.{kind.__qualname__}"

"""What a program can set about a replication."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from precopy.errors import UsageError
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
        if self.lock is not None and not _can_be_held(self.lock):
            raise UsageError(
                f"lock is a context manager that a thread can hold (with lock:), such as a threading.Lock; "
                f"{_described(self.lock)} is none; where only asyncio tasks write, use interval=math.inf and call "
                f"handle.checkpoint() between them"
            )
        if self.interval is not None:
            check_seconds("the interval", self.interval, endless=True)
        check_seconds("the timeout", self.timeout)
        check_seconds("quiet", self.quiet, zero=True)
        if self.max_bandwidth is not None:
            check_bandwidth(self.max_bandwidth, MIN_BANDWIDTH)


def _can_be_held(lock: object) -> bool:
    return not isinstance(lock, type) and all(hasattr(type(lock), name) for name in ("__enter__", "__exit__"))


def _described(lock: object) -> str:
    kind = lock if isinstance(lock, type) else type(lock)
    return f"{'the class' if kind is lock else 'an object of'} {kind.__module__}.{kind.__qualname__}"

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

    def __post_init__(self) -> None:
        if self.interval is not None and not self.interval > 0:
            raise UsageError(f"an interval is more than 0 seconds, not {self.interval}")
        if not 0 < self.timeout < math.inf or not 0 <= self.quiet < math.inf:
            raise UsageError("the timeout has to be more than 0 seconds, and quiet cannot be negative")
        if self.max_bandwidth is not None and self.max_bandwidth < MIN_BANDWIDTH:
            raise UsageError(f"the largest bandwidth has to be at least {MIN_BANDWIDTH} bytes a second")

"""Progress while a migration runs: one line on a terminal's stderr, at most ten times a second, gone when it ends."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.status import Status
from rich.text import Text

from precopy.migration.results import Progress
from precopy.units import format_duration, format_rate, format_size


class LiveProgress:
    """Shows each `Progress` where stderr is a terminal, and nothing otherwise."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._status: Status | None = None
        if console.is_terminal:
            self._status = console.status("connecting", refresh_per_second=10)

    def __enter__(self) -> LiveProgress:
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def update(self, progress: Progress) -> None:
        if self._status:
            self._status.update(Text(line(progress), no_wrap=True, overflow="ellipsis"))


def line(progress: Progress) -> str:
    """Progress in one line."""
    parts = [
        f"{progress.phase} {progress.round}" if progress.phase == "rounds" else progress.phase,
        f"{format_size(progress.sent_bytes)} sent",
        f"{format_size(progress.remaining_bytes)} left",
        f"dirty rate {format_rate(progress.dirty_rate_bytes_per_s)}",
        f"bandwidth {format_rate(progress.bandwidth_bytes_per_s)}",
    ]
    if progress.expected_downtime_s is not None:
        parts.append(f"downtime now {format_duration(progress.expected_downtime_s)}")
    if progress.eta_s is not None:
        ends = "never at this rate" if math.isinf(progress.eta_s) else f"in {format_duration(progress.eta_s)}"
        parts.append(f"ends {ends}")
    return " | ".join(parts).replace("rounds ", "round ", 1)

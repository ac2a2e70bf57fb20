"""What a migration says while it runs: a line or two on a terminal's stderr, at most ten times a second, gone when it
ends."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.status import Status
from rich.text import Text

from precopy.migration.results import Event, Progress, Verdict
from precopy.report.verdicts import after_round
from precopy.units import format_duration, format_rate, format_size

_TALL = 4
"""Lines of a terminal that has room for two of ours."""


class LiveProgress:
    """Shows the newest `Progress` and the newest `Verdict` where stderr is a terminal, and nothing otherwise; ``what``
    is before them, and alone while there are none. Meanwhile what is printed to stdout goes to stderr, above it (as
    rich does it)."""

    def __init__(self, what: str = "") -> None:
        self._what = what
        self._console = Console(stderr=True)
        self._progress = self._verdict = ""
        self._status: Status | None = None
        if self._console.is_terminal:
            self._status = self._console.status(what or "connecting", refresh_per_second=10)

    def __enter__(self) -> LiveProgress:
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def say(self, what: str) -> None:
        """Replaces the text shown by ``what``."""
        self._what, self._progress, self._verdict = what, "", ""
        if self._status is not None:
            self._status.update(Text(what, no_wrap=True, overflow="ellipsis"))

    def update(self, event: Event) -> None:
        if self._status is None:
            return
        if isinstance(event, Progress):
            self._progress = " | ".join(filter(None, (self._what, line(event))))
        elif isinstance(event, Verdict):
            self._verdict = after_round(event)
        # A low terminal has one line, with what matters first.
        tall = self._console.height >= _TALL
        parts = (self._progress, self._verdict) if tall else (self._verdict, self._progress)
        shown = ("\n" if tall else " | ").join(filter(None, parts))
        self._status.update(Text(shown, no_wrap=True, overflow="ellipsis"))


def line(progress: Progress) -> str:
    """Progress in one line."""
    parts = [
        f"round {progress.round}" if progress.phase == "rounds" else progress.phase,
        f"{format_size(progress.sent_bytes)} sent",
        *([f"{format_size(progress.verify_bytes)} compared"] if progress.verify_bytes else []),
        f"{format_size(progress.remaining_bytes)} left",
        f"bandwidth {format_rate(progress.bandwidth_bytes_per_s)}",
    ]
    if progress.expected_downtime_s is not None:  # otherwise no round is done yet
        parts.insert(-1, f"dirty rate {format_rate(progress.dirty_rate_bytes_per_s)}")
    if progress.eta_s is not None and math.isfinite(progress.eta_s):
        parts.append(f"ends in {format_duration(progress.eta_s)}")
    return " | ".join(parts)

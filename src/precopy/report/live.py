"""What a migration says while it runs: a line or two on a terminal's stderr, at most ten times a second, gone when it
ends."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.status import Status
from rich.text import Text

from precopy.migration.results import Event, Verdict
from precopy.progress import Progress
from precopy.report.kinds.shared import progress_line
from precopy.report.verdicts import after_round

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
            self._progress = " | ".join(filter(None, (self._what, progress_line(event))))
        elif isinstance(event, Verdict):
            self._verdict = after_round(event)
        # A low terminal has one line, with what matters first.
        tall = self._console.height >= _TALL
        parts = (self._progress, self._verdict) if tall else (self._verdict, self._progress)
        shown = ("\n" if tall else " | ").join(filter(None, parts))
        self._status.update(Text(shown, no_wrap=True, overflow="ellipsis"))

"""What an observer is told of a migration while it goes on, and what it has done so far."""

from __future__ import annotations

import math
from collections.abc import Callable

from precopy.dirty import MigrationBitmap
from precopy.migration.channel import Channel
from precopy.migration.results import Event, Verdict
from precopy.planning.model.round import Round
from precopy.ports import Clock
from precopy.progress import Progress
from precopy.wire.events import Compare, Hello

_PROGRESS_S = 0.1
"""Seconds between two progress events at least."""


class Reporter:
    """Tells ``emit`` of each round and, ten times a second, of progress; keeps what it told. ``verdicts`` is the
    controller's list and ``bitmap`` has the pages to be sent, once the engine has set them."""

    def __init__(self, channel: Channel, clock: Clock, page_size: int, emit: Callable[[Event], None]) -> None:
        self._channel, self._clock, self._page_size, self._emit = channel, clock, page_size, emit
        self._next_s = 0.0
        self.phase = "setup"
        self.rounds: list[Round] = []
        self.verdicts: list[Verdict] = []
        self.bitmap: MigrationBitmap | None = None
        self.started = clock.now()
        self.saved_at: float | None = None
        """When the guest's state had been saved, after which verification begins."""

    def restart(self) -> float:
        """The migration begins now; returns when that is, by the clock."""
        self.started = self._clock.now()
        return self.started

    def round(self, done: Round) -> None:
        """One more round has arrived."""
        self.rounds.append(done)
        self._emit(done)

    def tell(self, event: Event) -> None:
        """Anything else that happened."""
        self._emit(event)

    def tick(self, *, force: bool = False) -> None:
        """Time for a progress event, if the last one was long enough ago."""
        now = self._clock.now()
        if now >= self._next_s or force:
            self._next_s = now + _PROGRESS_S
            self._emit(self._progress(now))

    @property
    def moved_bytes(self) -> int:
        """What went to the stream for moving the guest: neither its hello nor verification."""
        return self._channel.sent_bytes - self._channel.sent_in(Hello, Compare)

    @property
    def remaining_bytes(self) -> int:
        return self.bitmap.pending.count() * self._page_size if self.bitmap else 0

    def moved_for_s(self) -> float:
        """Seconds since the start until now, or until verification began."""
        return (self._clock.now() if self.saved_at is None else self.saved_at) - self.started

    def _progress(self, now: float) -> Progress:
        elapsed = now - self.started
        verdict = self.verdicts[-1] if self.verdicts else None
        bandwidth = self.moved_bytes / max(elapsed, 1e-9)
        eta = None
        if verdict is not None:
            bandwidth = verdict.bandwidth_bytes_per_s.value or 0.0
            if verdict.converges is not None:
                eta = max((verdict.total_s.value or 0.0) - elapsed, 0.0) if verdict.converges else math.inf
        return Progress(
            phase=self.phase,
            round=len(self.rounds) + 1,
            sent_bytes=self.moved_bytes,
            remaining_bytes=self.remaining_bytes,
            dirty_rate_bytes_per_s=verdict.dirty_rate_bytes_per_s if verdict else 0.0,
            bandwidth_bytes_per_s=bandwidth,
            elapsed_s=elapsed,
            expected_downtime_s=verdict.downtime_s.value if verdict else None,
            eta_s=eta,
            verify_bytes=self._channel.sent_in(Compare),
        )

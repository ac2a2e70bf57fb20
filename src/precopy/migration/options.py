"""What a user can set about a migration."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.dirty import ALL_POLICIES
from precopy.dirty.clear import DEFAULT_CHUNK_SHIFT
from precopy.errors import UsageError

MIN_BANDWIDTH = 64_000
"""Below this a page takes so long that the other side may think that nobody is there."""


@dataclass(frozen=True)
class MigrationOptions:
    """Raises `UsageError` for values that cannot be meant.

    ``tracker``: what tells of the guest's writes, ``auto`` for whichever suits them, empty for what it has.
    ``clear``: the clear policy; ``clear_chunk_shift``: chunks of 2**shift pages for ``deferred``.
    ``max_bandwidth``: bytes a second at most, None for no limit. ``downtime_limit``: seconds.
    ``max_rounds``: rounds before the migration gives up. ``verify``: compare the paused memories byte for byte and
    check the guest's invariant at the destination before the commit (the time is reported, not part of downtime).
    """

    tracker: str = ""
    clear: str = "deferred"
    clear_chunk_shift: int = DEFAULT_CHUNK_SHIFT
    max_bandwidth: int | None = None
    downtime_limit: float = 0.3
    max_rounds: int = 30
    verify: bool = False

    def __post_init__(self) -> None:
        if self.clear not in ALL_POLICIES:
            raise UsageError(f"no clear policy is called {self.clear!r}; there are {', '.join(ALL_POLICIES)}")
        if self.max_bandwidth is not None and self.max_bandwidth < MIN_BANDWIDTH:
            raise UsageError(f"the largest bandwidth has to be at least {MIN_BANDWIDTH} bytes a second")
        if self.downtime_limit < 0 or self.max_rounds < 1:
            raise UsageError("the downtime limit cannot be negative, and at least one round is needed")

"""What is taken where a user says nothing: for the command line, the engine, plans and the public API alike."""

from __future__ import annotations

DOWNTIME_LIMIT_S = 0.3
"""Seconds: QEMU's own downtime-limit."""
MAX_ROUNDS = 30
"""Rounds; what converges at all does so in far fewer."""
TIMEOUT_S = 10.0
"""Seconds that the other side may be silent."""
MAX_THROTTLE = 0.99
"""The largest share of the vCPUs' time that throttling may take; QEMU's max-cpu-throttle."""
CLEAR_CHUNK_SHIFT = 15
"""Chunks of 2^15 pages, 128 MiB, for the clear policy ``deferred``; QEMU's default is 18 (1 GiB).
docs/adr/0006-clear-chunk.md has the measurements."""
UNCERTAINTY = 0.1
"""How far the numbers of a plan may be off, as a share."""
PAGES_PER_S = 20_000
"""Pages that a guest of ours writes a second."""
HOT_SHARE = 1 / 16
"""The hot set's share of its pages."""


def milliseconds(seconds: float) -> str:
    """As an option takes it: ``300ms``."""
    return f"{1e3 * seconds:g}ms"

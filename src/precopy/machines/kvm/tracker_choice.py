"""Which tracker a migration should use, from how fast the guest dirties memory.

With the dirty log the cost of a sync grows with the size of memory, and a little with each dirty page. With the dirty
ring it grows only with the dirty pages, but an entry costs twice what a bit costs, and a vCPU whose ring is full has to
leave the guest. So the ring is for very large guests that write little.
docs/adr/0011-tracker-choice.md has the measurements.
"""

from __future__ import annotations

from precopy.ports.vm import TrackerChoice
from precopy.units import format_duration

LOG_PAGE_S = 2e-11
"""Seconds that each page of memory costs a harvest of the dirty log."""
LOG_DIRTY_S, RING_DIRTY_S = 4e-8, 8e-8
"""Seconds that each dirty page costs, harvested and re-armed. All three: benchmarks/tracker_cost.py."""
INTERVAL_S = 1.0
"""Seconds of dirtying that a sync is assumed to find. Rounds of large guests are longer, which favours the log."""


def choose(pages: int, dirty_pages_per_s: float, ring_entries: int) -> TrackerChoice:
    """The tracker for ``pages`` pages of memory of which ``dirty_pages_per_s`` are dirtied, and the reason."""
    dirty = min(dirty_pages_per_s * INTERVAL_S, pages)
    log_s = pages * LOG_PAGE_S + dirty * LOG_DIRTY_S
    ring_s = dirty * RING_DIRTY_S
    rate = f"{dirty_pages_per_s:.0f} pages were dirtied a second"
    if dirty > ring_entries / 2:
        return TrackerChoice("dirty-log", f"{rate}, too many for a ring of {ring_entries} entries")
    name, other = ("dirty-ring", "dirty-log") if ring_s < log_s else ("dirty-log", "dirty-ring")
    costs = {"dirty-log": log_s, "dirty-ring": ring_s}
    return TrackerChoice(
        name,
        f"{rate} of {pages}: a sync a second costs about {format_duration(costs[name])}, with the {other} "
        f"{format_duration(costs[other])}",
    )

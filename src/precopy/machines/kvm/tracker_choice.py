"""Which tracker a migration should use, from how fast the guest dirties memory.

With the dirty log a sync costs by how much memory there is, and then little for each dirty page; with the dirty ring it
costs by what was dirtied and nothing by what there is, but each entry costs twice what a bit costs, and a ring that
fills up makes its vCPU leave the guest. So the ring is for very large guests that write little.
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
"""What a sync is assumed to find: what the guest dirties in this time. Rounds of large guests are longer, and then
more is dirty and the log is better still."""


def choose(pages: int, dirty_pages_per_s: float, ring_entries: int) -> TrackerChoice:
    """The tracker for ``pages`` pages of memory of which so many are dirtied a second, and why that one."""
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

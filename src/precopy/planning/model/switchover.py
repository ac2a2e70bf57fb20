"""What a switchover is expected to take before one was measured."""

from __future__ import annotations

from precopy.planning.model.estimate import Estimate

SWITCHOVER_OVERHEAD_S = Estimate(0.0015, 0.0008, 0.005)
"""Seconds of a downtime besides its last sync and sending: stopping the vCPUs, saving, sending and loading their state,
and the commit; without round trips over a network. The value is the median of 30 switchovers between two processes of
one machine, the ends are about the least and the most: docs/planning.md, "Switchover overhead". A plan, which knows
neither the machine nor the link, takes the upper end."""
_ROUND_TRIPS = 3
"""Round trips to the peer in a switchover: the last round's acknowledgement, `Ready`, `Running`."""


def switchover_overhead(round_trip_s: float) -> Estimate:
    """The same with a peer at this distance, in seconds."""
    return SWITCHOVER_OVERHEAD_S + _ROUND_TRIPS * round_trip_s

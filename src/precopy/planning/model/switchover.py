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


_FIRST_TIME = Estimate(0.4, 0.1, 1.2)
"""A switchover's steps are each the first of their kind, as the opening of a migration is, so what that took beyond a
round trip tells how long code and memory take that were not used before. On a virtual machine where these are slow, 28
openings took 3 to 30 ms; the overhead was 0.3 to 1.3 times as long in 23 of them, and up to 6.7 times in the others."""
_LONGEST_OPENING_S = 0.1
"""What an opening takes beyond this was spent on something else, such as waiting for a destination that is busy."""


def switchover_overhead(round_trip_s: float, opening_s: float) -> Estimate:
    """The same with a peer at this distance, which took ``opening_s`` to answer the first message; in seconds."""
    first_time_s = min(max(opening_s - round_trip_s, 0.0), _LONGEST_OPENING_S)
    known = SWITCHOVER_OVERHEAD_S + _ROUND_TRIPS * round_trip_s
    return Estimate(
        known.value + _FIRST_TIME.value * first_time_s,
        known.low + _FIRST_TIME.low * first_time_s,
        known.high + _FIRST_TIME.high * first_time_s,
    )

"""``precopy receive``: the guest that came, and how its process ended."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.bounds import Count, Text
from precopy.progress import Received
from precopy.report.kinds.kind import Kind, fields_of
from precopy.report.kinds.run import GuestRun, ended_line
from precopy.units import format_duration, format_size


@dataclass(frozen=True)
class ReceivingRun(GuestRun):
    """``address`` is where it waited, ``turned_away`` counts connections of others than a source; ``received`` is None
    where no guest came."""

    address: Text
    turned_away: Count
    received: Received | None

    @classmethod
    def of(cls, run: GuestRun, address: str, turned_away: int, received: Received | None) -> ReceivingRun:
        return cls(**fields_of(run), address=address, turned_away=turned_away, received=received)


def received_line(received: Received) -> str:
    """What arrived, in one line."""
    gap = received.switchover_gap_s
    stood = f"; by its own clock it stood still for {format_duration(gap)}" if gap is not None else ""
    return (
        f"the guest runs here: {format_size(received.received_bytes)} in {received.rounds} rounds and "
        f"{format_duration(received.moving_s)} (session {received.session}){stood}"
    )


def _text(run: ReceivingRun) -> list[str]:
    return [received_line(run.received) if run.received else "no guest came", ended_line(run)]


KIND = Kind(ReceivingRun, _text)

"""``precopy run``: how a guest's process ended."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.bounds import Count, Text
from precopy.report.kinds.kind import Kind


@dataclass(frozen=True)
class GuestRun:
    """``outcome``: migrated or quit; ``session`` is the migration that took the guest away, or brought it.

    ``peak_resident_bytes`` is the process's largest resident size (VmHWM), the guest's ``ram_bytes`` included; None
    where the system does not tell.
    """

    outcome: Text
    guest: Text
    why: Text
    control: Text
    session: Text | None
    ram_bytes: Count
    peak_resident_bytes: Count | None


_ENDED = {
    "migrated": "the guest was migrated away and runs elsewhere",
    "quit": "the process was ended by `precopy quit`",
}


def ended_line(run: GuestRun) -> str:
    """What became of the guest, in one line."""
    return _ENDED.get(run.outcome, f"the guest's process ended: {run.outcome}")


def _text(run: GuestRun) -> list[str]:
    return [ended_line(run)]


KIND = Kind(GuestRun, _text)

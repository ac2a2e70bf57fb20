"""What a migration takes from its guest, as the guest itself measures it: by round, and before the migration.

The guest's gaps are read between batches, so that none is overwritten before it was seen; see docs/stall.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from precopy.errors import PrecopyError
from precopy.migration.results import GuestStall
from precopy.planning.model.round import Round
from precopy.ports import Clock, Pausable, Stall, StallMeasuring, StallMeter
from precopy.ports.stall import together

_FIRST_GAP_S, _OTHERS_S = 0.1, 0.005
"""Seconds that a guest is waited for to go on after a switchover, and then for its other vCPUs. The result's record
waits that long, and nothing of the migration."""
_LOOK_S = 0.0005
"""Seconds between two looks for that."""


def meter_of(vm: Pausable) -> tuple[StallMeter | None, str]:
    """What reads the gaps of ``vm`` from now on; or None, and why they are not measured."""
    if not isinstance(vm, StallMeasuring):
        return None, f"this machine ({vm.machine}) does not measure its gaps"
    try:
        return vm.stall_meter(), ""
    except PrecopyError as error:  # no figure is worth a migration
        return None, str(error)


class StallWatch:
    """Watches ``vm`` while it is migrated, from when this is made."""

    def __init__(self, vm: Pausable, clock: Clock) -> None:
        self._clock = clock
        self._meter, self._why_not = meter_of(vm) if vm.running else (None, "the guest did not run")
        self._taken_at = clock.now() if self._meter else 0.0

    def poll(self) -> None:
        """Time to read what is new."""
        if self._meter is not None:
            self._meter.poll()

    def take(self) -> Stall | None:
        """What was taken from the guest since this was asked last; None where that is not measured."""
        if self._meter is None:
            return None
        before, self._taken_at = self._taken_at, self._clock.now()
        return self._meter.take(self._taken_at - before)

    def of(self, rounds: Sequence[Round]) -> GuestStall:
        """What was taken from the guest in all of ``rounds``, beside a window before them as long as the first."""
        stalls = [made.stall for made in rounds if made.stall is not None]
        if self._meter is None or not stalls:
            return GuestStall(why_not=self._why_not)
        return GuestStall(self._meter.before(stalls[0].window_s), together(stalls))


class SwitchoverGap:
    """Reads, at the destination, the gap of a guest over its switchover, by the guest's own clock. To be made once the
    guest's state is loaded, and before it runs."""

    def __init__(self, vm: Pausable, clock: Clock) -> None:
        self._meter, _ = meter_of(vm)
        self._clock = clock

    def wait(self) -> float | None:
        """Waits until the guest has gone on, and returns the seconds that it had not; None where it does not measure
        that, or has not gone on in time."""
        if self._meter is None:
            return None
        end = self._clock.now() + _FIRST_GAP_S
        while not (gap := self._meter.take(0.0)).gaps:
            if self._clock.now() > end:
                return None
            self._clock.sleep(_LOOK_S)
        self._clock.sleep(_OTHERS_S)
        return max(gap.longest_s, self._meter.take(0.0).longest_s)

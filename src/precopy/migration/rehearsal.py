"""What a switchover will do is done before, while the guest still runs. Code and memory that were not used for some
time have to be fetched first, which on some machines takes many times as long as the work itself.
"""

from __future__ import annotations

from precopy.errors import PrecopyError
from precopy.ports import Clock, Pausable, Rehearsing

_SHARE = 0.05
"""Of a round's time, at most, for the rehearsal after it."""


class Rehearsal:
    """Rehearses the switchover of ``vm`` between rounds, where it is `Rehearsing`."""

    def __init__(self, vm: Pausable, clock: Clock) -> None:
        self._vm, self._clock = vm if isinstance(vm, Rehearsing) else None, clock
        self._took_s = 0.0
        self._ended_at = clock.now()

    def between_rounds(self) -> None:
        """Raises nothing: a machine that cannot is migrated without, and not asked again."""
        if self._vm is None:
            return
        began = self._clock.now()
        if self._took_s > _SHARE * (began - self._ended_at):
            return
        try:
            self._vm.rehearse()
        except PrecopyError:
            self._vm = None
            return
        self._ended_at = self._clock.now()
        self._took_s = self._ended_at - began

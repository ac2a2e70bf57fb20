"""The host's half of a guest's write rate: after each burst the vCPU waits until the next is due."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from precopy.machines.vcpu.gate import VcpuGate
from precopy.machines.workload import params

_CATCH_UP_S = 0.05
"""Seconds of missed bursts that are caught up; more are dropped, so that a pause is not followed by a flood."""
MAX_INTERVAL_S = 60.0
"""A burst of one write at the slowest rate; the interval comes from guest memory, and so from a peer."""


class Pacer:
    """Paces one vCPU by the parameters in its ``page`` of guest memory, which migrate with it, and by its own clock:
    time that its ``gate`` takes from it is not caught up with."""

    def __init__(self, page: npt.NDArray[np.uint64], gate: VcpuGate) -> None:
        self._page, self._gate = page, gate
        self._due = 0.0

    def restart(self) -> None:
        """The vCPU runs again after a pause, which is not to be caught up with."""
        self._due = self._gate.now()

    def wait(self) -> None:
        """Waits until the next burst is due, or until the gate is set."""
        now = self._gate.now()
        # A host that was slow may be made up for, but not without limit.
        interval = min(int(self._page[params.INTERVAL_NS // 8]) / 1e9, MAX_INTERVAL_S)
        self._due = max(self._due + interval, now - _CATCH_UP_S)
        if self._due > now:
            self._gate.wait(self._due - now)

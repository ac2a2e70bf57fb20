"""Cloud Hypervisor: a downtime goal and a timeout."""

from __future__ import annotations

from precopy.planning.model.decision import Action, Decision
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Metrics
from precopy.planning.policies.common import Situation, expected_downtime

TIMEOUT_S = 3600.0
"""timeout_s."""


def cloud_hypervisor(metrics: Metrics, limits: Limits, now: float) -> Decision:
    """Cloud Hypervisor: switch over when nothing is dirty, or what is dirty can be sent within the downtime goal at the
    bandwidth of the last iteration.

    That bandwidth is of memory, not of the wire, and of the time of transfer alone: syncs do not count.
    ``limits.downtime_limit_s`` is downtime_ms (300 ms by default). Where no timeout is given it is timeout_s, 3600 s;
    timeout_strategy is cancel (``CANCEL``, its default) or ignore, which ignores the goal and switches over: here that
    is ``SWITCH``. Until 2026 it always made five passes instead.

    Source: Cloud Hypervisor, vmm/src/lib.rs, is_precopy_converged, and vm-migration/src/context.rs,
    MemoryMigrationContext; pull requests 7033 and 7835.
    """
    last = metrics.rounds[-1] if metrics.rounds else None
    bandwidth = last.read_bytes / last.transfer_s if last is not None and last.transfer_s > 0 else 0.0
    here = Situation(metrics, limits, now, bandwidth, limits.downtime_limit_s)
    if metrics.remaining_bytes <= 0:
        return here.decision(Action.SWITCH_OVER, "nothing is pending")
    if expected_downtime(metrics, bandwidth).value <= limits.downtime_limit_s:
        return here.decision(Action.SWITCH_OVER, here.compared("are within"))
    return here.guard(TIMEOUT_S) or here.decision(Action.GO_ON, here.compared("are more than"))

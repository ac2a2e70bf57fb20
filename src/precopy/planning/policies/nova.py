"""OpenStack Nova's libvirt driver, which raises QEMU's downtime limit by the clock."""

from __future__ import annotations

from precopy.planning.model.decision import Decision
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Metrics
from precopy.planning.policies.common import GIB
from precopy.planning.policies.qemu import threshold_decision

STEPS = 10
"""live_migration_downtime_steps."""
DELAY_S_PER_GIB = 75
"""live_migration_downtime_delay."""
TIMEOUT_S_PER_GIB = 800
"""live_migration_completion_timeout."""
LEAST_GIB = 2
"""A guest with less memory is counted as this."""


def downtime_steps(downtime_limit_s: float, ram_bytes: int) -> tuple[tuple[float, float], ...]:
    """(seconds since the migration's start, downtime limit in seconds from then on) of each step: from a tenth of
    ``downtime_limit_s`` in ten equal steps up to all of it, 75 s for each GiB apart.

    Source: Nova, nova/virt/libvirt/migration.py, downtime_steps. It counts in whole seconds, as here, and in whole
    milliseconds, which is not done here.
    """
    delay_s = int(DELAY_S_PER_GIB * _gib(ram_bytes))
    base = downtime_limit_s / STEPS
    offset = (downtime_limit_s - base) / STEPS
    return tuple((float(delay_s * step), base + offset * step) for step in range(STEPS + 1))


def nova(metrics: Metrics, limits: Limits, now: float) -> Decision:
    """Nova: QEMU's rule, with a downtime limit that starts at a tenth of live_migration_downtime and is raised in ten
    equal steps, one each 75 s for each GiB of guest memory (2 GiB at least).

    ``limits.downtime_limit_s`` is live_migration_downtime (500 ms by default), at which the ramp ends; Nova does not
    accept less than 100 ms, which is not asked for here. Where no timeout is given it is
    live_migration_completion_timeout, 800 s for each GiB; live_migration_timeout_action is abort (``CANCEL``, its
    default) or force_complete (``SWITCH``, without post-copy). The guest's memory is all the data: disks are not
    migrated here.

    Source: Nova, nova/virt/libvirt/migration.py, downtime_steps, update_downtime and should_trigger_timeout_action;
    nova/conf/libvirt.py.
    """
    steps = downtime_steps(limits.downtime_limit_s, metrics.ram_bytes)
    applied_s = max((limit for begins_s, limit in steps if now > begins_s), default=steps[0][1])
    return threshold_decision(metrics, limits, now, applied_s, TIMEOUT_S_PER_GIB * _gib(metrics.ram_bytes))


def _gib(ram_bytes: int) -> float:
    return max(ram_bytes / GIB, LEAST_GIB)

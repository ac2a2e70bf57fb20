"""How a migration slows its guest down, a class for each ``throttle_mode``, and what that takes from the guest. What a
machine does to its vCPUs then: `precopy.machines.vcpu.throttle`."""

from __future__ import annotations

from precopy.migration.options import MigrationOptions
from precopy.planning import Metrics
from precopy.ports import DirtyLimiting, SourceVm, Throttleable, Throttled, lacks
from precopy.ports.vm import MAX_THROTTLE


def throttling_of(vm: SourceVm, options: MigrationOptions) -> Throttling:
    """How ``vm`` is slowed down where that is wanted. Raises `Unsupported` where it cannot be done so."""
    mode = options.throttle_mode
    if mode == "off":
        return Throttling()
    if mode == "dirty-limit":
        if not isinstance(vm, DirtyLimiting):
            raise lacks(
                vm,
                "DirtyLimiting",
                "--throttle dirty-limit",
                "use --throttle auto-converge, or a KVM guest with --tracker dirty-ring",
            )
        return DirtyLimit(vm, vm.memory.layout.page_size, options.max_throttle)
    if not isinstance(vm, Throttleable):
        raise lacks(vm, "Throttleable", f"--throttle {mode}")
    return AutoConverge(vm)


class Throttling:
    """The guest is not slowed down; what that would cost is never asked."""

    asked_share = 0.0
    """The share of the vCPUs' time that was to be taken, as `slow_down` was told last."""

    def check(self) -> None:
        """Raises `Unsupported` where the guest cannot be slowed down as wanted with the tracker that it has now."""

    @property
    def cost(self) -> Throttled:
        """What this migration has cost the guest so far."""
        return Throttled((), 0.0)

    def share_between_syncs(self) -> float:
        """The share of the vCPUs' time that was taken since this was asked last: once at each sync."""
        return 0.0

    def share_of_round(self) -> float:
        """The share of the vCPUs' time that was taken since this was asked last: once at the end of each round."""
        return 0.0

    def slow_down(self, share: float, metrics: Metrics) -> None:
        """From now on ``share`` of the vCPUs' time is to be taken, after the rounds of ``metrics``. Raises
        `GuestError`."""

    def release(self) -> None:
        """The guest is slowed down no more. May be called twice."""


class AutoConverge(Throttling):
    """Takes a share of every vCPU's time. The shares that it tells are those that were asked for."""

    def __init__(self, vm: Throttleable) -> None:
        self._vm, self._before = vm, vm.throttled()
        self._slowed = False

    @property
    def cost(self) -> Throttled:
        return self._vm.throttled() - self._before

    def share_between_syncs(self) -> float:
        return self.asked_share

    def share_of_round(self) -> float:
        return self.asked_share

    def slow_down(self, share: float, metrics: Metrics) -> None:  # noqa: ARG002 - how much is written does not matter
        if share != self.asked_share:
            self._slowed, self.asked_share = True, share
            self._vm.throttle(share)

    def release(self) -> None:
        if self._slowed:
            self._slowed = False
            self._vm.throttle(0.0)


class DirtyLimit(Throttling):
    """Limits how fast each vCPU dirties memory. The shares that it tells are measured, because a limit takes only what
    it needs, at most ``max_share``."""

    def __init__(self, vm: DirtyLimiting, page_size: int, max_share: float) -> None:
        self._vm, self._before = vm, vm.throttled()
        self._page_size, self._max_share = page_size, max_share
        self._at_sync = self._at_round = self._before
        self._slowed = False

    def check(self) -> None:
        self._vm.limit_dirtying(None)

    @property
    def cost(self) -> Throttled:
        return self._vm.throttled() - self._before

    def share_between_syncs(self) -> float:
        before, self._at_sync = self._at_sync, self._vm.throttled()
        return self._taken(self._at_sync - before)

    def share_of_round(self) -> float:
        before, self._at_round = self._at_round, self._vm.throttled()
        return self._taken(self._at_round - before)

    def _taken(self, cost: Throttled) -> float:
        return min(cost.share, MAX_THROTTLE) if self._slowed else 0.0

    def slow_down(self, share: float, metrics: Metrics) -> None:
        self._slowed, self.asked_share = True, share
        last = metrics.rounds[-1]
        rate = last.dirty_bytes / last.interval_s * (1 - share) / (1 - metrics.throttled_share)
        per_vcpu = max(rate, self._page_size) / len(self._before.throttled_s)
        self._vm.limit_dirtying(per_vcpu, self._max_share)

    def release(self) -> None:
        if self._slowed:
            self._slowed = False
            self._vm.throttle(0.0)

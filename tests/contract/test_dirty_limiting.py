"""`precopy.ports.DirtyLimiting`: a machine whose vCPUs can be slowed down by what they dirty."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from precopy.dirty import MigrationBitmap, clear_policy
from precopy.errors import Unsupported, UsageError
from precopy.ports import DirtyLimiting, Throttled
from support.machines import KVM, RING, Booted, with_role
from support.patience import IN_TIME_S

KINDS = with_role(DirtyLimiting)
with_ring = pytest.mark.parametrize("booted", [RING.param], indirect=True)
without = pytest.mark.parametrize("booted", [KVM.param], indirect=True)


def test_the_tracker_says_whether_there_is_a_limit_also_where_it_is_to_end(booted: Booted) -> None:
    """Dirty quotas there are with a dirty ring only."""
    if booted.kind is RING:
        booted.vm.limit_dirtying(None)
        booted.vm.limit_dirtying(1e9)
        booted.vm.limit_dirtying(None)
        return
    for limit in (None, 1e9):
        with pytest.raises(Unsupported, match="use --tracker dirty-ring"):
            booted.vm.limit_dirtying(limit)


@without
def test_where_there_can_be_none_a_throttle_goes_on(booted: Booted) -> None:
    vm = booted.vm
    vm.resume()
    vm.throttle(0.5)
    with pytest.raises(Unsupported):
        vm.limit_dirtying(None)
    until_more_is_taken(booted, vm.throttled())


def until_more_is_taken(booted: Booted, than: Throttled, again: Callable[[], object] = lambda: None) -> Throttled:
    end = time.monotonic() + IN_TIME_S
    while (now := booted.vm.throttled()).throttled_s <= than.throttled_s:
        assert time.monotonic() < end, "nothing is taken"
        again()
        booted.live(0.005)
    return now


@with_ring
def test_takes_time_from_a_vcpu_that_dirties_more_and_ends_what_throttle_began(booted: Booted) -> None:
    vm = booted.vm
    bitmap = MigrationBitmap(vm.dirty, clear_policy("merged", vm.memory.layout))

    def write_again() -> None:
        bitmap.sync()
        bitmap.take(0, bitmap.pending.size)

    vm.dirty.start()
    vm.resume()
    vm.throttle(0.99)
    vm.limit_dirtying(4096.0)
    until_more_is_taken(booted, vm.throttled(), write_again)
    vm.limit_dirtying(None)
    ended = vm.throttled()
    booted.live(0.05)
    assert vm.throttled() == ended
    vm.pause()
    vm.dirty.stop()
    assert vm.self_check().ok


@with_ring
@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(vm: Any, limit: float) -> None:
    with pytest.raises(UsageError, match="a dirty limit has to be above 0"):
        vm.limit_dirtying(limit)


@with_ring
@pytest.mark.parametrize("share", [-0.01, 1.0, float("nan")])
def test_a_largest_share_that_cannot_be_taken_is_refused(vm: Any, share: float) -> None:
    with pytest.raises(UsageError, match="the share that is taken of a vCPU's time"):
        vm.limit_dirtying(1e6, share)

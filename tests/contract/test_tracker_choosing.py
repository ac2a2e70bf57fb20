"""`precopy.ports.TrackerChoosing`: a machine whose tracker can be another one."""

from __future__ import annotations

import pytest

from precopy.bitmap import Bitmap
from precopy.dirty import MigrationBitmap, clear_policy
from precopy.errors import GuestError, Unsupported, UsageError
from precopy.names import WANTED_TRACKERS
from precopy.ports import SelfChecking, TrackerChoosing
from support.machines import Booted, with_role

KINDS = with_role(TrackerChoosing, SelfChecking)


def found(booted: Booted) -> Bitmap:
    """What the guest's tracker tells of a while in which it made steps."""
    vm = booted.vm
    bitmap = MigrationBitmap(vm.dirty, clear_policy("merged", vm.memory.layout))
    vm.dirty.start()
    try:
        booted.steps_after(vm.self_check().steps)
        bitmap.sync()
    finally:
        vm.dirty.stop()
    return bitmap.pending


@pytest.mark.parametrize("runs", [False, True])
def test_whichever_suits_it_tells_of_its_writes(booted: Booted, runs: bool) -> None:
    vm = booted.vm
    booted.steps_after(0)
    if runs:
        vm.resume()
    choice = vm.choose_tracker("auto")
    assert vm.running == runs
    assert choice.tracker
    assert choice.why
    assert choice.pause_s >= 0
    if runs:
        vm.pause()
    assert found(booted).any()
    assert vm.self_check().ok


@pytest.mark.parametrize("wanted", WANTED_TRACKERS)
def test_each_is_taken_or_refused_with_the_guest_as_it_was(booted: Booted, wanted: str) -> None:
    vm = booted.vm
    done = booted.steps_after(0)
    before = vm.dirty
    try:
        assert vm.choose_tracker(wanted).tracker
    except (Unsupported, UsageError, GuestError):
        assert vm.dirty is before
    assert vm.self_check().steps == done
    assert found(booted).any()
    assert vm.self_check().ok

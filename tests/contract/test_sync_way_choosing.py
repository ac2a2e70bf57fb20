"""`precopy.ports.SyncWayChoosing`: a machine whose syncs can be made in several ways."""

from __future__ import annotations

import subprocess
import sys

import pytest

from precopy.bitmap import kernels
from precopy.machines.kvm import KvmGuest, sync_way
from precopy.memory import DirtyClient, GuestMemory
from precopy.memory.captures.machines import machine_layout
from precopy.ports import SyncWayChoosing
from support.machines import Booted, with_role
from support.patience import IN_TIME_S

KINDS = with_role(SyncWayChoosing)


def test_says_which_and_why_and_loses_nothing(booted: Booted) -> None:
    """What a trial found is still dirty, what devices wrote included."""
    vm = booted.vm
    vm.dirty.start()
    vm.dirty.sync()
    vm.dirty.set_range(100, 1)
    before = vm.dirty.count(DirtyClient.MIGRATION)
    choice = vm.choose_sync_way()
    assert choice.way in ("numpy", "numba")
    assert choice.why
    vm.dirty.sync()
    assert vm.dirty.count(DirtyClient.MIGRATION) >= before > 0
    assert vm.dirty.count(DirtyClient.MIGRATION, 100, 1) == 1
    vm.dirty.stop()


@pytest.mark.needs("kvm", "numba")
def test_numba_is_taken_where_it_pays_and_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_way, "WORTH_S", 0.0)
    with KvmGuest(GuestMemory(machine_layout("q35", 16 << 20))) as guest:
        guest.dirty.start()
        try:
            choice = guest.choose_sync_way()
            assert kernels.loaded()
            assert "with numba" in choice.why
            assert "with numpy" in choice.why
            (log,) = guest.dirty.logs
            assert (log._native is not None) == (choice.way == "numba")
        finally:
            guest.dirty.stop()
            kernels.use(None)


@pytest.mark.needs("kvm")
def test_where_numba_is_missing_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_way, "WORTH_S", 0.0)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _: None)
    with KvmGuest(GuestMemory(machine_layout("flat", 4 << 20))) as guest:
        guest.dirty.start()
        choice = guest.choose_sync_way()
        guest.dirty.stop()
    assert choice.way == "numpy"
    assert "needs the package numba, which is not installed" in choice.why


@pytest.mark.needs("kvm")
def test_a_small_guest_imports_no_numba() -> None:
    code = """
import sys
from precopy.machines.kvm import KvmGuest, sync_way
sync_way.WORTH_S = 60.0  # a sync of a busy machine, too
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import machine_layout
with KvmGuest(GuestMemory(machine_layout("q35", 16 << 20))) as guest:
    guest.dirty.start()
    print(guest.choose_sync_way().why, "numba" in sys.modules, "llvmlite" in sys.modules)
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=IN_TIME_S)
    assert done.stdout.strip().endswith("less than numba's import is worth False False")

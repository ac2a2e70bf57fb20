"""`precopy.ports.DeviceStates`: a machine with a state besides its memory."""

from __future__ import annotations

from typing import Any

import pytest

from precopy.errors import GuestError
from precopy.ports import DeviceStates, SelfChecking
from support.machines import Booted, with_role

KINDS = with_role(DeviceStates, SelfChecking)


def test_state_and_memory_make_the_same_guest(booted: Booted) -> None:
    vm, twin = booted.vm, booted.blank()
    done = booted.steps_after(100)
    for mine, theirs in zip(vm.memory.hosts, twin.memory.hosts, strict=True):
        theirs.words[:] = mine.words
    twin.load_state(vm.save_state())
    assert twin.self_check().steps == done
    assert booted.steps_after(done, twin) > done
    assert twin.self_check().ok
    assert vm.self_check().steps == done


def test_saving_changes_nothing(booted: Booted) -> None:
    done = booted.steps_after(0)
    assert booted.vm.save_state()
    assert booted.vm.save_state()
    assert booted.vm.self_check().steps == done
    assert booted.steps_after(done) > done
    assert booted.vm.self_check().ok


@pytest.mark.parametrize("state", [b"", b"\xc1", b"\x80", b"\x91\x80", b"\x81\xa1\xff\x00", b"\x00" * 100])
def test_a_state_that_is_none_is_refused_and_the_guest_is_as_it_was(booted: Booted, state: bytes) -> None:
    with pytest.raises(GuestError):
        booted.vm.load_state(state)
    assert booted.steps_after(0) > 0
    assert booted.vm.self_check().ok


def test_a_running_guest_gives_and_takes_none(vm: Any) -> None:
    vm.resume()
    with pytest.raises(GuestError, match="that runs"):
        vm.save_state()
    with pytest.raises(GuestError, match="that runs"):
        vm.load_state(b"")

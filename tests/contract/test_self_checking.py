"""`precopy.ports.SelfChecking`: a machine whose guest's memory can be held against an invariant."""

from __future__ import annotations

from typing import Any

import pytest

from precopy.errors import GuestError
from precopy.ports import SelfChecking
from support.machines import Booted, with_role

KINDS = with_role(SelfChecking)


def test_holds_after_each_of_a_hundred_pauses(vm: Any) -> None:
    for _ in range(100):
        vm.resume()
        vm.pause()
        assert vm.self_check().ok


def test_counts_the_steps_and_looks_at_pages(booted: Booted) -> None:
    assert booted.vm.self_check().steps == 0
    done = booted.steps_after(0)
    check = booted.vm.self_check()
    assert check.steps == done
    assert 0 < check.pages <= booted.vm.memory.layout.pages
    assert booted.vm.self_check() == check


def test_names_what_is_broken(booted: Booted) -> None:
    booted.steps_after(100)
    assert booted.vm.self_check().ok
    booted.kind.damage(booted.vm)
    check = booted.vm.self_check()
    assert not check.ok
    assert len(check.broken) == 1
    assert "page" in check.broken[0]


def test_a_running_guest_is_not_checked(vm: Any) -> None:
    vm.resume()
    with pytest.raises(GuestError, match="that runs"):
        vm.self_check()

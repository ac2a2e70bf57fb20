"""`precopy.ports.Pausable`: a machine that stops and runs."""

from __future__ import annotations

from typing import Any

import pytest

from precopy.ports import DirtyLog, SelfChecking
from support.machines import GUESTS, Booted
from support.machines import KINDS as ALL_KINDS

KINDS = [kind.param for kind in ALL_KINDS]


def steps(booted: Booted) -> int:
    """How many steps the program has made; the machine is paused."""
    vm = booted.vm
    return int((vm if isinstance(vm, SelfChecking) else vm._inner).self_check().steps)


def test_is_made_paused_and_makes_no_step(booted: Booted) -> None:
    assert not booted.vm.running
    booted.live(0.05)
    assert steps(booted) == 0


def test_runs_only_between_resume_and_pause(booted: Booted) -> None:
    for done in (0, 1):
        before = steps(booted)
        while steps(booted) <= before:
            booted.vm.resume()
            assert booted.vm.running
            booted.live(0.01)
            assert booted.vm.pause() >= 0
        assert not booted.vm.running
        then = steps(booted)
        booted.live(0.05)
        assert steps(booted) == then > done


def test_pausing_and_resuming_twice_is_like_once(booted: Booted) -> None:
    vm: Any = booted.vm
    vm.resume()
    vm.resume()
    assert vm.running
    assert vm.pause() >= 0
    assert vm.pause() >= 0
    assert not vm.running
    done = steps(booted)
    booted.live(0.05)
    assert steps(booted) == done


def test_a_hundred_pauses(booted: Booted) -> None:
    done = [0]
    for _ in range(100):
        booted.vm.resume()
        booted.vm.pause()
        done.append(steps(booted))
    assert done == sorted(done)
    booted.vm.resume()
    assert booted.vm.running


def test_names_itself_and_its_tracker(booted: Booted) -> None:
    assert booted.vm.kind in booted.vm.machine
    assert all(isinstance(log, DirtyLog) for log in booted.vm.dirty.logs)


@pytest.mark.parametrize("booted", [kind.param for kind in GUESTS], indirect=True)
class TestClosing:
    def test_twice_is_like_once(self, vm: Any) -> None:
        vm.resume()
        vm.close()
        vm.close()
        assert not vm.running

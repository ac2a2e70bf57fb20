"""`precopy.ports.Rehearsing`: a machine that does beforehand what a switchover will do with its state."""

from __future__ import annotations

from precopy.ports import DeviceStates, Rehearsing, SelfChecking
from support.machines import Booted, with_role

KINDS = with_role(Rehearsing, DeviceStates, SelfChecking)


def test_a_guest_that_runs_goes_on_and_keeps_its_invariant(booted: Booted) -> None:
    done = booted.steps_after(100)
    booted.vm.resume()
    for _ in range(3):
        booted.vm.rehearse()
    assert booted.vm.running
    booted.vm.pause()
    assert booted.steps_after(done) > done
    assert booted.vm.self_check().ok


def test_a_paused_guest_stays_as_it_is(booted: Booted) -> None:
    done = booted.steps_after(100)
    before = [host.words.copy() for host in booted.vm.memory.hosts]
    booted.vm.rehearse()
    assert not booted.vm.running
    assert booted.vm.self_check().steps == done
    assert all((old == host.words).all() for old, host in zip(before, booted.vm.memory.hosts, strict=True))


def test_a_blank_machine_is_blank_afterwards_and_takes_a_guest(booted: Booted) -> None:
    done = booted.steps_after(100)
    twin = booted.blank()
    twin.rehearse()
    for mine, theirs in zip(booted.vm.memory.hosts, twin.memory.hosts, strict=True):
        assert not theirs.words.any()
        theirs.words[:] = mine.words
    twin.load_state(booted.vm.save_state())
    twin.rehearse()
    assert twin.self_check().steps == done
    assert booted.steps_after(done, twin) > done
    assert twin.self_check().ok

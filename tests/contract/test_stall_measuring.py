"""`precopy.ports.StallMeasuring`: a guest that measures the gaps in its own progress."""

from __future__ import annotations

import time
from typing import Any

import pytest

from precopy.errors import Unsupported
from precopy.machines.workload import Workload
from precopy.ports import StallMeasuring
from precopy.ports.stall import GAP_S
from support.machines import Booted, with_role

KINDS = with_role(StallMeasuring)
PAUSE_S = 0.05


def paused_for(booted: Booted, seconds: float) -> float:
    """Pauses a running guest for at least so long, and until it has since made steps; returns for how long at most."""
    booted.vm.pause()
    began, steps = time.perf_counter(), booted.vm.self_check().steps
    time.sleep(seconds)
    booted.steps_after(steps)
    booted.vm.resume()
    return time.perf_counter() - began


@pytest.mark.parametrize("rate", [None, 20_000])
def test_a_pause_is_a_gap_by_the_guests_own_clock(booted: Booted, rate: int | None) -> None:
    booted.vm.boot(Workload("sequential", rate=rate))
    booted.steps_after(100)
    booted.vm.resume()
    meter = booted.vm.stall_meter()
    most_s = paused_for(booted, PAUSE_S)
    stall = meter.take(most_s)
    # What a paced guest waited for its next burst is no gap: some milliseconds of the pause at most.
    assert stall.longest_s >= PAUSE_S * (0.99 if rate is None else 0.8)
    assert GAP_S <= stall.longest_s <= stall.stalled_s
    assert stall.gaps >= 1
    assert meter.take(0.0).longest_s <= stall.longest_s + most_s


def test_what_came_before_it_is_asked_is_in_the_window_before(booted: Booted) -> None:
    booted.steps_after(100)
    booted.vm.resume()
    most_s = paused_for(booted, PAUSE_S)
    booted.vm.pause()
    meter = booted.vm.stall_meter()
    before = meter.before(most_s + 60.0)
    assert 0.99 * PAUSE_S <= before.longest_s <= before.stalled_s <= before.window_s * 1.001
    assert meter.take(0.0).gaps == 0


def test_nothing_of_the_memory_changes_by_reading(booted: Booted) -> None:
    booted.steps_after(100)
    check, content = booted.vm.self_check(), [host.words.copy() for host in booted.vm.memory.hosts]
    meter = booted.vm.stall_meter()
    meter.poll()
    meter.take(1.0)
    assert booted.vm.self_check() == check
    assert all((was == host.words).all() for was, host in zip(content, booted.vm.memory.hosts, strict=True))


def test_an_idle_guest_says_why_it_is_not_measured(vm: Any) -> None:
    vm.boot(Workload("idle"))
    with pytest.raises(Unsupported, match="makes no progress"):
        vm.stall_meter()


def test_a_blank_machine_says_why_it_is_not_measured(booted: Booted) -> None:
    with pytest.raises(Unsupported, match="does not measure its gaps"):
        booted.blank().stall_meter()


def test_a_guest_that_arrives_goes_on_measuring_by_the_same_clock(booted: Booted) -> None:
    """Its clock's value is part of its state, and its gaps are part of its memory."""
    booted.steps_after(100)
    source, destination = booted.vm, booted.blank()
    for here, there in zip(source.memory.hosts, destination.memory.hosts, strict=True):
        there.words[:] = here.words
    destination.load_state(source.save_state())
    steps = source.self_check().steps
    began, meter = time.perf_counter(), destination.stall_meter()
    time.sleep(PAUSE_S)
    booted.steps_after(steps, destination)
    stall = meter.take(time.perf_counter() - began)
    assert 0.99 * PAUSE_S <= stall.longest_s <= 10 * (time.perf_counter() - began) + 60

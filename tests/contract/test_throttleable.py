"""`precopy.ports.Throttleable`: a machine that can be slowed down."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from precopy.errors import GuestError, UsageError
from precopy.machines.workload import Workload
from precopy.ports import SelfChecking, Throttleable, Throttled
from support.machines import GUESTS, Booted, with_role
from support.patience import IN_TIME_S
from support.sleeper import Sleeper

KINDS = with_role(Throttleable, SelfChecking)
on_vcpus = pytest.mark.parametrize("booted", [kind.param for kind in GUESTS], indirect=True)

MODES = [0.0, 0.2, 0.99, 0.5, 0.8]


def until_taken(booted: Booted, more_than_s: float) -> Throttled:
    """Waits until more than so many seconds were taken from each vCPU; returns all that was taken."""
    end = time.monotonic() + IN_TIME_S
    while min((throttled := booted.vm.throttled()).throttled_s) <= more_than_s:
        assert time.monotonic() < end, "nothing is taken"
        booted.live(0.005)
    return throttled


def throttling() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "throttle"]


@pytest.mark.parametrize("share", [-0.01, 0.991, 1.0, float("nan"), float("inf")])
def test_a_share_that_cannot_be_taken_is_refused(booted: Booted, share: float) -> None:
    guest = booted.vm
    with pytest.raises(UsageError, match="the share that is taken of a vCPU's time"):
        guest.throttle(share)
    assert booted.steps_after(0) > 0
    assert guest.throttled().throttled_s == (0.0,)


def test_what_was_never_throttled_has_lost_nothing(booted: Booted) -> None:
    guest = booted.vm
    booted.steps_after(0)
    assert guest.throttled() == Throttled((0.0,), 0.0)
    assert guest.throttled().share == 0


@pytest.mark.alone
def test_a_throttle_takes_its_share_until_it_is_ended(booted: Booted) -> None:
    guest = booted.vm
    guest.resume()
    with Sleeper(0.005) as sleeper:  # half a slice of the throttle, whose threads may be as late
        guest.throttle(0.5)
        taken = until_taken(booted, 0.2)
    assert 0.3 * sleeper.punctuality < taken.share < 1 - 0.3 * sleeper.punctuality
    booted.live(0.005)
    guest.throttle(0)
    assert not throttling()
    ended = guest.throttled()
    assert ended.active_s > taken.active_s
    booted.live(0.05)
    assert guest.throttled() == ended
    guest.pause()
    assert guest.self_check().ok
    assert guest.throttled() == ended


def test_a_throttled_guest_gets_on(booted: Booted) -> None:
    guest = booted.vm
    guest.throttle(0.99)
    done = booted.steps_after(0)
    assert booted.steps_after(done) > done
    assert guest.self_check().ok


def test_a_paused_guest_is_throttled_once_it_runs(booted: Booted) -> None:
    guest = booted.vm
    guest.throttle(0.8)
    booted.live(0.05)
    assert guest.throttled() == Throttled((0.0,), 0.0)
    assert guest.self_check().steps == 0
    guest.resume()
    until_taken(booted, 0.05)
    guest.pause()
    paused = guest.throttled()
    booted.live(0.05)
    assert guest.throttled() == paused
    guest.resume()
    until_taken(booted, paused.throttled_s[0])


@pytest.mark.parametrize("pattern", ["sequential", "idle"])
@pytest.mark.parametrize("rate", [None, 100])
@on_vcpus
def test_a_pause_does_not_wait_for_a_rest(booted: Booted, pattern: str, rate: int | None) -> None:
    """A pause that did would raise `GuestError` after seconds."""
    guest = booted.blank()
    guest.boot(Workload(pattern, rate))
    (gate,) = guest._throttle._gates
    for _ in range(3):
        guest.resume()
        time.sleep(0.02)
        gate.sleep_for(3600, partial(guest._interrupt, 0))
        time.sleep(0.02)
        assert gate.sleeping
        guest.pause()
        assert not gate.sleeping
        assert guest.self_check().ok
    assert guest.throttled().throttled_s[0] > 0


def test_two_hundred_changes_of_mind_end_with_a_guest_that_runs(booted: Booted) -> None:
    guest = booted.vm
    for turn in range(200):
        guest.throttle(MODES[turn % len(MODES)])
        guest.resume()
        booted.live(0.0005 * (turn % 7))
        if turn % 3:
            guest.throttle(MODES[turn % 4])
        guest.pause()
        assert len(throttling()) <= 1
        if turn % 20 == 0:
            assert guest.self_check().ok
    done = guest.self_check().steps
    guest.throttle(0)
    assert booted.steps_after(done) > done
    assert guest.self_check().ok


def test_throttle_changes_while_another_thread_pauses_and_resumes(booted: Booted) -> None:
    guest = booted.vm
    stop = threading.Event()

    def change_minds() -> None:
        while not stop.is_set():
            for share in MODES:
                guest.throttle(share)
                stop.wait(0.003)

    thread = threading.Thread(target=change_minds)
    thread.start()
    try:
        for turn in range(200):
            guest.resume()
            booted.live(0.0005 * (turn % 5))
            guest.pause()
    finally:
        stop.set()
        thread.join()
    guest.throttle(0)
    done = guest.self_check().steps
    assert booted.steps_after(done) > done
    assert guest.self_check().ok


@on_vcpus
def test_closing_a_throttled_guest_ends_its_throttle(booted: Booted) -> None:
    guest = booted.vm
    guest.throttle(0.99)
    guest.resume()
    guest.close()
    assert not throttling()
    guest.throttle(0)
    with pytest.raises(GuestError, match="closed"):
        guest.throttle(0.5)
    assert not throttling()

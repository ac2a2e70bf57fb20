"""What every guest promises in each of its roles (`precopy.ports.vm`), held for each kind of guest that there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from precopy.errors import GuestError, Unsupported, UsageError
from precopy.machines.emulated import EmulatedGuest
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import flat
from precopy.ports import DeviceStates, DirtyLog, SelfChecking, Throttleable, Throttled, TrackerChoosing
from support.patience import IN_TIME_S
from support.sleeper import Sleeper

Guest = KvmGuest | EmulatedGuest
RAM = 8 << 20
KINDS = [
    pytest.param(KvmGuest, marks=pytest.mark.needs("kvm"), id="kvm"),
    pytest.param(EmulatedGuest, marks=pytest.mark.needs("unicorn"), id="emulated"),
]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[[], Guest]]:
    guests: list[Guest] = []

    def guest() -> Guest:
        guests.append(request.param(GuestMemory(flat(RAM))))
        return guests[-1]

    yield guest
    for one in guests:
        one.close()


@pytest.fixture
def guest(make: Callable[[], Guest]) -> Guest:
    guest = make()
    guest.boot(Workload("sequential", rate=None))
    return guest


def steps_after(guest: Guest, more_than: int) -> int:
    """Runs the guest until it has made more steps than that; returns how many, with the guest paused."""
    end = time.monotonic() + IN_TIME_S
    while time.monotonic() < end:
        guest.resume()
        time.sleep(0.01)
        guest.pause()
        if (steps := guest.self_check().steps) > more_than:
            return steps
    raise AssertionError("the guest makes no steps")


@pytest.mark.parametrize("role", [TrackerChoosing, Throttleable, DeviceStates, SelfChecking])
def test_has_every_optional_role(guest: Guest, role: type) -> None:
    assert isinstance(guest, role)


def test_is_made_paused_and_makes_no_step(guest: Guest) -> None:
    assert not guest.running
    time.sleep(0.05)
    assert guest.self_check().steps == 0


def test_runs_only_between_resume_and_pause(guest: Guest) -> None:
    done = steps_after(guest, 0)
    time.sleep(0.05)
    assert guest.self_check().steps == done
    assert steps_after(guest, done) > done


def test_pausing_and_resuming_twice_is_like_once(guest: Guest) -> None:
    guest.resume()
    guest.resume()
    assert guest.running
    assert guest.pause() >= 0
    assert guest.pause() >= 0
    assert not guest.running
    assert guest.self_check().ok


def test_a_hundred_pauses_keep_the_invariant(guest: Guest) -> None:
    for _ in range(100):
        guest.resume()
        guest.pause()
        assert guest.self_check().ok


@pytest.mark.parametrize("action", ["save_state", "self_check"])
def test_a_running_guest_shows_nothing(guest: Guest, action: str) -> None:
    guest.resume()
    with pytest.raises(GuestError, match="that runs"):
        getattr(guest, action)()
    with pytest.raises(GuestError, match="that runs"):
        guest.load_state(b"")


def test_state_and_memory_make_the_same_guest(guest: Guest, make: Callable[[], Guest]) -> None:
    done = steps_after(guest, 100)
    twin = make()
    for mine, theirs in zip(guest.memory.hosts, twin.memory.hosts, strict=True):
        theirs.words[:] = mine.words
    twin.load_state(guest.save_state())
    assert twin.self_check().steps == done
    assert steps_after(twin, done) > done
    assert twin.self_check().ok
    assert guest.self_check().steps == done


@pytest.mark.parametrize("state", [b"", b"\xc1", b"\x80", b"\x91\x80", b"\x81\xa1\xff\x00", b"\x00" * 100])
def test_a_state_that_is_none_is_refused(guest: Guest, state: bytes) -> None:
    with pytest.raises(GuestError):
        guest.load_state(state)
    assert steps_after(guest, 0) > 0


def test_names_itself_and_its_tracker(guest: Guest) -> None:
    assert guest.kind in guest.machine
    assert all(isinstance(log, DirtyLog) for log in guest.dirty.logs)


def test_closing_twice_is_like_once(guest: Guest) -> None:
    guest.resume()
    guest.close()
    guest.close()
    assert not guest.running


# Throttling.

MODES = [0.0, 0.2, 0.99, 0.5, 0.8]


def until_taken(guest: Guest, more_than_s: float) -> Throttled:
    """Waits until more than so many seconds were taken from each vCPU; returns all that was taken."""
    end = time.monotonic() + IN_TIME_S
    while min((throttled := guest.throttled()).throttled_s) <= more_than_s:
        assert time.monotonic() < end, "nothing is taken"
        time.sleep(0.005)
    return throttled


def throttling() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "throttle"]


@pytest.mark.parametrize("share", [-0.01, 0.991, 1.0, float("nan"), float("inf")])
def test_a_share_that_cannot_be_taken_is_refused(guest: Guest, share: float) -> None:
    with pytest.raises(UsageError, match="the share that is taken of a vCPU's time"):
        guest.throttle(share)
    assert steps_after(guest, 0) > 0
    assert guest.throttled().throttled_s == (0.0,)


def test_what_was_never_throttled_has_lost_nothing(guest: Guest) -> None:
    steps_after(guest, 0)
    assert guest.throttled() == Throttled((0.0,), 0.0)
    assert guest.throttled().share == 0


@pytest.mark.alone
def test_a_throttle_takes_its_share_until_it_is_ended(guest: Guest) -> None:
    guest.resume()
    with Sleeper(0.005) as sleeper:  # half a slice of the throttle, whose threads may be as late
        guest.throttle(0.5)
        taken = until_taken(guest, 0.2)
    assert 0.3 * sleeper.punctuality < taken.share < 1 - 0.3 * sleeper.punctuality
    guest.throttle(0)
    assert not throttling()
    ended = guest.throttled()
    assert ended.active_s > taken.active_s
    time.sleep(0.05)
    assert guest.throttled() == ended
    guest.pause()
    assert guest.self_check().ok
    assert guest.throttled() == ended


def test_a_throttled_guest_gets_on(guest: Guest) -> None:
    guest.throttle(0.99)
    done = steps_after(guest, 0)
    assert steps_after(guest, done) > done
    assert guest.self_check().ok


def test_a_paused_guest_is_throttled_once_it_runs(guest: Guest) -> None:
    guest.throttle(0.8)
    time.sleep(0.05)
    assert guest.throttled() == Throttled((0.0,), 0.0)
    assert guest.self_check().steps == 0
    guest.resume()
    until_taken(guest, 0.05)
    guest.pause()
    paused = guest.throttled()
    time.sleep(0.05)
    assert guest.throttled() == paused
    guest.resume()
    until_taken(guest, paused.throttled_s[0])


@pytest.mark.parametrize("pattern", ["sequential", "idle"])
@pytest.mark.parametrize("rate", [None, 100])
def test_a_pause_does_not_wait_for_a_rest(make: Callable[[], Guest], pattern: str, rate: int | None) -> None:
    """A pause that did would raise `GuestError` after seconds."""
    guest = make()
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


def test_two_hundred_changes_of_mind_end_with_a_guest_that_runs(guest: Guest) -> None:
    for turn in range(200):
        guest.throttle(MODES[turn % len(MODES)])
        guest.resume()
        time.sleep(0.0005 * (turn % 7))
        if turn % 3:
            guest.throttle(MODES[turn % 4])
        guest.pause()
        assert len(throttling()) <= 1
        if turn % 20 == 0:
            assert guest.self_check().ok
    done = guest.self_check().steps
    guest.throttle(0)
    assert steps_after(guest, done) > done
    assert guest.self_check().ok


def test_throttle_changes_while_another_thread_pauses_and_resumes(guest: Guest) -> None:
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
            time.sleep(0.0005 * (turn % 5))
            guest.pause()
    finally:
        stop.set()
        thread.join()
    guest.throttle(0)
    done = guest.self_check().steps
    assert steps_after(guest, done) > done
    assert guest.self_check().ok


def test_where_there_can_be_no_dirty_limit_ending_one_says_so_and_changes_nothing(guest: Guest) -> None:
    guest.resume()
    guest.throttle(0.5)
    with pytest.raises(Unsupported):
        guest.limit_dirtying(None)
    before = guest.throttled().throttled_s[0]
    until_taken(guest, before)


def test_closing_a_throttled_guest_ends_its_throttle(guest: Guest) -> None:
    guest.throttle(0.99)
    guest.resume()
    guest.close()
    assert not throttling()
    guest.throttle(0)
    with pytest.raises(GuestError, match="closed"):
        guest.throttle(0.5)
    assert not throttling()

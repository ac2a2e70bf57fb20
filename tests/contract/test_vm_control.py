"""What every guest promises (`precopy.ports.VmControl`), held for each kind of guest that there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from precopy.emulated import EmulatedGuest
from precopy.errors import GuestError
from precopy.guests import Workload
from precopy.kvm import KvmGuest
from precopy.memory import GuestMemory
from precopy.memory.machines import flat
from precopy.ports import DirtyLog

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
    for _ in range(200):
        guest.resume()
        time.sleep(0.01)
        guest.pause()
        if (steps := guest.check().steps) > more_than:
            return steps
    raise AssertionError("the guest makes no steps")


def test_is_made_paused_and_makes_no_step(guest: Guest) -> None:
    assert not guest.running
    time.sleep(0.05)
    assert guest.check().steps == 0


def test_runs_only_between_resume_and_pause(guest: Guest) -> None:
    done = steps_after(guest, 0)
    time.sleep(0.05)
    assert guest.check().steps == done
    assert steps_after(guest, done) > done


def test_pausing_and_resuming_twice_is_like_once(guest: Guest) -> None:
    guest.resume()
    guest.resume()
    assert guest.running
    assert guest.pause() >= 0
    assert guest.pause() >= 0
    assert not guest.running
    assert guest.check().ok


def test_a_hundred_pauses_keep_the_invariant(guest: Guest) -> None:
    for _ in range(100):
        guest.resume()
        guest.pause()
        assert guest.check().ok


@pytest.mark.parametrize("action", ["save_state", "check"])
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
    assert twin.check().steps == done
    assert steps_after(twin, done) > done
    assert twin.check().ok
    assert guest.check().steps == done


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

"""KVM guests from which time is taken: how fast they write, what they lose, and that they lose no write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from precopy.dirty import MigrationBitmap, clear_policy
from precopy.errors import GuestError, Unsupported
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import machine_layout
from precopy.ports import Throttled
from precopy.units import PAGE_SIZE
from support.live_guests import MIB, Pair, migrate, runs_on, stands_still, steps, stream_pair, until
from support.sleeper import Sleeper

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.alone, pytest.mark.usefixtures("nothing_left")]

MEASURED_S = 0.5
PACE = 20_000
PACED = Workload("sequential", rate=PACE)
"""80 MB a second, each page a new one for as long as memory lasts."""
CATCH_UP_S = 0.06
"""A guest may make up for so much of what a slow host cost it, a burst included."""
TRIES = 4
"""On a busy machine threads come late now and then, but not each time."""


@dataclass(frozen=True)
class Work:
    """What a guest did in a while: ``steps``, the seconds of CPU time ``cpu_s`` of all its vCPUs, what was ``lost``.
    ``punctuality`` is that of a thread that slept for half a slice of a throttle all the while."""

    steps: int
    seconds: float
    cpu_s: float
    lost: Throttled
    punctuality: float

    @classmethod
    def of(cls, guest: KvmGuest) -> Work:
        before, began, cpu, lost = steps(guest), time.perf_counter(), vcpus_s(guest), guest.throttled()
        with Sleeper(0.005) as sleeper:
            time.sleep(MEASURED_S)
        done, spent, lost = steps(guest) - before, vcpus_s(guest) - cpu, guest.throttled() - lost
        return cls(done, time.perf_counter() - began, spent, lost, sleeper.punctuality)

    @property
    def steps_per_s(self) -> float:
        return self.steps / self.seconds

    @property
    def left_s(self) -> float:
        """Seconds that were not taken, of all vCPUs."""
        return len(self.lost.throttled_s) * self.lost.active_s - sum(self.lost.throttled_s)


def vcpus_s(guest: KvmGuest) -> float:
    """CPU time that the threads of the guest's vCPUs have had."""
    stats = [Path(f"/proc/self/task/{vcpu._thread.native_id}/schedstat").read_text() for vcpu in guest._vcpus]
    return sum(int(one.split()[0]) for one in stats) / 1e9


class TestDutyCycle:
    @pytest.mark.parametrize("vcpus", [1, 2])
    def test_a_guest_writes_less_by_the_share_that_is_taken(self, vcpus: int) -> None:
        with Pair(PACED, ram=16 * MIB, vcpus=vcpus) as pair:
            guest = pair.source
            freely = Work.of(guest).steps_per_s
            for share in (0.5, 0.8):
                guest.throttle(share)
                tries = [Work.of(guest)]
                while not self.takes(share, tries[-1]) and len(tries) < TRIES:
                    tries.append(Work.of(guest))
                assert self.takes(share, tries[-1])
                for slowly in tries:  # what is left is all that it works in, and there it keeps its pace
                    assert len(slowly.lost.throttled_s) == vcpus
                    assert slowly.steps < PACE * (1.2 * slowly.left_s / vcpus + CATCH_UP_S)
                assert tries[-1].steps_per_s > 0.5 * (1 - share) * freely
            guest.throttle(0)
            assert any(Work.of(guest).steps_per_s > 0.5 * freely for _ in range(TRIES))
            runs_on(guest)

    @staticmethod
    def takes(share: float, work: Work) -> bool:
        """Whether ``share`` was taken of all vCPUs together, and of each; less where threads wake late."""
        lost, least = work.lost, share * work.punctuality
        each = [throttled_s / lost.active_s for throttled_s in lost.throttled_s]
        return 0.75 * least < lost.share < 1.15 * share and 0.6 * least < min(each) <= max(each) < 1.2 * share

    @pytest.mark.parametrize("vcpus", [1, 2])
    def test_a_guest_that_writes_as_fast_as_it_can_writes_less(self, vcpus: int) -> None:
        """How much less depends on what else the host has to do: a vCPU that rests gets more of a busy CPU after. But
        it has no more CPU time than what is left."""
        with Pair(Workload("random", None), ram=16 * MIB, vcpus=vcpus) as pair:
            guest = pair.source
            guest.throttle(0.95)
            until(lambda: guest.throttled().share > 0.5)
            slowly = Work.of(guest)
            assert slowly.steps > 0
            assert slowly.cpu_s < 1.2 * slowly.left_s + 0.01
            assert 0.75 * slowly.punctuality < slowly.lost.share < 1
            runs_on(guest)

    def test_throttle_stays_with_a_guest_that_gets_another_tracker(self) -> None:
        with Pair(PACED, ram=16 * MIB, vcpus=2) as pair:
            guest = pair.source
            guest.throttle(0.5)
            until(lambda: min(guest.throttled().throttled_s) > 0.05)
            for tracker in ("dirty-ring", "dirty-log"):
                guest.use_tracker(tracker)
                before = guest.throttled()
                until(lambda: min((guest.throttled() - before).throttled_s) > 0.05)  # noqa: B023 - called at once
                runs_on(guest)

    def test_paused_guest_keeps_its_state_and_its_throttle(self) -> None:
        with Pair(PACED) as pair:
            guest = pair.source
            guest.throttle(0.8)
            until(lambda: guest.throttled().throttled_s[0] > 0.02)
            guest.pause()
            state, lost = guest.save_state(), guest.throttled()
            guest.load_state(state)
            assert guest.throttled() == lost
            runs = steps(guest)
            guest.resume()
            until(lambda: steps(guest) > runs and guest.throttled().throttled_s[0] > lost.throttled_s[0])


@pytest.fixture(params=[1, 2])
def ring_guest(request: pytest.FixtureRequest) -> Iterator[KvmGuest]:
    """A guest of 1 and of 2 vCPUs that runs, with a dirty ring and its log started."""
    with KvmGuest(GuestMemory(machine_layout("flat", 128 * MIB)), request.param, "dirty-ring") as guest:
        guest.boot(PACED)
        guest.dirty.start()
        guest.resume()
        yield guest


class Copy:
    """Rounds of a migration without a wire, ten a second, that count the pages that were found dirty."""

    def __init__(self, guest: KvmGuest) -> None:
        self.guest = guest
        self._words = np.zeros_like(guest.memory.hosts[0].words)
        self._bitmap = MigrationBitmap(guest.dirty, clear_policy("merged", guest.memory.layout, 6))
        self._bitmap.mark_all()
        self._round()

    def bytes_per_s(self) -> float:
        found, began = 0, time.perf_counter()
        for _ in range(6):
            time.sleep(0.1)
            found += self._round()
        return found * PAGE_SIZE / (time.perf_counter() - began)

    def is_whole(self) -> bool:
        """Whether it has every page of the guest, which is paused for that, after a last round."""
        self.guest.pause()
        self._round()
        return bool(np.array_equal(self._words, self.guest.memory.hosts[0].words)) and self.guest.self_check().ok

    def _round(self) -> int:
        found = self._bitmap.sync().dirty_pages
        for start, count in self._bitmap.windows(1024):
            for first, length in self._bitmap.take(start, count):
                part = slice(first * PAGE_SIZE // 8, (first + length) * PAGE_SIZE // 8)
                self._words[part] = self.guest.memory.hosts[0].words[part]
        return found


class TestDirtyLimit:
    def test_a_guest_that_dirties_more_dirties_about_what_it_may(self, ring_guest: KvmGuest) -> None:
        guest, vcpus = ring_guest, len(ring_guest.throttled().throttled_s)
        copy = Copy(guest)
        freely = copy.bytes_per_s()
        limit = freely / 4
        guest.limit_dirtying(limit / vcpus)
        slowly = copy.bytes_per_s()
        lost = guest.throttled()
        assert limit / 2 < slowly < limit * 2
        assert min(lost.throttled_s) > 0.4 * lost.active_s
        guest.limit_dirtying(None)
        lost = guest.throttled()
        assert copy.bytes_per_s() > 0
        assert guest.throttled() == lost
        assert copy.is_whole()

    def test_a_guest_that_dirties_less_loses_next_to_nothing(self, ring_guest: KvmGuest) -> None:
        copy = Copy(ring_guest)
        freely = copy.bytes_per_s()
        ring_guest.limit_dirtying(2 * freely)
        assert any(copy.bytes_per_s() > freely / 2 for _ in range(TRIES))
        lost = ring_guest.throttled()
        assert lost.active_s > 0.5
        assert lost.share < 0.1

    def test_a_guest_that_writes_as_fast_as_it_can_is_held_as_well(self) -> None:
        memory = GuestMemory(machine_layout("flat", 32 * MIB))
        with KvmGuest(memory, 2, "dirty-ring", ring_entries=1024) as guest:
            guest.boot(Workload("random", rate=None))
            guest.dirty.start()
            guest.resume()
            copy = Copy(guest)
            freely = copy.bytes_per_s()
            guest.limit_dirtying(freely / 8)  # of each
            assert copy.bytes_per_s() < freely * 0.6
            assert copy.is_whole()

    def test_takes_nothing_where_nothing_is_logged(self, ring_guest: KvmGuest) -> None:
        ring_guest.dirty.stop()
        ring_guest.limit_dirtying(PAGE_SIZE)
        until(lambda: ring_guest.throttled().active_s > 0.1)
        assert sum(ring_guest.throttled().throttled_s) == 0
        runs_on(ring_guest)

    def test_takes_the_place_of_a_duty_cycle_and_the_other_way_round(self, ring_guest: KvmGuest) -> None:
        ring_guest.throttle(0.8)
        until(lambda: min(ring_guest.throttled().throttled_s) > 0.02)
        ring_guest.limit_dirtying(1e12)
        before = ring_guest.throttled()
        time.sleep(0.1)
        assert (ring_guest.throttled() - before).share < 0.1
        ring_guest.throttle(0.8)
        until(lambda: min((ring_guest.throttled() - before).throttled_s) > 0.05)

    def test_holds_the_tracker_fast(self, ring_guest: KvmGuest) -> None:
        ring_guest.dirty.stop()
        ring_guest.limit_dirtying(1e6)
        with pytest.raises(GuestError, match="while a dirty limit is in force"):
            ring_guest.use_tracker("dirty-log")
        ring_guest.throttle(0)
        ring_guest.use_tracker("dirty-log")
        with pytest.raises(Unsupported, match="use --tracker dirty-ring"):
            ring_guest.limit_dirtying(1e6)


class TestMigration:
    @pytest.mark.parametrize("vcpus", [1, 2])
    def test_a_throttled_guest_arrives_whole_and_is_not_throttled_there(self, vcpus: int) -> None:
        with Pair(Workload("random", None), ram=32 * MIB, vcpus=vcpus) as pair, stream_pair() as streams:
            pair.source.throttle(0.8)
            until(lambda: min(pair.source.throttled().throttled_s) > 0.02)
            migrate(pair.source, pair.destination, streams).migrated()
            assert pair.destination.watch().unequal == []
            stands_still(pair.source)
            runs_on(pair.destination)
            assert pair.destination.throttled() == Throttled((0.0,) * vcpus, 0.0)

    def test_a_guest_with_a_dirty_limit_arrives_whole(self) -> None:
        with Pair(Workload("random", None), ram=32 * MIB, vcpus=2) as pair, stream_pair() as streams:
            pair.source.use_tracker("dirty-ring")
            pair.source.limit_dirtying(20e6)
            migrate(pair.source, pair.destination, streams).migrated()
            assert pair.destination.watch().unequal == []
            stands_still(pair.source)
            runs_on(pair.destination)

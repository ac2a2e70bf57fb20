"""The KVM dirty ring under guests that write faster than anybody collects: rings that fill up, and that overflow.

An overflow needs a vCPU that writes on after its ring is nearly full. A guest at CPL 0 does that where KVM is
virtualised itself and has its emulator run such a guest, which runs a batch of instructions before anybody looks at the
ring. Where this machine's KVM does not do so, the tests that need an overflow are skipped; tests/unit/test_ring.py has
all of it with a kernel that is simulated.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.dirty import MigrationBitmap, clear_policy
from precopy.errors import GuestError, UsageError
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload, params, params_gpa
from precopy.machines.workload.image import words_at
from precopy.memory import DirtyClient, GuestMemory
from precopy.memory.captures.machines import machine_layout
from precopy.names import CLEAR_POLICIES
from precopy.trackers.kvm_ring import KvmDirtyRing
from precopy.trackers.ring import State
from precopy.units import PAGE_SIZE
from support.live_guests import (
    ARRIVES,
    MIB,
    Pair,
    WatchedKvmGuest,
    migrate,
    runs_on,
    stands_still,
    steps,
    stream_pair,
    until,
)
from support.patience import IN_TIME_S

pytestmark = [
    pytest.mark.needs("kvm"),
    pytest.mark.usefixtures("nothing_left_of_it"),
]

FAST = Workload("sequential", rate=None)
VGA = DirtyClient.VGA


@pytest.fixture
def nothing_left_of_it(nothing_left: None) -> Iterator[None]:
    """As ``nothing_left``, once the garbage is collected: see `test_a_closed_guest_leaves_no_descriptor`."""
    yield
    gc.collect()


def to_cpl_0(guest: KvmGuest) -> None:
    """Has a booted guest run at CPL 0, which its programs do not notice: selectors without a requested privilege."""
    for vcpu in guest._vcpus:
        sregs = kvm.Sregs()
        call(vcpu.fd, kvm.GET_SREGS, sregs, target=vcpu.target)
        sregs.cs.selector, sregs.cs.dpl = 0x8, 0
        for name in ("ds", "es", "fs", "gs", "ss"):
            segment = getattr(sregs, name)
            segment.selector, segment.dpl = 0x10, 0
        call(vcpu.fd, kvm.SET_SREGS, sregs, target=vcpu.target)


def ring_of(guest: KvmGuest) -> KvmDirtyRing:
    ring = guest.vm_memory.ring
    assert ring is not None
    return ring


@contextlib.contextmanager
def ring_guest(
    entries: int, workload: Workload = FAST, *, ram: int = 16 * MIB, vcpus: int = 1, cpl: int = 3
) -> Iterator[KvmGuest]:
    """A booted guest, paused, with rings of ``entries``."""
    memory = GuestMemory(machine_layout("flat", ram))
    with KvmGuest(memory, vcpus, "dirty-ring", ring_entries=entries) as guest:
        guest.boot(workload)
        if cpl == 0:
            to_cpl_0(guest)
        yield guest


class Copy:
    """A migration without a wire: pages are taken and copied while the guest writes them."""

    def __init__(self, guest: KvmGuest, policy: str = "merged") -> None:
        self.guest = guest
        layout = guest.memory.layout
        self.words = [np.zeros_like(host.words) for host in guest.memory.hosts]
        self.bitmap = MigrationBitmap(guest.dirty, clear_policy(policy, layout, 6))
        guest.dirty.start()
        self.bitmap.mark_all()
        self.found = 0

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self.guest.dirty.stop()

    def round(self) -> None:
        self.found += self.bitmap.sync().dirty_pages
        for start, count in self.bitmap.windows(1024):
            for first, length in self.bitmap.take(start, count):
                part = slice(first * PAGE_SIZE // 8, (first + length) * PAGE_SIZE // 8)
                self.words[0][part] = self.guest.memory.hosts[0].words[part]

    def rounds(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.round()
            self.guest.raise_failure()

    def switch_over(self) -> None:
        """The guest is paused, and what is left is copied: now the copy is its memory, byte for byte."""
        self.guest.pause()
        self.round()
        differ = np.flatnonzero(self.words[0] != self.guest.memory.hosts[0].words) * 8 // PAGE_SIZE
        assert not differ.size, f"{np.unique(differ).size} pages were lost, the first of them {differ[0]}"
        assert self.guest.self_check().ok


def more_steps(guest: KvmGuest, count: int) -> None:
    """The guest gets on with its work by ``count`` writes."""
    goal = steps(guest) + count

    def done() -> bool:
        guest.raise_failure()
        return steps(guest) >= goal

    until(done)


class TestRingsThatFillUp:
    @pytest.mark.parametrize("entries", [256, 1024])
    @pytest.mark.parametrize("policy", CLEAR_POLICIES)
    def test_nothing_is_lost(self, entries: int, policy: str) -> None:
        with ring_guest(entries) as guest, Copy(guest, policy) as copy:
            ring = ring_of(guest)
            for _ in range(4):
                guest.resume()
                copy.rounds(0.15)
                before = ring.full_exits
                until(lambda: ring.full_exits > before)  # noqa: B023 - called at once
                copy.switch_over()
            assert ring.overflows == 0

    def test_two_vcpus_fill_two_rings(self) -> None:
        with ring_guest(512, vcpus=2) as guest, Copy(guest) as copy:
            ring = ring_of(guest)
            assert len(ring._rings) == 2
            relieved = count_relieved(ring)
            for _ in range(3):
                guest.resume()
                copy.rounds(0.2)
                until(lambda: all(relieved))
                copy.switch_over()

    def test_a_guest_that_is_paused_and_resumed_all_the_time_loses_nothing(self) -> None:
        """Each pause is a signal to a vCPU's thread, which may just be resetting its ring."""
        with ring_guest(256) as guest, Copy(guest) as copy:
            for turn in range(150):
                guest.resume()
                time.sleep(0.0005 * (turn % 4))
                guest.pause()
                if turn % 3 == 0:
                    copy.round()
            guest.resume()
            until(lambda: ring_of(guest).full_exits > 0)
            copy.switch_over()

    def test_a_thread_that_gets_signals_all_the_time_loses_nothing(self) -> None:
        """A pending signal ends a reset in the middle (Linux 6.17): without a mask most of these are cut short."""
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        try:
            with ring_guest(4096) as guest, Copy(guest) as copy:
                signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
                for _ in range(40):
                    guest.resume()
                    copy.rounds(0.02)
                    copy.switch_over()
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert ring_of(guest).overflows == 0
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def test_a_vcpu_waits_for_nobody_who_made_room_before_it_asked(self) -> None:
        """A thread that harvests and clears all the time takes the entries of a vCPU that has just left for them."""
        with ring_guest(256) as guest:
            ring = ring_of(guest)
            guest.dirty.start()
            guest.resume()
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                guest.dirty.sync()
                guest.dirty.clear(0, guest.memory.layout.end_page)
            more_steps(guest, 10_000)
            guest.pause()
            assert ring.full_exits > 0
            assert guest.self_check().ok

    def test_a_ring_that_is_never_collected_is_relieved_by_its_vcpu(self) -> None:
        with ring_guest(256) as guest:
            guest.dirty.start()
            guest.resume()
            more_steps(guest, 20_000)
            guest.pause()
            assert ring_of(guest).full_exits > 10
            guest.dirty.sync()
            assert guest.self_check().ok


def count_relieved(ring: KvmDirtyRing) -> list[int]:
    """How often each vCPU has been relieved, from now on."""
    counts, relieve = [0] * len(ring._rings), ring.relieve

    def counted(vcpu: int) -> None:
        counts[vcpu] += 1
        relieve(vcpu)

    ring.relieve = counted  # type: ignore[method-assign]
    return counts


OVERFLOWS_S = 30.0
"""Within so many seconds a ring overflows where any does; on an idle machine in a few milliseconds."""
_no_overflow: list[str] = []
"""Why nothing overflows here, once that was found out."""


def overflows_here(guest: KvmGuest) -> None:
    """Waits until a ring of the running guest has overflowed; skips where none does."""
    ring, end = ring_of(guest), time.monotonic() + OVERFLOWS_S
    while not ring.overflows:
        if time.monotonic() > end:
            _no_overflow.append(f"this machine's KVM overflows no ring of a guest at CPL 0 within {OVERFLOWS_S:g} s")
        if _no_overflow:
            pytest.skip(_no_overflow[0])
        time.sleep(0.005)
        guest.raise_failure()


class TestRingsThatOverflow:
    @pytest.mark.parametrize("entries", [256, 1024, 4096])
    def test_nothing_is_lost_and_the_guest_goes_on(self, entries: int) -> None:
        with ring_guest(entries, ram=32 * MIB, cpl=0) as guest, Copy(guest) as copy:
            guest.resume()
            overflows_here(guest)
            for _ in range(3):
                copy.rounds(0.3)
                copy.switch_over()
                guest.resume()
            more_steps(guest, 20 * entries)
            copy.switch_over()

    def test_while_nobody_collects_but_the_vcpu(self) -> None:
        """Many overflows between two harvests, and the guest gets on all the time."""
        with ring_guest(1024, ram=32 * MIB, cpl=0) as guest, Copy(guest) as copy:
            guest.resume()
            overflows_here(guest)
            more_steps(guest, 30_000)
            copy.switch_over()

    def test_with_a_vcpu_each_of_which_overflows_its_own(self) -> None:
        with ring_guest(512, ram=32 * MIB, vcpus=2, cpl=0) as guest, Copy(guest) as copy:
            guest.resume()
            overflows_here(guest)
            copy.rounds(0.5)
            more_steps(guest, 20_000)
            copy.switch_over()

    def test_once_the_guest_slows_down_nothing_more_is_lost(self) -> None:
        """What was lost once is not lost for ever: the ring is in step again, and reports what was written and no
        more."""
        with (
            ring_guest(1024, Workload("sequential", rate=1_000_000), ram=32 * MIB, cpl=0) as guest,
            Copy(guest) as copy,
        ):
            ring, fast = ring_of(guest), Workload("sequential", rate=1_000_000)
            guest.resume()
            overflows_here(guest)
            slow_down(guest, Workload("sequential", rate=4000))
            more_steps(guest, fast.burst(1)[0] + 500)  # a burst is finished as it was begun

            def in_step() -> bool:
                copy.round()
                return ring._rings[0].state is State.IN_STEP

            until(in_step)
            overflows, found = ring.overflows, copy.found
            for _ in range(10):
                more_steps(guest, 100)
                copy.round()
            assert ring.overflows == overflows
            assert 0 < copy.found - found < guest.memory.layout.pages
            copy.switch_over()


def slow_down(guest: KvmGuest, workload: Workload) -> None:
    """The guest's only vCPU takes its pace from ``workload``, once the burst that it is at is finished."""
    page = words_at(guest.memory, params_gpa(0), PAGE_SIZE)
    page[params.BURST // 8], page[params.INTERVAL_NS // 8] = workload.burst(1)


class RingPair(Pair):
    """Guests with small dirty rings; ``cpl`` is where the source's program runs."""

    entries, cpl = 1024, 3

    def another(self, *_: Any, **__: Any) -> Any:
        memory = GuestMemory(self.layout)
        return self._closing.enter_context(RingGuest(self.cpl, memory, self.vcpus, self.entries))


class RingGuest(WatchedKvmGuest):
    def __init__(self, cpl: int, memory: GuestMemory, vcpus: int, entries: int) -> None:
        super().__init__(memory, vcpus, "dirty-ring", ring_entries=entries)
        self._cpl = cpl

    def boot(self, *args: Any, **kwargs: Any) -> None:
        super().boot(*args, **kwargs)
        if self._cpl == 0:
            to_cpl_0(self)


class KernelPair(RingPair):
    cpl = 0


class TestMigration:
    @pytest.mark.parametrize("clear", CLEAR_POLICIES)
    def test_everything_arrives_and_the_guest_goes_on(self, clear: str) -> None:
        with RingPair(FAST, layout="q35", ram=32 * MIB) as pair, stream_pair() as streams:
            until(lambda: steps(pair.source) > 10_000)
            # Half a second and more: in less, a busy machine may not let the guest write at all.
            options = replace(ARRIVES, clear=clear, max_bandwidth=60_000_000)
            done = migrate(pair.source, pair.destination, streams, options).migrated()
            assert done.compared_pages == pair.source.memory.layout.pages
            watch = pair.destination.watch()
            assert (watch.twins, watch.unequal, watch.both) == (1, [], 0)
            assert ring_of(pair.source).full_exits > 0
            stands_still(pair.source)
            runs_on(pair.destination)

    def test_two_vcpus_there_and_back_again(self) -> None:
        with RingPair(Workload("random"), layout="flat", ram=32 * MIB, vcpus=2) as pair:
            for _ in range(2):
                with stream_pair() as streams:
                    migrate(pair.source, pair.destination, streams).migrated()
                assert pair.destination.watch().unequal == []
                stands_still(pair.source)
                runs_on(pair.destination)
                pair.turn_round()

    def test_of_a_guest_whose_rings_overflow(self) -> None:
        with KernelPair(FAST, layout="flat", ram=32 * MIB) as pair, stream_pair() as streams:
            guest = pair.source
            guest.dirty.start()
            overflows_here(guest)
            guest.dirty.stop()
            migrate(guest, pair.destination, streams).migrated()
            assert pair.destination.watch().unequal == []
            stands_still(guest)
            runs_on(pair.destination)


class TestUseTracker:
    def test_a_running_guest_moves_to_the_ring_and_back(self) -> None:
        with Pair(Workload("random"), ram=16 * MIB) as pair:
            guest = pair.source
            for tracker in ("dirty-ring", "dirty-log", "dirty-ring"):
                before, logs = steps(guest), guest.dirty.logs
                paused_s = guest.use_tracker(tracker)
                assert 0 < paused_s < IN_TIME_S
                assert guest.tracker == tracker
                assert guest.dirty.logs != logs
                assert steps(guest) >= before
                runs_on(guest)
            with stream_pair() as streams:
                migrate(guest, pair.destination, streams).migrated()
            assert pair.destination.watch().unequal == []
            runs_on(pair.destination)

    def test_writes_are_found_by_the_tracker_that_there_is_now(self) -> None:
        with ring_guest(1024) as guest:
            for tracker in ("dirty-log", "dirty-ring"):
                guest.use_tracker(tracker)
                with Copy(guest) as copy:
                    guest.resume()
                    copy.rounds(0.2)
                    copy.switch_over()

    def test_a_guest_at_cpl_0_stays_there(self) -> None:
        with ring_guest(1024, cpl=0) as guest:
            guest.resume()
            guest.use_tracker("dirty-log")
            guest.use_tracker("dirty-ring")
            more_steps(guest, 1000)
            guest.pause()
            sregs = kvm.Sregs()
            call(guest._vcpus[0].fd, kvm.GET_SREGS, sregs, target="vCPU 0")
            assert (sregs.cs.dpl, sregs.ss.dpl) == (0, 0)
            assert guest.self_check().ok

    def test_a_paused_guest_stays_paused(self) -> None:
        with ring_guest(1024) as guest:
            assert guest.use_tracker("dirty-log") == 0
            assert not guest.running
            guest.resume()
            more_steps(guest, 100)
            guest.pause()
            assert guest.self_check().ok

    def test_nothing_happens_where_it_has_that_tracker(self) -> None:
        with ring_guest(1024) as guest:
            dirty = guest.dirty
            assert guest.use_tracker("dirty-ring") == 0
            assert guest.dirty is dirty

    def test_it_is_refused_while_a_migration_logs(self) -> None:
        with ring_guest(1024) as guest:
            guest.dirty.start()
            with pytest.raises(GuestError, match="cannot be changed while dirty memory is logged"):
                guest.use_tracker("dirty-log")
            assert guest.tracker == "dirty-ring"
            guest.dirty.stop()
            guest.use_tracker("dirty-log")

    def test_it_is_refused_while_a_display_logs(self) -> None:
        with ring_guest(1024) as guest:
            (block,) = guest.memory.layout.blocks
            guest.dirty.start_display(block)
            with pytest.raises(GuestError, match="cannot be changed while dirty memory is logged"):
                guest.use_tracker("dirty-log")
            guest.dirty.stop_display(block)
            guest.use_tracker("dirty-log")

    def test_a_tracker_that_there_is_not_leaves_the_guest_as_it_was(self) -> None:
        with ring_guest(1024) as guest:
            guest.resume()
            with pytest.raises(UsageError, match="no tracker is called 'pml'; there are dirty-log, dirty-ring"):
                guest.use_tracker("pml")
            assert guest.tracker == "dirty-ring"
            runs_on(guest)


def test_a_closed_guest_leaves_no_descriptor() -> None:
    """A descriptor of a vCPU keeps its whole VM in the kernel, and each change of the tracker leaves a VM behind."""
    gc.collect()
    gc.disable()
    try:
        left = left_by_a_guest()
    finally:
        gc.enable()
        gc.collect()
    assert left == set()


def left_by_a_guest() -> set[str]:
    """Descriptors that are open when a guest has come and gone, and were not before."""
    before = set(os.listdir("/proc/self/fd"))
    with ring_guest(1024) as guest:
        guest.resume()
        more_steps(guest, 100)
    return set(os.listdir("/proc/self/fd")) - before


def test_a_display_of_a_ring_guest_misses_nothing_when_a_migration_ends() -> None:
    """The display's client goes on logging, and what was written just before the end is still in the ring."""
    with ring_guest(4096, Workload("random", rate=20_000), ram=8 * MIB) as guest:
        (block,) = guest.memory.layout.blocks
        host = guest.memory.hosts[0].words
        guest.dirty.start_display(block)
        screen = np.zeros_like(host)

        def draw() -> None:
            for page in guest.dirty.snapshot_and_clear(VGA, block).pages.indexes().tolist():
                part = slice(page * PAGE_SIZE // 8, (page + 1) * PAGE_SIZE // 8)
                screen[part] = host[part]

        for _ in range(30):
            guest.dirty.start()
            guest.resume()
            time.sleep(0.005)
            draw()
            time.sleep(0.002)
            guest.dirty.stop()
            time.sleep(0.002)
            guest.pause()
            draw()
            assert different_pages(screen, host) == []
        guest.dirty.stop_display(block)


def different_pages(one: Any, other: Any) -> list[int]:
    pages: list[int] = np.unique(np.flatnonzero(one != other) * 8 // PAGE_SIZE).tolist()
    return pages

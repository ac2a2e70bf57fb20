"""A vCPU's dirty ring against a kernel that is simulated: overflows by any number of entries, at any time.

What is simulated is what virt/kvm/dirty_ring.c does: it pushes at its own index and never looks at what it overwrites;
it resets from an index of its own while entries are marked; a vCPU enters the guest only while fewer entries are used
than the soft limit, and an emulator may push on beyond it. tests/integration/test_dirty_ring.py has the real one, which
overflows too, but not at the moment that a test would like.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from precopy.abi import kvm
from precopy.bitmap import Bitmap
from precopy.errors import GuestError
from precopy.trackers import kvm_ring, kvm_slots
from precopy.trackers.kvm_ring import KvmDirtyRing
from precopy.trackers.kvm_slots import MemorySlot
from precopy.trackers.ring import Collected, Flags, Ring, State
from precopy.units import PAGE_SIZE, GuestPhysicalAddress, HostAddress, RamPage
from support.variants import assert_caught


def no_page(slot: int, page: int) -> None:
    """Nothing is protected."""


class KernelRing:
    """The kernel's end of a ring. Its indexes only ever grow, as the kernel's do but for 32 bits."""

    def __init__(self, size: int, rearm: Callable[[int, int], None] = no_page) -> None:
        self.size, self._rearm = size, rearm
        self.soft_limit = size - size // 4
        self.entries = np.zeros((size, 4), np.uint32)
        self.pushed = self.freed = 0

    @property
    def used(self) -> int:
        return self.pushed - self.freed

    @property
    def full(self) -> bool:
        """Whether the vCPU may not enter the guest. A kernel that is ahead of itself counts in 32 bits."""
        return self.used % (1 << 32) >= self.soft_limit

    def push(self, page: int, slot: int = 0) -> None:
        self.entries[self.pushed % self.size] = kvm.DIRTY_GFN_F_DIRTY, slot, page & 0xFFFFFFFF, page >> 32
        self.pushed += 1

    def reset(self) -> int:
        """Frees entries while they are marked, and re-arms their pages."""
        before = self.freed
        while self.entries[self.freed % self.size, 0] & kvm.DIRTY_GFN_F_RESET:
            entry = self.entries[self.freed % self.size]
            entry[0] = 0
            self.freed += 1
            self._rearm(int(entry[1]), int(entry[2]) | int(entry[3]) << 32)
        return self.freed - before


def ring_of(size: int) -> tuple[KernelRing, Ring]:
    kernel = KernelRing(size)
    return kernel, Ring(kernel.entries)


def pages_of(collected: Collected) -> list[int]:
    offsets: list[int] = collected.offsets.tolist()
    return offsets


class TestInStep:
    """No overflow: every entry exactly once, in order, and nothing is ever said to be lost."""

    @given(
        size=st.sampled_from([4, 8, 64, 2048]),
        actions=st.lists(st.one_of(st.integers(0, 2048), st.sampled_from(["collect", "reset"])), max_size=60),
    )
    def test_every_entry_is_collected_once_and_in_order(self, size: int, actions: list[int | str]) -> None:
        kernel, ring = ring_of(size)
        next_page, seen = 0, 0
        for action in [*actions, "collect"]:
            if action == "collect":
                found = ring.collect()
                assert not found.lost
                assert pages_of(found) == list(range(seen, next_page))
                seen = next_page
            elif action == "reset":
                marked = ring.marked
                assert kernel.reset() == marked
                assert ring.settle()
                assert ring.marked == 0
            else:
                assert isinstance(action, int)
                for _ in range(min(action, size - 1 - kernel.used)):
                    kernel.push(next_page)
                    next_page += 1
            assert ring.state is State.IN_STEP
            assert kernel.freed + ring.marked == seen

    def test_a_ring_that_is_full_with_marked_entries_has_lost_nothing(self) -> None:
        """There it can be told: the oldest entry is still marked."""
        kernel, ring = ring_of(8)
        for page in range(3):
            kernel.push(page)
        ring.collect()
        for page in range(3, 8):
            kernel.push(page)
        found = ring.collect()
        assert (pages_of(found), found.lost) == ([3, 4, 5, 6, 7], False)
        assert kernel.reset() == 8
        assert ring.settle()

    def test_a_page_number_has_64_bits(self) -> None:
        kernel, ring = ring_of(4)
        kernel.push(0x1234_5678_9ABC, slot=0x1_0002)
        found = ring.collect()
        assert pages_of(found) == [0x1234_5678_9ABC]
        assert found.slots.tolist() == [0x1_0002]

    def test_a_long_ring_is_collected_in_several_looks(self) -> None:
        kernel, ring = ring_of(8192)
        for page in range(5000):
            kernel.push(page)
        assert pages_of(ring.collect()) == list(range(5000))
        kernel.reset()
        ring.settle()
        for page in range(5000, 5000 + 8000):  # round the end
            kernel.push(page)
        assert pages_of(ring.collect()) == list(range(5000, 13000))


class TestOverflow:
    """That entries were lost is always noticed, at the latest by the next collect or reset."""

    @pytest.mark.parametrize("size", [4, 8, 32])
    @pytest.mark.parametrize("marked", [0, 1, 2, 3])
    @pytest.mark.parametrize("beyond", [1, 2, 3, 4, 8, 31, 32, 33, 64, 100])
    @pytest.mark.parametrize("reset_first", [False, True], ids=["collect first", "reset first"])
    def test_by_any_number_of_entries(self, size: int, marked: int, beyond: int, reset_first: bool) -> None:
        """The case that is hard to see is one where entries were marked and not yet reset: what is there to collect
        is then less than the whole ring."""
        kernel, ring = ring_of(size)
        for page in range(marked):
            kernel.push(page)
        assert not ring.collect().lost
        for page in range(size - marked + beyond):
            kernel.push(page)
        lost = False
        if reset_first:
            kernel.reset()
            lost = not ring.settle()
        lost |= ring.collect().lost
        assert lost
        assert ring.state is State.BROKEN
        assert not kernel.entries[:, 0].any()

    def test_between_collecting_and_resetting(self) -> None:
        kernel, ring = ring_of(8)
        for page in range(6):
            kernel.push(page)
        assert not ring.collect().lost
        for page in range(3):  # the third overwrites the oldest, whose mark is gone
            kernel.push(page)
        assert kernel.reset() == 0
        assert not ring.settle()

    def test_over_all_that_was_marked(self) -> None:
        kernel, ring = ring_of(8)
        kernel.push(0)
        assert not ring.collect().lost
        for page in range(8):
            kernel.push(page)
        assert kernel.reset() == 0
        assert not ring.settle()

    def test_exactly_full_counts_as_lost(self) -> None:
        """With nothing marked, an overflow by nothing and one by a whole ring look the same."""
        kernel, ring = ring_of(8)
        for page in range(8):
            kernel.push(page)
        assert ring.collect().lost

    def test_what_is_pushed_to_a_broken_ring_is_lost_and_nothing_else(self) -> None:
        kernel, ring = ring_of(8)
        for page in range(9):
            kernel.push(page)
        assert ring.collect().lost
        assert not ring.collect().lost
        kernel.push(100)
        assert ring.collect().lost
        assert not ring.collect().lost

    def test_a_broken_ring_is_not_reset(self) -> None:
        """A mark too many and the kernel would be ahead of itself."""
        kernel, ring = ring_of(8)
        for page in range(9):
            kernel.push(page)
        ring.collect()
        assert kernel.reset() == 0
        assert ring.settle()


def let_go(kernel: KernelRing, ring: Ring) -> None:
    """The vCPU stands still and finds no room, until it does."""
    for _ in range(4 * (kernel.used // kernel.size + 2)):
        if not kernel.full:
            return
        assert ring.free_some(kernel.reset)
        assert kernel.used >= 0
    raise AssertionError("stuck")


class TestRecovery:
    @pytest.mark.parametrize("size", [4, 8, 64])
    @pytest.mark.parametrize("beyond", [0, 1, 3, 4, 5, 7, 8, 13, 64, 200])
    @pytest.mark.parametrize("before", [0, 1, 6])
    def test_after_it_every_entry_is_collected_again(self, size: int, beyond: int, before: int) -> None:
        kernel, ring = ring_of(size)
        for page in range(before):
            kernel.push(page)
            ring.collect()
            kernel.reset()
            ring.settle()
        for page in range(size + beyond):
            kernel.push(page)
        assert ring.collect().lost
        let_go(kernel, ring)
        assert ring.state.value == "found"
        for page in range(5 * size):
            kernel.push(page)
            found = ring.collect()
            assert (pages_of(found), found.lost) == ([page], False)
            assert ring.state is State.IN_STEP
            kernel.reset()
            assert ring.settle()
            assert kernel.used == 0

    @pytest.mark.parametrize("pushed", range(1, 13))
    def test_a_second_overflow_while_it_recovers(self, pushed: int) -> None:
        """The vCPU enters with a few entries of room and pushes more than there is. What begins where in the ring is
        known only while there is a gap."""
        kernel, ring = ring_of(8)
        for page in range(11):
            kernel.push(page)
        ring.collect()
        let_go(kernel, ring)
        used = kernel.used
        for page in range(pushed):
            kernel.push(page)
        found = ring.collect()
        if used + pushed >= 8:  # where it is exactly full nobody can tell
            assert found.lost
        else:
            assert (pages_of(found), found.lost) == (list(range(pushed)), False)

    def test_what_was_pushed_while_the_first_look_was_taken_is_not_passed_over(self) -> None:
        """A look reads ascending; what it has passed may be pushed before it comes to what is pushed next."""
        kernel = KernelRing(8)
        ring = TornRing(kernel.entries)
        for page in range(11):
            kernel.push(page)
        ring.collect()
        let_go(kernel, ring)
        assert kernel.pushed % 8 == 3

        def push_two() -> None:
            kernel.push(70)
            kernel.push(71)

        ring.during_look = [(4, push_two)]  # entry 3 was read; 3 and 4 are pushed; entry 4 is read
        found = ring.collect()
        assert (pages_of(found), found.lost) == ([70, 71], False)

    def test_a_kernel_that_frees_nothing_is_noticed(self) -> None:
        _, ring = ring_of(8)
        ring.give_up()
        assert not ring.free_some(lambda: None)


class TornRing(Ring):
    """While it looks at flags the kernel goes on: before the entry of that index is read, ``during_look`` happens."""

    def __init__(self, entries: Any) -> None:
        super().__init__(entries)
        self.during_look: list[tuple[int, Callable[[], None]]] = []

    def _flags(self, start: int, count: int) -> Flags:
        happenings, self.during_look = self.during_look, []
        at, parts = start, []
        for index, happening in sorted(happenings, key=lambda pair: (pair[0] - start) % self.size):
            end = start + (index - start) % self.size
            if at <= end < start + count:
                parts.append(super()._flags(at, end - at))
                at = end
            happening()
        parts.append(super()._flags(at, start + count - at))
        return np.concatenate(parts)


# A whole VM: several rings, several slots, and the tracker.


class Vm:
    """Takes the place of a VM's descriptor: memory of ``pages`` pages in two slots, and ``vcpus`` vCPUs with rings.

    ``protected`` are the pages that the kernel hears of when they are written; a vCPU is ``inside`` the guest, or
    ``out`` because its ring is full, and is to be relieved.
    """

    def __init__(self, pages: int, vcpus: int, size: int) -> None:
        self.content = [0] * pages
        self.logged: set[int] = set()
        self.protected: set[int] = set()
        self.rings = [KernelRing(size, self._rearm) for _ in range(vcpus)]
        self.inside = [False] * vcpus
        self.out = [False] * vcpus
        self.clock = 0
        self.meanwhile: Callable[[], None] = lambda: None
        half = pages // 2
        self.slots = [self._slot(0, 0, half), self._slot(1, half, pages - half)]

    def _slot(self, number: int, first: int, pages: int) -> MemorySlot:
        gpa = GuestPhysicalAddress(first * PAGE_SIZE)
        return MemorySlot(number, f"s{number}", RamPage(first), pages, gpa, HostAddress(0))

    def _rearm(self, slot: int, page: int) -> None:
        if slot in self.logged and page < self.slots[slot].pages:
            self.protected.add(self.slots[slot].first_page + page)

    def ioctl(self, request: Any, argument: Any) -> int:
        """As `precopy.abi.ioctl.call`."""
        self.meanwhile()
        done = 0
        if request is kvm.RESET_DIRTY_RINGS:
            done = sum(ring.reset() for ring in self.rings)
        elif request is kvm.SET_USER_MEMORY_REGION:
            self._set_slot(argument.slot, bool(argument.flags & kvm.MEM_LOG_DIRTY_PAGES))
        self.meanwhile()
        return done

    def _set_slot(self, number: int, logging: bool) -> None:
        slot = self.slots[number]
        pages = set(range(slot.first_page, slot.first_page + slot.pages))
        if logging and number not in self.logged:
            self.logged.add(number)
            self.protected |= pages
        elif not logging:
            self.logged.discard(number)
            self.protected -= pages

    def write(self, vcpu: int, page: int, *, on: bool = False) -> None:
        """The vCPU writes a page, if it runs. With ``on`` it does so also where its ring is nearly full, as an
        emulator that does not look."""
        ring = self.rings[vcpu]
        if self.out[vcpu]:
            return
        if ring.full and not (on and self.inside[vcpu]):
            self.inside[vcpu], self.out[vcpu] = False, True
            return
        self.inside[vcpu] = True
        self.clock += 1
        self.content[page] = self.clock
        if page in self.protected:
            self.protected.discard(page)
            slot = int(page >= self.slots[1].first_page)
            ring.push(page - self.slots[slot].first_page, slot)


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Has the tracker's ioctls go to a `Vm`."""

    def call(vm: Any, request: Any, argument: Any = 0, *, target: str) -> int:
        done: int = vm.ioctl(request, argument)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvm_ring, "call", call)
        patch.setattr(kvm_slots, "call", call)
        yield


def tracker_of(vm: Vm) -> KvmDirtyRing:
    descriptor: Any = vm
    tracker = KvmDirtyRing(descriptor, len(vm.content))
    for ring in vm.rings:
        tracker.attach(ring.entries)
    for slot in vm.slots:
        tracker.add(slot)
    return tracker


def harvested(tracker: KvmDirtyRing) -> set[int]:
    dirty = Bitmap(tracker._dirty.size)
    tracker.harvest(dirty)
    return set(dirty.indexes().tolist())


def come_back(vm: Vm, tracker: KvmDirtyRing, vcpu: int = 0) -> None:
    """The vCPU has left with its ring full, and tries until it can enter."""
    tries = 4 * (vm.rings[vcpu].used // vm.rings[vcpu].size + 2) + 4
    for _ in range(tries):
        tracker.relieve(vcpu)
        if not vm.rings[vcpu].full:
            vm.out[vcpu] = False
            return
    raise AssertionError(f"stuck: {vm.rings[vcpu].used} entries used of {vm.rings[vcpu].size}")


@pytest.fixture
def vm() -> Iterator[Vm]:
    with simulated():
        yield Vm(pages=400, vcpus=2, size=64)


class TestTracker:
    def test_a_vcpu_that_left_is_let_go_where_another_thread_has_made_room_meanwhile(self, vm: Vm) -> None:
        """Nothing is left to free then; taking that for an overflow would drive the kernel's index past its own."""
        tracker = tracker_of(vm)
        tracker.start()
        for page in range(60):
            vm.write(0, page)
        assert vm.out[0]
        assert harvested(tracker) == set(range(48))
        tracker.clear(0, 400)  # before the vCPU's thread gets the lock
        assert vm.rings[0].used == 0
        tracker.relieve(0)
        assert vm.rings[0].used == 0
        vm.out[0] = False
        vm.write(0, 300)
        assert harvested(tracker) == {300}
        assert tracker.overflows == 0

    @pytest.mark.parametrize("beyond", [1, 16, 17, 63, 64, 65, 150])
    @pytest.mark.parametrize("seen", [0, 1, 40])
    def test_an_overflow_makes_everything_dirty_and_the_vcpu_goes_on(self, vm: Vm, beyond: int, seen: int) -> None:
        tracker = tracker_of(vm)
        tracker.start()
        for page in range(seen):
            vm.write(0, page)
        assert harvested(tracker) == set(range(seen))
        for page in range(seen, 64 + beyond):
            vm.write(0, page, on=True)
        vm.write(0, 0)
        assert vm.out[0]
        come_back(vm, tracker)
        assert harvested(tracker) == set(range(400))
        assert tracker.overflows > 0
        tracker.clear(0, 400)
        overflows = tracker.overflows
        for page in range(390):
            vm.write(0, page)
            if vm.out[0]:
                come_back(vm, tracker)
                vm.write(0, page)
        assert harvested(tracker) == set(range(390))
        assert tracker.overflows == overflows

    def test_an_overflow_that_nobody_collects_until_the_guest_is_paused(self, vm: Vm) -> None:
        """The final harvest of a migration: the vCPU was stopped before it came to be relieved."""
        tracker = tracker_of(vm)
        tracker.start()
        for page in range(30):
            vm.write(1, page)
        harvested(tracker)
        tracker.clear(0, 400)
        for page in range(100, 200):
            vm.write(1, page, on=True)
        assert harvested(tracker) >= set(range(100, 200))

    def test_an_overflow_between_harvest_and_clear_is_in_the_next_harvest(self, vm: Vm) -> None:
        tracker = tracker_of(vm)
        tracker.start()
        for page in range(40):
            vm.write(0, page)
        assert harvested(tracker) == set(range(40))
        for page in range(200, 240):
            vm.write(0, page, on=True)
        tracker.clear(0, 400)  # its reset cannot free anything
        vm.write(0, 5, on=True)  # of a page that was cleared, and re-armed by other means
        assert harvested(tracker) >= {5, *range(200, 240)}

    def test_what_only_a_display_logs_is_kept_when_a_migration_ends(self, vm: Vm) -> None:
        """A write between the last harvest and the end of the migration is the display's too."""
        tracker = tracker_of(vm)
        tracker.set_logging(vm.slots[1], on=True)
        tracker.start()
        harvested(tracker)
        vm.write(0, 5)
        vm.write(0, 300)
        tracker.stop()
        assert harvested(tracker) == {300}
        tracker.clear(0, 400)
        assert harvested(tracker) == set()
        vm.write(0, 300)
        vm.write(0, 6)
        assert harvested(tracker) == {300}

    def test_nothing_of_a_slot_that_goes_is_left_to_be_reset(self, vm: Vm) -> None:
        """The kernel resets neighbouring entries of one slot number together, and none of them where one lies beyond
        the slot's end, as an entry of a longer slot may that had the number before."""
        tracker = tracker_of(vm)
        tracker.start()
        for page in (5, 390):
            vm.write(0, page)
        assert harvested(tracker) == {5, 390}
        assert vm.rings[0].used == 2
        tracker.remove(vm.slots[1])
        assert vm.rings[0].used == 0
        assert harvested(tracker) == {5, 390}
        tracker.clear(0, 400)
        assert harvested(tracker) == set()

    def test_no_signal_ends_a_reset(self, vm: Vm) -> None:
        """Since Linux 6.17 a pending signal ends the kernel's walk, which may then have freed entries without re-arming
        their pages. The signal comes all the same, a moment later."""
        blocked: list[set[Any]] = []
        vm.meanwhile = lambda: blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        tracker = tracker_of(vm)
        tracker.start()
        vm.write(0, 1)
        harvested(tracker)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        blocked.clear()
        tracker.clear(0, 400)
        assert blocked
        for mask in blocked:
            assert mask >= signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before

    def test_a_kernel_that_never_frees_anything_is_an_error(self, vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
        tracker = tracker_of(vm)
        tracker.start()
        for page in range(70):
            vm.write(0, page, on=True)
        monkeypatch.setattr(KernelRing, "reset", lambda _: 0)
        tracker.relieve(0)
        with pytest.raises(GuestError, match="vCPU 0 is full and cannot be emptied"):
            tracker.relieve(0)


Write = tuple[int, int, bool]
"""vCPU, page, and whether it pushes on where it should leave."""


class Overflowing(RuleBasedStateMachine):
    """Guest writes at any time, also while the tracker looks and calls; harvests, clears and reads; vCPUs that leave.

    Law 1 is held at each harvest: what was written since it was last read is in it, or has been reported and is still
    to be read. The other promise is that no vCPU waits for ever.
    """

    ring_class: type[Ring] = TornRing
    tracker_class: type[KvmDirtyRing] = KvmDirtyRing

    @initialize(size=st.sampled_from([4, 8, 16]), vcpus=st.integers(1, 2))
    def begin(self, size: int, vcpus: int) -> None:
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(simulated())
        patch = self.patches.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(kvm_ring, "Ring", self.ring_class)
        patch.setattr(f"{__name__}.KvmDirtyRing", self.tracker_class)
        self.size, self.vcpus = size, vcpus
        self.vm = Vm(8 * size, vcpus, size)
        self.plan: list[Write] = []
        self.cursor = 0
        self.tracker = tracker_of(self.vm)
        self.tracker.start()
        self.vm.meanwhile = self.guest_runs
        self.copy = list(self.vm.content)
        self.pending: set[int] = set()

    def guest_runs(self) -> None:
        if self.plan:
            self.write(self.plan.pop())

    def write(self, one: Write) -> None:
        vcpu, page, on = one
        self.vm.write(vcpu % self.vcpus, page % len(self.copy), on=on)

    def planned(self, plan: list[Write], looks: list[int]) -> None:
        """What the guest does while the tracker works: around its ioctls, and between two entries that it looks at."""
        self.plan = plan
        for index, vcpu_ring in zip(looks, self.tracker._rings, strict=False):
            if isinstance(vcpu_ring, TornRing):
                vcpu_ring.during_look = [(index % self.size, self.guest_runs), (index % self.size, self.guest_runs)]

    writes: st.SearchStrategy[list[Write]] = st.just([]) | st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 127), st.booleans()), max_size=10
    )
    looks: st.SearchStrategy[list[int]] = st.just([]) | st.lists(st.integers(0, 15), max_size=2)

    @rule(
        vcpu=st.integers(0, 1), count=st.integers(1, 20), on=st.booleans(), back=st.sampled_from([0, 0, 0, 10, 20, 40])
    )
    def guest_writes(self, vcpu: int, count: int, on: bool, back: int = 0) -> None:
        """Page by page through memory, so that most of them are protected; or pages that were written lately again."""
        self.cursor = max(self.cursor - back, 0)
        for _ in range(max(count, back)):
            self.cursor += 1
            self.write((vcpu, self.cursor, on))

    @rule(vcpu=st.integers(0, 1), beyond=st.integers(1, 4) | st.integers(1, 40))
    def ring_overflows(self, vcpu: int, beyond: int) -> None:
        ring = self.vm.rings[vcpu % self.vcpus]
        for _ in range(ring.size - ring.used + beyond):
            self.guest_writes(vcpu, 1, True)

    @rule(vcpu=st.integers(0, 1))
    def vcpu_comes_back(self, vcpu: int) -> None:
        self.write((vcpu, 0, False))
        if self.vm.out[vcpu % self.vcpus]:
            come_back(self.vm, self.tracker, vcpu % self.vcpus)

    @rule(plan=writes, looks=looks)
    def harvest(self, plan: list[Write], looks: list[int]) -> None:
        stale = self.stale()
        self.planned(plan, looks)
        found = harvested(self.tracker)
        self.plan = []
        assert stale <= found | self.pending, f"lost: {stale - found - self.pending}"
        self.pending |= found

    @rule(plan=writes, looks=looks, span=st.just((0, 128)) | st.tuples(st.integers(0, 127), st.integers(0, 128)))
    def clear_and_read(self, plan: list[Write], looks: list[int], span: tuple[int, int]) -> None:
        start, count = span
        self.planned(plan, looks)
        self.tracker.clear(start, count)
        self.plan = []
        for page in self.pending & set(range(start, start + count)):
            self.copy[page] = self.vm.content[page]
            self.pending.discard(page)

    @rule(vcpu=st.integers(0, 1), counts=st.tuples(*[st.integers(1, 20)] * 3), back=st.integers(1, 40))
    def round_of_a_migration(self, vcpu: int, counts: tuple[int, int, int], back: int) -> None:
        """With a vCPU that never looks how full its ring is, and at last writes again what was just sent."""
        self.guest_writes(vcpu, counts[0], True)
        self.harvest([], [])
        self.guest_writes(vcpu, counts[1], True)
        self.clear_and_read([], [], (0, len(self.copy)))
        self.guest_writes(vcpu, counts[2], True, back)
        self.harvest([], [])

    @rule(vcpu=st.integers(0, 1), plan=writes, looks=looks)
    def relieve(self, vcpu: int, plan: list[Write], looks: list[int]) -> None:
        if self.vm.out[vcpu % self.vcpus]:
            self.planned(plan, looks)
            self.tracker.relieve(vcpu % self.vcpus)
            self.plan = []
            self.vm.out[vcpu % self.vcpus] = False

    @rule()
    def start_anew(self) -> None:
        self.tracker.stop()
        self.tracker.start()
        self.copy, self.pending = list(self.vm.content), set()

    def stale(self) -> set[int]:
        return {page for page, content in enumerate(self.vm.content) if content != self.copy[page]}

    @invariant()
    def no_kernel_is_ahead_of_itself(self) -> None:
        if hasattr(self, "vm"):
            assert all(ring.used >= 0 for ring in self.vm.rings), "stuck: more was freed than was pushed"

    def teardown(self) -> None:
        if not hasattr(self, "vm"):
            return
        try:
            self.goes_on()
        finally:
            self.patches.close()

    def goes_on(self) -> None:
        """Whatever happened: from here on, with no more overflows, each ring is soon in step, and stays so."""
        for vcpu in range(self.vcpus):
            overflows = self.tracker.overflows
            for turn in range(3):
                self.pass_over_memory(vcpu)
                if turn > 0:
                    assert self.tracker.overflows == overflows, "stuck: it does not come to rest"
                overflows = self.tracker.overflows
            assert self.tracker._rings[vcpu].state is State.IN_STEP

    def pass_over_memory(self, vcpu: int) -> None:
        for page in range(len(self.copy)):
            before = self.vm.clock
            self.write((vcpu, page, False))
            if self.vm.out[vcpu]:
                come_back(self.vm, self.tracker, vcpu)
                self.write((vcpu, page, False))
            assert self.vm.clock > before
        self.harvest([], [])
        self.clear_and_read([], [], (0, len(self.copy)))
        assert not self.stale(), f"lost: {self.stale()}"


def run(machine: type[Overflowing], **options: Any) -> None:
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=30, **options))


def test_no_overflow_loses_a_page_and_no_vcpu_waits_for_ever() -> None:
    run(Overflowing)


class OnlyExactlyFull(TornRing):
    """Takes only a ring that is exactly full for one that has overflowed."""

    def _collect_in_step(self, spare: int = 0) -> Collected:  # noqa: ARG002
        taken = self._take_all()
        self.marked = min(self.marked + len(taken), self.size)
        if len(taken) == self.size:
            self.give_up()
        return Collected.of(taken, lost=len(taken) == self.size)


class TrustsResets(TornRing):
    """Takes everything for freed that was marked."""

    def settle(self) -> bool:
        if self.state is State.IN_STEP and self.marked:
            self.marked, self.tried = 0, False
        return True


class OneLook(TornRing):
    """Takes the first entry that it sees for the first that was pushed."""

    def _collect_found(self) -> Collected:
        if not (kernel_flags := Ring._flags(self, 0, self.size)).any():
            return super()._collect_found()
        happenings, self.during_look = self.during_look, []
        for _, happening in happenings:
            happening()
        first = int(np.flatnonzero(kernel_flags & kvm.DIRTY_GFN_F_DIRTY)[-1])
        self.state, self._next = State.IN_STEP, first
        self.marked = (first - self._resets_at) % self.size
        self._entries[(self._resets_at + np.arange(self.marked)) % self.size, 0] = kvm.DIRTY_GFN_F_RESET
        return self._collect_in_step()


class OverflowsUnseenWhileFound(TornRing):
    """Looks for a second overflow only once it is in step again, when it has marked what was overwritten."""

    def _collect_in_step(self, spare: int = 0) -> Collected:  # noqa: ARG002
        return super()._collect_in_step()


class ForgetsBroken(TornRing):
    """Reports an overflow once, and what is pushed before the ring is in step again not at all."""

    def _collect_broken(self) -> Collected:
        self._entries[:, 0] = 0
        return Collected(np.empty(0, np.uint32), np.empty(0, np.int64), False)


class FreesAtOnce(KvmDirtyRing):
    """Takes a vCPU whose ring has nothing to free for one whose ring has overflowed."""

    def relieve(self, vcpu: int) -> None:
        self._rings[vcpu].tried = True
        super().relieve(vcpu)


class ProtectsNothing(KvmDirtyRing):
    """Has everything dirty after an overflow, but does not arm it."""

    def _lose(self) -> None:
        self.overflows += 1
        self._dirty.set_range(0, self._dirty.size)


def variant(**attributes: Any) -> type[Overflowing]:
    return type("Overflowing", (Overflowing,), attributes)


@pytest.mark.parametrize(
    ("machine", "symptom", "start"),
    [
        pytest.param(variant(ring_class=OnlyExactlyFull), "lost: |stuck: ", 3, id="only exactly full"),
        pytest.param(variant(ring_class=TrustsResets), "lost: |stuck: ", 0, id="trusts resets"),
        pytest.param(variant(ring_class=OneLook), "lost: |stuck: ", 0, id="one look"),
        pytest.param(variant(ring_class=OverflowsUnseenWhileFound), "lost: ", 3, id="overflows unseen while found"),
        pytest.param(variant(ring_class=ForgetsBroken), "lost: ", 0, id="forgets broken"),
        pytest.param(variant(tracker_class=FreesAtOnce), "stuck: ", 0, id="frees at once"),
        pytest.param(variant(tracker_class=ProtectsNothing), "lost: ", 0, id="protects nothing"),
    ],
)
def test_a_broken_variant_is_caught(machine: type[Overflowing], symptom: str, start: int) -> None:
    assert_caught(machine, symptom, start)

"""Memory listeners on a real VM: sections become slots, a block that two listeners see has two dirty logs, and what a
client logs is what is logged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from precopy.bitmap import Bitmap, Words
from precopy.dirty import DirtyMemory, MigrationBitmap, clear_policy
from precopy.errors import GuestError
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload.image import RESERVED_END
from precopy.memory import DirtyClient, MemoryRegion, RamBlock, RamLayout, Section
from precopy.memory.topology.transaction import transaction
from precopy.trackers.kvm_log import KvmDirtyLog
from precopy.trackers.kvm_slots import MemorySlot
from precopy.units import PAGE_SIZE, GuestPhysicalAddress
from support import dirty_logs
from support.dirty_logs import KvmHarness, RingHarness, gpa_in
from support.patience import IN_TIME_S

pytestmark = [pytest.mark.needs("kvm")]

MIGRATION, VGA = DirtyClient.MIGRATION, DirtyClient.VGA
MIB = 1 << 20
LAYOUT = RamLayout.of_blocks(
    [("low", RESERVED_END), ("ram", 200 * PAGE_SIZE), ("vram", 70 * PAGE_SIZE), ("spare", 20 * PAGE_SIZE)]
).mapped(
    [
        ("low", 0, RESERVED_END, 0),
        ("ram", 0, 130 * PAGE_SIZE, 2 * MIB),
        ("ram", 130 * PAGE_SIZE, 70 * PAGE_SIZE, 6 * MIB),
        ("vram", 0, 70 * PAGE_SIZE, 10 * MIB),
    ]
)
"""``ram`` is seen in two places; ``spare`` is RAM that is nowhere yet. All of it ends below 16 MiB, so that its aliases
lie in the first GiB, which the guest's page tables map."""
LOW, RAM, VRAM, SPARE = LAYOUT.blocks
LOW_END = RESERVED_END // PAGE_SIZE
END = LAYOUT.end_page


class Vm:
    """A guest of `support.dirty_logs` that writes where it is told, and what is known of its memory."""

    def __init__(self, tracker: str, *, smram: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dirty_logs, "KvmGuest", partial(KvmGuest, smram_listener=smram))
            self.harness = KvmHarness(LAYOUT) if tracker == "dirty-log" else RingHarness(LAYOUT)
        self.guest: KvmGuest = self.harness.guest
        self.memory = self.guest.vm_memory

    @property
    def dirty(self) -> DirtyMemory:
        return self.guest.dirty

    @property
    def alias_base(self) -> int:
        """Where the second listener's slots alias memory; skips where they are in an address space of their own."""
        listener = self.memory.listeners[1]
        if listener.address_space:
            pytest.skip("this KVM keeps kvm-smram in address space 1, which only a CPU in system management mode sees")
        return listener.base

    def write(self, *pages: int, alias: bool = False) -> None:
        base = self.alias_base if alias else 0
        self.harness.write_at([GuestPhysicalAddress(gpa_in(section_of(page), page) + base) for page in pages])

    def found(self) -> set[int]:
        """What a sync tells the migration, which takes it and has it armed. Without the reserved low memory, where the
        guest's answers are."""
        dest = Bitmap(END)
        self.dirty.sync()
        self.dirty.test_and_clear(MIGRATION, 0, END, dest)
        return {page for page in dest.indexes().tolist() if page >= LOW_END}

    def drawn(self, block: RamBlock) -> set[int]:
        """What a display is told of its block, by ram_addr page."""
        pages = self.dirty.snapshot_and_clear(VGA, block).pages.indexes()
        return {block.first_page + page for page in pages.tolist()}

    def migrate(self) -> None:
        """A migration begins, and every page is armed."""
        self.dirty.start()
        self.found()
        assert self.found() == set()


def section_of(page: int) -> Section:
    return next(one for one in LAYOUT.sections if 0 <= page - one.first_page < one.pages)


def vm_of(tracker: str, *, smram: bool) -> Iterator[Vm]:
    vm = Vm(tracker, smram=smram)
    yield vm
    vm.harness.close()


@pytest.fixture
def vm() -> Iterator[Vm]:
    """One listener, and a dirty log."""
    yield from vm_of("dirty-log", smram=False)


@pytest.fixture
def twice() -> Iterator[Vm]:
    """Two listeners, each with a dirty log of its own."""
    yield from vm_of("dirty-log", smram=True)


@pytest.fixture(params=["dirty-log", "dirty-ring"])
def any_vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    yield from vm_of(request.param, smram=False)


@pytest.fixture(params=["dirty-log", "dirty-ring"])
def any_twice(request: pytest.FixtureRequest) -> Iterator[Vm]:
    yield from vm_of(request.param, smram=True)


def places(slots: tuple[MemorySlot, ...]) -> list[tuple[str, int, int, int]]:
    return [(slot.name, slot.first_page, slot.pages, slot.gpa) for slot in slots]


class TestSlots:
    def test_each_section_is_a_slot(self, vm: Vm) -> None:
        assert places(vm.memory.slots) == [
            (section.block.name, section.first_page, section.pages, section.gpa) for section in LAYOUT.sections
        ]
        assert [slot.host_address for slot in vm.memory.slots] == [
            vm.guest.memory.host(section.block).address + section.offset * PAGE_SIZE for section in LAYOUT.sections
        ]
        assert not any(slot.readonly for slot in vm.memory.slots)

    def test_two_listeners_have_a_slot_each(self, twice: Vm) -> None:
        base, slots = twice.memory.listeners[1].base, twice.memory.slots
        first, second = slots[: len(LAYOUT.sections)], slots[len(LAYOUT.sections) :]
        assert places(second) == [(*one[:3], one[3] + base) for one in places(first)]
        assert [one.host_address for one in first] == [one.host_address for one in second]
        assert len({slot.id for slot in slots}) == len(slots) == 8
        assert base == 0 or base >= max(section.end_gpa for section in LAYOUT.sections)

    def test_they_say_where_theirs_are(self, twice: Vm) -> None:
        memory, other = twice.memory.listeners
        assert memory.how == "kvm-memory"
        assert other.how.startswith("kvm-smram: ")

    def test_a_region_that_comes_is_a_slot_that_the_guest_can_write(self, any_vm: Vm) -> None:
        any_vm.migrate()
        region = MemoryRegion.ram("spare", SPARE)
        any_vm.memory.system.add_subregion(region, 12 * MIB)
        assert places(any_vm.memory.slots)[-1] == ("spare", SPARE.first_page, 20, 12 * MIB)
        any_vm.found()  # all of a new slot may be dirty at first
        any_vm.harness.write_at([GuestPhysicalAddress(12 * MIB + 7 * PAGE_SIZE)])
        assert any_vm.found() == {SPARE.first_page + 7}

    def test_what_covers_a_section_splits_its_slot(self, vm: Vm) -> None:
        vm.migrate()
        vm.memory.system.add_subregion(MemoryRegion.ram("spare", SPARE), 2 * MIB + 50 * PAGE_SIZE, priority=1)
        first = RAM.first_page
        assert places(vm.memory.slots)[1:4] == [
            ("ram", first, 50, 2 * MIB),
            ("spare", SPARE.first_page, 20, 2 * MIB + 50 * PAGE_SIZE),
            ("ram", first + 70, 60, 2 * MIB + 70 * PAGE_SIZE),
        ]
        vm.found()
        vm.write(first + 49, first + 50, first + 69, first + 70)  # by where they were
        assert vm.found() == {first + 49, SPARE.first_page, SPARE.first_page + 19, first + 70}

    def test_numbers_of_slots_that_are_gone_are_used_again(self, any_twice: Vm) -> None:
        region = any_twice.memory.regions["vram"]
        before = {slot.id for slot in any_twice.memory.slots}
        for _ in range(20):
            region.enabled = False
            assert len(any_twice.memory.slots) == 6
            region.enabled = True
        assert {slot.id for slot in any_twice.memory.slots} == before

    @pytest.mark.parametrize("kind", ["rom", "rom_device"])
    def test_a_guest_that_writes_a_rom_leaves_instead(self, vm: Vm, kind: str) -> None:
        region = {"rom": MemoryRegion.rom, "rom_device": MemoryRegion.rom_device}[kind](kind, SPARE)
        vm.memory.system.add_subregion(region, 12 * MIB)
        assert vm.memory.slots[-1].name == "spare"
        assert vm.memory.slots[-1].readonly
        with pytest.raises(GuestError, match=r"left the guest for reason 6 \(mmio\)"):
            start_to_write(vm, 12 * MIB)
        assert not vm.guest.memory.host(SPARE).words.any()

    def test_a_guest_reads_what_is_in_it(self, vm: Vm) -> None:
        """A ROM over the page where the guest looks up what to write: it finds the ROM's list, not the RAM's."""
        rom = vm.guest.memory.host(SPARE).words
        rom[0] = gpa_in(section_of(VRAM.first_page), VRAM.first_page + 5)
        vm.memory.system.add_subregion(MemoryRegion.rom("rom", SPARE), dirty_logs._LIST_GPA, priority=1)
        vm.write(VRAM.first_page + 9)
        vram = vm.guest.memory.pages(VRAM)
        assert (int(vram[5, 0]), int(vram[9, 0])) == (vm.harness.stamp, 0)

    def test_a_rom_device_in_command_mode_has_no_slot(self, vm: Vm) -> None:
        region = MemoryRegion.rom_device("flash", SPARE)
        vm.memory.system.add_subregion(region, 12 * MIB)
        region.romd_mode = False
        assert "spare" not in [slot.name for slot in vm.memory.slots]
        region.romd_mode = True
        assert vm.memory.slots[-1].readonly

    def test_ram_that_becomes_read_only_and_writable_again(self, any_vm: Vm) -> None:
        any_vm.migrate()
        page = VRAM.first_page + 9
        any_vm.write(page)
        region = any_vm.memory.regions["vram"]
        region.readonly = True
        assert [slot.name for slot in any_vm.memory.slots if slot.readonly] == ["vram"]
        region.readonly = False
        assert not any(slot.readonly for slot in any_vm.memory.slots)
        assert page in any_vm.found()
        any_vm.found()
        any_vm.write(page + 1)
        assert any_vm.found() == {page + 1}


def start_to_write(vm: Vm, gpa: int) -> None:
    """As `write_at`, of a guest that may fail to."""
    harness = vm.harness
    harness.stamp += 1
    harness._list[:1] = gpa
    harness._params[dirty_logs._COUNT // 8] = 1
    harness._params[dirty_logs._GENERATION // 8] = harness.stamp
    vm.guest.resume()
    end = time.monotonic() + IN_TIME_S
    while harness._params[dirty_logs._DONE // 8] != harness.stamp and time.monotonic() < end:
        time.sleep(0.001)
        vm.guest.raise_failure()


class TestAliases:
    """A page that two listeners see: each log hears of what was written through its own slots."""

    PAGES = (RAM.first_page, RAM.first_page + 129, RAM.first_page + 130, VRAM.first_page + 69)

    def harvested(self, vm: Vm, log: int) -> set[int]:
        dirty = Bitmap(END)
        vm.dirty.logs[log].harvest(dirty)
        return {page for page in dirty.indexes().tolist() if page >= LOW_END}

    @pytest.mark.parametrize("page", PAGES)
    def test_each_log_hears_of_its_own_slots(self, twice: Vm, page: int) -> None:
        twice.migrate()
        twice.write(page)
        twice.write(page - 1 if page > RAM.first_page else page + 1, alias=True)
        assert self.harvested(twice, 0) == {page}
        assert self.harvested(twice, 1) == {page - 1 if page > RAM.first_page else page + 1}

    @pytest.mark.parametrize("page", PAGES)
    @pytest.mark.parametrize("first", [False, True], ids=["first by memory", "first by smram"])
    def test_a_page_is_found_cleared_and_armed_in_both(self, any_twice: Vm, page: int, first: bool) -> None:
        any_twice.migrate()
        for alias in (first, not first, first):
            any_twice.write(page, alias=alias)
            assert any_twice.found() == {page}
            assert any_twice.found() == set()
        any_twice.write(page, alias=first)
        any_twice.write(page, alias=not first)
        assert any_twice.found() == {page}
        assert any_twice.found() == set()

    def test_what_one_has_harvested_is_not_the_others(self, any_twice: Vm) -> None:
        """A write through the other slot that no harvest has seen survives a clear of the same page."""
        page = RAM.first_page + 100
        any_twice.migrate()
        for first in (False, True):
            any_twice.write(page, alias=first)
            any_twice.dirty.sync()
            any_twice.write(page, alias=not first)
            any_twice.dirty.test_and_clear(MIGRATION, page, 1)
            assert any_twice.found() == {page}
            assert any_twice.found() == set()

    def test_a_clear_calls_each_log_that_has_dirty_pages(self, twice: Vm) -> None:
        twice.migrate()
        page = VRAM.first_page + 3
        twice.write(page)
        before = calls(twice)
        twice.found()
        assert clears_since(twice, before)[0] >= 1  # and the reserved low memory
        twice.write(page + 1)
        twice.write(page, alias=True)
        twice.dirty.sync()
        before = calls(twice)
        twice.dirty.clear(VRAM.first_page, VRAM.pages)
        assert clears_since(twice, before) == [1, 1]

    def test_before_the_patch_each_page_of_an_unaligned_block_costs_a_call_in_each_log(self, twice: Vm) -> None:
        """That is what made 960 calls of the 480 pages of the author's flash. Pages that no slot maps cost none."""
        twice.migrate()
        before = calls(twice)
        policy = clear_policy("before-patch", LAYOUT)
        MigrationBitmap(twice.dirty, policy).sync()
        mapped = LOW.pages + RAM.pages + VRAM.pages
        assert all(block.pages % 64 for block in LAYOUT.blocks)
        assert clears_since(twice, before) == [mapped, mapped]
        before = calls(twice)
        twice.dirty.clear_always(VRAM.first_page, VRAM.pages)
        assert clears_since(twice, before) == [1, 1]


def calls(vm: Vm) -> list[int]:
    return [log.counters.clear_calls for log in vm.dirty.logs]


def clears_since(vm: Vm, before: list[int]) -> list[int]:
    return [now - then for now, then in zip(calls(vm), before, strict=True)]


def gets(vm: Vm) -> dict[int, int]:
    """How often the log of each slot was fetched."""
    logs = [log for log in vm.dirty.logs if isinstance(log, KvmDirtyLog)]
    return {one.slot.id: one.counters.get_calls for log in logs for one in log.slot_counters}


def fetched(vm: Vm, do: Callable[[], object]) -> set[tuple[str, int]]:
    """The slots, by name and first page, whose log was fetched meanwhile; each of them once a listener."""
    before = gets(vm)
    do()
    names = {slot.id: (slot.name, slot.first_page) for slot in vm.memory.slots}
    often = [names[number] for number, count in gets(vm).items() if count > before[number]]
    assert len(often) == len(set(often)) * len(vm.memory.listeners)
    return set(often)


class TestWhatIsLogged:
    """`set_log` of a region reaches the slots that show it, in every listener, and no other."""

    def test_what_a_guest_cannot_write_is_not_fetched(self, twice: Vm) -> None:
        twice.migrate()
        all_slots = {(slot.name, slot.first_page) for slot in twice.memory.slots}
        twice.memory.regions["vram"].readonly = True
        read_only = {(slot.name, slot.first_page) for slot in twice.memory.slots if slot.readonly}
        assert read_only
        assert fetched(twice, twice.dirty.sync) == all_slots - read_only
        twice.memory.regions["vram"].readonly = False
        assert fetched(twice, twice.dirty.sync) == all_slots

    def test_a_display_has_its_block_logged_and_no_other(self, twice: Vm) -> None:
        assert fetched(twice, twice.dirty.sync) == set()
        twice.dirty.start_display(VRAM)
        assert fetched(twice, twice.dirty.sync) == {("vram", VRAM.first_page)}
        twice.dirty.start_display(RAM)
        both = {("ram", RAM.first_page), ("ram", RAM.first_page + 130)}
        assert fetched(twice, twice.dirty.sync) == {("vram", VRAM.first_page), *both}
        assert fetched(twice, lambda: twice.dirty.sync(RAM)) == both
        twice.dirty.stop_display(VRAM)
        assert fetched(twice, twice.dirty.sync) == both
        twice.dirty.stop_display(RAM)
        assert fetched(twice, twice.dirty.sync) == set()

    def test_a_display_goes_on_when_a_migration_comes_and_goes(self, twice: Vm) -> None:
        everything = {(section.block.name, int(section.first_page)) for section in LAYOUT.sections}
        twice.dirty.start_display(VRAM)
        twice.dirty.start()
        assert fetched(twice, twice.dirty.sync) == everything
        assert fetched(twice, lambda: twice.dirty.snapshot_and_clear(VGA, VRAM)) == {("vram", VRAM.first_page)}
        twice.dirty.stop()
        assert fetched(twice, twice.dirty.sync) == {("vram", VRAM.first_page)}

    def test_a_display_that_stops_leaves_a_migration_its_log(self, any_twice: Vm) -> None:
        any_twice.dirty.start_display(VRAM)
        any_twice.migrate()
        any_twice.write(VRAM.first_page + 5)
        any_twice.dirty.stop_display(VRAM)
        any_twice.write(VRAM.first_page + 6)
        assert any_twice.found() == {VRAM.first_page + 5, VRAM.first_page + 6}

    def test_it_is_told_of_its_block(self, any_twice: Vm) -> None:
        any_twice.dirty.start_display(VRAM)
        assert any_twice.drawn(VRAM) == set(range(VRAM.first_page, VRAM.end_page))
        for alias in (False, True):
            any_twice.write(VRAM.first_page + 69, RAM.first_page + 3, alias=alias)
            assert any_twice.drawn(VRAM) == {VRAM.first_page + 69}
            assert any_twice.drawn(VRAM) == set()

    def test_it_and_a_migration_are_told_of_the_same_write(self, any_twice: Vm) -> None:
        any_twice.dirty.start_display(VRAM)
        any_twice.migrate()
        any_twice.drawn(VRAM)
        page = VRAM.first_page + 64
        for alias in (False, True):
            any_twice.write(page, alias=alias)
            assert any_twice.drawn(VRAM) == {page}
            assert any_twice.found() == {page}
            any_twice.write(page, alias=alias)
            assert any_twice.found() == {page}
            assert any_twice.drawn(VRAM) == {page}

    def test_what_was_written_before_a_migration_ends_is_drawn_after_it(self, any_twice: Vm) -> None:
        any_twice.dirty.start_display(VRAM)
        any_twice.migrate()
        any_twice.drawn(VRAM)
        any_twice.write(VRAM.first_page + 1)
        any_twice.dirty.stop()
        any_twice.write(VRAM.first_page + 2)
        assert any_twice.drawn(VRAM) == {VRAM.first_page + 1, VRAM.first_page + 2}
        assert any_twice.drawn(VRAM) == set()

    def test_a_region_that_moves_is_logged_where_it_comes_to(self, any_vm: Vm) -> None:
        """As a display whose BAR is set by the guest's firmware."""
        any_vm.dirty.start_display(VRAM)
        any_vm.drawn(VRAM)
        any_vm.write(VRAM.first_page + 3)
        (alias,) = (one for one in any_vm.memory.system.subregions if one.target is any_vm.memory.regions["vram"])
        alias.address = 14 * MIB
        assert VRAM.first_page + 3 in any_vm.drawn(VRAM)
        any_vm.drawn(VRAM)
        any_vm.harness.write_at([GuestPhysicalAddress(14 * MIB + 4 * PAGE_SIZE)])
        assert any_vm.drawn(VRAM) == {VRAM.first_page + 4}


class TestRegionsThatGo:
    """A slot takes its log along when it goes; what was dirty in it is still reported."""

    PAGES = frozenset({RAM.first_page, RAM.first_page + 129, RAM.first_page + 130, RAM.first_page + 199})

    def test_what_was_dirty_is_found_while_the_region_is_away(self, any_twice: Vm) -> None:
        any_twice.migrate()
        any_twice.write(*sorted(self.PAGES))
        any_twice.memory.regions["ram"].enabled = False
        assert any_twice.found() == self.PAGES
        assert any_twice.found() == set()

    def test_and_when_it_has_come_back(self, any_twice: Vm) -> None:
        any_twice.migrate()
        any_twice.write(*sorted(self.PAGES))
        region = any_twice.memory.regions["ram"]
        region.enabled = False
        region.enabled = True
        assert any_twice.found() >= self.PAGES
        any_twice.found()
        any_twice.write(RAM.first_page + 131)
        assert any_twice.found() == {RAM.first_page + 131}

    def test_what_was_harvested_and_not_cleared_when_it_went(self, any_vm: Vm) -> None:
        """Taken over, and so not missed: but until it is cleared it is reported again, as by any log."""
        any_vm.migrate()
        any_vm.write(*sorted(self.PAGES))
        any_vm.dirty.sync()
        assert any_vm.dirty.count(MIGRATION, RAM.first_page, RAM.pages) == len(self.PAGES)
        any_vm.memory.regions["ram"].enabled = False
        assert any_vm.found() == self.PAGES
        assert any_vm.found() == set()

    def test_a_clear_before_any_harvest_forgets_nothing(self, any_vm: Vm) -> None:
        any_vm.migrate()
        any_vm.write(*sorted(self.PAGES))
        any_vm.memory.regions["ram"].enabled = False
        any_vm.dirty.clear(0, END)
        assert any_vm.found() == self.PAGES

    def test_a_display_hears_of_it_without_a_migration(self, any_vm: Vm) -> None:
        any_vm.dirty.start_display(VRAM)
        any_vm.drawn(VRAM)
        any_vm.write(VRAM.first_page + 7)
        any_vm.memory.regions["vram"].enabled = False
        assert any_vm.drawn(VRAM) == {VRAM.first_page + 7}
        assert any_vm.drawn(VRAM) == set()

    def test_several_regions_at_once_are_one_change(self, any_twice: Vm) -> None:
        any_twice.migrate()
        any_twice.write(VRAM.first_page + 1, *sorted(self.PAGES))
        with transaction():
            for name in ("ram", "vram"):
                any_twice.memory.regions[name].enabled = False
            assert len(places(any_twice.memory.slots)) == 8
        assert [place[0] for place in places(any_twice.memory.slots)] == ["low", "low"]
        assert any_twice.found() == {VRAM.first_page + 1, *self.PAGES}

    def test_its_counters_stay(self, vm: Vm) -> None:
        vm.migrate()
        vm.write(*sorted(self.PAGES))
        vm.found()
        before = vm.dirty.counters
        vm.memory.regions["ram"].enabled = False
        after = vm.dirty.counters
        assert after.get_calls == before.get_calls + 2  # the last look at each slot
        assert after.clear_calls == before.clear_calls

    def test_a_whole_migration_while_regions_come_and_go(self, any_twice: Vm) -> None:
        """No write is lost over any of it: the copy is memory, byte for byte."""
        vm = any_twice
        sent = {block.name: vm.guest.memory.host(block).words.copy() for block in (RAM, VRAM)}
        bitmap = MigrationBitmap(vm.dirty, clear_policy("deferred", LAYOUT, 6))
        vm.dirty.start()
        bitmap.mark_all()
        regions = [vm.memory.regions[name] for name in ("ram", "vram")]
        for turn in range(24):
            region = regions[turn % 2]
            vm.write(*(RAM.first_page + (turn * 7 + n * 37) % 200 for n in range(5)), VRAM.first_page + turn)
            if turn % 3 == 0:
                bitmap.sync()
            region.enabled = False
            if turn % 4 == 0:
                bitmap.sync()
                self.send(vm, bitmap, sent)
            region.enabled = True
        bitmap.sync()
        self.send(vm, bitmap, sent)
        for block in (RAM, VRAM):
            assert (sent[block.name] == vm.guest.memory.host(block).words).all()

    def send(self, vm: Vm, bitmap: MigrationBitmap, sent: dict[str, Words]) -> None:
        for start, count in bitmap.windows(64):
            for page in bitmap.take(start, count).indexes().tolist():
                block = next(one for one in LAYOUT.blocks if one.first_page <= page < one.end_page)
                if block.name in sent:
                    at = slice((page - block.first_page) * 512, (page - block.first_page + 1) * 512)
                    sent[block.name][at] = vm.guest.memory.host(block).words[at]

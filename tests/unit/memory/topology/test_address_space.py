"""Address spaces and their listeners: what is told, in which order, and when."""

from __future__ import annotations

import threading

import pytest

from precopy.errors import LayoutError
from precopy.memory import (
    NO_CLIENTS,
    AddressSpace,
    DirtyClient,
    FlatRange,
    MemoryRegion,
    RamBlock,
    RamLayout,
    ram_regions,
    smram,
    system_region,
    transaction,
)
from precopy.memory.captures.machines import q35
from precopy.units import RamPage
from support.patience import IN_TIME_S

MIB = 1 << 20


class Diary:
    """Writes down what it is told, and keeps the ranges that there should be."""

    def __init__(self, name: str = "diary", told: list[str] | None = None) -> None:
        self.name = name
        self.told: list[str] = [] if told is None else told
        self.ranges: dict[int, FlatRange] = {}

    def _note(self, what: str) -> None:
        self.told.append(what if self.name == "diary" else f"{self.name}: {what}")

    def region_add(self, added: FlatRange) -> None:
        self._note(f"add {added.region.name} {added.address:#x}-{added.end - 1:#x}")
        assert added.address not in self.ranges
        self.ranges[added.address] = added

    def region_del(self, removed: FlatRange) -> None:
        self._note(f"del {removed.region.name} {removed.address:#x}-{removed.end - 1:#x}")
        assert self.ranges.pop(removed.address) == removed

    def log_start(self, logged: FlatRange, old_mask: DirtyClient, new_mask: DirtyClient) -> None:
        self._note(f"log_start {logged.region.name} {old_mask.value}->{new_mask.value}")
        assert new_mask & ~old_mask
        self._logged(logged, old_mask, new_mask)

    def log_stop(self, logged: FlatRange, old_mask: DirtyClient, new_mask: DirtyClient) -> None:
        self._note(f"log_stop {logged.region.name} {old_mask.value}->{new_mask.value}")
        assert old_mask & ~new_mask
        self._logged(logged, old_mask, new_mask)

    def _logged(self, logged: FlatRange, old_mask: DirtyClient, new_mask: DirtyClient) -> None:
        known = self.ranges[logged.address]
        assert known.same_place(logged)
        assert known.log_mask in (old_mask, new_mask)  # new: where log_start was told before log_stop
        assert logged.log_mask == new_mask
        self.ranges[logged.address] = logged

    def begin(self) -> None:
        self._note("begin")

    def commit(self) -> None:
        self._note("commit")

    def take(self) -> list[str]:
        """What was told since the last time."""
        told, self.told[:] = list(self.told), []
        return told


def block(name: str, first: int = 0, pages: int = 16) -> RamBlock:
    return RamBlock(name, RamPage(first), pages)


@pytest.fixture
def root() -> MemoryRegion:
    return MemoryRegion.container("root", 0x1000)


@pytest.fixture
def diary() -> Diary:
    return Diary()


class TestListeners:
    def test_who_comes_is_told_of_everything_and_who_goes_that_it_is_gone(
        self, root: MemoryRegion, diary: Diary
    ) -> None:
        root.add_subregion(MemoryRegion.io("b", 0x10), 0x20)
        root.add_subregion(MemoryRegion.io("a", 0x10), 0)
        space = AddressSpace("memory", root)
        space.add_listener(diary)
        assert diary.take() == ["begin", "add a 0x0-0xf", "add b 0x20-0x2f", "commit"]
        space.remove_listener(diary)
        assert diary.take() == ["begin", "del a 0x0-0xf", "del b 0x20-0x2f", "commit"]
        root.add_subregion(MemoryRegion.io("c", 1), 0x100)
        assert diary.take() == []

    def test_what_is_gone_comes_before_what_is_new(self, root: MemoryRegion, diary: Diary) -> None:
        root.add_subregion(MemoryRegion.io("below", 0x100), 0)
        space = AddressSpace("memory", root)
        space.add_listener(diary)
        diary.take()
        above = MemoryRegion.io("above", 0x10)
        root.add_subregion(above, 0x40, priority=1)
        assert diary.take() == [
            "begin",
            "del below 0x0-0xff",
            "add below 0x0-0x3f",
            "add above 0x40-0x4f",
            "add below 0x50-0xff",
            "commit",
        ]
        above.address = 0x80
        assert diary.take() == [
            "begin",
            "del below 0x0-0x3f",
            "del above 0x40-0x4f",
            "del below 0x50-0xff",
            "add below 0x0-0x7f",
            "add above 0x80-0x8f",
            "add below 0x90-0xff",
            "commit",
        ]

    def test_what_stays_is_not_told_again(self, root: MemoryRegion, diary: Diary) -> None:
        root.add_subregion(MemoryRegion.io("a", 0x10), 0)
        space = AddressSpace("memory", root)
        space.add_listener(diary)
        diary.take()
        b = MemoryRegion.io("b", 0x10)
        root.add_subregion(b, 0x20)
        assert diary.take() == ["begin", "add b 0x20-0x2f", "commit"]
        b.enabled = False
        assert diary.take() == ["begin", "del b 0x20-0x2f", "commit"]
        b.address = 0x30
        assert diary.take() == []
        b.enabled = True
        assert diary.take() == ["begin", "add b 0x30-0x3f", "commit"]

    def test_a_range_that_becomes_read_only_goes_and_comes(self, root: MemoryRegion, diary: Diary) -> None:
        ram = MemoryRegion.ram("pc.ram", block("pc.ram"))
        root.add_subregion(ram, 0)
        space = AddressSpace("memory", root)
        space.add_listener(diary)
        diary.take()
        ram.readonly = True
        assert diary.take() == ["begin", "del pc.ram 0x0-0xfff", "add pc.ram 0x0-0xfff", "commit"]
        assert diary.ranges[0].readonly
        ram.readonly = True
        assert diary.take() == []

    def test_logging_starts_and_stops_without_the_range_going(self, root: MemoryRegion, diary: Diary) -> None:
        ram = MemoryRegion.ram("vram", block("vram"))
        root.add_subregion(ram, 0)
        space = AddressSpace("memory", root)
        space.add_listener(diary)
        diary.take()
        ram.set_log(DirtyClient.MIGRATION, True)
        assert diary.take() == ["begin", "log_start vram 0->4", "commit"]
        with transaction():
            ram.set_log(DirtyClient.VGA, True)
            ram.set_log(DirtyClient.MIGRATION, False)
        assert diary.take() == ["begin", "log_start vram 4->1", "log_stop vram 4->1", "commit"]
        ram.set_log(DirtyClient.VGA, False)
        assert diary.take() == ["begin", "log_stop vram 1->0", "commit"]
        assert space.view.ranges[0].log_mask is NO_CLIENTS

    def test_a_new_range_brings_its_mask(self, root: MemoryRegion, diary: Diary) -> None:
        ram = MemoryRegion.ram("vram", block("vram"))
        ram.set_log(DirtyClient.VGA, True)
        space = AddressSpace("memory", root)
        space.add_listener(diary)
        diary.take()
        root.add_subregion(ram, 0)
        assert diary.take() == ["begin", "add vram 0x0-0xfff", "commit"]
        assert diary.ranges[0].log_mask is DirtyClient.VGA

    def test_several_listeners_hear_of_what_goes_in_the_opposite_order(self, root: MemoryRegion) -> None:
        told: list[str] = []
        space = AddressSpace("memory", root)
        for name in ("one", "two"):
            space.add_listener(Diary(name, told))
        told.clear()
        device = MemoryRegion.io("a", 1)
        root.add_subregion(device, 0)
        device.address = 1
        assert told == [
            *("one: begin", "two: begin", "one: add a 0x0-0x0", "two: add a 0x0-0x0", "one: commit", "two: commit"),
            *("one: begin", "two: begin", "two: del a 0x0-0x0", "one: del a 0x0-0x0"),
            *("one: add a 0x1-0x1", "two: add a 0x1-0x1", "one: commit", "two: commit"),
        ]

    def test_a_listener_comes_once_and_goes_once(self, root: MemoryRegion, diary: Diary) -> None:
        space = AddressSpace("memory", root)
        with pytest.raises(LayoutError, match="'diary' does not listen to address space 'memory'"):
            space.remove_listener(diary)
        space.add_listener(diary)
        with pytest.raises(LayoutError, match="'diary' listens to address space 'memory' already"):
            space.add_listener(diary)

    def test_closing_takes_everything_back_and_follows_no_more(self, root: MemoryRegion, diary: Diary) -> None:
        root.add_subregion(MemoryRegion.io("a", 1), 0)
        space = AddressSpace("memory", root)
        space.add_listener(diary)
        space.close()
        space.close()
        assert diary.ranges == {}
        root.add_subregion(MemoryRegion.io("b", 1), 8)
        assert [one.region.name for one in space.view] == ["a"]


class TestTransactions:
    def test_many_changes_are_one_update(self, root: MemoryRegion, diary: Diary) -> None:
        space = AddressSpace("memory", root)
        space.add_listener(diary)
        diary.take()
        with transaction():
            device = MemoryRegion.io("a", 1)
            root.add_subregion(device, 0)
            with transaction():
                device.address = 5
            assert len(space.view) == 0
            device.address = 7
        assert diary.take() == ["begin", "add a 0x7-0x7", "commit"]

    def test_changes_that_cancel_out_are_none(self, root: MemoryRegion, diary: Diary) -> None:
        device = MemoryRegion.io("a", 1)
        root.add_subregion(device, 0)
        space = AddressSpace("memory", root)
        space.add_listener(diary)
        diary.take()
        with transaction():
            device.address = 4
            device.address = 0
        assert diary.take() == []

    def test_what_was_changed_before_an_error_is_told(self, root: MemoryRegion, diary: Diary) -> None:
        space = AddressSpace("memory", root)
        space.add_listener(diary)
        diary.take()

        def change() -> None:
            with transaction():
                root.add_subregion(MemoryRegion.io("a", 1), 0)
                root.add_subregion(MemoryRegion.io("b", 1), -1)

        with pytest.raises(LayoutError):
            change()
        assert diary.take() == ["begin", "add a 0x0-0x0", "commit"]
        root.add_subregion(MemoryRegion.io("c", 1), 1)
        assert diary.take() == ["begin", "add c 0x1-0x1", "commit"]

    def test_a_listener_that_changes_regions_is_told_afterwards(self, root: MemoryRegion) -> None:
        class Changing(Diary):
            def region_add(self, added: FlatRange) -> None:
                super().region_add(added)
                if added.region.name == "a":
                    root.add_subregion(MemoryRegion.io("shadow", 1), 0x80)

        changing = Changing()
        space = AddressSpace("memory", root)
        space.add_listener(changing)
        changing.take()
        root.add_subregion(MemoryRegion.io("a", 1), 0)
        assert changing.take() == ["begin", "add a 0x0-0x0", "commit", "begin", "add shadow 0x80-0x80", "commit"]

    def test_one_space_that_fails_does_not_leave_another_behind(self, root: MemoryRegion, diary: Diary) -> None:
        class Failing(Diary):
            def region_add(self, added: FlatRange) -> None:
                raise LayoutError(f"no room for {added.region.name}")

        first, second = AddressSpace("first", root), AddressSpace("second", root)
        first.add_listener(Failing())
        second.add_listener(diary)
        diary.take()
        with pytest.raises(LayoutError, match="no room for a"):
            root.add_subregion(MemoryRegion.io("a", 1), 0)
        assert diary.take() == ["begin", "add a 0x0-0x0", "commit"]
        assert first.view == second.view

    def test_another_threads_transaction_does_not_hold_up_this_one(self, root: MemoryRegion) -> None:
        space = AddressSpace("memory", root)
        entered, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction():
                entered.set()
                leave.wait(IN_TIME_S)

        thread = threading.Thread(target=hold)
        thread.start()
        try:
            assert entered.wait(IN_TIME_S)
            root.add_subregion(MemoryRegion.io("a", 1), 0)
            assert len(space.view) == 1
        finally:
            leave.set()
            thread.join()


class TestWhoSeesWhat:
    def test_a_change_reaches_spaces_through_containers_and_aliases(self) -> None:
        ram = MemoryRegion.ram("pc.ram", block("pc.ram"))
        bus, system = MemoryRegion.container("bus", 0x10000), MemoryRegion.container("system")
        bus.add_subregion(MemoryRegion.alias("window", ram, 0, 0x2000), 0x1000)
        system.add_subregion(MemoryRegion.alias("bus window", bus, 0, 0x10000), 0x100000)
        spaces = [
            AddressSpace("cpu", system),
            AddressSpace("dma", bus),
            AddressSpace("other", MemoryRegion.io("io", 8)),
        ]
        diaries = [Diary() for _ in spaces]
        for space, diary in zip(spaces, diaries, strict=True):
            space.add_listener(diary)
            diary.take()
        ram.set_log(DirtyClient.MIGRATION, True)
        assert [diary.take() for diary in diaries] == [
            ["begin", "log_start pc.ram 0->4", "commit"],
            ["begin", "log_start pc.ram 0->4", "commit"],
            [],
        ]

    def test_kvm_sees_memory_twice(self) -> None:
        system = system_region(q35(64 * MIB))
        memory = AddressSpace("memory", system)
        smm = smram(system)
        assert (smm.name, smm.root.name) == ("KVM-SMRAM", "mem-container-smram")
        assert smm.view == memory.view
        assert len(smm.view) >= 10
        diaries = Diary(), Diary()
        memory.add_listener(diaries[0])
        smm.add_listener(diaries[1])
        for diary in diaries:
            diary.take()
        system.add_subregion(MemoryRegion.io("device", 0x1000), 1 << 40)
        assert [diary.take() for diary in diaries] == [
            ["begin", "add device 0x10000000000-0x10000000fff", "commit"]
        ] * 2

    def test_smram_lies_above_memory(self) -> None:
        system = system_region(q35(64 * MIB))
        own = MemoryRegion.container("smram")
        own.add_subregion(MemoryRegion.ram("smram-low", block("smm", 1 << 30, 32)), 0xA0000)
        space = smram(system, own)
        seen = {at: one.region.name for at in (0x9FFFF, 0xA0000, 0xBFFFF, 0x100000) if (one := space.view.lookup(at))}
        assert seen == {0x9FFFF: "pc.ram", 0xA0000: "smram-low", 0xBFFFF: "smram-low", 0x100000: "pc.ram"}
        assert AddressSpace("memory", system).view.lookup(0xA0000) is None
        assert own.priority == 10
        with pytest.raises(LayoutError, match="'smram' is in 'mem-container-smram' already"):
            smram(system, own)


class TestSystemRegion:
    @pytest.mark.parametrize("ram", [2 * MIB, 64 * MIB, 4096 * MIB])
    def test_its_view_has_the_layouts_sections(self, ram: int) -> None:
        layout = q35(ram)
        system = system_region(layout)
        view = AddressSpace("memory", system).view
        assert view.sections == tuple(sorted(layout.sections, key=lambda section: section.gpa))
        assert {one.kind for one in view} == {"ram"}
        assert (system.name, system.size) == ("system", 1 << 64)

    def test_ram_regions_are_there_once_a_block_and_take_a_log(self) -> None:
        layout = q35(4096 * MIB)
        system = system_region(layout)
        regions = ram_regions(system)
        assert tuple(region.block for region in regions) == layout.blocks
        space = AddressSpace("memory", system)
        with transaction():
            for region in regions:
                region.set_log(DirtyClient.MIGRATION, True)
        assert {one.log_mask for one in space.view} == {DirtyClient.MIGRATION}

    def test_an_unmapped_block_has_no_region(self) -> None:
        layout = RamLayout.of_blocks([("a", 4096), ("b", 4096)]).mapped([("b", 0, 4096, 0)])
        assert [region.name for region in ram_regions(system_region(layout))] == ["b"]

    def test_other_page_sizes_are_refused(self) -> None:
        with pytest.raises(LayoutError, match="the layout's have 16384"):
            system_region(RamLayout.of_blocks([("a", 16384)], 16384))

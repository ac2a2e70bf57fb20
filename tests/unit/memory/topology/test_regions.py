"""Memory regions one by one: who covers whom, what is handed down, what cannot be meant, and what a view shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from precopy.errors import LayoutError
from precopy.memory import (
    ALL_CLIENTS,
    NO_CLIENTS,
    DirtyClient,
    FlatRange,
    MemoryRegion,
    RamBlock,
    RegionKind,
    Section,
    render,
)
from precopy.memory.topology import flat_view as flat_view_module
from precopy.memory.topology.region import MAX_SIZE
from precopy.units import GuestPhysicalAddress, RamPage

PAGE = 4096


def block(name: str = "pc.ram", first: int = 0, pages: int = 16) -> RamBlock:
    return RamBlock(name, RamPage(first), pages)


def drawn(root: MemoryRegion) -> list[tuple[int, int, str, int]]:
    """(start, end, region, offset) of each range."""
    return [(one.address, one.end, one.region.name, one.offset) for one in render(root)]


@pytest.fixture
def root() -> MemoryRegion:
    return MemoryRegion.container("root", 0x1000)


class TestOverlap:
    def test_the_higher_priority_covers_and_the_lower_shows_on_both_sides(self, root: MemoryRegion) -> None:
        root.add_subregion(MemoryRegion.io("above", 0x10), 0x20, priority=1)
        root.add_subregion(MemoryRegion.io("below", 0x40), 0x10)
        assert drawn(root) == [
            (0x10, 0x20, "below", 0),
            (0x20, 0x30, "above", 0),
            (0x30, 0x50, "below", 0x20),
        ]

    def test_of_equal_priorities_the_later_covers(self, root: MemoryRegion) -> None:
        first, second = MemoryRegion.io("first", 0x20), MemoryRegion.io("second", 0x20)
        root.add_subregion(first, 0)
        root.add_subregion(second, 0x10)
        assert drawn(root) == [(0, 0x10, "first", 0), (0x10, 0x30, "second", 0)]
        assert root.subregions == (second, first)

    def test_a_region_that_is_moved_covers_its_equals(self, root: MemoryRegion) -> None:
        first, second = MemoryRegion.io("first", 0x20), MemoryRegion.io("second", 0x20)
        root.add_subregion(first, 0)
        root.add_subregion(second, 0x10)
        first.address = 8
        assert drawn(root) == [(8, 0x28, "first", 0), (0x28, 0x30, "second", 0x18)]

    def test_a_negative_priority_lies_below_zero(self, root: MemoryRegion) -> None:
        root.add_subregion(MemoryRegion.io("zero", 0x10), 0)
        root.add_subregion(MemoryRegion.io("low", 0x20), 0, priority=-1)
        assert drawn(root) == [(0, 0x10, "zero", 0), (0x10, 0x20, "low", 0x10)]

    def test_priorities_count_only_within_a_container(self, root: MemoryRegion) -> None:
        inner = MemoryRegion.container("inner", 0x20)
        inner.add_subregion(MemoryRegion.io("high inside", 0x20), 0, priority=100)
        root.add_subregion(inner, 0)
        root.add_subregion(MemoryRegion.io("one", 8), 8, priority=1)
        assert drawn(root) == [(0, 8, "high inside", 0), (8, 0x10, "one", 0), (0x10, 0x20, "high inside", 0x10)]

    def test_single_bytes(self, root: MemoryRegion) -> None:
        root.add_subregion(MemoryRegion.io("below", 4), 0)
        for at in (0, 2):
            root.add_subregion(MemoryRegion.io(f"port {at}", 1), at)
        assert drawn(root) == [(0, 1, "port 0", 0), (1, 2, "below", 1), (2, 3, "port 2", 0), (3, 4, "below", 3)]

    def test_an_empty_container_covers_nothing(self, root: MemoryRegion) -> None:
        root.add_subregion(MemoryRegion.container("empty", 0x100), 0, priority=5)
        root.add_subregion(MemoryRegion.io("seen", 0x10), 0)
        assert drawn(root) == [(0, 0x10, "seen", 0)]

    def test_a_device_shows_through_the_gaps_of_what_stands_in_it(self) -> None:
        ports = MemoryRegion.io("io", 0x10000)
        ports.add_subregion(MemoryRegion.io("dma-chan", 8), 0)
        ports.add_subregion(MemoryRegion.io("kvm-pic", 2), 0x20)
        assert drawn(ports) == [
            (0, 8, "dma-chan", 0),
            (8, 0x20, "io", 8),
            (0x20, 0x22, "kvm-pic", 0),
            (0x22, 0x10000, "io", 0x22),
        ]

    def test_nothing_shows_beyond_its_container(self, root: MemoryRegion) -> None:
        inner = MemoryRegion.container("inner", 0x20)
        inner.add_subregion(MemoryRegion.io("long", 0x100), 0x10)
        inner.add_subregion(MemoryRegion.io("outside", 0x10), 0x20)
        root.add_subregion(inner, 0x100)
        assert drawn(root) == [(0x110, 0x120, "long", 0)]

    def test_a_disabled_region_shows_nothing_of_what_stands_in_it(self, root: MemoryRegion) -> None:
        inner = MemoryRegion.container("inner", 0x20)
        inner.add_subregion(MemoryRegion.io("device", 0x10), 0)
        root.add_subregion(inner, 0)
        inner.enabled = False
        assert drawn(root) == []
        inner.enabled = True
        assert drawn(root) == [(0, 0x10, "device", 0)]
        root.enabled = False
        assert drawn(root) == []


class TestAliases:
    def test_an_alias_shows_a_part_at_another_place(self, root: MemoryRegion) -> None:
        ram = MemoryRegion.ram("pc.ram", block())
        root.add_subregion(MemoryRegion.alias("low", ram, 0x2000, 0x800), 0x100)
        assert drawn(root) == [(0x100, 0x900, "pc.ram", 0x2000)]

    def test_what_lies_beyond_the_target_shows_nothing(self, root: MemoryRegion) -> None:
        device = MemoryRegion.io("device", 0x10)
        root.add_subregion(MemoryRegion.alias("end", device, 8, 0x100), 0)
        root.add_subregion(MemoryRegion.alias("none", device, 0x10, 0x100), 0x200)
        assert drawn(root) == [(0, 8, "device", 8)]

    def test_the_targets_own_place_does_not_matter_but_whether_it_is_enabled_does(self, root: MemoryRegion) -> None:
        device, elsewhere = MemoryRegion.io("device", 0x10), MemoryRegion.container("elsewhere", 0x1000)
        elsewhere.add_subregion(device, 0x777)
        elsewhere.enabled = False
        root.add_subregion(MemoryRegion.alias("alias", device, 0, 0x10), 0x20)
        assert drawn(root) == [(0x20, 0x30, "device", 0)]
        device.enabled = False
        assert drawn(root) == []

    def test_an_alias_of_an_alias_of_a_container(self, root: MemoryRegion) -> None:
        bus = MemoryRegion.container("bus", 0x100)
        bus.add_subregion(MemoryRegion.io("a", 0x10), 0x10)
        bus.add_subregion(MemoryRegion.io("b", 0x10), 0x30)
        window = MemoryRegion.alias("window", bus, 0x18, 0x20)
        root.add_subregion(MemoryRegion.alias("window of it", window, 4, 0x1C), 0x200)
        assert drawn(root) == [(0x200, 0x204, "a", 0xC), (0x214, 0x21C, "b", 0)]

    def test_one_region_may_be_seen_many_times(self, root: MemoryRegion) -> None:
        device = MemoryRegion.io("device", 0x10)
        for at in (0, 0x10, 0x40):
            root.add_subregion(MemoryRegion.alias(f"at {at}", device, 0, 0x10), at)
        assert drawn(root) == [(0, 0x10, "device", 0), (0x10, 0x20, "device", 0), (0x40, 0x50, "device", 0)]

    def test_neighbours_with_consecutive_offsets_are_one_range(self, root: MemoryRegion) -> None:
        device = MemoryRegion.io("device", 0x30)
        for at in (0x10, 0x20, 0):
            root.add_subregion(MemoryRegion.alias(f"part {at}", device, at, 0x10), 0x100 + at)
        assert drawn(root) == [(0x100, 0x130, "device", 0)]

    def test_neighbours_that_differ_are_not(self, root: MemoryRegion) -> None:
        device = MemoryRegion.io("device", 0x20)
        first, second = (MemoryRegion.alias(f"part {at}", device, at, 0x10) for at in (0, 0x10))
        root.add_subregion(first, 0)
        root.add_subregion(second, 0x10)
        second.readonly = True
        assert [(one.end, one.kind) for one in render(root)] == [(0x10, "i/o"), (0x20, "rom")]

    @pytest.mark.parametrize(
        "different",
        [{"readonly": True}, {"romd_mode": True}, {"nonvolatile": True}, {"log_mask": DirtyClient.VGA},
         {"offset": 0x11}, {"address": GuestPhysicalAddress(0x11)}, {"region": MemoryRegion.io("another", 0x20)}],
        ids=lambda different: next(iter(different)),
    )  # fmt: skip
    def test_only_what_is_equal_but_for_its_place_goes_on(self, different: dict[str, object]) -> None:
        device = MemoryRegion.io("device", 0x20)
        first = FlatRange(GuestPhysicalAddress(0), 0x10, device, 0)
        second = FlatRange(GuestPhysicalAddress(0x10), 0x10, device, 0x10)
        assert second.continues(first)
        assert not first.continues(second)
        assert not replace(second, **different).continues(first)  # type: ignore[arg-type]
        assert second.same_place(second)
        assert replace(second, **different).same_place(second) == (set(different) == {"log_mask"})  # type: ignore[arg-type]

    def test_all_64_bits_can_be_seen(self) -> None:
        root = MemoryRegion.container("root")
        root.add_subregion(MemoryRegion.io("last", 0x10), MAX_SIZE - 8)
        assert drawn(root) == [(MAX_SIZE - 8, MAX_SIZE, "last", 0)]

    def test_aliases_that_nobody_holds_do_not_stay(self) -> None:
        ram = MemoryRegion.ram("pc.ram", block())
        MemoryRegion.alias("gone", ram, 0, PAGE)
        kept = MemoryRegion.alias("kept", ram, 0, PAGE)
        assert list(ram._aliases or ()) == [kept]


class TestAttributes:
    def test_read_only_is_handed_down_to_ram(self, root: MemoryRegion) -> None:
        ram = MemoryRegion.ram("pc.ram", block())
        shadow = MemoryRegion.alias("pam-rom", ram, 0, 0x800)
        shadow.readonly = True
        root.add_subregion(shadow, 0)
        root.add_subregion(MemoryRegion.alias("rest", ram, 0x800, 0x800), 0x800)
        assert [(one.address, one.readonly, one.kind) for one in render(root)] == [
            (0, True, "rom"),
            (0x800, False, "ram"),
        ]
        root.readonly = True
        assert [(one.address, one.size, one.kind) for one in render(root)] == [(0, 0x1000, "rom")]

    def test_nonvolatile_is_handed_down(self, root: MemoryRegion) -> None:
        root.add_subregion(MemoryRegion.ram("nvdimm", block()), 0)
        assert [one.nonvolatile for one in render(root)] == [False]
        root.nonvolatile = True
        assert [one.nonvolatile for one in render(root)] == [True]

    def test_kinds_are_what_the_monitor_calls_them(self, root: MemoryRegion) -> None:
        flash = MemoryRegion.rom_device("flash", block(pages=1))
        for at, region in enumerate(
            (MemoryRegion.ram("ram", block(pages=1)), MemoryRegion.rom("rom", block(pages=1)), flash)
        ):
            root.add_subregion(MemoryRegion.alias(region.name, region, 0, 0x10), 0x10 * at)
        root.add_subregion(MemoryRegion.io("device", 0x10), 0x30)
        assert [one.kind for one in render(root)] == ["ram", "rom", "romd", "i/o"]
        assert flash.romd_mode
        flash.romd_mode = False
        assert [one.kind for one in render(root)] == ["ram", "rom", "i/o", "i/o"]

    def test_a_range_stays_as_it_was_drawn(self) -> None:
        flash = MemoryRegion.rom_device("flash", block())
        (before,) = render(flash)
        flash.romd_mode = False
        (after,) = render(flash)
        assert (before.kind, after.kind) == ("romd", "i/o")
        assert before.section is not None
        assert after.section is None

    def test_a_log_mask_is_a_set_of_clients(self) -> None:
        ram = MemoryRegion.ram("pc.ram", block())
        assert ram.log_mask is NO_CLIENTS
        ram.set_log(DirtyClient.VGA, True)
        ram.set_log(DirtyClient.MIGRATION | DirtyClient.CODE, True)
        ram.set_log(DirtyClient.VGA, True)
        assert ram.log_mask == ALL_CLIENTS
        ram.set_log(DirtyClient.VGA, False)
        assert ram.log_mask == DirtyClient.MIGRATION | DirtyClient.CODE
        assert [one.log_mask for one in render(ram)] == [DirtyClient.MIGRATION | DirtyClient.CODE]

    def test_an_alias_logs_its_target_wherever_it_is_seen(self, root: MemoryRegion) -> None:
        ram = MemoryRegion.ram("vga.vram", block())
        alias = MemoryRegion.alias("window", MemoryRegion.alias("inner", ram, 0, 0x200), 0, 0x100)
        root.add_subregion(alias, 0)
        root.add_subregion(MemoryRegion.alias("other", ram, 0, 0x100), 0x400)
        alias.set_log(DirtyClient.VGA, True)
        assert (ram.log_mask, alias.log_mask) == (DirtyClient.VGA, DirtyClient.VGA)
        assert [one.log_mask for one in render(root)] == [DirtyClient.VGA] * 2

    def test_bits_are_qemus(self) -> None:
        assert [client.value for client in (DirtyClient.VGA, DirtyClient.CODE, DirtyClient.MIGRATION)] == [1, 2, 4]

    def test_what_a_region_is(self) -> None:
        of = block(pages=3)
        ram = MemoryRegion.ram("pc.ram", of)
        assert (ram.kind, ram.size, ram.block, ram.target) == (RegionKind.RAM, 3 * PAGE, of, None)
        assert repr(ram) == "<MemoryRegion 'pc.ram', RAM, 0x3000 bytes>"
        assert MemoryRegion.container("system").size == 1 << 64
        assert MemoryRegion.rom("rom", of).readonly
        assert not MemoryRegion.io("device", 1).romd_mode


class TestWhatCannotBeMeant:
    def test_a_region_in_two_containers_or_twice_in_one(self, root: MemoryRegion) -> None:
        device = MemoryRegion.io("device", 0x10)
        root.add_subregion(device, 0)
        for container in (root, MemoryRegion.container("other", 0x100)):
            with pytest.raises(LayoutError, match="'device' is in 'root' already"):
                container.add_subregion(device, 0x20)
        assert drawn(root) == [(0, 0x10, "device", 0)]

    def test_no_region_stands_in_itself(self, root: MemoryRegion) -> None:
        inner = MemoryRegion.container("inner", 0x100)
        root.add_subregion(inner, 0)
        with pytest.raises(LayoutError, match="'root' cannot stand in 'root'"):
            root.add_subregion(root, 0)
        with pytest.raises(LayoutError, match="'root' cannot stand in 'inner'"):
            inner.add_subregion(root, 0)
        assert root.parent is None

    def test_not_even_by_way_of_aliases(self, root: MemoryRegion) -> None:
        inner = MemoryRegion.container("inner", 0x100)
        root.add_subregion(inner, 0)
        mirror = MemoryRegion.alias("mirror of mirror", MemoryRegion.alias("mirror", root, 0, 0x1000), 0, 0x100)
        holder = MemoryRegion.container("holder", 0x100)
        holder.add_subregion(mirror, 0)
        with pytest.raises(LayoutError, match="'holder' cannot stand in 'inner'"):
            inner.add_subregion(holder, 0)
        assert drawn(root) == []

    def test_an_alias_holds_nothing(self) -> None:
        alias = MemoryRegion.alias("alias", MemoryRegion.container("target"), 0, 0x100)
        with pytest.raises(LayoutError, match="the alias 'alias' cannot hold 'device'"):
            alias.add_subregion(MemoryRegion.io("device", 1), 0)

    @pytest.mark.parametrize("size", [-1, MAX_SIZE + 1])
    def test_sizes(self, size: int) -> None:
        target = MemoryRegion.container("target")
        for make in (
            MemoryRegion.io,
            MemoryRegion.container,
            lambda name, size: MemoryRegion.alias(name, target, 0, size),
        ):
            with pytest.raises(LayoutError, match=f"'odd' has {size} bytes"):
                make("odd", size)

    def test_a_region_of_no_bytes_shows_nothing(self, root: MemoryRegion) -> None:
        root.add_subregion(MemoryRegion.io("none", 0), 0x10)
        assert drawn(root) == []

    @pytest.mark.parametrize("at", [-1, MAX_SIZE])
    def test_addresses_and_offsets(self, root: MemoryRegion, at: int) -> None:
        device = MemoryRegion.io("device", 1)
        with pytest.raises(LayoutError, match="'device' cannot begin at"):
            root.add_subregion(device, at)
        assert device.parent is None
        with pytest.raises(LayoutError, match="is no offset"):
            MemoryRegion.alias("alias", device, at, 1)
        root.add_subregion(device, 5)
        with pytest.raises(LayoutError, match="'device' cannot begin at"):
            device.address = at
        assert drawn(root) == [(5, 6, "device", 0)]

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda io, _: setattr(io, "romd_mode", True), "no ROM device"),
            (lambda io, _: setattr(io, "address", 1), "in no container"),
            (lambda io, _: io.set_log(DirtyClient.VGA, True), "no RAM block"),
            (lambda io, _: MemoryRegion.alias("a", io, 0, 1).set_log(DirtyClient.VGA, True), "no RAM block"),
            (lambda _, rom: setattr(rom, "readonly", False), "stays read-only"),
        ],
    )
    def test_what_a_kind_does_not_have(self, change: Callable[[MemoryRegion, MemoryRegion], None], says: str) -> None:
        with pytest.raises(LayoutError, match=says):
            change(MemoryRegion.io("device", 1), MemoryRegion.rom("rom", block()))

    def test_kinds_with_too_little_or_too_much_behind_them(self) -> None:
        for kind in (RegionKind.RAM, RegionKind.ROM, RegionKind.ROM_DEVICE, RegionKind.ALIAS):
            with pytest.raises(LayoutError, match="lacks what is behind it"):
                MemoryRegion(kind, "bare", 0x1000)
        with pytest.raises(LayoutError, match="or has too much"):
            MemoryRegion(RegionKind.IO, "device", 0x1000, block=block())

    def test_more_ranges_than_a_view_may_have(self, root: MemoryRegion, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flat_view_module, "MAX_RANGES", 3)
        for at in range(3):
            root.add_subregion(MemoryRegion.io(f"device {at}", 1), 2 * at)
        assert len(render(root)) == 3
        root.add_subregion(MemoryRegion.io("one more", 1), 100)
        with pytest.raises(LayoutError, match="more than 3 ranges"):
            render(root)

    def test_a_tree_may_be_deeper_than_pythons_stack(self) -> None:
        region = MemoryRegion.io("deep", 0x10)
        for level in range(1500):
            outer = MemoryRegion.container(f"level {level}", 0x10)
            outer.add_subregion(region, 0)
            region = outer
        assert drawn(region) == [(0, 0x10, "deep", 0)]


class TestSections:
    @pytest.mark.parametrize(
        ("address", "size", "offset", "expected"),
        [
            (0x10000, 4 * PAGE, 0, (0, 4, 0x10000)),
            (0x10000, 4 * PAGE, 2 * PAGE, (2, 4, 0x10000)),
            (0x10000, 4 * PAGE - 1, 0, (0, 3, 0x10000)),
            (0x10001, 2 * PAGE, 1, (1, 1, 0x11000)),
            (0x10FFF, 2 * PAGE + 2, PAGE - 1, (1, 2, 0x11000)),
            (0x10FFF, PAGE + 1, PAGE - 1, (1, 1, 0x11000)),
            (0x10FFF, PAGE, PAGE - 1, None),
            (0x10000, PAGE - 1, 0, None),
            (0x10000, 1, 0, None),
            (0x10000, 4 * PAGE, 1, None),
            (0x10001, 4 * PAGE, 0, None),
        ],
    )
    def test_whole_pages(self, address: int, size: int, offset: int, expected: tuple[int, int, int] | None) -> None:
        ram = MemoryRegion.ram("pc.ram", block())
        one = FlatRange(GuestPhysicalAddress(address), size, ram, offset)
        found = one.section
        assert (found and (found.offset, found.pages, found.gpa)) == expected
        assert found is None or found.block is ram.block

    def test_only_memory_that_is_read_straight_has_sections(self, root: MemoryRegion) -> None:
        flash = MemoryRegion.rom_device("flash", block("flash", 64, 1))
        root = MemoryRegion.container("root")
        root.add_subregion(MemoryRegion.ram("ram", block("ram", 0, 2)), 0)
        root.add_subregion(MemoryRegion.rom("rom", block("rom", 128, 1)), 0x4000)
        root.add_subregion(flash, 0x6000)
        root.add_subregion(MemoryRegion.io("device", PAGE), 0x8000)
        of = [("ram", 2, 0), ("rom", 1, 0x4000), ("flash", 1, 0x6000)]
        assert [(one.block.name, one.pages, one.gpa) for one in render(root).sections] == of
        flash.romd_mode = False
        assert [(one.block.name, one.pages, one.gpa) for one in render(root).sections] == of[:2]

    def test_lookup(self, root: MemoryRegion) -> None:
        root.add_subregion(MemoryRegion.io("a", 0x10), 0x10)
        root.add_subregion(MemoryRegion.io("b", 0x10), 0x20)
        root.add_subregion(MemoryRegion.io("c", 0x10), 0x40)
        view = render(root)
        found = {at: (one.region.name if (one := view.lookup(at)) else None) for at in (0, 0xF, 0x10, 0x1F, 0x20, 0x2F)}
        assert found == {0: None, 0xF: None, 0x10: "a", 0x1F: "a", 0x20: "b", 0x2F: "b"}
        assert [view.lookup(at) is None for at in (0x30, 0x3F, 0x40, 0x4F, 0x50, -1)] == [
            True,
            True,
            False,
            False,
            True,
            True,
        ]

    def test_a_section_is_a_layouts(self) -> None:
        of = block()
        assert render(MemoryRegion.ram("pc.ram", of)).sections == (Section(of, 0, 16, GuestPhysicalAddress(0)),)

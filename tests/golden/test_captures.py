"""What QEMU 7.2 showed of three real machines: read, rebuilt, written back byte for byte; and the layouts they give."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from precopy import memory
from precopy.cli.layout import layout as layout_command
from precopy.errors import LayoutError, UsageError
from precopy.memory import CAPTURES, AddressSpace, Capture, RamLayout, ram_regions, system_region
from precopy.memory.captures.capture import captures_in
from precopy.memory.captures.machines import q35
from precopy.memory.captures.mtree import MtreeRange, MtreeSpace, MtreeView, format_mtree, parse_mtree
from precopy.memory.captures.ramblock import RamblockRow, format_ramblock
from precopy.memory.captures.rebuild import mtree_ranges

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
SHIPPED = Path(memory.__file__).parent / "captures"
SEABIOS, CIRRUS, SMM = "pc-seabios-512m", "q35-ovmf-512m-cirrus", "q35-ovmf-smm-4g-net"


def text_of(name: str, file: str) -> str:
    return (SHIPPED / name / file).read_bytes().decode()


def mapped(layout: RamLayout) -> list[tuple[str, int, int, int]]:
    """(block, offset in it, pages, gpa) of each section; offsets and gpas in bytes."""
    return [(one.block.name, one.offset * PAGE, one.pages, one.gpa) for one in layout.sections]


def test_three_captures_ship() -> None:
    assert CAPTURES == (SEABIOS, CIRRUS, SMM)
    with pytest.raises(
        UsageError, match="'nope'; there are pc-seabios-512m, q35-ovmf-512m-cirrus, q35-ovmf-smm-4g-net"
    ):
        Capture.named("nope")


def test_where_python_keeps_its_bytecode_is_no_capture(tmp_path: Path) -> None:
    Capture.named(SEABIOS).write(tmp_path / SEABIOS)
    (tmp_path / "__pycache__").mkdir()
    assert captures_in(tmp_path) == (SEABIOS,)


@pytest.mark.parametrize("name", CAPTURES)
class TestRoundTrip:
    def test_text_to_records_to_text(self, name: str) -> None:
        capture = Capture.named(name)
        assert format_ramblock(capture.blocks) == text_of(name, "ramblock.txt")
        assert format_mtree(capture.views) == text_of(name, "mtree-flat.txt")
        assert capture.command == text_of(name, "command.txt")

    def test_records_to_files_to_records(self, name: str, tmp_path: Path) -> None:
        capture = Capture.named(name)
        there = tmp_path / "new" / name
        capture.write(there)
        assert Capture.read(there) == capture
        assert sorted(path.name for path in there.iterdir()) == ["command.txt", "mtree-flat.txt", "ramblock.txt"]
        for path in there.iterdir():
            assert path.read_bytes() == (SHIPPED / name / path.name).read_bytes()

    def test_text_to_regions_to_text(self, name: str) -> None:
        """Everything but a view's number and the names is written from address spaces and what they render."""
        capture = Capture.named(name)
        spaces = list(capture.regions())
        accel = "KVM" if " KVM\n" in text_of(name, "mtree-flat.txt") else None
        views: list[MtreeView] = []
        for view in capture.views:
            of_view = [spaces.pop(0) for _ in view.address_spaces]
            names = tuple(MtreeSpace(space.name, space.root.name) for space in of_view)
            (ranges,) = {mtree_ranges(space.view, accel) for space in of_view}
            views.append(MtreeView(view.number, names, view.root, ranges))
        assert spaces == []
        assert format_mtree(views) == text_of(name, "mtree-flat.txt")

    def test_memory_is_the_same_regions_in_every_view(self, name: str) -> None:
        spaces = {space.name: space for space in Capture.named(name).regions()}
        views = [space for space in spaces.values() if space.name == "memory" or space.name.startswith("cpu-")]
        assert len(views) >= 2
        assert len({ram_regions(space.root) for space in views}) == 1


class TestRebuilding:
    def test_address_spaces_with_one_root_share_it_and_devices_have_their_own(self) -> None:
        spaces = {space.name: space for space in Capture.named(SEABIOS).regions()}
        assert list(spaces) == [
            *("memory", "cpu-memory-0", "I/O", "i440FX", "PIIX3", "VGA", "piix3-ide", "PIIX4_PM"),
        ]
        assert spaces["memory"].root is spaces["cpu-memory-0"].root
        assert spaces["PIIX3"].root is not spaces["VGA"].root
        assert len(spaces["VGA"].view) == 0

    def test_a_change_of_a_region_is_seen_in_every_view(self) -> None:
        spaces = {space.name: space for space in Capture.named(SMM).regions()}
        flash = next(region for region in ram_regions(spaces["memory"].root) if region.name == "system.flash0")
        flash.romd_mode = False
        for name in ("memory", "cpu-memory-3", "cpu-smm-2"):
            last = spaces[name].view.lookup(0xFFFFFFF0)
            assert last is not None
            assert (last.kind, last.section) == ("i/o", None)

    def test_what_the_monitor_says_of_a_machine_with_shadowed_ram(self) -> None:
        """RAM that PAM registers make read-only in one place, nonvolatile RAM, and a root that is an alias."""
        blocks = (RamblockRow("pc.ram", PAGE, 0, 2 * MIB, 2 * MIB), RamblockRow("nv", PAGE, 2 * MIB, PAGE, PAGE))
        ranges = (
            MtreeRange(0, 0xBFFFF, 0, "ram", "pc.ram"),
            MtreeRange(0xC0000, 0xFFFFF, 0, "rom", "pc.ram", 0xC0000),
            MtreeRange(0x100000, 0x1FFFFF, 0, "ram", "pc.ram", 0x100000),
            MtreeRange(0x200000, 0x200FFF, 3, "ram", "nv", nonvolatile=True),
        )
        names = (MtreeSpace("memory", "system"), MtreeSpace("dma", "bus master", "system"), MtreeSpace("x", "above"))
        capture = Capture("made up", blocks, (MtreeView(0, names, "system", ranges),))
        spaces = capture.regions()
        assert [mtree_ranges(space.view) for space in spaces] == [ranges] * 3
        assert [space.root.name for space in spaces] == ["system", "bus master", "above"]
        assert spaces[1].root.target is spaces[0].root
        assert len(mapped(capture.layout())) == 4

    @pytest.mark.parametrize(
        ("names", "region", "says"),
        [
            (["a"], "b", "no RAM block is behind the memory region 'b'"),
            (["a"], "ram", "no RAM block"),
            (["a"], "", "no RAM block"),
        ],
    )
    def test_memory_without_its_block(self, names: list[str], region: str, says: str) -> None:
        blocks = tuple(RamblockRow(name, PAGE, n << 18, PAGE, PAGE) for n, name in enumerate(names))
        view = MtreeView(0, (MtreeSpace("memory", "system"),), "system", (MtreeRange(0, 0xFFF, 0, "ram", region),))
        for build in (Capture("x", blocks, (view,)).regions, Capture("x", blocks, (view,)).layout):
            with pytest.raises(LayoutError, match=says):
                build()

    def test_a_name_of_its_own_goes_before_one_behind_a_path(self) -> None:
        blocks = tuple(
            RamblockRow(name, PAGE, n << 18, PAGE, PAGE) for n, name in enumerate(["dev/ram", "ram", "bus/ram"])
        )
        view = MtreeView(0, (MtreeSpace("memory", "system"),), "system", (MtreeRange(0, 0xFFF, 0, "ram", "ram"),))
        assert mapped(Capture("x", blocks, (view,)).layout()) == [("ram", 0, 1, 0)]

    def test_a_devices_memory_with_and_without_a_block_that_migrates(self) -> None:
        """TPM PPI: less than a page of a block of its own; a BAR, and a DAX window, whose blocks have no name."""
        rows = (
            RamblockRow("pc.ram", PAGE, 0, MIB, MIB),
            RamblockRow("tpm-ppi", PAGE, MIB, PAGE, PAGE),
            RamblockRow("", PAGE, 2 * MIB, MIB, MIB),
        )
        ranges = (
            MtreeRange(0, MIB - 1, 0, "ram", "pc.ram", 0, "KVM"),
            MtreeRange(MIB, 2 * MIB - 1, 0, "ram", "virtio-fs-cache", 0, "KVM"),
            MtreeRange(4 * MIB, 4 * MIB + 0x7F, 0, "i/o", "msix-table"),
            MtreeRange(4 * MIB + 0x80, 5 * MIB - 1, 0, "ramd", "BAR 0 mmaps[0]", 0x80),
            MtreeRange(0xFED45000, 0xFED453FF, 0, "ramd", "tpm-ppi"),
        )
        capture = Capture("tpm", rows, (MtreeView(0, (MtreeSpace("memory", "system"),), "system", ranges),))
        (space,) = capture.regions()
        assert mtree_ranges(space.view) == tuple(replace(one, accel=None) for one in ranges)
        assert [region.name for region in ram_regions(space.root)] == ["pc.ram", "tpm-ppi"]
        assert mapped(capture.layout()) == [("pc.ram", 0, 256, 0)]
        assert [block.name for block in capture.layout().blocks] == ["pc.ram", "tpm-ppi"]
        assert capture.notes == ("memory that QEMU does not migrate is left out: virtio-fs-cache, BAR 0 mmaps[0]",)

    def test_memory_slots_side_by_side_and_with_gaps(self) -> None:
        rows = (RamblockRow("vm0", PAGE, 0, 8 * MIB, 8 * MIB),)
        ranges = tuple(
            MtreeRange(at * MIB, (at + 1) * MIB - 1, 0, "ram", "vm0", at * MIB, "KVM") for at in (0, 1, 3, 4, 5, 7)
        )
        capture = Capture("vm", rows, (MtreeView(0, (MtreeSpace("memory", "system"),), "system", ranges),))
        assert mapped(capture.layout()) == [("vm0", at * MIB, 256, at * MIB) for at in (0, 1, 3, 4, 5, 7)]
        (space,) = capture.regions()
        assert mtree_ranges(space.view, "KVM") == ranges
        system = AddressSpace("memory", system_region(capture.layout()))
        assert [(one.address, one.size) for one in system.view] == [(one.start, one.size) for one in ranges]

    @pytest.mark.parametrize(
        ("ranges", "says"),
        [
            ([MtreeRange(0, 0x2000, 0, "ram", "a")], "shows more of 'a' than the 0x2000 bytes"),
            ([MtreeRange(0, 0xFFF, 0, "ram", "a"), MtreeRange(0x1000, 0x1FFF, 0, "ramd", "a")], "in just these"),
            ([MtreeRange(0, 0xFFF, 0, "ram", "a"), MtreeRange(0x1000, 0x1FFF, 0, "romd", "a")], "in just these"),
        ],
    )
    def test_ranges_that_no_tree_shows(self, ranges: list[MtreeRange], says: str) -> None:
        view = MtreeView(0, (MtreeSpace("memory", "system"),), "system", tuple(ranges))
        with pytest.raises(LayoutError, match=says):
            Capture("x", (RamblockRow("a", PAGE, 0, 2 * PAGE, 2 * PAGE),), (view,)).regions()


class TestLayouts:
    def test_seabios(self) -> None:
        layout = Capture.named(SEABIOS).layout()
        assert [(block.name, block.first_page * PAGE, block.pages) for block in layout.blocks] == [
            ("pc.ram", 0, 131072),
            ("pc.bios", 0x20000000, 64),
            ("pc.rom", 0x20040000, 32),
            ("0000:00:02.0/vga.vram", 0x20080000, 4096),
            ("0000:00:02.0/vga.rom", 0x21080000, 16),
            ("/rom@etc/acpi/tables", 0x210C0000, 32),
            ("/rom@etc/table-loader", 0x212C0000, 1),
            ("/rom@etc/acpi/rsdp", 0x21300000, 1),
        ]
        assert mapped(layout) == [
            ("pc.ram", 0, 160, 0),
            ("pc.rom", 0, 32, 0xC0000),
            ("pc.bios", 0x20000, 32, 0xE0000),
            ("pc.ram", 0x100000, 130816, 0x100000),
            ("pc.bios", 0, 64, 0xFFFC0000),
        ]

    def test_ovmf_has_the_flash_of_the_q35_that_precopy_builds(self) -> None:
        captured, built = Capture.named(CIRRUS).layout(), q35(512 * MIB)
        lengths = {block.name.rpartition("0000:00:01.0/")[2]: block.pages for block in captured.blocks}
        assert lengths == {block.name: block.pages for block in built.blocks}
        assert [block.first_page for block in captured.blocks[:7]] == [block.first_page for block in built.blocks[:7]]
        assert set(mapped(captured)) <= set(mapped(built))

    def test_4_gib_lie_on_both_sides_of_the_hole(self) -> None:
        assert [row for row in mapped(Capture.named(SMM).layout()) if row[0] == "pc.ram"] == [
            ("pc.ram", 0, 160, 0),
            ("pc.ram", 0x100000, (2 * GIB - MIB) // PAGE, 0x100000),
            ("pc.ram", 2 * GIB, 2 * GIB // PAGE, 4 * GIB),
        ]

    @pytest.mark.parametrize("name", CAPTURES)
    def test_its_own_ram_changes_nothing(self, name: str) -> None:
        capture = Capture.named(name)
        own = max(block.used for block in capture.blocks)
        assert capture.layout(own) == capture.layout()

    @pytest.mark.parametrize("name", CAPTURES)
    @pytest.mark.parametrize(
        "ram", [2 * MIB, 2 * MIB + PAGE, 64 * MIB, 0xB0000000 - PAGE, 0xB0000000, 4 * GIB, 64 * GIB]
    )
    def test_with_other_ram_it_has_q35s_sections(self, name: str, ram: int) -> None:
        own, layout = Capture.named(name).layout(), Capture.named(name).layout(ram)
        expected = [one for one in mapped(q35(ram)) if one[0] == "pc.ram"]
        assert [one for one in mapped(layout) if one[0] == "pc.ram"] == expected
        assert [one for one in mapped(layout) if one[0] != "pc.ram"] == [
            one for one in mapped(own) if one[0] != "pc.ram"
        ]
        assert layout.blocks[0].pages * PAGE == ram
        assert [(block.name, block.pages) for block in layout.blocks[1:]] == [(b.name, b.pages) for b in own.blocks[1:]]
        (shift,) = {new.first_page - old.first_page for new, old in zip(layout.blocks[1:], own.blocks[1:], strict=True)}
        assert shift == -(-(ram // PAGE) // 64) * 64 - own.blocks[0].pages

    @pytest.mark.parametrize("ram", [0, MIB, 2 * MIB - PAGE, 2 * MIB + 1, -PAGE])
    def test_too_little_ram(self, ram: int) -> None:
        with pytest.raises(LayoutError, match=f"--ram is {ram} bytes; it has to be at least 2M"):
            Capture.named(SEABIOS).layout(ram)

    def test_less_ram_than_the_sections_need_that_stay(self) -> None:
        """A display that lies over RAM at 64 MiB: what lies below stays mapped."""
        capture = Capture.named(SEABIOS)
        ranges = (
            MtreeRange(0, 64 * MIB - 1, 0, "ram", "pc.ram"),
            MtreeRange(64 * MIB, 65 * MIB - 1, 1, "i/o", "display"),
            MtreeRange(65 * MIB, 512 * MIB - 1, 0, "ram", "pc.ram", 65 * MIB),
        )
        capture = replace(capture, views=(MtreeView(0, (MtreeSpace("memory", "system"),), "system", ranges),))
        assert mapped(capture.layout(65 * MIB + PAGE))[-1] == ("pc.ram", 65 * MIB, 1, 65 * MIB)
        with pytest.raises(LayoutError, match=f"this layout needs at least {65 * MIB + PAGE}"):
            capture.layout(65 * MIB)

    def test_memory_that_cannot_be_scaled(self) -> None:
        row, name = RamblockRow("ram", PAGE, 0, 8 * MIB, 8 * MIB), (MtreeSpace("memory", "system"),)
        elsewhere = MtreeView(0, name, "system", (MtreeRange(MIB, 2 * MIB - 1, 0, "ram", "ram"),))
        with pytest.raises(LayoutError, match="'ram' is not mapped at its own offsets"):
            Capture("x", (row,), (elsewhere,)).layout(4 * MIB)
        nothing = MtreeView(0, name, "system", None)
        assert Capture("x", (row,), (nothing,)).layout().sections == ()
        with pytest.raises(LayoutError, match="'ram' is not mapped"):
            Capture("x", (row,), (nothing,)).layout(4 * MIB)
        with pytest.raises(LayoutError, match="'x' has no address space called memory"):
            Capture("x", (row,), (replace(nothing, address_spaces=(MtreeSpace("I/O", "io"),)),)).layout()

    def test_a_block_is_as_long_as_what_is_used_of_it_in_whole_pages(self) -> None:
        rows = (
            RamblockRow("late", PAGE, 1 << 20, PAGE + 1, 8 * PAGE),
            RamblockRow("", PAGE, 1 << 21, PAGE, PAGE),
            RamblockRow("early", PAGE, 0, 1, 2 * PAGE),
        )
        layout = Capture("x", rows, (MtreeView(0, (MtreeSpace("memory", "m"),), "m", None),)).layout()
        assert [(block.name, block.first_page, block.pages) for block in layout.blocks] == [
            ("early", 0, 1),
            ("late", 256, 2),
        ]


class TestCommand:
    def run(self, *arguments: str) -> str:
        done = CliRunner().invoke(layout_command, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    def test_the_document(self) -> None:
        document = json.loads(self.run(CIRRUS, "--json"))
        assert document["schema"] == "precopy.layout/1"
        assert (document["name"], document["address_spaces"], document["flat_views"]) == (CIRRUS, 8, 3)
        flash = next(block for block in document["blocks"] if block["name"] == "system.flash0")
        assert flash == {
            "name": "system.flash0",
            "ram_addr": 0x20000000,
            "pages": 892,
            "whole_words": False,
            "sections": [{"gpa": 0xFFC84000, "offset_pages": 0, "pages": 892, "readonly": True}],
        }
        assert document["unaligned_mapped_pages"] == 892 + 132 + 32 + 32
        assert document["clears_page_by_page"] == {"one_listener": 1088, "two_listeners": 2176}
        assert document["bytes"] == sum(block["pages"] for block in document["blocks"]) * PAGE

    def test_the_table(self) -> None:
        lines = self.run(SMM, "--ram", "3G").splitlines()
        assert "q35-ovmf-smm-4g-net: 3.0 GiB in 12 RAM blocks, 7 sections; 18 address spaces in 7 flat views" in lines
        assert lines[-1].endswith("1088 clears of them with one listener, 2176 with two")
        assert [line.split() for line in lines if "system.flash1" in line] == [
            ["system.flash1", "0xc03c0000", "132", "no", "0xffc00000-0xffc83fff"]
        ]
        assert "main memory, which --ram changes: 3.0 GiB in pc.ram" in lines
        assert "0x100000000-0x13fffffff" in [line.strip() for line in lines]

    def test_write_makes_a_directory_that_can_be_shown(self, tmp_path: Path) -> None:
        shown = self.run(SEABIOS, "--write", str(tmp_path / "mine"))
        assert self.run(str(tmp_path / "mine")).replace("mine: ", f"{SEABIOS}: ") == shown

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["nope"], "'nope' is no directory and no captured layout; there are pc-seabios-512m"),
            (["Q35-ovmf-512m-cirus"], "Did you mean 'q35-ovmf-512m-cirrus'?"),
            ([SEABIOS, "--ram", "64M", "--write", "x"], "cannot be used with --ram"),
            ([SEABIOS, "--ram", "1M"], "at least 2M"),
        ],
    )
    def test_what_is_refused(self, arguments: list[str], says: str) -> None:
        done = CliRunner().invoke(layout_command, arguments)
        assert isinstance(done.exception, UsageError)
        assert says in str(done.exception)


def test_a_big_view_is_read_and_rebuilt_in_time() -> None:
    """A fifth of the ranges that there may be; anything quadratic would take minutes."""
    ranges = tuple(MtreeRange(16 * n, 16 * n + 7, 0, "i/o", f"device {n}") for n in range(20_000))
    view = MtreeView(0, (MtreeSpace("memory", "system"),), "system", ranges)
    row = RamblockRow("ram", PAGE, 0, PAGE, PAGE)
    (space,) = Capture("big", (row,), parse_mtree(format_mtree([view]))).regions()
    assert mtree_ranges(space.view) == ranges

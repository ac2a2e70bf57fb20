"""RAM blocks, the sections that map them, and the machines that precopy builds itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import BITS_PER_WORD, Runs
from precopy.errors import LayoutError, UsageError
from precopy.memory import RamBlock, RamLayout, Section
from precopy.memory.captures.machines import MACHINES, flat, machine_layout, q35
from precopy.memory.layout import MAX_BLOCKS, MAX_PAGES
from precopy.units import PAGE_SIZE, GuestPhysicalAddress, RamPage

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def block(name: str, first: int, pages: int) -> RamBlock:
    return RamBlock(name, RamPage(first), pages)


def section(of: RamBlock, offset: int, pages: int, gpa: int) -> Section:
    return Section(of, offset, pages, GuestPhysicalAddress(gpa))


A, B = block("a", 0, 100), block("b", 128, 64)


class TestBlocks:
    @given(st.lists(st.integers(1, 5000), min_size=1, max_size=20), st.sampled_from([512, 4096, 65536]))
    def test_laid_side_by_side_each_starts_on_the_next_word(self, pages: list[int], page_size: int) -> None:
        layout = RamLayout.of_blocks(
            ((f"b{n}", count * page_size) for n, count in enumerate(pages)), page_size=page_size
        )
        assert [block.pages for block in layout.blocks] == pages
        assert all(block.first_page % BITS_PER_WORD == 0 for block in layout.blocks)
        assert all(0 <= after.first_page - before.end_page < BITS_PER_WORD for before, after in pairwise(layout.blocks))
        assert layout.end_page == layout.blocks[-1].first_page + pages[-1]
        assert layout.pages == sum(pages)
        assert layout.bytes == sum(pages) * page_size
        assert list(layout.runs) == [(block.first_page, block.pages) for block in layout.blocks]

    def test_blocks_may_leave_room_between_them(self) -> None:
        layout = RamLayout((A, block("far", 6400, 3)))
        assert (layout.end_page, layout.pages) == (6403, 103)

    @pytest.mark.parametrize(
        ("blocks", "says"),
        [
            ((), "1 to 1024 RAM blocks, not 0"),
            (tuple(block(f"b{n}", 64 * n, 1) for n in range(MAX_BLOCKS + 1)), "not 1025"),
            ((A, block("a", 128, 1)), "same name"),
            ((block("a", 0, 0),), "at least one page"),
            ((block("a", 0, -64),), "at least one page"),
            ((block("a", 1, 64),), "multiple of 64"),
            ((block("a", -64, 64),), "multiple of 64"),
            ((A, block("b", 64, 64)), "'b' overlaps the block before"),
            ((B, A), "'a' overlaps the block before"),
            ((A, block("b", 0, 1)), "overlaps"),
            ((block("a", 0, MAX_PAGES + 1),), "beyond"),
            ((A, block("b", MAX_PAGES, 1)), "beyond"),
        ],
    )
    def test_what_cannot_be_a_memory(self, blocks: tuple[RamBlock, ...], says: str) -> None:
        with pytest.raises(LayoutError, match=says):
            RamLayout(blocks)

    def test_as_many_blocks_and_pages_as_there_can_be(self) -> None:
        assert len(RamLayout(tuple(block(f"b{n}", 64 * n, 64) for n in range(MAX_BLOCKS))).blocks) == MAX_BLOCKS
        assert RamLayout((block("a", 0, MAX_PAGES),)).end_page == MAX_PAGES

    @pytest.mark.parametrize("page_size", [0, -4096, 1, 256, 511, 4095, 4097, 6144])
    def test_page_sizes_that_are_none(self, page_size: int) -> None:
        with pytest.raises(LayoutError, match="page size"):
            RamLayout((A,), page_size=page_size)

    @pytest.mark.parametrize("size", [1, 4095, 4097])
    def test_a_block_is_whole_pages(self, size: int) -> None:
        with pytest.raises(LayoutError, match=f"'odd' has {size} bytes"):
            RamLayout.of_blocks([("even", 4096), ("odd", size)])

    @pytest.mark.parametrize("size", [0, -4096])
    def test_a_block_has_a_page(self, size: int) -> None:
        with pytest.raises(LayoutError, match="at least one page"):
            RamLayout.of_blocks([("none", size)])


class TestSections:
    @pytest.mark.parametrize(
        ("sections", "says"),
        [
            ((section(block("c", 0, 100), 0, 1, 0),), "'c', which is not a block"),
            ((section(block("a", 0, 99), 0, 1, 0),), "not a block"),
            ((section(A, 0, 0, 0),), "lies outside its 100 pages"),
            ((section(A, 0, -1, 0),), "lies outside"),
            ((section(A, -1, 2, 0),), "lies outside"),
            ((section(A, 0, 101, 0),), "lies outside"),
            ((section(A, 99, 2, 0),), "lies outside"),
            ((section(A, 0, 1, 1),), "page-aligned"),
            ((section(A, 0, 1, 2048),), "page-aligned"),
            ((section(A, 0, 1, -4096),), "page-aligned"),
            ((section(A, 0, 100, 0), section(B, 0, 1, 99 * 4096)), "'a' and 'b' overlap at 0x63000"),
            ((section(B, 0, 64, 4096), section(A, 0, 2, 0)), "'a' and 'b' overlap at 0x1000"),
            ((section(A, 0, 1, 0), section(A, 1, 1, 0)), "overlap"),
        ],
    )
    def test_what_cannot_be_mapped(self, sections: tuple[Section, ...], says: str) -> None:
        with pytest.raises(LayoutError, match=says):
            RamLayout((A, B), sections)

    def test_sections_may_touch_and_may_alias_a_block(self) -> None:
        sections = (section(A, 0, 100, 0), section(B, 0, 64, 100 * 4096), section(A, 0, 100, 1 << 32))
        assert RamLayout((A, B), sections).sections == sections

    def test_a_section_knows_its_pages_and_its_end(self) -> None:
        part = section(B, 10, 20, 0x100000)
        assert (part.first_page, part.end_gpa) == (138, 0x100000 + 20 * 4096)

    @pytest.mark.parametrize("page_size", [512, 16384])
    def test_overlap_is_found_for_any_page_size(self, page_size: int) -> None:
        blocks = RamLayout.of_blocks([("a", 4 * page_size), ("b", 4 * page_size)], page_size)
        touching = blocks.mapped([("a", 0, 4 * page_size, 0), ("b", 0, 4 * page_size, 4 * page_size)])
        assert len(touching.sections) == 2
        with pytest.raises(LayoutError, match="overlap"):
            blocks.mapped([("a", 0, 4 * page_size, 0), ("b", 0, 4 * page_size, 3 * page_size)])

    def test_mapped_takes_bytes(self) -> None:
        layout = RamLayout((A, B)).mapped([("b", 4096, 8192, 0x200000), ("a", 0, 4096, 0)])
        assert layout.sections == (section(B, 1, 2, 0x200000), section(A, 0, 1, 0))
        assert layout.blocks == (A, B)

    @pytest.mark.parametrize(
        "row", [("c", 0, 4096, 0), ("a", 100, 4096, 0), ("a", 0, 4097, 0), ("a", 0, 100, 0), ("a", 4096, 0, 0)]
    )
    def test_mapped_refuses_what_is_no_part_of_a_block(self, row: tuple[str, int, int, int]) -> None:
        with pytest.raises(LayoutError):
            RamLayout((A, B)).mapped([row])


class TestBlockOf:
    layout = RamLayout((A, B, block("c", 192, 1), block("d", 640, 130)))

    @given(st.data())
    def test_finds_the_block_of_each_run_in_any_order(self, data: st.DataObject) -> None:
        drawn, expected = [], []
        for index in data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=10)):
            of = self.layout.blocks[index]
            first = data.draw(st.integers(0, of.pages - 1))
            drawn.append((of.first_page + first, data.draw(st.integers(1, of.pages - first))))
            expected.append(index)
        assert list(self.layout.block_of(Runs.of(*drawn))) == expected

    def test_of_no_runs(self) -> None:
        assert list(self.layout.block_of(Runs.of())) == []

    @pytest.mark.parametrize(
        "run",
        [
            (-1, 1),
            (-(2**63), 1),
            (-(2**63), 2**63 - 1),
            (0, 101),
            (99, 2),
            (100, 1),
            (127, 1),
            (127, 2),
            (128, 65),
            (191, 2),
            (193, 1),
            (639, 1),
            (770, 1),
            (2**63 - 1, 1),
            (0, 2**63 - 1),
            (640, 2**63 - 1),
            (2**62, 2**62),
            (0, 0),
            (0, -1),
            (130, -(2**63)),
        ],
    )
    def test_refuses_what_lies_in_no_one_block(self, run: tuple[int, int]) -> None:
        for runs in (Runs.of(run), Runs.of((0, 1), run)):
            with pytest.raises(LayoutError, match=f"{run[1]} pages from ram_addr page {run[0]} "):
                self.layout.block_of(runs)

    @given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
    def test_any_run_is_found_or_refused(self, start: int, length: int) -> None:
        inside = [
            index
            for index, of in enumerate(self.layout.blocks)
            if length > 0 and of.first_page <= start and start + length <= of.end_page
        ]
        runs = Runs(np.array([start]), np.array([length]))
        if inside:
            assert list(self.layout.block_of(runs)) == inside
        else:
            with pytest.raises(LayoutError):
                self.layout.block_of(runs)


RAMS = [2 * MIB, 5 * MIB + PAGE_SIZE, 64 * MIB, 2 * GIB, 0xB0000000 - PAGE_SIZE, 0xB0000000, 3 * GIB, 4 * GIB, 64 * GIB]


class TestMachines:
    @pytest.mark.parametrize("ram", RAMS)
    @pytest.mark.parametrize("make", MACHINES.values(), ids=MACHINES.keys())
    def test_sections_map_no_page_twice_and_do_not_overlap(self, make: Callable[[int], RamLayout], ram: int) -> None:
        layout = make(ram)
        for key in (lambda s: (s.gpa, s.end_gpa), lambda s: (s.first_page, s.first_page + s.pages)):
            ranges = sorted(map(key, layout.sections))
            assert all(end <= start for (_, end), (start, _) in pairwise(ranges))

    @pytest.mark.parametrize("ram", RAMS)
    def test_q35_has_unaligned_blocks_in_ten_sections_or_more(self, ram: int) -> None:
        layout = q35(ram)
        assert layout.blocks[0].pages * PAGE_SIZE == ram
        assert len(layout.blocks) == 10
        assert len(layout.sections) >= 10
        assert sum(block.pages % BITS_PER_WORD != 0 for block in layout.blocks) >= 6

    def test_q35_has_the_flash_of_the_seed(self) -> None:
        flash = {block.name: block.pages for block in q35(64 * MIB).blocks}
        assert (flash["system.flash0"], flash["system.flash1"]) == (892, 132)

    def test_q35_leaves_the_legacy_hole_unmapped(self) -> None:
        mapped = [s for s in q35(64 * MIB).sections if s.block.name == "pc.ram"]
        assert [(s.gpa, s.end_gpa) for s in mapped] == [(0, 0xA0000), (0x100000, 64 * MIB)]

    @pytest.mark.parametrize(
        ("ram", "low_end"), [(0xB0000000 - PAGE_SIZE, None), (0xB0000000, 2 * GIB), (4 * GIB, 2 * GIB)]
    )
    def test_q35_keeps_2_gib_low_where_there_are_2_75(self, ram: int, low_end: int | None) -> None:
        parts = [s for s in q35(ram).sections if s.block.name == "pc.ram" and s.gpa >= 0x100000]
        if low_end is None:
            assert [(s.gpa, s.end_gpa) for s in parts] == [(0x100000, ram)]
        else:
            assert [(s.gpa, s.end_gpa) for s in parts] == [
                (0x100000, low_end),
                (4 * GIB, 4 * GIB + ram - low_end),
            ]
            assert parts[1].offset * PAGE_SIZE == low_end

    @pytest.mark.parametrize("ram", [2 * MIB, 100 * PAGE_SIZE * 7, 3 * GIB])
    def test_flat_is_one_section_up_to_3_gib(self, ram: int) -> None:
        ram = max(ram, 2 * MIB)
        (only,) = flat(ram).sections
        assert (only.offset, only.pages * PAGE_SIZE, only.gpa) == (0, ram, 0)

    @pytest.mark.parametrize("over", [PAGE_SIZE, MIB, 13 * GIB])
    def test_flat_splits_above_3_gib(self, over: int) -> None:
        low, high = flat(3 * GIB + over).sections
        assert (low.gpa, low.end_gpa, low.offset) == (0, 3 * GIB, 0)
        assert (high.gpa, high.end_gpa, high.offset * PAGE_SIZE) == (4 * GIB, 4 * GIB + over, 3 * GIB)

    @pytest.mark.parametrize("name", MACHINES)
    @pytest.mark.parametrize("ram", [0, -4096, 2 * MIB - PAGE_SIZE, 2 * MIB + 1])
    def test_too_little_or_broken_ram(self, name: str, ram: int) -> None:
        with pytest.raises(LayoutError, match=f"--ram is {ram} bytes"):
            machine_layout(name, ram)

    @pytest.mark.parametrize("name", MACHINES)
    def test_more_ram_than_can_be_addressed(self, name: str) -> None:
        with pytest.raises(LayoutError, match="beyond"):
            machine_layout(name, (MAX_PAGES + 64) * PAGE_SIZE)

    def test_an_unknown_machine_names_those_there_are(self) -> None:
        with pytest.raises(UsageError, match="'pc'; there are q35, flat"):
            machine_layout("pc", 64 * MIB)

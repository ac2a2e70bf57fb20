"""Guest memory: real mappings, handed out as views and never copied."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Runs
from precopy.errors import LayoutError, OutOfMemory, Unsupported
from precopy.memory import Backing, GuestMemory, HostMemory, RamLayout
from precopy.memory.layout import MAX_PAGES
from precopy.memory.system_memory import available_memory
from precopy.units import PAGE_SIZE

MIB = 1 << 20
WORDS = PAGE_SIZE // 8
LAYOUT = RamLayout.of_blocks([("a", 100 * PAGE_SIZE), ("b", PAGE_SIZE), ("c", 64 * PAGE_SIZE), ("d", 7 * PAGE_SIZE)])
BLOCKS = [(block.first_page, block.pages) for block in LAYOUT.blocks]
ALL_PAGES = [page for first, pages in BLOCKS for page in range(first, first + pages)]


@pytest.fixture(params=Backing, ids=lambda backing: backing.value)
def memory(request: pytest.FixtureRequest) -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT, request.param) as memory:
        yield memory


def page_words(memory: GuestMemory, page: int) -> np.ndarray:
    """The words of a ram_addr page, found by looking through the blocks."""
    for (first, pages), host in zip(BLOCKS, memory.hosts, strict=True):
        if first <= page < first + pages:
            return host.words[(page - first) * WORDS : (page - first + 1) * WORDS]
    raise AssertionError(f"page {page} is in no block")


def pages_of(runs: Runs) -> list[int]:
    return [page for start, length in runs for page in range(start, start + length)]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


@st.composite
def runs_in_blocks(draw: st.DrawFn) -> Runs:
    """Ascending disjoint runs, each in one block."""
    pages = draw(st.sets(st.sampled_from(ALL_PAGES), max_size=60))
    for _ in range(draw(st.integers(0, 3))):
        first, count = draw(st.sampled_from(BLOCKS))
        start = draw(st.integers(0, count - 1))
        pages |= set(range(first + start, first + draw(st.integers(start, count))))
    cut = {first for first, _ in BLOCKS}
    starts = sorted(page for page in pages if page - 1 not in pages or page in cut)
    ends = sorted(page + 1 for page in pages if page + 1 not in pages or page + 1 in cut)
    return Runs.of(*((start, end - start) for start, end in zip(starts, ends, strict=True)))


class TestBuffers:
    def test_all_is_zero_at_first(self, memory: GuestMemory) -> None:
        assert [part.pages for part in memory.split_zero(LAYOUT.runs)] == [0, LAYOUT.runs.pages]
        assert b"".join(memory.buffers(LAYOUT.runs)) == bytes(LAYOUT.bytes)

    def test_a_write_through_a_buffer_is_a_write_to_the_guest(self, memory: GuestMemory) -> None:
        first, second = memory.buffers(Runs.of((99, 1), (128, 1)))
        first[0], second[-1] = 0x11, 0x22
        assert page_words(memory, 99)[0] == 0x11
        assert page_words(memory, 128)[-1] == 0x22 << 56

    def test_a_write_of_the_guest_is_seen_through_a_buffer_taken_before(self, memory: GuestMemory) -> None:
        (buffer,) = memory.buffers(Runs.of((10, 2)))
        page_words(memory, 11)[3] = 0xABCD
        assert int.from_bytes(buffer[PAGE_SIZE + 24 : PAGE_SIZE + 32], "little") == 0xABCD

    def test_buffers_lie_where_the_host_memory_is(self, memory: GuestMemory) -> None:
        for block, host in zip(LAYOUT.blocks, memory.hosts, strict=True):
            (buffer,) = memory.buffers(Runs.of((block.first_page, block.pages)))
            assert np.frombuffer(buffer, np.uint8).__array_interface__["data"][0] == host.address
            assert host.address % mmap.PAGESIZE == 0

    def test_one_buffer_a_run_in_the_order_of_the_runs(self, memory: GuestMemory) -> None:
        for page in ALL_PAGES:
            page_words(memory, page)[:] = page
        runs = Runs.of((256, 3), (0, 2), (128, 1), (3, 1), (192, 1), (257, 2))
        buffers = memory.buffers(runs)
        for (start, length), buffer in zip(runs, buffers, strict=True):
            expected = np.repeat(np.arange(start, start + length), WORDS)
            assert np.array_equal(np.frombuffer(buffer, np.uint64), expected)

    def test_pages_of_a_block_share_its_memory(self, memory: GuestMemory) -> None:
        pages = memory.pages(LAYOUT.blocks[2])
        assert pages.shape == (64, WORDS)
        pages[63, WORDS - 1] = 5
        assert page_words(memory, LAYOUT.blocks[2].end_page - 1)[-1] == 5
        assert memory.host(LAYOUT.blocks[2]) is memory.hosts[2]

    @pytest.mark.parametrize("run", [(99, 2), (100, 1), (-1, 1), (0, 101), (128, 2), (320, 1), (2**60, 1), (0, 2**62)])
    def test_runs_outside_of_blocks_are_refused(self, memory: GuestMemory, run: tuple[int, int]) -> None:
        runs = Runs.of((0, 1), run)
        page_words(memory, 0)[0] = 1
        for call in (memory.buffers, memory.split_zero, memory.write_zero):
            with pytest.raises(LayoutError):
                call(runs)
        assert page_words(memory, 0)[0] == 1

    def test_other_page_sizes(self) -> None:
        layout = RamLayout.of_blocks([("a", 3 * 16384), ("b", 16384)], page_size=16384)
        with GuestMemory(layout) as memory:
            assert [len(buffer) for buffer in memory.buffers(layout.runs)] == [3 * 16384, 16384]
            memory.hosts[0].view[2 * 16384 + 9] = 1
            assert [list(part) for part in memory.split_zero(layout.runs)] == [[(2, 1)], [(0, 2), (64, 1)]]


def make_page_nonzero(words: np.ndarray, how: str) -> None:
    match how:
        case "first word":
            words[0] = 1
        case "second word":
            words[1] = 1
        case "last word":
            words[-1] = 1
        case "last byte":
            words[-1] = 0xFF << 56
        case "all":
            words[:] = 2**64 - 1


class TestZeroPages:
    @given(st.data(), st.sampled_from(Backing))
    def test_split_zero_finds_every_zero_page_and_no_other(self, data: st.DataObject, backing: Backing) -> None:
        runs = data.draw(runs_in_blocks())
        kinds = st.sampled_from(["first word", "second word", "last word", "last byte", "all"])
        filled = data.draw(st.dictionaries(st.sampled_from(ALL_PAGES), kinds, max_size=80))
        if data.draw(st.booleans()):  # whole blocks, so that long runs of either kind arise
            first, count = data.draw(st.sampled_from(BLOCKS))
            filled |= dict.fromkeys(range(first, first + count), data.draw(kinds))
        with GuestMemory(LAYOUT, backing) as memory:
            for page, how in filled.items():
                make_page_nonzero(page_words(memory, page), how)
            content, zero = memory.split_zero(runs)
            assert pages_of(content) == [page for page in pages_of(runs) if page in filled]
            assert pages_of(zero) == [page for page in pages_of(runs) if page not in filled]
            assert not b"".join(memory.buffers(zero)).strip(b"\0")
            LAYOUT.block_of(content)  # every run still lies in one block
            LAYOUT.block_of(zero)

    def test_split_zero_of_nothing(self, memory: GuestMemory) -> None:
        assert [list(part) for part in memory.split_zero(Runs.of())] == [[], []]

    @pytest.mark.parametrize("how", ["first word", "second word", "last word", "last byte"])
    @pytest.mark.parametrize("page", [0, 1, 98, 99, 128, 192, 255, 256, 262])
    def test_one_byte_makes_a_page_content(self, memory: GuestMemory, page: int, how: str) -> None:
        make_page_nonzero(page_words(memory, page), how)
        content, zero = memory.split_zero(LAYOUT.runs)
        assert list(content) == [(page, 1)]
        assert zero.pages == LAYOUT.pages - 1

    @given(runs_in_blocks())
    def test_write_zero_zeroes_its_runs_and_nothing_else(self, runs: Runs) -> None:
        with GuestMemory(LAYOUT) as memory:
            for host in memory.hosts:
                host.words[:] = 0xFFFF_FFFF_FFFF_FFFF
            memory.write_zero(runs)
            zeroed = set(pages_of(runs))
            for page in ALL_PAGES:
                expected = 0 if page in zeroed else 0xFFFF_FFFF_FFFF_FFFF
                assert (page_words(memory, page) == expected).all()

    def test_runs_in_any_order_and_repeated(self, memory: GuestMemory) -> None:
        page_words(memory, 5)[7] = 1
        content, zero = memory.split_zero(Runs.of((4, 2), (0, 1), (192, 1), (5, 1), (4, 1)))
        assert pages_of(content) == [5, 5]
        assert pages_of(zero) == [4, 0, 192, 4]


class TestMemfd:
    def test_another_mapping_shares_the_content(self) -> None:
        with GuestMemory(LAYOUT, Backing.MEMFD) as memory:
            host = memory.hosts[2]
            with open(f"/proc/self/fd/{host.fd}", "r+b") as file, mmap.mmap(file.fileno(), host.size) as other:
                host.view[:4] = b"here"
                assert other[:4] == b"here"
                other[-5:] = b"there"
                assert bytes(host.view[-5:]) == b"there"

    def test_the_file_is_as_large_as_the_block_and_closed_with_it(self) -> None:
        memory = GuestMemory(LAYOUT, Backing.MEMFD)
        descriptors = [host.fd for host in memory.hosts]
        assert [os.fstat(fd).st_size for fd in descriptors if fd is not None] == [host.size for host in memory.hosts]
        assert not any(os.get_inheritable(fd) for fd in descriptors if fd is not None)
        memory.close()
        for fd in descriptors:
            assert fd is not None
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)

    def test_a_block_whose_name_has_slashes(self) -> None:
        host = HostMemory("/rom@etc/acpi/tables", PAGE_SIZE, Backing.MEMFD)
        try:
            assert "_rom@etc_acpi_tables" in os.readlink(f"/proc/self/fd/{host.fd}")
        finally:
            host.close()

    def test_anonymous_memory_has_no_file(self) -> None:
        with GuestMemory(LAYOUT) as memory:
            assert [host.fd for host in memory.hosts] == [None] * 4


class TestCapacity:
    @pytest.mark.parametrize("backing", Backing)
    def test_a_guest_that_cannot_fit_is_refused_before_anything_is_mapped(self, backing: Backing) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OutOfMemory) as caught:
            GuestMemory(RamLayout.of_blocks([("ram", MAX_PAGES * PAGE_SIZE)]), backing)
        assert caught.value.wanted == MAX_PAGES * PAGE_SIZE
        assert caught.value.available == pytest.approx(available_memory(), rel=0.2)
        assert isinstance(caught.value, Unsupported)
        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize("backing", Backing)
    @pytest.mark.parametrize("size", [1 << 60, 1 << 63, 1 << 80])
    def test_host_memory_that_the_system_does_not_give(self, backing: Backing, size: int) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OutOfMemory, match=r"not enough memory for huge: .* MiB asked for, \d+ MiB are available"):
            HostMemory("huge", size, backing)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_blocks_that_were_mapped_before_the_one_that_fails_are_given_back(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("precopy.memory.ram.available_memory", lambda: None)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OutOfMemory, match="second"):
            GuestMemory(RamLayout.of_blocks([("first", PAGE_SIZE), ("second", 1 << 47)]), Backing.MEMFD)
        assert len(os.listdir("/proc/self/fd")) == before


class TestClose:
    SIZE = 48 * MIB

    @pytest.mark.parametrize("backing", Backing)
    @pytest.mark.parametrize("held", [False, True], ids=["no views held", "views held"])
    def test_memory_goes_back_to_the_system_at_once(self, backing: Backing, held: bool) -> None:
        layout = RamLayout.of_blocks([("ram", self.SIZE)])
        start = resident_bytes()
        memory = GuestMemory(layout, backing)
        memory.touch()
        assert resident_bytes() - start > 0.9 * self.SIZE
        views = memory.buffers(layout.runs) if held else []
        memory.close()
        assert resident_bytes() - start < 0.2 * self.SIZE
        assert all(view[0] == 0 for view in views)

    def test_untouched_memory_costs_nothing(self) -> None:
        start = resident_bytes()
        with GuestMemory(RamLayout.of_blocks([("ram", 64 * self.SIZE)])):
            assert resident_bytes() - start < 0.2 * self.SIZE

    def test_touch_changes_no_content(self, memory: GuestMemory) -> None:
        for page in ALL_PAGES:
            page_words(memory, page)[:] = page + 1
        memory.touch()
        assert all((page_words(memory, page) == page + 1).all() for page in ALL_PAGES)

    def test_closing_twice_is_harmless(self, memory: GuestMemory) -> None:
        hosts = list(memory.hosts)
        memory.close()
        memory.close()
        for host in hosts:
            host.close()
        assert all(len(host.view) == 0 for host in hosts)

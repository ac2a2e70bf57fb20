"""The vhost log: where a page's bit is, what becomes of bits outside RAM, and who keeps the log alive."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.abi.atomic import set_bits
from precopy.bitmap import Bitmap
from precopy.errors import KernelCallError, LayoutError, LocalProtocolError, PeerProtocolError
from precopy.memory import RamLayout
from precopy.memory.captures.machines import q35
from precopy.ports import DirtyLog
from precopy.trackers.shared_log import SharedLog
from precopy.trackers.vhost_log import VhostLog
from precopy.units import PAGE_SIZE

GIB = 1 << 30


class Bench:
    """A log, with the guest's layout and a device that is this process."""

    def __init__(self, layout: RamLayout, *, shared: bool = True) -> None:
        self.layout, self.shared = layout, SharedLog.for_layout(layout)
        self.log = VhostLog(layout, self.shared, shared=shared)
        self.log.start()

    def wrote(self, *pages: int) -> None:
        """Logs guest-physical pages."""
        for page in pages:
            set_bits(self.shared.words, page)

    def harvest(self, block: str | None = None) -> list[int]:
        dirty = Bitmap(self.layout.end_page)
        self.log.harvest(dirty, next((one for one in self.layout.blocks if one.name == block), None))
        return list(dirty.indexes())


def of_pages(*sections: tuple[str, int, int, int], **blocks: int) -> RamLayout:
    """Blocks of so many pages, with sections of (block, its page, pages, guest-physical page)."""
    return RamLayout.of_blocks((name, pages * PAGE_SIZE) for name, pages in blocks.items()).mapped(
        (block, offset * PAGE_SIZE, pages * PAGE_SIZE, at * PAGE_SIZE) for block, offset, pages, at in sections
    )


class TestLayoutOfTheLog:
    @pytest.mark.parametrize("gpa", [0, 0x1000, 0x7FFF, 0x8000, 0x12345678, 0xFFC84000])
    def test_bit_of_a_guest_physical_address(self, gpa: int) -> None:
        """Page gpa / 4096: bit (page % 8) of byte (page / 8), as the vhost-user protocol says."""
        bench = Bench(q35(2 * GIB))
        bench.wrote(gpa // 4096)
        data = os.pread(bench.shared.fd, bench.shared.size, 0)
        assert [(at, byte) for at, byte in enumerate(data) if byte] == [(gpa // 32768, 1 << gpa // 4096 % 8)]

    def test_bytes_that_a_device_writes_are_found(self) -> None:
        bench = Bench(of_pages(("ram", 0, 1000, 0), ram=1000))
        os.pwrite(bench.shared.fd, bytes([0b1000_0010]), 100)
        assert bench.harvest() == [801, 807]

    @pytest.mark.parametrize(("end", "size"), [(1, 8), (63, 8), (64, 8), (65, 16), (1000, 128)])
    def test_whole_words_up_to_the_highest_address(self, end: int, size: int) -> None:
        log = SharedLog.for_layout(of_pages(("ram", 0, 1, end - 1), ram=1000))
        assert (log.size, log.pages, log.words.nbytes) == (size, size * 8, size)
        assert os.fstat(log.fd).st_size == size

    def test_a_guest_with_256_gib(self) -> None:
        assert SharedLog.for_layout(q35(256 * GIB)).size == pytest.approx(256 * GIB // 32768, rel=0.01)

    def test_a_layout_without_sections(self) -> None:
        with pytest.raises(LayoutError, match="maps nothing"):
            SharedLog.for_layout(RamLayout.of_blocks([("ram", 1 << 20)]))

    def test_a_layout_with_other_pages(self) -> None:
        with pytest.raises(LayoutError, match="a bit for 4096 bytes; the layout's pages have 65536"):
            SharedLog.for_layout(RamLayout.of_blocks([("ram", 1 << 20)], page_size=65536))

    def test_a_log_of_a_smaller_guest(self) -> None:
        with pytest.raises(LayoutError, match="a log of 64 pages is too small for a guest with 1000 pages"):
            VhostLog(of_pages(("ram", 0, 1000, 0), ram=1000), SharedLog(64))


@st.composite
def layouts(draw: st.DrawFn) -> RamLayout:
    """Blocks in pieces, in any order, side by side or with gaps, at any phase, and some pieces mapped twice or not."""
    sizes = draw(st.lists(st.integers(1, 300), min_size=1, max_size=4))
    pieces: list[tuple[str, int, int]] = []
    for n, pages in enumerate(sizes):
        cut = draw(st.integers(0, pages))
        pieces += [(f"b{n}", 0, cut), (f"b{n}", cut, pages - cut), (f"b{n}", cut // 2, pages - cut // 2)]
    mapped = draw(st.lists(st.sampled_from([piece for piece in pieces if piece[2]]), min_size=1, max_size=6))
    at, sections = 0, []
    for block, offset, pages in mapped:
        at += draw(st.integers(0, 130))
        sections.append((block, offset, pages, at))
        at += pages
    return of_pages(*sections, **{f"b{n}": pages for n, pages in enumerate(sizes)})


class TestSections:
    @given(layouts(), st.data())
    def test_every_bit_comes_out_at_its_ram_page_until_it_is_cleared(
        self, layout: RamLayout, data: st.DataObject
    ) -> None:
        """Against sets: bits in the log, pages taken and not cleared, and strays."""
        bench = Bench(layout)
        ram: dict[int, int] = {}
        for section in layout.sections:
            first = section.gpa // PAGE_SIZE
            ram |= {first + n: section.first_page + n for n in range(section.pages)}
        logged, taken, strays = set[int](), set[int](), 0
        for what in data.draw(st.lists(st.sampled_from(["write", "harvest", "block", "clear"]), max_size=10)):
            if what == "write":
                pages = data.draw(st.lists(st.integers(0, bench.shared.pages - 1), max_size=30))
                bench.wrote(*pages)
                logged |= set(pages)
            elif what == "harvest":
                assert set(bench.harvest()) == {ram[page] for page in logged | taken if page in ram}
                strays += len(logged - ram.keys())
                taken |= logged & ram.keys()
                logged = set()
            elif what == "block":
                block = data.draw(st.sampled_from(layout.blocks))
                mine = {page for page, at in ram.items() if block.first_page <= at < block.end_page}
                assert set(bench.harvest(block.name)) == {ram[page] for page in (logged | taken) & mine}
                taken |= logged & mine
                logged -= mine
            else:
                start, end = sorted(data.draw(st.tuples(*[st.integers(0, layout.end_page + 70)] * 2)))
                gone = {page for page in taken if start <= ram[page] < end}
                before = bench.log.counters
                bench.log.clear(start, end - start)
                assert (bench.log.counters - before).clear_calls == bool(gone)
                taken -= gone
                logged -= gone  # written again before the clear: whoever clears reads the page afterwards
            assert bench.log.stray_pages == strays
        assert set(bench.harvest()) == {ram[page] for page in logged | taken if page in ram}

    @pytest.mark.parametrize("phase", [0, 1, 17, 63])
    def test_a_large_section_of_any_phase(self, phase: int) -> None:
        pages = 5 * 64 * 65536 // 4  # more than a chunk of words
        bench = Bench(of_pages(("ram", 0, pages, 64 + phase), ram=pages))
        written = [0, 1, 62, 63, 64, 1000, 4_194_303, 4_194_304, pages - 65, pages - 1]
        bench.wrote(*(64 + phase + page for page in written))
        assert bench.harvest() == written
        bench.log.clear(0, pages)
        assert bench.harvest() == []


class TestStrays:
    @pytest.fixture
    def bench(self) -> Bench:
        return Bench(of_pages(("ram", 0, 10, 70), ("ram", 10, 5, 90), ram=1000))

    def test_pages_that_no_section_maps_are_counted_and_not_reported(self, bench: Bench) -> None:
        bench.wrote(0, 69, 70, 79, 80, 89, 90, 94, 95, 127)
        assert bench.harvest() == [0, 9, 10, 14]
        assert bench.log.stray_pages == 6

    def test_the_first_is_told_and_no_other(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        bench.wrote(70)
        bench.harvest()
        assert caplog.messages == []
        for page in (81, 80, 127):
            bench.wrote(page)
            bench.harvest()
        (said,) = caplog.messages
        assert "logged guest-physical page 81, where the guest has no RAM" in said
        assert "may be missing at the destination" in said

    def test_they_count_again_when_they_are_logged_again(self, bench: Bench) -> None:
        for strays in (1, 1, 2, 3):
            if strays > bench.log.stray_pages:
                bench.wrote(69)
            assert bench.harvest() == []
            assert bench.log.stray_pages == strays

    def test_a_harvest_of_a_block_leaves_them_in_the_log(self, bench: Bench) -> None:
        bench.wrote(69, 70)
        assert bench.harvest("ram") == [0]
        assert bench.log.stray_pages == 0
        bench.harvest()
        assert bench.log.stray_pages == 1


class TestProtocol:
    @pytest.fixture
    def bench(self) -> Bench:
        return Bench(of_pages(("a", 0, 10, 0), ("b", 0, 10, 10), a=10, b=10))

    def test_it_is_a_dirty_log(self, bench: Bench) -> None:
        assert isinstance(bench.log, DirtyLog)
        assert bench.log.name == "vhost log"

    def test_what_was_logged_before_the_start_is_found(self, bench: Bench) -> None:
        bench.wrote(3)
        bench.log.start()
        assert bench.harvest() == [3]

    def test_a_harvest_of_a_block_leaves_the_others_dirty_and_not_harvested(self, bench: Bench) -> None:
        """Both blocks share a word of the log."""
        bench.wrote(3, 13)
        assert bench.harvest("a") == [3]
        bench.log.clear(0, bench.layout.end_page)  # law 2: page 13 was not harvested
        assert bench.harvest("b") == [64 + 3]
        assert bench.harvest("b") == [64 + 3]
        assert bench.harvest() == [64 + 3]


class TestDevices:
    @pytest.mark.parametrize("devices", [0, 1, 2, 5])
    def test_a_sync_is_one_walk_for_all_of_them(self, devices: int) -> None:
        bench = Bench(of_pages(("ram", 0, 100, 0), ram=100))
        for n in range(devices):
            bench.shared.attach(f"net{n}")
        for page in range(3):
            bench.wrote(page)
            assert bench.harvest() == list(range(page + 1))
        assert bench.log.counters.get_calls == 3

    @pytest.mark.parametrize("devices", [0, 1, 2, 5])
    def test_or_one_walk_a_device(self, devices: int) -> None:
        bench = Bench(of_pages(("ram", 0, 100, 0), ram=100), shared=False)
        for n in range(devices):
            bench.shared.attach(f"net{n}")
        for page in range(3):
            bench.wrote(page)
            assert bench.harvest() == list(range(page + 1))
        assert bench.log.counters.get_calls == 3 * max(devices, 1)

    def test_names(self) -> None:
        bench = Bench(of_pages(("ram", 0, 100, 0), ram=100))
        for name in ("net0", "blk0", "net1"):
            bench.shared.attach(name)
        bench.shared.detach("blk0")
        assert bench.log.devices == ("net0", "net1")

    def test_what_a_device_logged_stays_when_it_is_detached(self) -> None:
        bench = Bench(of_pages(("ram", 0, 100, 0), ram=100))
        bench.shared.attach("net0")
        bench.wrote(5)
        bench.shared.detach("net0")
        assert bench.harvest() == [5]

    def test_a_name_that_is_taken(self) -> None:
        log = SharedLog(64)
        log.attach("net0")
        with pytest.raises(LocalProtocolError, match="'net0' is attached to this log already"):
            log.attach("net0")
        log.detach("net0")
        log.attach("net0")

    def test_a_name_that_is_not_there(self) -> None:
        log = SharedLog(64)
        with pytest.raises(LocalProtocolError, match="'net0' is not attached to this log; attached: none"):
            log.detach("net0")
        log.attach("a")
        log.attach("b")
        with pytest.raises(LocalProtocolError, match="attached: a, b"):
            log.detach("net0")

    def test_the_last_one_takes_the_log_along(self) -> None:
        log = SharedLog(64)
        descriptor = log.fd
        for name in ("a", "b"):
            log.attach(name)
        log.close()
        log.detach("a")
        os.fstat(descriptor)
        log.attach("c")
        log.detach("b")
        log.detach("c")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        log.close()
        with pytest.raises(LocalProtocolError, match="the log is closed"):
            log.attach("d")


class TestForeignLog:
    """A log that is another process's: nothing is believed of it."""

    @pytest.fixture
    def memory(self) -> Iterator[int]:
        descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        yield descriptor
        os.close(descriptor)

    def test_both_sides_see_the_same_bits(self) -> None:
        ours = SharedLog(1000)
        with SharedLog(1000, ours.fd) as theirs:
            assert theirs.fd != ours.fd
            set_bits(theirs.words, 999)
        assert ours.words[15] == 1 << 39
        ours.close()

    @pytest.mark.parametrize("size", [0, 127])
    def test_too_small(self, memory: int, size: int) -> None:
        os.ftruncate(memory, size)
        with pytest.raises(PeerProtocolError, match=f"{size} bytes of shared memory are there, 128 are needed"):
            SharedLog(1000, memory)

    def test_not_sealed(self, memory: int) -> None:
        os.ftruncate(memory, 128)
        with pytest.raises(PeerProtocolError, match="not sealed against shrinking"):
            SharedLog(1000, memory)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        SharedLog(1000, memory).close()

    def test_ours_cannot_be_resized(self) -> None:
        log = SharedLog(1000)
        for size in (0, 64, 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(log.fd, size)

    def test_no_memory_at_all(self) -> None:
        ends = os.pipe()
        with pytest.raises(PeerProtocolError, match="0 bytes of shared memory"):
            SharedLog(1000, ends[0])
        for end in ends:
            os.close(end)
        with pytest.raises(KernelCallError, match=r"fstat on descriptor \d+, the vhost log failed"):
            SharedLog(1000, ends[0])

    def test_an_ordinary_file(self) -> None:
        with open(__file__, "rb") as file, pytest.raises(PeerProtocolError, match="not sealed"):
            SharedLog(1000, file.fileno())

"""The self-check's closed forms against a replay, and what it finds in a memory that was tampered with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Runs
from precopy.errors import UsageError
from precopy.machines.workload import WORKLOADS, Workload, boot_image, check_stamps, params, params_gpa
from precopy.machines.workload.image import stamped, vcpu_segments, words_at
from precopy.machines.workload.self_check import Counted
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import machine_layout
from precopy.units import PAGE_SIZE
from support.workloads import Order, Program

MIB = 1 << 20
WRITING = [pattern for pattern in WORKLOADS if pattern != "idle"]


def counted(order: Order, step: int) -> Counted:
    return Counted(order.pattern, step, order.pages, order.hot, order.multiplier, order.offset, ())


def orders() -> Iterator[Order]:
    for pages in (2, 3, 5, 8, 12, 17):
        yield Order("sequential", pages)
        for multiplier in (1, 5, 7, pages + 1):
            if math.gcd(multiplier, pages) == 1:
                yield Order("random", pages, 1, multiplier, pages // 3)
        for hot in {1, 2, pages // 2, pages - 1}:
            cold = pages - hot
            for multiplier in (1, 5, 11):
                if 0 < hot < pages and math.gcd(multiplier, cold) == 1:
                    yield Order("hotset", pages, hot, multiplier, cold // 3)


class TestClosedForms:
    @pytest.mark.parametrize("order", list(orders()), ids=str)
    def test_stamps_after_every_step_of_several_passes(self, order: Order) -> None:
        steps = 8 * order.pages * 4 if order.pattern == "hotset" else order.pages * 5
        stamps = [0] * order.pages
        for step, target in enumerate(islice(order.targets(), steps)):
            now = counted(order, step)
            assert now.last_stamps().tolist() == stamps, step
            assert now.target() == target, step
            stamps[target] = step + 1

    @given(st.data(), st.sampled_from(WRITING), st.integers(2, 200), st.integers(0, 3000))
    def test_any_parameters(self, data: st.DataObject, pattern: str, pages: int, steps: int) -> None:
        hot, offset = data.draw(st.integers(1, pages - 1)), data.draw(st.integers(0, 400))
        permuted = pages - hot if pattern == "hotset" else pages
        multiplier = data.draw(st.integers(1, 1000).filter(lambda m: math.gcd(m, permuted) == 1))
        order = Order(pattern, pages, hot, multiplier, offset)
        assert counted(order, steps).last_stamps().tolist() == order.stamps(steps)

    def test_a_late_step_is_not_replayed(self) -> None:
        order = Order("random", 1000, 1, 617, 333)
        late = 10**15 + 123
        stamps = counted(order, late).last_stamps()
        assert stamps.max() == late
        assert stamps.min() > late - 2000
        assert len(set(stamps.tolist())) == 1000

    def test_an_idle_guest_stamps_nothing(self) -> None:
        assert counted(Order("idle", 5), 0).last_stamps().tolist() == [0] * 5


class Guest:
    """A booted guest, for which `Program` writes."""

    def __init__(self, pattern: str, layout: str = "flat", vcpus: int = 1, fill: float = 0.0) -> None:
        self.vcpus = vcpus
        self.memory = GuestMemory(machine_layout(layout, 2 * MIB))
        boot_image(self.memory, Workload(pattern), vcpus, fill)
        self.programs = [Program(self.memory, pattern, vcpu) for vcpu in range(vcpus)]

    def broken(self) -> tuple[str, ...]:
        return check_stamps(self.memory, self.vcpus).broken


class TestImage:
    @pytest.mark.parametrize("vcpus", [1, 2, 3, 5])
    @pytest.mark.parametrize("layout", ["flat", "q35"])
    def test_vcpus_share_all_memory_but_the_reserved(self, layout: str, vcpus: int) -> None:
        machine = machine_layout(layout, 2 * MIB)
        segments = vcpu_segments(machine, vcpus)
        pages = [
            page for part in segments for one in part for page in range(one.first_page, one.first_page + one.pages)
        ]
        everything = [page for one in stamped(machine) for page in range(one.first_page, one.first_page + one.pages)]
        mapped = sum(section.pages for section in machine.sections)
        assert sorted(pages) == sorted(everything)
        assert len(set(pages)) == len(pages) == mapped - 160
        sizes = [sum(one.pages for one in part) for part in segments]
        assert max(sizes) - min(sizes) <= 1

    def test_a_working_set_is_no_larger_than_memory(self) -> None:
        machine = machine_layout("q35", 16 * MIB)
        everything = [part for part in vcpu_segments(machine, 1) if part]
        assert vcpu_segments(machine, 1, machine.bytes) == everything
        with pytest.raises(UsageError, match=r"the working set is .* more than the .* of memory"):
            vcpu_segments(machine, 1, machine.bytes + 4096)

    def test_boot_fills_the_share_that_it_is_told_to(self) -> None:
        with GuestMemory(machine_layout("flat", 4 * MIB)) as memory:
            boot_image(memory, Workload("random"), 1, fill=0.5)
            content, zero = memory.split_zero(Runs.of((160, 1024 - 160)))
            assert list(content) == [(160, 512 - 160)]
            assert list(zero) == [(512, 512)]


class TestSoundMemory:
    @pytest.mark.parametrize("vcpus", [1, 2, 3])
    @pytest.mark.parametrize("layout", ["flat", "q35"])
    @pytest.mark.parametrize("pattern", WRITING)
    def test_nothing_is_broken_after_any_number_of_steps(self, pattern: str, layout: str, vcpus: int) -> None:
        guest = Guest(pattern, layout, vcpus, fill=0.5)
        with guest.memory:
            pages = sum(program.order.pages for program in guest.programs)
            for round_, steps in enumerate((0, 1, 7, 8, 9, 350, 4000, 9001)):
                ran = [steps + 13 * vcpu * round_ for vcpu in range(vcpus)]
                for program, count in zip(guest.programs, ran, strict=True):
                    program.run_to(count)
                found = check_stamps(guest.memory, vcpus)
                assert found.ok, found.broken
                assert (found.steps, found.pages) == (sum(ran), pages)

    def test_an_idle_guest_has_no_pages_to_look_at(self) -> None:
        guest = Guest("idle")
        with guest.memory:
            guest.programs[0].stamp(5, 77)
            assert check_stamps(guest.memory, 1).ok
            assert check_stamps(guest.memory, 1).pages == 0

    @pytest.mark.parametrize("pattern", WRITING)
    def test_the_write_under_way_may_be_there_already(self, pattern: str) -> None:
        guest = Guest(pattern)
        with guest.memory:
            (program,) = guest.programs
            for steps in (0, 5, 7, 700, 4001):
                program.run_to(steps)
                target = next(islice(program.order.targets(), steps, None))
                program.stamp(target, steps + 1)
                assert guest.broken() == ()


@pytest.fixture(params=[(pattern, vcpus) for pattern in WRITING for vcpus in (1, 2)], ids=str)
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """Its programs have written every page several times."""
    pattern, vcpus = request.param
    guest = Guest(pattern, vcpus=vcpus)
    with guest.memory:
        for program in guest.programs:
            program.run_to(program.order.pages * 20)
        assert guest.broken() == ()
        yield guest


class TestTampering:
    def test_each_lost_write_is_found(self, guest: Guest) -> None:
        """The page holds what it held before its last write."""
        program = guest.programs[-1]
        steps = program.order.pages * 20
        stamps = program.order.stamps(steps)
        before = dict.fromkeys(range(program.order.pages), 0)
        for step, page in enumerate(islice(program.order.targets(), steps)):
            if stamps[page] != step + 1:
                before[page] = step + 1
        for page in range(program.order.pages):
            program.stamp(page, before[page])
            (found,) = guest.broken()
            assert f"vCPU {guest.vcpus - 1}, page {page}: its stamp is {before[page]}," in found
            assert f"after {steps} steps it must be {stamps[page]}" in found
            program.stamp(page, stamps[page])
        assert guest.broken() == ()

    @pytest.mark.parametrize("steps", [1, 2, 8, 30])
    def test_the_very_first_writes_may_not_be_lost(self, guest: Guest, steps: int) -> None:
        program = guest.programs[0]
        for page in range(program.order.pages):
            program.stamp(page, 0)
        program.run_to(steps)
        assert guest.broken() == ()
        for page, stamp in enumerate(program.order.stamps(steps)):
            if stamp:
                program.stamp(page, 0)
                assert len(guest.broken()) == 1
                program.stamp(page, stamp)

    @pytest.mark.parametrize("wrong", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
    def test_a_stamp_that_cannot_be(self, guest: Guest, wrong: int) -> None:
        program = guest.programs[0]
        for page in (0, program.order.pages // 2, program.order.pages - 1):
            right = int(program.first_words[page][0])
            program.stamp(page, wrong)
            assert len(guest.broken()) == 1
            program.stamp(page, right)

    def test_a_write_from_the_future(self, guest: Guest) -> None:
        program = guest.programs[0]
        steps = program.order.pages * 20
        upcoming = list(islice(program.order.targets(), steps, steps + 2))
        program.stamp(upcoming[1], steps + 2)
        assert len(guest.broken()) == 1
        program.stamp(upcoming[1], steps + 1)  # the stamp of the write under way, but on another page
        assert len(guest.broken()) == (1 if upcoming[0] != upcoming[1] else 0)

    @pytest.mark.parametrize("by", [-1, 1])
    def test_a_count_that_is_off_by_one(self, guest: Guest, by: int) -> None:
        """One too few is the write under way; one too many is a lost write."""
        program = guest.programs[0]
        program.params[params.STEP // 8] = int(program.params[params.STEP // 8]) + by
        assert len(guest.broken()) == (0 if by < 0 else 1)

    def test_a_whole_block_of_zeroes(self, guest: Guest) -> None:
        guest.memory.write_zero(Runs.of((200, 100)))
        broken = guest.broken()
        assert len(broken) == 8  # no more than that are named
        assert all("its stamp is 0" in one for one in broken)

    def test_only_the_first_word_is_the_programs(self, guest: Guest) -> None:
        for word in guest.programs[0].first_words:
            assert word.size == 1
        words_at(guest.memory, params_gpa(0), PAGE_SIZE)[params.SEGMENTS // 8 + 100] = 5  # beyond the segments
        assert guest.broken() == ()


U64 = 2**64 - 1


class TestDamagedParameters:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            (params.WORKLOAD, len(WORKLOADS)),
            (params.WORKLOAD, U64),
            (params.PAGES, 0),
            (params.PAGES, 351),
            (params.PAGES, 353),
            (params.PAGES, U64),
            (params.HOT, 0),
            (params.HOT, 352),
            (params.HOT, U64),
            (params.MULTIPLIER, 0),
            (params.MULTIPLIER, 2),
            (params.MULTIPLIER, 1 << 31),
            (params.MULTIPLIER, U64),
            (params.SEGMENT_COUNT, 0),
            (params.SEGMENT_COUNT, params.MAX_SEGMENTS + 1),
            (params.SEGMENT_COUNT, U64),
            (params.SEGMENTS, 1 << 40),
            (params.SEGMENTS, U64),
            (params.SEGMENTS + 8, 0),
            (params.SEGMENTS + 8, 1 << 60),
            (params.STEP, 1 << 62),
            (params.STEP, 1 << 63),
            (params.STEP, U64),
        ],
    )
    @pytest.mark.parametrize("pattern", WRITING)
    def test_are_reported(self, pattern: str, field: int, value: int) -> None:
        guest = Guest(pattern)
        with guest.memory:
            assert guest.programs[0].order.pages == 352
            guest.programs[0].run_to(1000)
            guest.programs[0].params[field // 8] = value
            assert len(guest.broken()) >= 1
            assert guest.broken()[0].startswith("vCPU 0")

    def test_of_one_vcpu_do_not_hide_another(self) -> None:
        guest = Guest("sequential", vcpus=2)
        with guest.memory:
            for program in guest.programs:
                program.run_to(1000)
            guest.programs[0].params[params.PAGES // 8] = 7
            guest.programs[1].stamp(3, 1)
            first, second = guest.broken()
            assert "vCPU 0: its parameters" in first
            assert "vCPU 1, page 3" in second

    def test_segments_that_overlap_are_reported_and_not_multiplied(self) -> None:
        """A peer could otherwise have the check allocate many times the guest's memory."""
        guest = Guest("sequential")
        with guest.memory:
            page = guest.programs[0].params
            page[params.SEGMENTS // 8 : params.SEGMENTS // 8 + 4] = [0x100000, 256, 0x100000, 256]
            page[params.SEGMENT_COUNT // 8], page[params.PAGES // 8] = 2, 512
            page[params.MULTIPLIER // 8], page[params.STEP // 8] = 1, 0
            assert guest.broken() == ()  # as many pages as there are: harmless
            page[params.SEGMENTS // 8 + 4 : params.SEGMENTS // 8 + 6] = [0x100000, 256]
            page[params.SEGMENT_COUNT // 8], page[params.PAGES // 8] = 3, 768
            assert "vCPU 0: its parameters" in guest.broken()[0]

    @given(st.data())
    def test_any_parameters_are_read_or_reported(self, data: st.DataObject) -> None:
        guest = Guest(data.draw(st.sampled_from(WRITING)))
        with guest.memory:
            page = guest.programs[0].params
            some = st.integers(0, U64) | st.sampled_from([0, 1, 2, 3, 351, 352, 353, 1 << 31, 1 << 62, 1 << 63, U64])
            fields = [params.STEP, params.WORKLOAD, params.PAGES, params.HOT, params.MULTIPLIER, params.OFFSET]
            fields += [params.SEGMENT_COUNT, params.SEGMENTS, params.SEGMENTS + 8, params.SEGMENTS + 16]
            for field, value in data.draw(st.dictionaries(st.sampled_from(fields), some, max_size=4)).items():
                page[field // 8] = value
            found = check_stamps(guest.memory, 1)
            assert len(found.broken) <= 8
            assert found.pages <= guest.memory.layout.pages

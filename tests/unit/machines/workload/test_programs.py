"""The guests' machine code, run step by step on an emulated CPU, against a replay of what it is meant to write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from precopy.errors import LayoutError, UsageError
from precopy.machines.workload import (
    BURST_PORT,
    CODE_GPA,
    IDLE_PORT,
    MAX_VCPUS,
    WORKLOADS,
    Workload,
    assemble,
    boot_image,
    check_stamps,
    params,
    params_gpa,
)
from precopy.machines.workload.image import RESERVED_END, rings_words, words_at
from precopy.memory import GuestMemory, RamLayout
from precopy.memory.captures.machines import machine_layout
from precopy.units import PAGE_SIZE, GuestPhysicalAddress
from support.workloads import Program

MIB = 1 << 20
WRITING = [pattern for pattern in WORKLOADS if pattern != "idle"]


class Cpu:
    """A bare emulated CPU on a guest's memory, which stops at each port output."""

    def __init__(self, memory: GuestMemory, rbx: int) -> None:
        import unicorn
        from unicorn import x86_const

        self._registers = x86_const
        self._cpu: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        for section in memory.layout.sections:
            address = memory.host(section.block).address + section.offset * PAGE_SIZE
            self._cpu.mem_map_ptr(section.gpa, section.pages * PAGE_SIZE, unicorn.UC_PROT_ALL, address)
        self._cpu.reg_write(x86_const.UC_X86_REG_RIP, CODE_GPA)
        self._cpu.reg_write(x86_const.UC_X86_REG_RBX, rbx)
        self._cpu.hook_add(unicorn.UC_HOOK_INSN, self._out, None, 1, 0, x86_const.UC_X86_INS_OUT)
        self.ports: list[int] = []

    def run(self) -> int:
        """Up to and including the next output; returns its port."""
        self._cpu.emu_start(self._cpu.reg_read(self._registers.UC_X86_REG_RIP), (1 << 64) - 1)
        return self.ports[-1]

    def _out(self, cpu: Any, port: int, _size: int, _value: int, _data: object) -> None:
        self.ports.append(port)
        cpu.emu_stop()


@contextmanager
def booted(
    pattern: str, layout: RamLayout, vcpus: int = 1, hot_share: float = 1 / 16, tsc_khz: int = 0
) -> Iterator[GuestMemory]:
    with GuestMemory(layout) as memory:
        boot_image(memory, Workload(pattern, hot_share=hot_share), vcpus, fill=0.3, tsc_khz=tsc_khz)
        yield memory


def content_of(memory: GuestMemory) -> list[np.ndarray]:
    return [host.words.copy() for host in memory.hosts]


@pytest.mark.needs("unicorn")
class TestPrograms:
    @pytest.mark.parametrize("layout", ["flat", "q35"])
    @pytest.mark.parametrize("pattern", WRITING)
    def test_leave_exactly_the_replayed_memory_after_each_number_of_steps(self, pattern: str, layout: str) -> None:
        machine = machine_layout(layout, 2 * MIB)
        with booted(pattern, machine) as memory, booted(pattern, machine) as replayed:
            program, cpu = Program(replayed, pattern), Cpu(memory, params_gpa(0))
            own = words_at(memory, params_gpa(0), PAGE_SIZE)
            steps = 0
            for burst in (1, 1, 5, 1, 1, 7, 333, 1000, 2 * program.order.pages):
                own[params.BURST // 8] = program.params[params.BURST // 8] = burst
                assert cpu.run() == BURST_PORT
                steps += burst
                program.run_to(steps)
                for clock in (params.FIRST, params.NOW):  # the CPU's time stamps cannot be replayed
                    program.params[clock // 8] = own[clock // 8]
                for found, expected in zip(content_of(memory), content_of(replayed), strict=True):
                    assert np.array_equal(found, expected)
                assert check_stamps(memory, 1).ok

    @pytest.mark.parametrize("pattern", WRITING)
    def test_write_down_each_gap_and_when_it_ended(self, pattern: str) -> None:
        with booted(pattern, machine_layout("flat", 2 * MIB), tsc_khz=1) as memory:
            own, cpu = words_at(memory, params_gpa(0), PAGE_SIZE), Cpu(memory, params_gpa(0))
            own[params.BURST // 8] = 4
            own[params.GAP_TICKS // 8] = own[params.SLOW_TICKS // 8] = 0  # it looks at each step, and sees a gap
            own[params.INTERVAL_TICKS // 8] = 0
            for burst in range(1, params.RING_ENTRIES):  # goes round the ring more than twice
                assert cpu.run() == BURST_PORT
                assert int(own[params.GAPS // 8]) == 4 * burst
                ring = words_at(memory, GuestPhysicalAddress(int(own[params.RING // 8])), params.RING_SIZE)
                entries = [int(word) for word in ring.tolist()]
                kept = min(4 * burst, params.RING_ENTRIES)
                newest = [2 * (number % params.RING_ENTRIES) for number in range(4 * burst - kept, 4 * burst)]
                ends, lengths = [entries[at] for at in newest], [entries[at + 1] for at in newest]
                assert ends == sorted(ends)
                assert ends[-1] == int(own[params.NOW // 8])
                assert all(length > 0 for length in lengths)
                if kept == 4 * burst:  # none is overwritten yet, and there is nothing between gaps
                    assert sum(lengths) == int(own[params.GAP_SUM // 8])
                    assert int(own[params.FIRST // 8]) + sum(lengths) == ends[-1]
            assert check_stamps(memory, 1).ok

    def test_a_wait_for_the_next_burst_is_no_gap_and_a_longer_one_is(self) -> None:
        with booted("sequential", machine_layout("flat", 2 * MIB), tsc_khz=1) as memory:
            own, cpu = words_at(memory, params_gpa(0), PAGE_SIZE), Cpu(memory, params_gpa(0))
            own[params.BURST // 8] = 1
            own[params.GAP_TICKS // 8] = own[params.SLOW_TICKS // 8] = 0
            own[params.INTERVAL_TICKS // 8] = 1 << 50
            cpu.run()
            assert int(own[params.GAPS // 8]) == 1  # from its start to its first step; a step after a wait is none
            time.sleep(0.01)
            cpu.run()
            cpu.run()
            assert int(own[params.GAPS // 8]) == 1
            own[params.INTERVAL_TICKS // 8] = 0  # the next is due at once
            cpu.run()
            before = int(own[params.NOW // 8])
            time.sleep(0.01)
            cpu.run()
            assert int(own[params.GAPS // 8]) == 3
            ring = words_at(memory, GuestPhysicalAddress(int(own[params.RING // 8])), params.RING_SIZE)
            assert 0 < int(ring[5]) <= int(own[params.NOW // 8]) - before

    @pytest.mark.parametrize("hot_share", [0.001, 0.5, 0.999])
    def test_hot_sets_of_any_share(self, hot_share: float) -> None:
        machine = machine_layout("flat", 2 * MIB)
        with booted("hotset", machine, hot_share=hot_share) as memory:
            program = Program(memory, "hotset")
            program.params[params.BURST // 8] = 20_000
            Cpu(memory, params_gpa(0)).run()
            assert [int(word[0]) for word in program.first_words] == program.order.stamps(20_000)

    @pytest.mark.parametrize("pattern", WRITING)
    def test_vcpus_write_their_own_pages(self, pattern: str) -> None:
        with booted(pattern, machine_layout("q35", 2 * MIB), vcpus=3) as memory:
            programs = [Program(memory, pattern, vcpu) for vcpu in range(3)]
            for vcpu, program in enumerate(programs):
                program.params[params.BURST // 8] = 3000 + vcpu
                Cpu(memory, params_gpa(vcpu)).run()
            for vcpu, program in enumerate(programs):
                stamps, first = program.order.stamps(3000 + vcpu), program.first_words
                assert all(int(first[page][0]) == stamp for page, stamp in enumerate(stamps) if stamp)
                assert program.params[params.STEP // 8] == 3000 + vcpu
            assert check_stamps(memory, 3).steps == 9003
            assert check_stamps(memory, 3).ok

    def test_a_program_goes_on_from_the_step_in_its_parameters(self) -> None:
        with booted("random", machine_layout("flat", 2 * MIB)) as memory:
            program = Program(memory, "random")
            program.run_to(1234)
            program.params[params.BURST // 8] = 100
            Cpu(memory, params_gpa(0)).run()  # a new CPU, as after a migration
            stamps = program.order.stamps(1334)
            assert [int(word[0]) for word, stamp in zip(program.first_words, stamps, strict=True) if stamp] == [
                stamp for stamp in stamps if stamp
            ]
            assert check_stamps(memory, 1).ok

    def test_an_idle_guest_writes_nothing(self) -> None:
        with booted("idle", machine_layout("q35", 2 * MIB)) as memory:
            before, cpu = content_of(memory), Cpu(memory, params_gpa(0))
            assert [cpu.run() for _ in range(3)] == [IDLE_PORT] * 3
            assert all(np.array_equal(was, host.words) for was, host in zip(before, memory.hosts, strict=True))


class TestImage:
    @pytest.mark.parametrize("pattern", WORKLOADS)
    def test_code_fits_its_page_and_is_in_place(self, pattern: str) -> None:
        code = assemble(pattern)
        assert 0 < len(code) <= PAGE_SIZE
        with booted(pattern, machine_layout("flat", 2 * MIB)) as memory:
            assert bytes(memory.hosts[0].view[CODE_GPA : CODE_GPA + len(code)]) == code

    @pytest.mark.parametrize(("layout", "ram"), [("flat", 2 * MIB), ("q35", 2 * MIB), ("flat", 5 << 30)])
    def test_page_tables_map_all_memory_onto_itself(self, layout: str, ram: int) -> None:
        machine = machine_layout(layout, ram)
        with GuestMemory(machine) as memory:
            root = boot_image(memory, Workload("idle")).page_table_root
            low = memory.hosts[0].words
            for section in machine.sections:
                for gpa in (section.gpa, section.end_gpa - 1):
                    entry, table = 0, int(root)
                    for shift in (39, 30, 21):
                        entry = int(low[table // 8 + (gpa >> shift & 511)])
                        assert entry & 0x67 == 0x67  # present, writable, user, accessed, dirty
                        table = entry & ~0xFFF
                        assert shift == 21 or table < RESERVED_END
                    assert entry & 0x80
                    assert entry & ~0x1FFFFF & ~(1 << 63) == gpa & ~0x1FFFFF

    def test_each_vcpu_has_a_ring_of_its_own_that_nothing_else_lies_in(self) -> None:
        with GuestMemory(machine_layout("flat", 16 * MIB)) as memory:
            image = boot_image(memory, Workload("random"), MAX_VCPUS, tsc_khz=1_000_000)
            taken = [range(image.page_table_root, image.base + RESERVED_END)]
            taken.append(range(image.entry, image.entry + PAGE_SIZE))
            taken += [range(image.params(vcpu), image.params(vcpu) + PAGE_SIZE) for vcpu in range(MAX_VCPUS)]
            for vcpu in range(MAX_VCPUS):
                own = words_at(memory, image.params(vcpu), PAGE_SIZE)
                ring = int(own[params.RING // 8])
                taken.append(range(ring, ring + params.RING_SIZE))
                assert not rings_words(memory, vcpu).any()
                assert int(own[params.GAP_TICKS // 8]) == 100_000
            taken.sort(key=lambda part: part.start)
            assert all(one.stop <= next_.start for one, next_ in pairwise(taken))

    @pytest.mark.parametrize("vcpus", [0, -1, MAX_VCPUS + 1])
    def test_a_number_of_vcpus_that_cannot_be(self, vcpus: int) -> None:
        with GuestMemory(machine_layout("flat", 2 * MIB)) as memory, pytest.raises(LayoutError, match="1 to 16 vCPUs"):
            boot_image(memory, Workload("idle"), vcpus)

    def test_too_little_memory_for_so_many(self) -> None:
        with GuestMemory(machine_layout("flat", 2 * MIB)) as memory, pytest.raises(LayoutError, match="too few for 6"):
            boot_image(memory, Workload("idle"), 6)

    def test_a_layout_without_low_memory(self) -> None:
        layout = RamLayout.of_blocks([("high", 4 * MIB)]).mapped([("high", 0, 4 * MIB, 1 << 30)])
        with GuestMemory(layout) as memory, pytest.raises(LayoutError, match="needs RAM there"):
            boot_image(memory, Workload("idle"))


class TestWorkload:
    @pytest.mark.parametrize("pattern", ["", "Random", "thrash"])
    def test_unknown_patterns(self, pattern: str) -> None:
        with pytest.raises(UsageError, match="there are sequential, random, hotset, idle"):
            Workload(pattern)

    @pytest.mark.parametrize("rate", [0, -1])
    def test_rates_that_are_none(self, rate: int) -> None:
        with pytest.raises(UsageError, match="above 0"):
            Workload("random", rate)

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0, float("nan")])
    def test_shares_that_are_none(self, share: float) -> None:
        with pytest.raises(UsageError, match="hot set"):
            Workload("hotset", hot_share=share)

    @pytest.mark.parametrize("vcpus", [1, 3, 16])
    @pytest.mark.parametrize("rate", [1, 999, 20_000, 50_000_000])
    def test_bursts_make_the_rate(self, rate: int, vcpus: int) -> None:
        writes, nanoseconds = Workload("random", rate).burst(vcpus)
        assert writes >= 1
        assert vcpus * writes / (nanoseconds / 1e9) == pytest.approx(rate, rel=1e-6)

    def test_without_a_rate_nothing_is_paced(self) -> None:
        assert Workload("random", None).burst(2) == (0, 0)

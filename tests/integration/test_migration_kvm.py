"""Whole migrations of KVM guests inside one process: every byte, every register and every counter."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import msgspec
import pytest

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.errors import NotConverged, PeerRefused, VerificationFailed
from precopy.machines.kvm.state import VcpuState
from precopy.machines.workload import WORKLOADS, Workload, params, params_gpa
from precopy.machines.workload.image import RESERVED_END, words_at
from precopy.migration import Event, Migrated, MigrationOptions, Progress, Round
from precopy.names import CLEAR_POLICIES
from precopy.ports import SyncWay
from precopy.units import PAGE_SIZE, GuestPhysicalAddress
from support.live_guests import (
    ARRIVES,
    MIB,
    Pair,
    migrate,
    runs_on,
    stands_still,
    steps,
    stream_pair,
    until,
)
from support.sleeper import Sleeper

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.usefixtures("nothing_left")]

_BETWEEN_CLOCKS_S = 1.0
"""Between two readings of a clock: microseconds, or as long as a busy machine lets a thread wait."""


class Machine(NamedTuple):
    layout: str
    ram: int
    vcpus: int
    transport: str


MACHINES = (Machine("q35", 32 * MIB, 1, "unix"), Machine("flat", 64 * MIB, 2, "tcp"))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: f"{machine.layout}-{machine.transport}")
@pytest.mark.parametrize(("workload", "clear"), list(product(WORKLOADS, CLEAR_POLICIES)))
def test_everything_arrives_and_the_guest_goes_on(workload: str, clear: str, machine: Machine) -> None:
    layout, ram, vcpus, transport = machine
    with Pair(Workload(workload), layout=layout, ram=ram, vcpus=vcpus) as pair, stream_pair(transport) as streams:
        until(lambda: workload == "idle" or steps(pair.source) > 0)
        done = migrate(pair.source, pair.destination, streams, replace(ARRIVES, clear=clear)).migrated()

        assert done.compared_pages == pair.source.memory.layout.pages
        watch = pair.destination.watch()
        assert (watch.twins, watch.unequal, watch.both) == (1, [], 0)
        stands_still(pair.source)
        at_switchover = steps(pair.source)
        runs_on(pair.destination, idle=workload == "idle")
        assert workload == "idle" or steps(pair.destination) > at_switchover > 0
        assert steps(pair.source) == at_switchover


def test_guest_that_writes_as_fast_as_it_can_arrives() -> None:
    with Pair(Workload("random", None), layout="q35", ram=32 * MIB) as pair, stream_pair() as streams:
        done = migrate(pair.source, pair.destination, streams).migrated()
        assert done.sync_way in ("numpy", "numba")
        assert "a sync" in done.sync_way_why
        assert pair.destination.watch().unequal == []
        stands_still(pair.source)
        runs_on(pair.destination)


def test_guest_moves_there_and_back_again() -> None:
    with Pair(Workload("random"), layout="q35", ram=16 * MIB, vcpus=2) as pair:
        for _ in range(2):
            with stream_pair() as streams:
                migrate(pair.source, pair.destination, streams).migrated()
            assert pair.destination.watch().unequal == []
            assert pair.destination.watch().both == 0
            stands_still(pair.source)
            runs_on(pair.destination)
            pair.turn_round()


def test_guest_that_was_paused_is_moved_as_it_is() -> None:
    with Pair(Workload("sequential")) as pair, stream_pair() as streams:
        pair.source.pause()
        before = steps(pair.source)
        migrate(pair.source, pair.destination, streams).migrated()
        assert pair.destination.watch().unequal == []
        assert steps(pair.source) == before
        runs_on(pair.destination)


class TestInvariant:
    def test_broken_one_is_found_before_the_commit(self) -> None:
        """Both memories are the same, and yet not what the guest's own count says: a write was lost before."""
        with Pair(Workload("sequential", 1000)) as pair, stream_pair() as streams:
            until(lambda: steps(pair.source) > 3)
            pair.source.pause()
            words_at(pair.source.memory, GuestPhysicalAddress(RESERVED_END + PAGE_SIZE), 8)[0] = 1 << 40
            assert not pair.source.self_check().ok
            pair.source.resume()

            ended = migrate(pair.source, pair.destination, streams)

            for error in (ended.source.error, ended.destination.error):
                assert isinstance(error, VerificationFailed)
                assert error.exit_code == 7
                assert "the guest's invariant is broken" in str(error)
                assert f"vCPU 0, page 1: its stamp is {1 << 40}, after " in str(error)
            assert not pair.destination.ran
            assert pair.source.running

    def test_broken_one_is_not_looked_for_without_verification(self) -> None:
        with Pair(Workload("idle")) as pair, stream_pair() as streams:
            words_at(pair.source.memory, params_gpa(0), PAGE_SIZE)[params.PAGES // 8] = 0
            assert not migrate(pair.source, pair.destination, streams, MigrationOptions()).migrated().compared_pages
            assert pair.destination.running


class TestState:
    """What is not in memory."""

    XMM0, XSTATE_BV, YMM0 = 160, 512, 576
    LSTAR, TSC = 0xC0000082, 0x10

    def test_registers_survive(self) -> None:
        with Pair(Workload("sequential"), vcpus=2) as pair, stream_pair() as streams:
            pair.source.pause()
            for number, vcpu in enumerate(pair.source._vcpus):
                self.set_vector_registers(vcpu, bytes(range(number, number + 32)))
                self.set_msr(vcpu, self.LSTAR, 0xFFFF800000001000 + number)
            pair.source.resume()

            migrate(pair.source, pair.destination, streams).migrated()

            sent, arrived = (
                msgspec.msgpack.decode(state, type=list[VcpuState])
                for state in (pair.source.save_state(), pair.destination.watch().states[0])
            )
            assert len(sent) == len(arrived) == 2
            for number, (here, there) in enumerate(zip(sent, arrived, strict=True)):
                assert here.parts == there.parts
                assert here.cpuid == there.cpuid
                xsave = there.parts["xsave"]
                assert xsave[self.XMM0 : self.XMM0 + 16] + xsave[self.YMM0 : self.YMM0 + 16] == bytes(
                    range(number, number + 32)
                )
                msrs = dict(there.msrs)
                assert msrs[self.LSTAR] == 0xFFFF800000001000 + number
                assert {**dict(here.msrs), self.TSC: 0} == {**msrs, self.TSC: 0}
                # Time goes on, and not backwards.
                assert 0 <= dict(here.msrs)[self.TSC] - msrs[self.TSC] < 1 << 40

    def test_cpuid_is_the_guests_and_not_the_hosts(self) -> None:
        """What the guest has seen of its CPU goes with it from host to host, and names each vCPU by its number."""
        with Pair(vcpus=2) as pair:
            pair.source.pause()
            entry = struct.Struct("<7I12x")
            (first, second) = msgspec.msgpack.decode(pair.source.save_state(), type=list[VcpuState])
            ids = [
                [ebx >> 24 for leaf, _, _, _, ebx, _, _ in entry.iter_unpack(one.cpuid) if leaf == 1]
                for one in (first, second)
            ]
            assert ids == [[0], [1]]

            at = next(
                n for n, found in enumerate(entry.iter_unpack(first.cpuid)) if found[0] == 0x80000002
            )  # the brand's first letters
            other = bytearray(first.cpuid)
            other[at * entry.size + 12 : at * entry.size + 28] = b"A CPU of another"
            state = msgspec.msgpack.encode([dataclasses.replace(one, cpuid=bytes(other)) for one in (first, second)])
            pair.destination.load_state(state)
            third = pair.another()
            third.load_state(pair.destination.save_state())
            for guest in (pair.destination, third):
                found = msgspec.msgpack.decode(guest.save_state(), type=list[VcpuState])
                assert [one.cpuid for one in found] == [bytes(other)] * 2
            # A second time nothing changes, and nothing is set: KVM refuses that for a vCPU that has run.
            third.load_state(state)

    def set_vector_registers(self, vcpu: Any, value: bytes) -> None:
        """ymm0, which takes both the legacy and the extended part of the XSAVE area."""
        xcrs = kvm.Xcrs()
        call(vcpu.fd, kvm.GET_XCRS, xcrs, target=vcpu.target)
        area = bytearray(xcrs)
        # struct kvm_xcrs: count, flags, then (xcr, reserved, value); XCR0 with x87, SSE and AVX.
        struct.pack_into("<IIIIQ", area, 0, 1, 0, 0, 0, 7)
        call(vcpu.fd, kvm.SET_XCRS, kvm.Xcrs.from_buffer(area), target=vcpu.target)
        xsave = kvm.Xsave()
        call(vcpu.fd, kvm.GET_XSAVE, xsave, target=vcpu.target)
        area = bytearray(xsave)
        area[self.XMM0 : self.XMM0 + 16], area[self.YMM0 : self.YMM0 + 16] = value[:16], value[16:]
        (present,) = struct.unpack_from("<Q", area, self.XSTATE_BV)
        struct.pack_into("<Q", area, self.XSTATE_BV, present | 7)
        call(vcpu.fd, kvm.SET_XSAVE, kvm.Xsave.from_buffer(area), target=vcpu.target)

    def set_msr(self, vcpu: Any, index: int, value: int) -> None:
        table = kvm.with_entries(kvm.Msrs, kvm.MsrEntry, 1)(1)
        table.entries[0].index, table.entries[0].data = index, value
        assert call(vcpu.fd, kvm.SET_MSRS, table, target=vcpu.target) == 1


class TestLimits:
    @pytest.mark.alone
    @pytest.mark.parametrize("limit", [20_000_000, 80_000_000])
    def test_bandwidth_limit_is_kept(self, limit: int) -> None:
        """A machine that is busy with other things wakes a thread late, and what was not sent by then is not made up
        for: there it is that much less, but never more. 0.75: beside one other busy process 0.82 to 0.9 was seen; a
        limiter that waits a batch too often is far below."""
        reached: list[float] = []
        while len(reached) < 4 and not any(share > 0.75 for share in reached):
            with Pair(Workload("idle"), ram=limit // 2 // MIB * MIB, fill=1.0) as pair, stream_pair() as streams:
                options = MigrationOptions(max_bandwidth=limit)
                with Sleeper(0.05) as sleeper:  # as long as a batch takes
                    done = migrate(pair.source, pair.destination, streams, options).migrated()
                rate = done.sent_bytes / (done.total_s - done.setup_s)
                reached.append(rate / (limit * sleeper.punctuality))
                # The last batch (2 MiB) is not waited for, and 5 ms may be made up for: of half a second's bytes.
                most = 1.05 * limit + (2 * MIB + 0.005 * limit) / 0.5
                assert rate < most
                assert done.rounds[0].bandwidth_bytes_per_s < most
        assert max(reached) > 0.75

    def test_giving_up_leaves_the_guest_at_the_source(self) -> None:
        with Pair(Workload("random", None)) as pair, stream_pair() as streams:
            rounds: list[Event] = []
            options = MigrationOptions(downtime_limit_s=0, max_rounds=3, max_bandwidth=10_000_000)
            ended = migrate(pair.source, pair.destination, streams, options, rounds.append)

            error = ended.source.error
            assert isinstance(error, NotConverged)
            assert (error.exit_code, error.rounds, error.downtime_limit_s) == (4, 3, 0)
            assert error.remaining > 0
            assert error.expected_downtime_s > 0
            assert [event.final for event in rounds if isinstance(event, Round)] == [False] * 3
            assert isinstance(ended.destination.error, PeerRefused)
            assert "did not converge" in str(ended.destination.error)
            assert not pair.destination.ran
            runs_on(pair.source)

            # And with a limit that can be met, the next attempt gets through.
            pair.replace_destination(pair.another())
            with stream_pair() as again:
                migrate(pair.source, pair.destination, again).migrated()
            assert pair.destination.watch().unequal == []
            runs_on(pair.destination)

    def test_downtime_limit_is_what_it_waits_for(self) -> None:
        # 4 MB/s; 120 ms of it are 480 kB. The guest writes some 0.8 MB/s, so several rounds are needed. So slow a link
        # leaves time for all else that a downtime has, on a busy machine too.
        with Pair(Workload("random", 200), ram=8 * MIB) as pair, stream_pair() as streams:
            options = MigrationOptions(max_bandwidth=4_000_000, downtime_limit_s=0.12)
            done = migrate(pair.source, pair.destination, streams, options).migrated()
            assert len(done.rounds) > 2
            assert done.rounds[-1].sent_bytes < 4_000_000 * 0.2
            sizes = [one.sent_bytes for one in done.rounds]
            assert sizes == sorted(sizes, reverse=True) or sizes[-1] < sizes[0] / 10


class TestFigures:
    @pytest.mark.parametrize("clear", CLEAR_POLICIES)
    def test_counters_add_up(self, clear: str) -> None:
        events: list[Event] = []
        with Pair(Workload("hotset"), layout="q35", ram=32 * MIB) as pair, stream_pair() as streams:
            options = replace(ARRIVES, clear=clear, max_bandwidth=200_000_000, downtime_limit_s=0.02)
            choose, trial = pair.source.choose_sync_way, []

            def choose_and_note() -> SyncWay:
                """The syncs of this trial are in no round."""
                before, way = pair.source.dirty.counters, choose()
                trial.append(pair.source.dirty.counters - before)
                return way

            pair.source.choose_sync_way = choose_and_note
            ended = migrate(pair.source, pair.destination, streams, options, events.append)
            done, received, log = ended.migrated(), ended.received(), pair.source.dirty.counters - trial[0]
            slots, pages = len(pair.source.vm_memory.slots), pair.source.memory.layout.pages

        rounds = done.rounds
        assert sum(one.get_log_ioctls for one in rounds) == log.get_calls
        assert sum(one.clear_log_ioctls for one in rounds) == log.clear_calls
        assert sum(one.get_log_ioctl_s for one in rounds) == pytest.approx(log.get_s)
        assert sum(one.clear_log_ioctl_s for one in rounds) == pytest.approx(log.clear_s)
        # One sync a round, two in the last, one call a slot.
        assert [one.get_log_ioctls for one in rounds] == [slots] * (len(rounds) - 1) + [2 * slots]
        assert [one.number for one in rounds] == list(range(1, len(rounds) + 1))
        assert [one.final for one in rounds] == [False] * (len(rounds) - 1) + [True]
        if clear == "per-page":
            # The last round's second sync may find what the first one found, and then clears it again.
            assert [one.clear_log_ioctls for one in rounds] == [
                one.dirty_pages + one.found_twice_pages for one in rounds
            ]
        else:
            assert all(one.clear_log_ioctls <= 3 * slots for one in rounds)

        assert rounds[0].sent_pages + rounds[0].zero_pages == pages
        assert sum(one.sent_pages + one.zero_pages for one in rounds) == received.received_pages
        assert sum(one.zero_pages for one in rounds) == received.zero_pages
        assert sum(one.sent_pages for one in rounds) * PAGE_SIZE == received.received_bytes
        assert received.rounds == len(rounds)
        assert received.compared_pages == done.compared_pages == pages
        for one in rounds:
            assert one.sent_bytes >= one.sent_pages * PAGE_SIZE
            assert one.new_dirty_pages <= one.dirty_pages
            assert one.sync_s == pytest.approx(one.log_sync_s + one.bitmap_sync_s + one.log_clear_s)
            assert one.send_s + one.scan_s + one.clear_s <= one.transfer_s
            assert one.get_log_ioctl_s <= one.log_sync_s
        self.assert_times(done)
        assert [event for event in events if isinstance(event, Round)] == list(rounds)
        self.assert_progress([event for event in events if isinstance(event, Progress)])

    def assert_times(self, done: Migrated) -> None:
        in_rounds = sum(one.transfer_s for one in done.rounds) + sum(one.sync_s for one in done.rounds)
        assert in_rounds + done.verify_s + done.setup_s <= done.total_s
        assert 0 < done.downtime.total_s < done.total_s
        assert done.rounds[-1].transfer_s <= done.downtime.final_send_s < done.rounds[-1].transfer_s + _BETWEEN_CLOCKS_S
        assert sum(one.sent_bytes for one in done.rounds) < done.sent_bytes

    def assert_progress(self, progress: list[Progress]) -> None:
        assert len(progress) > 1
        phases = [one.phase for one in progress]
        assert phases == sorted(phases, key=["rounds", "switchover", "verify", "commit"].index)
        sent = [one.sent_bytes for one in progress]
        assert sent == sorted(sent)
        assert progress[0].remaining_bytes > progress[-1].remaining_bytes

    def test_zero_pages_cost_no_memory_at_either_side(self) -> None:
        with Pair(Workload("idle"), ram=64 * MIB, fill=0) as pair, stream_pair() as streams:
            done = migrate(pair.source, pair.destination, streams, MigrationOptions()).migrated()
            assert done.sent_bytes < 256 << 10
            assert sum(one.zero_pages for one in done.rounds) > 0.99 * 64 * MIB / PAGE_SIZE
            runs_on(pair.destination, idle=True)

    def test_page_that_becomes_zero_again_is_zeroed_at_the_destination(self) -> None:
        """Content sent in an early round must not survive a later round's news that the page is zero."""
        with Pair(Workload("idle"), ram=16 * MIB, fill=1.0) as pair, stream_pair() as streams:
            memory = pair.source.memory
            last = memory.pages(memory.layout.blocks[0])[-1]
            zeroed: list[int] = []

            def emit(event: Event) -> None:
                if isinstance(event, Round) and not zeroed:
                    zeroed.append(event.number)
                    zero_a_page_of_the_guest()

            def zero_a_page_of_the_guest() -> None:
                # Only the guest's own writes are logged: so its code is replaced by one that clears the page.
                pair.source.pause()
                code = b"\x48\xc7\x07\x00\x00\x00\x00\x48\x83\xc7\x08\xff\xc9\x75\xf1\xe6\x11\xeb\xfc"
                # mov qword [rdi], 0; add rdi, 8; dec ecx; jnz to the start; out 0x11, al; jmp to the out
                memory.host(memory.layout.blocks[0]).view[0x1000 : 0x1000 + len(code)] = code
                vcpu = pair.source._vcpus[0]
                regs = kvm.Regs()
                call(vcpu.fd, kvm.GET_REGS, regs, target=vcpu.target)
                regs.rdi, regs.rcx, regs.rip = 16 * MIB - PAGE_SIZE, PAGE_SIZE // 8, 0x1000
                call(vcpu.fd, kvm.SET_REGS, regs, target=vcpu.target)
                pair.source.resume()
                until(lambda: not last.any())

            assert last.any()
            options = MigrationOptions(downtime_limit_s=0.3)
            done = migrate(pair.source, pair.destination, streams, options, emit).migrated()
            assert zeroed == [1]
            assert done.rounds[-1].zero_pages == 1
            arrived = pair.destination.memory.pages(pair.destination.memory.layout.blocks[0])[-1]
            assert not arrived.any()

"""What the host reads of a guest's gaps, held against a guest that is played by a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.errors import Unsupported
from precopy.machines.workload import Workload, boot_image, params, params_words
from precopy.machines.workload.gaps import GapMeter
from precopy.machines.workload.image import rings_words
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import flat
from precopy.ports.stall import Stall, together

KHZ = 1000
"""A tick is a microsecond."""
U64 = (1 << 64) - 1


@dataclass
class Played:
    """A vCPU's program as far as its gaps go; ``all`` are (end, length) of each, in ticks."""

    memory: GuestMemory
    vcpu: int = 0
    all: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page, self.ring = params_words(self.memory, self.vcpu), rings_words(self.memory, self.vcpu).reshape(-1, 2)
        self.go(1000)
        self.page[params.FIRST // 8] = 1000

    @property
    def now(self) -> int:
        return int(self.page[params.NOW // 8])

    def go(self, ticks: int) -> None:
        self.page[params.NOW // 8] += np.uint64(ticks)

    def gap(self, ticks: int) -> None:
        self.go(ticks)
        self.ring[len(self.all) % params.RING_ENTRIES] = (self.now, ticks)
        self.all.append((self.now, ticks))
        self.page[params.GAP_SUM // 8] += np.uint64(ticks)
        self.page[params.GAPS // 8] = len(self.all)


@pytest.fixture(scope="module")
def room() -> Iterator[GuestMemory]:
    with GuestMemory(flat(4 << 20)) as memory:
        yield memory


def played(memory: GuestMemory, vcpus: int = 1) -> list[Played]:
    boot_image(memory, Workload("random"), vcpus, tsc_khz=KHZ)
    return [Played(memory, vcpu) for vcpu in range(vcpus)]


class TestTake:
    def test_the_gaps_since_the_last_one(self, room: GuestMemory) -> None:
        (guest,) = played(room)
        guest.gap(5000)
        meter = GapMeter(room, 1, KHZ)
        assert meter.take(0.25) == Stall(0.25, 0.0, 0.0, 0)
        guest.gap(200)
        meter.poll()
        guest.gap(3000)
        guest.gap(400)
        assert meter.take(1.5) == Stall(1.5, 0.003, 0.0036, 3)
        assert meter.take(0.0) == Stall(0.0, 0.0, 0.0, 0)

    def test_of_several_vcpus_the_longest_and_the_average(self, room: GuestMemory) -> None:
        first, second, _ = played(room, 3)
        meter = GapMeter(room, 3, KHZ)
        first.gap(600)
        second.gap(900)
        second.gap(300)
        assert meter.take(1.0) == Stall(1.0, 0.0009, pytest.approx(0.0006), 3)

    def test_what_was_overwritten_is_counted_and_summed_and_said_to_be_unread(self, room: GuestMemory) -> None:
        (guest,) = played(room)
        meter = GapMeter(room, 1, KHZ)
        guest.gap(9000)
        for _ in range(params.RING_ENTRIES):
            guest.gap(200)
        got = meter.take(1.0)
        assert got == Stall(1.0, 0.0002, pytest.approx(0.009 + 0.0256), 129, got.unread)
        assert got.unread in (1, 2)  # the oldest that is left may be about to be overwritten

    @given(
        st.lists(st.one_of(st.integers(101, 10**6), st.sampled_from(["poll", "take"])), max_size=400),
        st.integers(0, 300),
    )
    def test_however_often_it_is_asked_nothing_is_lost_or_told_twice(
        self, events: list[int | str], before: int
    ) -> None:
        with GuestMemory(flat(2 << 20)) as memory:
            (guest,) = played(memory)
            for _ in range(before):
                guest.gap(777)
            meter = GapMeter(memory, 1, KHZ)
            polled, stalls, longest = before, [], 0.0
            for event in [*events, "take"]:
                if isinstance(event, int):
                    guest.gap(event)
                    continue
                new, polled = guest.all[polled:], len(guest.all)
                certain = new[-params.RING_ENTRIES + 1 :]
                longest = max([longest, *(ticks / 1e6 for _, ticks in certain)])
                if event == "poll":
                    meter.poll()
                else:
                    stalls.append(meter.take(1.0))
                    assert stalls[-1].longest_s >= longest * (1 - 1e-9)
                    longest = 0.0
            done, whole = guest.all[before:], together(stalls)
            assert whole.gaps == len(done)
            assert whole.stalled_s == pytest.approx(sum(ticks for _, ticks in done) * 1e-6)
            assert whole.longest_s <= max((ticks for _, ticks in done), default=0) * 1e-6 + 1e-12
            assert whole.unread or whole.longest_s == pytest.approx(max((t for _, t in done), default=0) * 1e-6)

    def test_changes_nothing_in_the_guest(self, room: GuestMemory) -> None:
        (guest,) = played(room)
        meter = GapMeter(room, 1, KHZ)
        guest.gap(500)
        content = [host.words.copy() for host in room.hosts]
        meter.poll()
        meter.take(1.0)
        meter.before(1.0)
        assert all(np.array_equal(was, host.words) for was, host in zip(content, room.hosts, strict=True))


class TestBefore:
    def test_the_gaps_of_that_window_as_far_as_they_lie_in_it(self, room: GuestMemory) -> None:
        (guest,) = played(room)
        guest.go(100_000)
        guest.gap(30_000)  # ends 8 ms before the end
        guest.go(5000)
        guest.gap(1000)
        guest.go(2000)
        meter = GapMeter(room, 1, KHZ)
        guest.gap(50_000)  # after it was made
        assert meter.before(0.003) == Stall(0.003, 0.001, 0.001, 1)
        assert meter.before(0.012) == Stall(0.012, 0.004, 0.005, 2)
        assert meter.before(0.1) == Stall(0.1, 0.03, 0.031, 2)

    def test_a_guest_that_has_not_run_for_so_long(self, room: GuestMemory) -> None:
        (guest,) = played(room)
        guest.gap(4000)
        guest.go(1000)
        assert GapMeter(room, 1, KHZ).before(60.0) == Stall(0.005, 0.004, 0.004, 1)

    def test_no_longer_than_the_ring_tells(self, room: GuestMemory) -> None:
        (guest,) = played(room)
        for _ in range(3 * params.RING_ENTRIES):
            guest.gap(1000)
        got = GapMeter(room, 1, KHZ).before(60.0)
        assert got.window_s == pytest.approx(0.127, abs=0.002)
        assert got.stalled_s == pytest.approx(got.window_s)
        assert got.longest_s == 0.001

    def test_of_several_vcpus_the_window_that_all_can_tell_of(self, room: GuestMemory) -> None:
        first, second = played(room, 2)
        first.go(50_000)
        first.gap(2000)
        second.go(10_000)
        second.gap(1000)
        got = GapMeter(room, 2, KHZ).before(1.0)
        assert got == Stall(0.011, 0.002, 0.0015, 2)


class TestRefusals:
    def test_a_program_without_the_measurement(self, room: GuestMemory) -> None:
        boot_image(room, Workload("random"))
        with pytest.raises(Unsupported, match="does not measure its gaps"):
            GapMeter(room, 1, KHZ)

    def test_an_idle_guest(self, room: GuestMemory) -> None:
        boot_image(room, Workload("idle"), tsc_khz=KHZ)
        with pytest.raises(Unsupported, match="makes no progress"):
            GapMeter(room, 1, KHZ)

    @pytest.mark.parametrize("here", [0, KHZ // 2, KHZ + 2])
    def test_a_counter_that_runs_at_another_rate_here(self, room: GuestMemory, here: int) -> None:
        played(room)
        with pytest.raises(Unsupported, match="had 1000 kHz where it was booted, and has"):
            GapMeter(room, 1, here)

    @pytest.mark.parametrize("khz", [0, 1 << 40, U64])
    def test_a_rate_that_no_counter_has(self, room: GuestMemory, khz: int) -> None:
        played(room)
        params_words(room, 0)[params.TSC_KHZ // 8] = khz
        with pytest.raises(Unsupported, match="does not measure its gaps"):
            GapMeter(room, 1, khz)


@given(st.lists(st.integers(0, U64), min_size=14, max_size=14), st.lists(st.integers(0, U64), min_size=14, max_size=14))
def test_words_from_a_hostile_peer_are_read_without_harm(at_first: list[int], later: list[int]) -> None:
    with GuestMemory(flat(2 << 20)) as memory:
        played(memory)
        page, ring = params_words(memory, 0), rings_words(memory, 0)

        def write(words: list[int]) -> None:
            for offset, word in zip((params.FIRST, params.NOW, params.GAPS, params.GAP_SUM), words, strict=False):
                page[offset // 8] = word
            ring[:10] = words[4:]

        write(at_first)
        meter = GapMeter(memory, 1, KHZ)
        write(later)
        for stall in (meter.take(1.0), meter.before(1.0)):
            assert 0 <= stall.window_s <= 1.0
            assert 0 <= stall.longest_s <= U64 * 1e-6 * 1.001
            assert 0 <= stall.stalled_s <= U64 * 1e-6 * 1.001
            assert 0 <= stall.gaps <= 1 << 62
            assert 0 <= stall.unread <= stall.gaps

"""Devices that are processes of their own write guest memory and log it, while this one takes the log."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from precopy.abi.atomic import exchange_words
from precopy.bench.vhost_device import VhostDevice
from precopy.bitmap import Bitmap
from precopy.errors import LocalProtocolError, PeerLost, UsageError
from precopy.memory import Backing, GuestMemory, RamLayout
from precopy.memory.captures.machines import flat, q35
from precopy.trackers.shared_log import SharedLog
from precopy.trackers.vhost_log import VhostLog
from precopy.units import PAGE_SIZE
from support.dirty_logs import several_slots
from support.live_guests import until
from support.vhost import RunningVhostGuest

SMALL = flat(2 << 20)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(SMALL, Backing.MEMFD) as memory:
        yield memory


@pytest.fixture
def log() -> Iterator[SharedLog]:
    with SharedLog.for_layout(SMALL) as log:
        yield log


def harvest(log: VhostLog, pages: int) -> list[int]:
    dirty = Bitmap(pages)
    log.harvest(dirty)
    return list(dirty.indexes())


def test_no_bit_is_lost_between_processes(memory: GuestMemory) -> None:
    """One device logs every other page, one after the other. One logs those between, in sweeps that overtake it again
    and again. Meanwhile we take them: each has to be taken exactly once."""
    size, rounds, found = 1 << 21, 20, 0
    with SharedLog(size) as log, VhostDevice("walk", log, memory) as walk, VhostDevice("sweep", log, memory) as sweep:
        for _ in range(rounds):
            walk.send(f"mark 0 {size // 2} 2")
            for first in range(1, 128, 2):
                sweep.send(f"mark {first} {size // 128} 128")
            answers = 0
            while answers < size // 2:
                taken = np.zeros_like(log.words)
                exchange_words(log.words, taken)
                found += int(np.bitwise_count(taken).sum(dtype=np.int64))
                if sweep.answered():
                    answers += sweep.answer()
            walk.answer()
            taken = np.zeros_like(log.words)
            exchange_words(log.words, taken)
            found += int(np.bitwise_count(taken).sum(dtype=np.int64))
    assert found == rounds * size


@pytest.mark.parametrize("shared", [True, False], ids=["one walk", "a walk for each device"])
@pytest.mark.parametrize("layout", [several_slots(), q35(64 << 20)], ids=["unaligned sections", "q35"])
def test_no_write_of_running_devices_is_lost(layout: RamLayout, shared: bool) -> None:
    """A migration without a wire, three times: pages are cleared, then copied, while three devices write them."""
    guest = RunningVhostGuest(layout, devices=3, rate=0, shared=shared)
    try:
        log, pending, dirty = guest.dirty_log(), Bitmap(layout.end_page), Bitmap(layout.end_page)
        copies = [np.zeros_like(host.words) for host in guest.memory.hosts]
        log.start()
        pending.set_runs(layout.runs)

        def sync() -> int:
            dirty.clear_all()
            log.harvest(dirty)
            return pending.union(dirty)

        def send(chunk: int) -> None:
            for start, count in pending.windows(chunk):
                log.clear(start, count)  # law 1: first
                for first, length in pending.take(start, count):
                    for block, host, copy in zip(layout.blocks, guest.memory.hosts, copies, strict=True):
                        lo, hi = max(first, block.first_page), min(first + length, block.end_page)
                        part = slice((lo - block.first_page) * 512, (hi - block.first_page) * 512)
                        if lo < hi:
                            copy[part] = host.words[part]

        for chunk in (64, 256, 4096):
            guest.resume()
            found, syncs, end = 0, 0, time.monotonic() + 0.4
            while time.monotonic() < end or syncs < 3 or found <= 100:
                send(chunk)
                found += sync()
                syncs += 1
            guest.pause()
            sync()
            send(chunk)
            assert found > 100
            for host, copy in zip(guest.memory.hosts, copies, strict=True):
                assert np.array_equal(host.words, copy), host.name
        assert log.stray_pages == 0
        assert guest.written > 1000
    finally:
        guest.close()


class TestCounts:
    @pytest.mark.parametrize("devices", [1, 2, 4])
    def test_devices_that_share_a_log_are_synced_once(self, memory: GuestMemory, devices: int) -> None:
        for shared, walks in ((True, 1), (False, devices)):
            with SharedLog.for_layout(SMALL) as log:
                tracker = VhostLog(SMALL, log, shared=shared)
                tracker.start()
                attached = [VhostDevice(f"net{n}", log, memory) for n in range(devices)]
                for n, device in enumerate(attached):
                    device.write(n + 1, [((10 + n) * PAGE_SIZE, 1)])
                assert tracker.devices == tuple(f"net{n}" for n in range(devices))
                for _ in range(3):
                    assert harvest(tracker, SMALL.end_page) == list(range(10, 10 + devices))
                for device in attached:
                    device.close()
                assert tracker.counters.get_calls == 3 * walks


class TestDevice:
    def test_content_is_there_and_logged(self, memory: GuestMemory, log: SharedLog) -> None:
        tracker = VhostLog(SMALL, log)
        with VhostDevice("net0", log, memory) as device:
            assert device.write(77, [(3 * PAGE_SIZE, 2), (500 * PAGE_SIZE, 1)]) == 3
        assert harvest(tracker, SMALL.end_page) == [3, 4, 500]
        (host,) = memory.hosts
        written = host.words.reshape(-1, 512)
        assert (written[[3, 4, 500]] == 77).all()
        assert np.count_nonzero(host.words) == 3 * 512

    def test_pages_that_are_only_logged(self, memory: GuestMemory, log: SharedLog) -> None:
        with VhostDevice("net0", log, memory) as device:
            assert device.mark(5, 3, 7) == 3
        assert harvest(VhostLog(SMALL, log), SMALL.end_page) == [5, 12, 19]
        assert not memory.hosts[0].words.any()

    def test_content_is_there_before_it_is_logged(self) -> None:
        layout = flat(64 << 20)
        with GuestMemory(layout, Backing.MEMFD) as memory, SharedLog.for_layout(layout) as log:
            memory.touch()
            (host,) = memory.hosts
            with VhostDevice("net0", log, memory) as device:
                for stamp in range(1, 6):
                    device.send(f"write {stamp} 0 {layout.end_page}")
                    taken = np.zeros_like(log.words)
                    while not exchange_words(log.words, taken):
                        pass
                    assert (host.words[:: PAGE_SIZE // 8] == stamp).all()
                    assert device.answer() == layout.end_page
                    exchange_words(log.words, taken)

    def test_it_logs_as_many_pages_as_it_says(self, memory: GuestMemory, log: SharedLog) -> None:
        with VhostDevice("net0", log, memory) as device:
            device.run(rate=5000, seed=1)
            began = time.perf_counter()
            until(lambda: int(np.bitwise_count(log.words).sum()) > 100)
            written = device.pause()
        assert 100 < written < 5000 * (time.perf_counter() - began) + 10
        found = harvest(VhostLog(SMALL, log), SMALL.end_page)
        (host,) = memory.hosts
        assert found == np.flatnonzero(host.words.reshape(-1, 512).any(axis=1)).tolist()
        assert int(host.words.max()) == (1 << 32) + written

    def test_the_log_lives_as_long_as_its_last_device(self, memory: GuestMemory) -> None:
        log = SharedLog.for_layout(SMALL)
        first, second = VhostDevice("a", log, memory), VhostDevice("b", log, memory)
        log.close()
        first.close()
        second.write(1, [(0, 1)])
        assert harvest(VhostLog(SMALL, log), SMALL.end_page) == [0]
        second.close()
        second.close()
        assert log.fd < 0

    def test_a_name_that_is_taken(self, memory: GuestMemory, log: SharedLog) -> None:
        with VhostDevice("net0", log, memory), pytest.raises(LocalProtocolError, match="attached to this log already"):
            VhostDevice("net0", log, memory)

    def test_memory_that_cannot_be_shared(self, log: SharedLog) -> None:
        with GuestMemory(SMALL) as memory, pytest.raises(UsageError, match="'ram' cannot be shared with a device"):
            VhostDevice("net0", log, memory)
        assert log.devices == ()

    def test_one_that_is_killed(self, memory: GuestMemory, log: SharedLog) -> None:
        device = VhostDevice("net0", log, memory)
        device.write(1, [(PAGE_SIZE, 1)])
        os.kill(device.pid, signal.SIGKILL)
        with pytest.raises(PeerLost, match="the vhost device 'net0' does not answer"):
            device.write(2, [(2 * PAGE_SIZE, 1)])
        device.close()
        assert log.devices == ()
        assert harvest(VhostLog(SMALL, log), SMALL.end_page) == [1]

    def test_pages_that_are_not_there(
        self, memory: GuestMemory, log: SharedLog, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with VhostDevice("net0", log, memory) as device, pytest.raises(PeerLost, match="it has ended"):
            device.write(1, [(SMALL.end_page * PAGE_SIZE - PAGE_SIZE, 2)])
        assert "2 pages at 0x1ff000 are not in one section" in capfd.readouterr().err
        assert harvest(VhostLog(SMALL, log), SMALL.end_page) == []

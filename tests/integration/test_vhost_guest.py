"""A running KVM guest, and a vhost device that writes its memory: two who log, one dirty memory, nothing lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from precopy.bench.vhost_device import VhostDevice
from precopy.dirty import MigrationBitmap, clear_policy
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload
from precopy.memory import Backing, DirtyClient, GuestMemory
from precopy.memory.captures.machines import machine_layout
from precopy.trackers.shared_log import SharedLog
from precopy.trackers.vhost_log import VhostLog
from precopy.units import PAGE_SIZE

pytestmark = pytest.mark.needs("kvm")
RAM = 16 << 20


@pytest.fixture
def guest() -> Iterator[KvmGuest]:
    with KvmGuest(GuestMemory(machine_layout("flat", RAM), Backing.MEMFD)) as guest:
        guest.boot(Workload("random", rate=20_000, working_set=4 << 20))
        yield guest


@pytest.fixture
def log(guest: KvmGuest) -> Iterator[VhostLog]:
    with SharedLog.for_layout(guest.memory.layout) as shared:
        yield VhostLog(guest.memory.layout, shared)


def test_no_write_of_the_guest_or_the_device_is_lost(guest: KvmGuest, log: VhostLog) -> None:
    """The device writes the upper half of memory, the guest the lower; both are copied while they are written."""
    (host,) = guest.memory.hosts
    copy = np.zeros_like(host.words)
    guest.dirty.attach(log)
    bitmap = MigrationBitmap(guest.dirty, clear_policy("deferred", guest.memory.layout, 6))

    def send_pending() -> None:
        for start, count in bitmap.windows(256):
            for first, length in bitmap.take(start, count):
                part = slice(first * PAGE_SIZE // 8, (first + length) * PAGE_SIZE // 8)
                copy[part] = host.words[part]

    with VhostDevice("net", log.log, guest.memory) as device:
        guest.dirty.start()
        bitmap.mark_all()
        for seed in range(4):
            guest.resume()
            order, stop = random.Random(seed), threading.Event()

            def receive_packets(order: random.Random = order, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    pages = [(RAM // 2 + PAGE_SIZE * order.randrange(RAM // 2 // PAGE_SIZE), 1) for _ in range(8)]
                    device.write(order.randrange(1, 1 << 60), pages)

            thread = threading.Thread(target=receive_packets)
            thread.start()
            end, found = time.monotonic() + 0.1, 0
            while time.monotonic() < end or found <= 16:
                found += bitmap.sync().dirty_pages
                send_pending()
            stop.set()
            thread.join()
            guest.pause()
            assert found > 16
            bitmap.sync()
            send_pending()
            assert np.array_equal(copy, host.words)
    guest.dirty.stop()


def test_a_log_that_is_attached_while_memory_is_logged_is_started(guest: KvmGuest, log: VhostLog) -> None:
    with VhostDevice("blk", log.log, guest.memory) as device:
        device.write(1, [(2 << 20, 5)])  # before anybody asked
        guest.dirty.start()
        guest.dirty.sync()
        guest.dirty.test_and_clear(DirtyClient.MIGRATION, 0, guest.memory.layout.end_page)
        guest.dirty.attach(log)
        guest.dirty.sync()  # what it had logged by then may have been read before
        assert guest.dirty.count(DirtyClient.MIGRATION) == 5
        device.write(3, [(4 << 20, 2)])
        guest.dirty.detach(log)  # takes what it had heard of along
        assert guest.dirty.count(DirtyClient.MIGRATION) == 7
        device.write(4, [(6 << 20, 1)])
        guest.dirty.sync()
        assert guest.dirty.count(DirtyClient.MIGRATION) == 7
        guest.dirty.stop()


def test_an_attached_log_stays_when_the_tracker_changes(guest: KvmGuest, log: VhostLog) -> None:
    guest.dirty.attach(log)
    before = guest.dirty
    guest.resume()
    assert guest.use_tracker("dirty-ring") > 0
    assert guest.dirty is not before
    assert log in guest.dirty.logs
    guest.pause()

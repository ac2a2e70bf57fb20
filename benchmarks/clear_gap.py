"""What a clean word costs inside CLEAR_DIRTY_LOG, against what another call costs: where `merged` should split.

Run: .venv/bin/python benchmarks/clear_gap.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.bitmap import Bitmap
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import flat
from precopy.trackers.kvm_log import KvmDirtyLog

RAM, WRITTEN, CALLS = 2 << 30, 32 << 20, 480


def main() -> None:
    with KvmGuest(GuestMemory(flat(RAM))) as guest:
        guest.boot(Workload("sequential", rate=None, working_set=WRITTEN))
        for running in (False, True):
            per_call = statistics.median(one_call(guest, running) for _ in range(5))
            per_word = clean_word(guest)
            print(
                f"vCPU {'running' if running else 'paused'}: a call for one dirty page {1e6 * per_call:.1f} us, "
                f"a clean word {1e9 * per_word:.2f} ns; a gap of {per_call / per_word:.0f} words costs as much"
            )


def kvm_log(guest: KvmGuest) -> KvmDirtyLog:
    log = guest.dirty.logs[0]
    assert isinstance(log, KvmDirtyLog)
    return log


def one_call(guest: KvmGuest, running: bool) -> float:
    """Seconds of a CLEAR_DIRTY_LOG for one dirty page."""
    guest.resume()
    log = kvm_log(guest)
    log.start()
    dirty = Bitmap(guest.memory.layout.end_page)
    log.harvest(dirty)
    log.clear(0, dirty.size)
    time.sleep(0.2)
    if not running:
        guest.pause()
    dirty.clear_all()
    log.harvest(dirty)
    pages = dirty.indexes()[64 : 64 + CALLS].tolist()
    before = log.counters
    for page in pages:
        log.clear(page, 1)
    spent = log.counters - before
    if running:
        guest.pause()
    log.stop()
    return spent.clear_s / spent.clear_calls


def clean_word(guest: KvmGuest) -> float:
    """Seconds that each clean word adds to a call."""
    log = kvm_log(guest)
    log.start()
    slot = max(log._all, key=lambda tracked: tracked.slot.pages)
    times = {}
    for words in (1, 8192):
        mask = np.zeros(words, np.uint64)
        argument = kvm.ClearDirtyLog(slot.slot.number, 64 * words, 0, mask.ctypes.data)
        samples = []
        for _ in range(200):
            start = time.perf_counter()
            call(log._vm, kvm.CLEAR_DIRTY_LOG, argument, target="benchmark")
            samples.append(time.perf_counter() - start)
        times[words] = statistics.median(samples)
    log.stop()
    return (times[8192] - times[1]) / 8191


if __name__ == "__main__":
    main()

"""What a throttle takes of a vCPU's time beside what it was told to, and what the guest then gets done.

Run: .venv/bin/python benchmarks/throttle_share.py
"""

from __future__ import annotations

import time

from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload, params, params_gpa
from precopy.machines.workload.image import words_at
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import machine_layout
from precopy.units import PAGE_SIZE

SHARES = (0.1, 0.3, 0.5, 0.8, 0.95, 0.99)
SECONDS = 2.0
LIMITS = (50e6, 20e6, 5e6)
"""Bytes a second, for a guest that writes 82 MB/s."""


def steps(guest: KvmGuest) -> int:
    return int(words_at(guest.memory, params_gpa(0), PAGE_SIZE)[params.STEP // 8])


def run(guest: KvmGuest) -> tuple[float, float]:
    """(share taken, pages written a second)."""
    before, done, start = guest.throttled(), steps(guest), time.perf_counter()
    time.sleep(SECONDS)
    return (guest.throttled() - before).share, (steps(guest) - done) / (time.perf_counter() - start)


def main() -> None:
    with KvmGuest(GuestMemory(machine_layout("flat", 256 << 20)), tracker="dirty-ring") as guest:
        guest.boot(Workload("random", 20_000))
        guest.resume()
        time.sleep(0.5)
        _, free = run(guest)
        print(f"free: {free:.0f} pages/s")
        print("asked   taken   pages/s   of free")
        for share in SHARES:
            guest.throttle(share)
            taken, rate = run(guest)
            print(f"{share:5.2f}   {taken:5.3f}   {rate:7.0f}   {rate / free:7.3f}")
        guest.dirty.start()
        print("limit MB/s   written MB/s   taken")
        for limit in LIMITS:
            guest.limit_dirtying(limit)
            taken, rate = run(guest)
            print(f"{limit / 1e6:10.0f}   {rate * PAGE_SIZE / 1e6:12.1f}   {taken:5.3f}")
        guest.throttle(0)
        guest.dirty.stop()


if __name__ == "__main__":
    main()

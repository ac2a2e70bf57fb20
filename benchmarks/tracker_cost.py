"""What a sync and the re-arming of all it found cost, with the dirty log and with the dirty ring: where `auto` changes.

Run: .venv/bin/python benchmarks/tracker_cost.py
"""

from __future__ import annotations

import statistics
import time

from precopy.bitmap import Bitmap
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload, params, params_gpa
from precopy.machines.workload.image import words_at
from precopy.memory import DirtyClient, GuestMemory, Section
from precopy.memory.captures.machines import flat
from precopy.units import PAGE_SIZE

RAM, WRITTEN, REPEAT = (256 << 20, 4 << 30, 16 << 30), (64, 1000, 10000, 30000), 9


def main() -> None:
    for ram in RAM:
        for pages in WRITTEN:
            log, ring = (cost(ram, pages, tracker) for tracker in ("dirty-log", "dirty-ring"))
            print(
                f"{ram >> 20:5} MiB, {pages:5} pages dirty: dirty log {1e6 * log:7.0f} us, "
                f"dirty ring {1e6 * ring:7.0f} us"
            )


def cost(ram: int, pages: int, tracker: str) -> float:
    """Median seconds of a sync and of the clear of all it found, the guest paused meanwhile."""
    layout = flat(ram)
    (block,) = layout.blocks
    section = Section(block, 512, pages, layout.sections[0].gpa + (2 << 20))  # type: ignore[arg-type]
    with KvmGuest(GuestMemory(layout), tracker=tracker) as guest:
        guest.boot(Workload("sequential", rate=None), sections=[section])
        step = words_at(guest.memory, params_gpa(0), PAGE_SIZE)[params.STEP // 8 :]
        guest.dirty.start()
        samples = []
        for number in range(REPEAT + 2):
            guest.resume()
            first = int(step[0])
            while int(step[0]) - first <= pages:
                time.sleep(0.001)
            guest.pause()
            start = time.perf_counter()
            guest.dirty.sync()
            found = guest.dirty.exchange(DirtyClient.MIGRATION, Bitmap(layout.end_page))
            guest.dirty.clear(0, layout.end_page)
            if number >= 2:
                samples.append(time.perf_counter() - start)
                assert found.count() >= pages, f"only {found.count()} of {pages} pages were written"
        guest.dirty.stop()
    return statistics.median(samples)


if __name__ == "__main__":
    main()

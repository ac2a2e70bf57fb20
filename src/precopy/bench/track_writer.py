"""What tracking costs a program: a thread that streams through memory, with a sync a second and without tracking.

Both in turn, each in memory of its own: that without tracking was never tracked, so its huge pages are whole.
Other users of the machine's memory slow both down; short slices, one after the other, have nearly the same share of it.
"""

from __future__ import annotations

import resource
import statistics
import threading
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Bitmap
from precopy.memory import GuestMemory, RamLayout
from precopy.report.kinds.bench_track import WriterFigures
from precopy.report.kinds.shared import Spread
from precopy.trackers.pagemap import PagemapLog

SLICE_S = 1.0
"""Seconds of a slice: the writer alternates between tracked and untracked slices; a tracked one has one sync."""


@dataclass(frozen=True)
class _Streamed:
    """What a writer did in a slice: bytes written, CPU time of its thread, time by the clock, page faults."""

    bytes: int
    cpu_s: float
    wall_s: float
    faults: int

    @property
    def per_cpu_s(self) -> float:
        return self.bytes / self.cpu_s

    @property
    def per_s(self) -> float:
        return self.bytes / self.wall_s


def measure_writer(size: int, slices: int) -> WriterFigures:
    """Streams through ``size`` bytes for ``slices`` seconds each way, one at a time in turn. Raises `Unsupported`,
    `OutOfMemory`."""
    layout = RamLayout.of_blocks([("memory", size)])
    with GuestMemory(layout) as plain, GuestMemory(layout) as watched:
        plain.touch()
        watched.touch()
        log = PagemapLog(layout, [watched.hosts[0].address])
        untracked: list[_Streamed] = []
        tracked: list[_Streamed] = []
        syncs: list[float] = []
        log.start()
        try:
            _stream(watched.hosts[0].words, 0)  # the first pass splits huge pages
            for _ in range(slices):
                untracked.append(_stream(plain.hosts[0].words, SLICE_S))
                # One sync in the middle: all that was written before is protected, and faults once afterwards.
                timer = threading.Timer(SLICE_S / 2, lambda: syncs.append(_sync(log, layout)))
                timer.start()
                tracked.append(_stream(watched.hosts[0].words, SLICE_S))
                timer.join()
        finally:
            log.stop()
    pairs = list(zip(tracked, untracked, strict=True))
    plain_speed, speed = (statistics.median(second.per_s for second in way) / 1e9 for way in (untracked, tracked))
    plain_cpu_speed, cpu_speed = (
        statistics.median(second.per_cpu_s for second in way) / 1e9 for way in (untracked, tracked)
    )
    return WriterFigures(
        size_bytes=size,
        slices=slices,
        syncs_per_s=1 / SLICE_S,
        untracked_gb_per_s=plain_speed,
        tracked_gb_per_s=speed,
        untracked_cpu_gb_per_s=plain_cpu_speed,
        tracked_cpu_gb_per_s=cpu_speed,
        fault_s=statistics.median(
            (one.cpu_s - one.bytes / other.per_cpu_s) / max(one.faults, 1) for one, other in pairs
        ),
        faults=statistics.median_low(second.faults for second in tracked),
        sync_s=Spread.of(syncs),
        slowdown=1 - cpu_speed / plain_cpu_speed,
        slowdown_wall=1 - speed / plain_speed,
    )


def _stream(words: npt.NDArray[np.uint64], seconds: float) -> _Streamed:
    """Adds 1 to all ``words``, over and over, for at least ``seconds``; whole passes."""
    passes, faults = 0, _faults()
    cpu, began = time.thread_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or not passes:
        np.add(words, np.uint64(1), out=words)
        passes += 1
    return _Streamed(passes * words.nbytes, time.thread_time() - cpu, elapsed, _faults() - faults)


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def _sync(log: PagemapLog, layout: RamLayout) -> float:
    """Finds and re-arms all that was written; returns the seconds that it took."""
    dirty = Bitmap(layout.end_page)
    began = time.perf_counter()
    log.harvest(dirty)
    log.clear(0, dirty.size)
    return time.perf_counter() - began

"""What tracking costs a program: a thread that streams through memory without tracking, and with a sync a second by a
tracker that is exact, and by one that need not be.

All in turn, each in memory of its own: that without tracking was never tracked, so its huge pages are whole.
Other users of the machine's memory slow all down; short slices, one after the other, have nearly the same share of it.
"""

from __future__ import annotations

import resource
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Bitmap
from precopy.memory import GuestMemory, RamLayout
from precopy.report.kinds.bench_track import RelaxedWriter, WriterFigures
from precopy.report.kinds.shared import Spread
from precopy.trackers.pagemap import PagemapLog

SLICE_S = 1.0
"""Seconds of a slice: the ways take turns; a tracked slice has one sync."""


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


@dataclass
class _Way:
    """Slices of a writer in memory that is tracked in one way: what it did, how long each sync took, and how many pages
    it counted because they were not armed."""

    memory: GuestMemory
    log: PagemapLog
    slices: list[_Streamed] = field(default_factory=list)
    syncs: list[float] = field(default_factory=list)
    unarmed: list[int] = field(default_factory=list)

    @classmethod
    @contextmanager
    def tracked(cls, layout: RamLayout, *, exact: bool) -> Iterator[_Way]:
        with GuestMemory(layout) as memory:
            memory.touch()
            way = cls(memory, PagemapLog(layout, [memory.hosts[0].address], exact=exact))
            way.log.start()
            try:
                _stream(memory.hosts[0].words, 0)  # the first pass splits huge pages
                yield way
            finally:
                way.log.stop()

    def slice(self) -> None:
        # One sync in the middle: all that was written before is protected, and faults once afterwards.
        timer = threading.Timer(SLICE_S / 2, self._sync)
        timer.start()
        self.slices.append(_stream(self.memory.hosts[0].words, SLICE_S))
        timer.join()

    def _sync(self) -> None:
        """Finds and re-arms all that was written."""
        dirty = Bitmap(self.memory.layout.end_page)
        began = time.perf_counter()
        self.log.harvest(dirty)
        self.log.clear(0, dirty.size)
        self.syncs.append(time.perf_counter() - began)
        self.unarmed.append(self.log.unarmed.pages)


def measure_writer(size: int, slices: int) -> WriterFigures:
    """Streams through ``size`` bytes for ``slices`` seconds each way, one at a time in turn. Raises `Unsupported`,
    `OutOfMemory`."""
    layout = RamLayout.of_blocks([("memory", size)])
    untracked: list[_Streamed] = []
    with (
        GuestMemory(layout) as plain,
        _Way.tracked(layout, exact=True) as exact,
        _Way.tracked(layout, exact=False) as relaxed,
    ):
        plain.touch()
        for _ in range(slices):
            untracked.append(_stream(plain.hosts[0].words, SLICE_S))
            exact.slice()
            relaxed.slice()
    pairs = list(zip(exact.slices, untracked, strict=True))
    plain_speed, plain_cpu_speed = _speeds(untracked)
    speed, cpu_speed = _speeds(exact.slices)
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
        faults=statistics.median_low(second.faults for second in exact.slices),
        sync_s=Spread.of(exact.syncs),
        slowdown=1 - cpu_speed / plain_cpu_speed,
        slowdown_wall=1 - speed / plain_speed,
        relaxed=_relaxed(relaxed, untracked),
    )


def _relaxed(way: _Way, untracked: Sequence[_Streamed]) -> RelaxedWriter:
    plain_speed, plain_cpu_speed = _speeds(untracked)
    speed, cpu_speed = _speeds(way.slices)
    return RelaxedWriter(
        gb_per_s=speed,
        cpu_gb_per_s=cpu_speed,
        faults=statistics.median_low(second.faults for second in way.slices),
        sync_s=Spread.of(way.syncs),
        slowdown=1 - cpu_speed / plain_cpu_speed,
        slowdown_wall=1 - speed / plain_speed,
        slowdown_all=1 - _all_per_cpu_s(way.slices) / _all_per_cpu_s(untracked),
        unarmed_pages=statistics.median_low(way.unarmed[len(way.unarmed) // 2 :]),
    )


def _speeds(slices: Sequence[_Streamed]) -> tuple[float, float]:
    """Medians of GB/s by the clock, and by CPU time."""
    return (
        statistics.median(second.per_s for second in slices) / 1e9,
        statistics.median(second.per_cpu_s for second in slices) / 1e9,
    )


def _all_per_cpu_s(slices: Sequence[_Streamed]) -> float:
    return sum(second.bytes for second in slices) / sum(second.cpu_s for second in slices)


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

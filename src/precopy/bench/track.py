"""``precopy bench track``: finding what a program wrote into its own memory, beside what a user has for that today.

Ours is a sync of `PagemapLog`, in one step or in two with each clear policy. The alternatives are comparing with a
saved copy (numpy), hashing every page (xxh3_64) and comparing the hashes, and writing everything (into a memfd, which
is as fast as a file gets). Each repeat goes through all of them in turn, over the same warm memory in small pages and
after the same pages were written; what is found is compared with what was written. What tracking costs the program
itself is measured in track_writer.py.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import xxhash

from precopy.bench.failed import Failed, attempt
from precopy.bench.track_writer import measure_writer
from precopy.dirty import DirtyMemory, MigrationBitmap, clear_policy
from precopy.errors import UsageError, VerificationFailed
from precopy.memory import Backing, GuestMemory, RamLayout
from precopy.names import CLEAR_POLICIES
from precopy.report.kinds.bench_track import SyncFigures, TrackBench, TrackCase, WriterFigures
from precopy.report.kinds.shared import Spread
from precopy.trackers.pagemap import PagemapLog
from precopy.units import PAGE_SIZE, format_size

SHARES = (0.001, 0.01, 0.1, 1.0)
CLUSTER = 512
"""Pages in a run (2 MiB) where dirty pages are clustered."""
MIN_SIZE = 16 << 20

_WORDS = PAGE_SIZE // 8
_PIECE = 64 << 20  # bytes that a write hands over at once
_COMPARED = 256  # pages that are compared at once, so that their 2 MiB stay in the cache
_SEED = 1

Indexes = npt.NDArray[np.int64]


def measure(
    sizes: Sequence[int], repeat: int, writer_slices: int, tell: Callable[[str], None], shares: Sequence[float] = SHARES
) -> TrackBench:
    """Every share, scattered and clustered (all pages: once), for memories of ``sizes`` bytes; the writer for
    ``writer_slices`` seconds each way. ``tell`` is told what is measured next. Where something fails, the other sizes
    are measured all the same.

    Raises `UsageError` for a size that is too small.
    """
    for size in sizes:
        if size < MIN_SIZE or size % PAGE_SIZE:
            raise UsageError(f"a memory of {size} bytes cannot be measured; it has pages and {format_size(MIN_SIZE)}")
    cases: list[TrackCase] = []
    writers: list[WriterFigures] = []

    def measure_size(size: int) -> None:
        with _Subject(size) as subject:
            for share in shares:
                for pattern in ("scattered", "clustered") if share < 1 else ("clustered",):
                    tell(f"{format_size(size)}, {100 * share:g} % {pattern}")
                    cases.append(_case(subject, share, pattern, repeat))
        tell(f"{format_size(size)}, a writer")
        writers.append(measure_writer(size, writer_slices))

    tried = [attempt(format_size(size), partial(measure_size, size)) for size in sizes]
    failed = tuple(case for case in tried if isinstance(case, Failed))
    return TrackBench(repeat, tuple(cases), tuple(writers), failed)


def dirty_indexes(pages: int, share: float, pattern: str, random: np.random.Generator) -> Indexes:
    """Which pages a program writes, ascending: single ones at random, or runs of CLUSTER."""
    count = max(round(pages * share), 1)
    if pattern == "scattered":
        return np.sort(random.choice(pages, count, replace=False)).astype(np.int64)
    runs = -(-count // CLUSTER)
    first = random.choice(max(pages // CLUSTER, runs), runs, replace=False).astype(np.int64) * CLUSTER
    index = (first[:, None] + np.arange(CLUSTER, dtype=np.int64)).reshape(-1)[:count]
    return np.sort(index[index < pages])


class _Subject:
    """The memory under measurement, what the alternatives keep of it, and each way of finding what was written."""

    def __init__(self, size: int) -> None:
        self.layout = RamLayout.of_blocks([("memory", size)])
        self.pages = size // PAGE_SIZE
        self._memories: list[GuestMemory] = []
        try:
            (self._host,) = self._memory().hosts
            self.words = self._host.words
            self.words[:] = np.arange(self.words.size, dtype=np.uint64)
            self._copy = self._memory().hosts[0].words.reshape(-1, _WORDS)
            self._copy[:] = self._rows
            self._target = self._memory(Backing.MEMFD).hosts[0].fd
        except BaseException:
            self.close()
            raise
        self._unequal = np.empty((_COMPARED, _WORDS), np.bool_)
        self._hashes = self._digests(range(self.pages))
        log = self._log(one_step=True)
        log.start()
        self.words[::_WORDS] += np.uint64(1)  # small pages from here on, as after any first write
        log.stop()
        self.settle(np.arange(self.pages))

    def __enter__(self) -> _Subject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for memory in self._memories:
            memory.close()

    def _memory(self, backing: Backing = Backing.ANONYMOUS) -> GuestMemory:
        memory = GuestMemory(self.layout, backing)
        self._memories.append(memory)
        memory.touch()
        return memory

    @property
    def _rows(self) -> npt.NDArray[np.uint64]:
        return self.words.reshape(-1, _WORDS)

    def _log(self, *, one_step: bool) -> PagemapLog:
        return PagemapLog(self.layout, [self._host.address], one_step=one_step)

    def write(self, index: Indexes) -> None:
        self._rows[index, 0] += np.uint64(1)

    def settle(self, index: Indexes) -> None:
        """Brings what the alternatives keep up to date."""
        self._copy[index, 0] = self._rows[index, 0]
        self._hashes[index] = self._digests(index.tolist())

    # Each way, timed.

    @contextmanager
    def tracked(self, *, one_step: bool) -> Iterator[tuple[DirtyMemory, PagemapLog]]:
        log = self._log(one_step=one_step)
        dirty = DirtyMemory(self.layout, log)
        dirty.start()
        try:
            yield dirty, log
        finally:
            dirty.stop()

    def sync(self, tracked: tuple[DirtyMemory, PagemapLog], policy: str, index: Indexes) -> tuple[float, float, int]:
        """Writes and syncs; returns the seconds of the sync and of its deferred clears, and ioctls."""
        dirty, log = tracked
        bitmap = MigrationBitmap(dirty, clear_policy(policy, self.layout))
        self.write(index)
        before = log.ioctls
        stats = bitmap.sync()
        _check(policy, bitmap.dirty.indexes(), index)
        cleared_s = log.counters.clear_s
        for start, count in bitmap.windows(1 << 20):
            bitmap.take(start, count)
        return stats.sync_s, log.counters.clear_s - cleared_s, log.ioctls - before

    def compare(self, index: Indexes) -> float:
        changed = np.zeros(self.pages, np.bool_)
        began = time.perf_counter()
        for lo in range(0, self.pages, _COMPARED):
            hi = min(lo + _COMPARED, self.pages)
            unequal = np.not_equal(self._rows[lo:hi], self._copy[lo:hi], out=self._unequal[: hi - lo])
            unequal.any(axis=1, out=changed[lo:hi])
        seconds = time.perf_counter() - began
        _check("comparing", np.flatnonzero(changed), index)
        return seconds

    def hash(self, index: Indexes) -> float:
        began = time.perf_counter()
        found = np.flatnonzero(self._digests(range(self.pages)) != self._hashes)
        seconds = time.perf_counter() - began
        _check("hashing", found, index)
        return seconds

    def write_all(self) -> float:
        assert self._target is not None
        view = self._host.view
        began = time.perf_counter()
        at = 0
        while at < len(view):
            at += os.pwrite(self._target, view[at : at + _PIECE], at)
        return time.perf_counter() - began

    def _digests(self, pages: Sequence[int]) -> npt.NDArray[np.uint64]:
        digest, view = xxhash.xxh3_64_intdigest, self._host.view
        return np.array([digest(view[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]) for page in pages], np.uint64)


def _check(way: str, found: Indexes, written: Indexes) -> None:
    if not np.array_equal(found, written):
        raise VerificationFailed(f"{way} found {found.size} pages where {written.size} were written")


def _case(subject: _Subject, share: float, pattern: str, repeat: int) -> TrackCase:
    index = dirty_indexes(subject.pages, share, pattern, np.random.default_rng(_SEED))
    ways: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ("one step", *CLEAR_POLICIES)}
    compare, hashes, write_all = [], [], []
    for _ in range(repeat):
        with subject.tracked(one_step=True) as tracked:
            ways["one step"].append(subject.sync(tracked, "merged", index))
        with subject.tracked(one_step=False) as tracked:
            for policy in CLEAR_POLICIES:
                ways[policy].append(subject.sync(tracked, policy, index))
        compare.append(subject.compare(index))
        hashes.append(subject.hash(index))
        write_all.append(subject.write_all())
        subject.settle(index)
    one_step = [sync_s for sync_s, _, _ in ways["one step"]]
    return TrackCase(
        size_bytes=subject.pages * PAGE_SIZE,
        dirty_share=share,
        pattern=pattern,
        dirty_pages=index.size,
        one_step=_figures(ways["one step"]),
        two_step={policy: _figures(ways[policy]) for policy in CLEAR_POLICIES},
        compare_s=Spread.of(compare),
        hash_s=Spread.of(hashes),
        write_all_s=Spread.of(write_all),
        ratio_to_compare=_ratio(compare, one_step),
        ratio_to_hash=_ratio(hashes, one_step),
        ratio_to_write_all=_ratio(write_all, one_step),
    )


def _figures(samples: Sequence[tuple[float, float, int]]) -> SyncFigures:
    sync_s, later_s, ioctls = zip(*samples, strict=True)
    return SyncFigures(Spread.of(sync_s), Spread.of(later_s), statistics.median_low(ioctls))


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(other / mine for other, mine in zip(theirs, ours, strict=True))

"""``precopy bench snapshot``: increments beside our own full snapshot and beside what programs do today, in turn.

All ways save the same memory in the same repeat, each first in its turn: a full snapshot, ``numpy.save`` and a pickle
(protocol 5, which is what multiprocessing sends) into the same directory, a copy into
``multiprocessing.shared_memory``; then increments after random pages were written, as they are and with zstd. All
files are flushed to disk (fsync) before their time ends, ours with their directory; a SharedMemory is in no file, so
nothing is flushed. Half of each page is random, half is zero, so that zstd has something to do. Bytes are what a file
takes of its file system.

At the end of each repeat the newest snapshot is restored, written and compared with the memory. Its files are in the
page cache then, as after any snapshot; the time is until the first word was read and written.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from precopy.abi.filesystem import TMPFS, file_system
from precopy.bench.failed import Failed, attempt
from precopy.errors import SnapshotError, UsageError, VerificationFailed
from precopy.machines.process.memory import Memory
from precopy.report.kinds.bench_snapshot import Place, RestoreCase, SnapshotBench, SnapshotCase
from precopy.report.kinds.shared import Spread
from precopy.snapshot_store import Snapshot, compact, restore, snapshot
from precopy.units import PAGE_SIZE, format_size

MIN_SIZE = 1 << 20
_SHM = Path("/dev/shm")
_WORDS = PAGE_SIZE // 8
_SEED = 1

Words = npt.NDArray[np.uint64]


_Way = tuple[str, float | None]
_Sample = tuple[float, int, int]
"""Seconds, bytes, pages."""


def places(disk: Path | None = None) -> list[Place]:
    """A memory-backed directory, where this machine has one, and ``disk`` (default: where temporary files go)."""
    found = []
    for kind, path in (("memory", _SHM), ("disk", disk or Path(tempfile.gettempdir()))):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if kind == "disk":
                raise UsageError(f"{path} is no directory to measure in: {error.strerror}") from error
            continue
        name = file_system(fd)
        os.close(fd)
        if kind == "disk" or name == TMPFS:
            found.append(Place(kind, str(path), name))
    return found


def measure(
    size: int,
    shares: Sequence[float],
    repeats: int,
    *,
    where: Sequence[Place],
    restore_size: int | None,
    tell: Callable[[str], None],
) -> SnapshotBench:
    """Saves a memory of ``size`` bytes in each place, ``repeats`` times, with increments of each of ``shares`` of its
    pages. ``tell`` is told what is measured next. A place in which something fails is noted, and the others are
    measured.

    Raises `UsageError` for a memory too small, and `OutOfMemory`.
    """
    if size < MIN_SIZE or any(not 0 < share <= 1 for share in shares):
        raise UsageError(f"at least {format_size(MIN_SIZE)} are measured, and shares above 0 up to 1")
    cases: list[SnapshotCase] = []
    restores: list[RestoreCase] = []
    failed: list[Failed] = []
    with Memory(size) as memory:
        words = np.frombuffer(memory.view, np.uint64)
        _fill(words)
        for place in where:
            saved = attempt(str(place), partial(_saved, memory, words, place, shares, repeats, tell=tell))
            if isinstance(saved, Failed):
                failed.append(saved)
            else:
                cases += saved[0]
                restores.append(saved[1])
        del words
    for place in where if restore_size is not None else ():
        tell(f"restoring {format_size(restore_size or 0)}, {place}")
        restored = attempt(f"restoring, {place}", partial(_restored, restore_size or 0, repeats, place))
        if isinstance(restored, Failed):
            failed.append(restored)
        else:
            restores.append(restored)
    return SnapshotBench(size, repeats, tuple(where), tuple(cases), tuple(restores), tuple(failed))


def _saved(
    memory: Memory, words: Words, place: Place, shares: Sequence[float], repeats: int, *, tell: Callable[[str], None]
) -> tuple[list[SnapshotCase], RestoreCase]:
    """All ways in one place."""
    samples: dict[_Way, list[_Sample]] = {}
    restored: list[float] = []
    with _directory(place) as directory:
        for number in range(repeats):
            tell(f"{place}, repeat {number + 1} of {repeats}")
            restored.append(_repeat(memory, words, directory, shares, samples))
    restore_case = RestoreCase(place.kind, memory.size, 1 + len(_increments(shares)), Spread.of(restored))
    return _cases(place, samples), restore_case


def _fill(words: Words) -> None:
    """Random first halves of all pages, a mebibyte at a time."""
    random, pages = np.random.default_rng(_SEED), words.reshape(-1, _WORDS)
    for at in range(0, len(pages), 256):
        part = pages[at : at + 256, : _WORDS // 2]
        part[:] = random.integers(1, 1 << 64, part.shape, np.uint64)


def _increments(shares: Sequence[float]) -> list[tuple[str, float]]:
    ways = ["increment"] + (["increment zstd"] if importlib.util.find_spec("zstandard") else [])
    return [(way, share) for share in shares for way in ways]


def _repeat(
    memory: Memory, words: Words, directory: Path, shares: Sequence[float], samples: dict[_Way, list[_Sample]]
) -> float:
    """Every way once; returns the seconds that restoring took."""

    def note(what: str, share: float | None, sample: _Sample) -> None:
        samples.setdefault((what, share), []).append(sample)

    store = directory / "snapshots"
    whole: list[tuple[str, Callable[[], _Sample]]] = [
        ("full", partial(_ours, partial(snapshot, memory, store, full=True))),
        ("numpy.save", partial(_file, directory, lambda file: np.save(file, words))),
        ("pickle", partial(_file, directory, lambda file: pickle.dump(words, file, protocol=5))),
        ("shared_memory", partial(_shared, words)),
    ]
    turn = len(samples.get(("full", None), [])) % len(whole)
    # Each repeat begins with another: how fast a disk is depends on what was written before.
    for what, save in whole[turn:] + whole[:turn]:
        note(what, None, save())
    compact(store)  # the full snapshot of the repeat before is removed
    random = np.random.default_rng(turn)
    for way, share in _increments(shares):
        dirty = random.choice(memory.pages, max(int(memory.pages * share), 1), replace=False)
        words[dirty * _WORDS] += np.uint64(1)
        increment = partial(snapshot, compress="zstd") if way.endswith("zstd") else snapshot
        note(way, share, _ours(partial(increment, memory, store)))
    return _restore(store, words)


def _ours(save: Callable[[], Snapshot]) -> _Sample:
    began = time.perf_counter()
    saved = save()
    return time.perf_counter() - began, saved.bytes, saved.pages + (0 if saved.full else saved.zero_pages)


def _file(directory: Path, save: Callable[[IO[bytes]], object]) -> _Sample:
    """A peer's file, flushed to disk; removed afterwards."""
    path = directory / "peer"
    began = time.perf_counter()
    try:
        with open(path, "wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - began
        stored = path.stat().st_blocks * 512
    except OSError as error:
        raise SnapshotError(f"cannot write {path}: {error.strerror}") from error
    finally:
        path.unlink(missing_ok=True)
    return seconds, stored, 0


def _shared(words: Words) -> _Sample:
    began = time.perf_counter()
    shared = SharedMemory(create=True, size=words.nbytes)
    try:
        assert shared.buf is not None
        np.copyto(np.frombuffer(shared.buf, np.uint64)[: words.size], words)
        return time.perf_counter() - began, words.nbytes, 0
    finally:
        shared.unlink()
        shared.close()


def _restore(store: Path, words: Words | None, *, verify: bool = False) -> float:
    """Seconds until the newest snapshot's memory was read and written; it is compared with ``words``."""
    began = time.perf_counter()
    memory = restore(store, verify=verify)
    restored = np.frombuffer(memory.view, np.uint64)
    restored[-1] += np.uint64(1)
    seconds = time.perf_counter() - began
    restored[-1] -= np.uint64(1)
    same = words is None or np.array_equal(restored, words)
    memory.close()
    if not same:
        raise VerificationFailed("the restored memory differs from the one that was saved")
    return seconds


def _restored(size: int, repeats: int, place: Place) -> RestoreCase:
    """One full snapshot of ``size`` bytes, all of it content."""
    with _directory(place) as directory:
        with Memory(size) as memory:
            np.frombuffer(memory.view, np.uint64)[::_WORDS] = 1
            snapshot(memory, directory)
        del memory
        at_once, verified = (
            Spread.of([_restore(directory, None, verify=verify) for _ in range(repeats)]) for verify in (False, True)
        )
        return RestoreCase(place.kind, size, 1, at_once, verified)


@contextlib.contextmanager
def _directory(place: Place) -> Iterator[Path]:
    """A directory of our own in a place, which is gone afterwards. Raises `SnapshotError`."""
    try:
        path = Path(tempfile.mkdtemp(prefix="precopy-bench-", dir=place.path))
    except OSError as error:
        raise SnapshotError(f"cannot make a directory in {place.path}: {error.strerror}") from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _cases(place: Place, samples: dict[_Way, list[_Sample]]) -> list[SnapshotCase]:
    full = samples["full", None]
    cases = []
    for (what, share), found in samples.items():
        ratios = None
        if what != "full":
            pairs = list(zip(full, found, strict=True))
            ratios = [
                statistics.median(whole[index] / max(part[index], 1e-9) for whole, part in pairs) for index in (0, 1)
            ]
        cases.append(
            SnapshotCase(
                place.kind,
                what,
                share,
                int(statistics.median(measured[2] for measured in found)),
                what != "shared_memory",
                Spread.of([measured[0] for measured in found]),
                int(statistics.median(measured[1] for measured in found)),
                None if ratios is None else ratios[0],
                None if ratios is None else ratios[1],
            )
        )
    return cases

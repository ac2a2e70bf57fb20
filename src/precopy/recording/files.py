"""Recordings of migrations: one file that only grows, written while the migration runs, and read as a `Trace`.

A bitmap is packed in the thread of the migration: with zstd, 32 MiB (those of a 1 TiB guest) take 3 ms where writes are
few or side by side, and 75 ms with 2.6 million single pages. docs/recordings.md has the figures and the format.
"""

from __future__ import annotations

import contextlib
import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Self

from precopy.abi.file_io import read_at
from precopy.abi.filesystem import usable_path
from precopy.bitmap import Bitmap
from precopy.dirty import LogCounters
from precopy.errors import SnapshotDamaged, SnapshotError, Unsupported, UsageError, raise_without_descriptor
from precopy.memory.layout import RamLayout
from precopy.memory.packing import compressor
from precopy.memory.system_memory import available_memory
from precopy.planning import RoundSample
from precopy.planning.model.round import NextSync, Round
from precopy.planning.model.trace import NO_CALLS, MidRoundSample, RecordedFacts, RecordedOutcome, Trace, TraceRound
from precopy.recording import format as form
from precopy.recording import older
from precopy.recording.format import HEAD, KIND, OPENING, OPENINGS, SCHEMA, Kind, Packed, Packing, Wrong
from precopy.units import format_size

MAX_IN_MEMORY = 2 << 30
"""What all bitmaps of a recording may take when it is read, in bytes, where as much again is available."""
_MOST_BLOCKS = 1 << 17
_ZLIB_LEVEL = 1


class RecordingWriter:
    """Implements `precopy.migration.recorder.Recorder`, into the new file ``path``. ``failed`` is told, once, why no
    more is recorded; the migration goes on, and what was written until then can be read.

    Raises `UsageError` where there is such a file or none can be made.
    """

    def __init__(self, path: str | os.PathLike[str], failed: Callable[[str], None] = lambda _: None) -> None:
        self.path = usable_path(path)
        self._failed = failed
        self._offset = 0
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise UsageError(f"{self.path} is there already; record into a file that is not") from None
        except OSError as error:
            raise_without_descriptor("open", str(self.path), error)
            raise UsageError(f"cannot record into {self.path}: {error.strerror}") from error
        try:
            self._packing, self._pack = Packing.ZSTD, compressor(None)
        except Unsupported:  # the extra is not installed
            self._packing, self._pack = Packing.ZLIB, lambda words: zlib.compress(words, _ZLIB_LEVEL)
        self._began = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is recorded; where nothing was, there is no file. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if not self._began:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)

    def begin(self, layout: RamLayout, facts: RecordedFacts) -> None:
        if not self._began:
            self._began = True
            self._write(OPENING)
        self._add(Kind.BEGIN, lambda _: form.Beginning.of(layout, facts))

    def mid_round(self, interval_s: float, dirty: Bitmap) -> None:
        self._add(Kind.MID_ROUND, lambda packed: form.MidRoundRecord(interval_s, packed), dirty)

    def round(self, done: Round, after: NextSync, dirty: Bitmap, did: LogCounters = NO_CALLS) -> None:
        done = replace(done, dirty_map=())  # ``dirty`` says more
        self._add(Kind.ROUND, lambda packed: form.RoundRecord(done, after, packed, did), dirty)

    def end(self, outcome: RecordedOutcome) -> None:
        self._add(Kind.END, lambda _: outcome)
        self.close()

    def _add(self, kind: Kind, record: Callable[[Packed], object], dirty: Bitmap | None = None) -> None:
        """One block. ``dirty`` is packed at once; without any page, it takes nothing."""
        if self._fd < 0 or not self._began:
            return
        packed, words = form.NOTHING, b""
        try:
            if dirty is not None and dirty.any():
                packed, words = Packed(self._packing, dirty.count()), self._pack(dirty.words)
            self._write(form.encode(kind, record(packed), words, self._offset))
        except Exception as error:  # no recording is worth a migration
            self._stop(f"{type(error).__name__}: {error}")

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and self._fd >= 0:
            try:
                done = os.write(self._fd, rest)
            except OSError as error:
                self._stop(error.strerror or str(error))
                return
            rest = rest[done:]
            self._offset += done

    def _stop(self, why: str) -> None:
        self.close()
        self._failed(f"{self.path} ends here, the migration goes on: {why}")


def read_recording(path: str | os.PathLike[str]) -> Trace:
    """What was recorded. A file that was cut short, as a process that died leaves it, is read up to there, and the
    trace's ``note`` says so.

    Raises `UsageError` for a file that is no recording or too large for memory, `SnapshotDamaged` with the offset,
    `SnapshotError`, `Unsupported` for another version or without the package that its bitmaps need.
    """
    name = usable_path(path)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UsageError(f"there is no file {name}") from None
    except OSError as error:
        raise_without_descriptor("open", name, error)
        raise SnapshotError(f"cannot read {name}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{name} is no regular file, so it is no recording")
        reader = _Reader(name, fd, status.st_size)
        return reader.trace()
    except OSError as error:
        raise SnapshotError(f"cannot read {name}: {error.strerror}") from error
    finally:
        os.close(fd)


class _Reader:
    """Blocks, in their order, become a trace."""

    def __init__(self, path: str, fd: int, size: int) -> None:
        self._path, self._fd, self._size = path, fd, size
        self._note, self._version = "", form.VERSION
        self._layout: RamLayout | None = None
        self._facts: RecordedFacts | None = None
        self._rounds: list[TraceRound] = []
        self._mid_round: list[MidRoundSample] = []
        self._outcome: RecordedOutcome | None = None
        self._empty: Bitmap | None = None
        self._in_memory = 0
        # A small file may unpack to gigabytes: at most half of the free memory is taken for it.
        available = available_memory()
        self._most = MAX_IN_MEMORY if available is None else min(MAX_IN_MEMORY, available // 2)

    def trace(self) -> Trace:
        self._check_opening()
        offset = len(OPENING)
        for _ in range(_MOST_BLOCKS):
            try:
                length = self._block(offset)
            except Wrong as why:
                raise SnapshotDamaged(self._path, f"the block at byte {offset}: {why}") from None
            if not length:
                break
            offset += length
        else:
            raise SnapshotDamaged(self._path, f"it has more than {_MOST_BLOCKS} blocks")
        if self._facts is None or self._layout is None:
            raise UsageError(f"{self._path} holds no migration: it was cut short before one began")
        if self._outcome is None and not self._note:
            self._note = "the recording ends before the migration did"
        return Trace(self._layout, self._facts, tuple(self._rounds), self._outcome, self._note)

    def _check_opening(self) -> None:
        opening = self._read(len(OPENING), 0)
        if opening in OPENINGS:
            self._version = OPENINGS[opening]
            return
        if opening.startswith(f"{KIND}/".encode()) and len(opening) == len(OPENING):
            known = " and ".join(str(version) for version in OPENINGS.values())
            raise Unsupported(
                f"{self._path} is of another version of the recording format, and {known} are known here",
                "use the precopy that wrote it",
            )
        raise UsageError(f"{self._path} is no recording: it does not begin with {SCHEMA}")

    def _block(self, offset: int) -> int:
        """Takes in one block; returns its length, 0 at the file's end. Raises `Wrong`."""
        if offset == self._size:
            return 0
        head = self._read(HEAD.size, offset)
        if len(head) == HEAD.size:
            kind: int
            length: int
            kind, length, checksum = HEAD.unpack(head)
            if length > self._longest():
                raise Wrong(f"it claims to be {length} bytes long")
            if offset + HEAD.size + length <= self._size:
                payload = self._read(length, offset + HEAD.size)
                if len(payload) != length or form.checksum(kind, payload, offset) != checksum:
                    raise Wrong("it does not match its checksum")
                if self._outcome is not None:
                    raise Wrong("it follows the end")
                self._take(kind, *form.split(payload))
                return HEAD.size + length
        self._note = f"the recording was cut short at byte {self._size}, in the middle of what begins at {offset}"
        return 0

    def _read(self, length: int, offset: int) -> bytes:
        """Fewer bytes at the file's end."""
        data = bytearray(length)
        return bytes(data[: read_at(self._fd, memoryview(data), offset)])

    def _longest(self) -> int:
        """What a block may be long: what it says, with a bitmap of the layout that nothing could compress."""
        bitmap = 0 if self._layout is None else -(-self._layout.end_page // 8)
        return form.MAX_RECORD + bitmap + bitmap // 64

    def _take(self, kind: int, record: bytes, words: bytes) -> None:
        if (self._layout is None) != (kind == Kind.BEGIN):
            raise Wrong("it has no place here: the beginning comes first, and once")
        match kind:
            case Kind.BEGIN:
                begun = older.beginning(record) if self._version == 1 else form.decode(record, form.Beginning)
                form.check_facts(begun.facts)
                self._layout, self._facts = begun.layout(), begun.facts
            case Kind.MID_ROUND:
                seen = form.decode(record, form.MidRoundRecord)
                if seen.interval_s <= (self._mid_round[-1].interval_s if self._mid_round else 0.0):
                    raise Wrong("it is a mid-round sample that is not after the one before")
                self._mid_round.append(MidRoundSample(seen.interval_s, self._bitmap(words, seen.dirty)))
            case Kind.ROUND:
                sample, packed, did = self._round(record)
                form.check_sample(sample, self._rounds[-1].sample if self._rounds else None)
                dirty = self._bitmap(words, packed)
                self._rounds.append(TraceRound(sample, dirty, tuple(self._mid_round), did))
                self._mid_round.clear()
            case Kind.END:
                outcome = older.outcome(record) if self._version == 1 else form.decode(record, RecordedOutcome)
                form.check_outcome(outcome)
                self._outcome = outcome
            case _:
                raise Wrong(f"it is of kind {kind}, which there is not")
        if words and kind in (Kind.BEGIN, Kind.END):
            raise Wrong("it has a bitmap, and blocks of its kind have none")

    def _round(self, record: bytes) -> tuple[RoundSample, Packed, LogCounters]:
        assert self._layout is not None
        assert self._facts is not None
        if self._version == 1:
            return older.round_record(record)
        found = form.decode(record, form.RoundRecord)
        limited, page_size = self._facts.max_bandwidth is not None, self._layout.page_size
        sample = RoundSample.of(found.round, found.after, page_size=page_size, limited=limited)
        form.check_numbers(sample)
        return sample, found.dirty, found.did

    def _bitmap(self, words: bytes, packed: Packed) -> Bitmap:
        assert self._layout is not None
        size = self._layout.end_page
        if packed == form.NOTHING and not words:
            if self._empty is None:
                self._empty = Bitmap(size)
            return self._empty  # one for all: it is never changed
        self._in_memory += -(-size // 8)
        if self._in_memory > self._most:
            raise UsageError(
                f"{self._path} is too large to be replayed: its bitmaps take more than {format_size(self._most)} of "
                f"memory; read it on a larger machine, or record fewer rounds"
            )
        return form.unpack(words, packed, self._layout)

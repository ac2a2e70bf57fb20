"""Recordings: what is written is read, whatever becomes of the migration or of the disk meanwhile."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from precopy.bitmap import Bitmap
from precopy.dirty import LogCounters
from precopy.errors import SnapshotDamaged, Unsupported, UsageError
from precopy.memory.layout import RamLayout
from precopy.planning.model.trace import RecordedOutcome, Trace, TraceRound
from precopy.recording import files as recording
from precopy.recording.files import RecordingWriter, read_recording
from precopy.recording.format import HEAD, OPENING, Kind
from precopy.units import PAGE_SIZE
from support.traces import BANDWIDTH, LAYOUT, PAGES, as_made, hot_and_cold, record, write

TRACE = record(hot_and_cold(BANDWIDTH / PAGE_SIZE, 512), mid_round=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.recording"


class TestRoundTrip:
    def test_all_of_it(self, path: Path) -> None:
        write(TRACE, path)
        assert read_recording(path) == TRACE

    def test_the_layout_with_its_sections(self, path: Path) -> None:
        layout = RamLayout.of_blocks([("pc.ram", PAGES * PAGE_SIZE), ("flash", 65 * PAGE_SIZE)]).mapped(
            [("pc.ram", 0, 1 << 20, 0), ("flash", 0, 65 * PAGE_SIZE, 1 << 32), ("pc.ram", 1 << 20, 1 << 20, 1 << 33)]
        )
        bitmap = Bitmap(layout.end_page)
        bitmap.set_range(layout.end_page - 70, 70)
        one = TraceRound(TRACE.samples[0], bitmap, (), LogCounters(1, 2e-6, 3, 4e-6))
        trace = Trace(layout, TRACE.facts, (one,), TRACE.outcome)
        write(trace, path)
        assert read_recording(path) == trace

    def test_without_the_package_that_packs_best(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "zstandard", None)
        write(TRACE, path)
        assert read_recording(path) == TRACE

    def test_bitmaps_are_only_lent(self, path: Path) -> None:
        lent = TRACE.rounds[0].dirty.copy()
        with RecordingWriter(path) as writer:
            writer.begin(LAYOUT, TRACE.facts)
            writer.round(*as_made(TRACE.samples[0]), lent)
            lent.clear_all()
        assert read_recording(path).rounds[0].dirty == TRACE.rounds[0].dirty

    def test_an_empty_bitmap_takes_nothing(self, path: Path) -> None:
        with RecordingWriter(path) as writer:
            writer.begin(LAYOUT, TRACE.facts)
            before = path.stat().st_size
            writer.round(*as_made(TRACE.samples[0]), Bitmap(PAGES))
        assert path.stat().st_size - before < 1000
        assert not read_recording(path).rounds[0].dirty.any()

    def test_nothing_is_recorded_after_the_end(self, path: Path) -> None:
        with RecordingWriter(path) as writer:
            writer.begin(LAYOUT, TRACE.facts)
            writer.end(RecordedOutcome(False, 1.0, 2.0, error="cancelled"))
            writer.round(*as_made(TRACE.samples[0]), TRACE.rounds[0].dirty)
        trace = read_recording(path)
        assert (trace.rounds, trace.outcome) == ((), RecordedOutcome(False, 1.0, 2.0, error="cancelled"))


class TestCutShort:
    def test_a_migration_that_died(self, path: Path) -> None:
        write(replace(TRACE, outcome=None), path)
        trace = read_recording(path)
        assert trace.rounds == TRACE.rounds
        assert trace.outcome is None
        assert trace.note == "the recording ends before the migration did"

    def test_in_the_middle_of_a_block(self, path: Path) -> None:
        write(TRACE, path)
        data = path.read_bytes()
        seen = set()
        for size in range(len(OPENING), len(data), 97):
            path.write_bytes(data[:size])
            try:
                trace = read_recording(path)
            except UsageError as error:
                assert "before one began" in str(error)  # noqa: PT017 - either is right
                continue
            assert trace.rounds == TRACE.rounds[: len(trace.rounds)]
            assert trace.note
            seen.add(len(trace.rounds))
        assert seen == set(range(len(TRACE.rounds) + 1))


class TestFailures:
    def test_what_is_there_is_not_overwritten(self, path: Path) -> None:
        path.write_text("precious")
        with pytest.raises(UsageError, match="is there already"):
            RecordingWriter(path)
        assert path.read_text() == "precious"

    def test_no_such_directory(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"cannot record into .*No such file or directory"):
            RecordingWriter(tmp_path / "no" / "such")

    def test_a_full_disk_ends_the_recording_and_nothing_else(self, path: Path) -> None:
        said: list[str] = []
        with RecordingWriter(path, said.append) as writer, largest_file(3000):
            writer.begin(LAYOUT, TRACE.facts)
            for one in TRACE.rounds:
                writer.round(*as_made(one.sample), one.dirty)
            assert TRACE.outcome is not None
            writer.end(TRACE.outcome)
        (why,) = said
        assert why == f"{path} ends here, the migration goes on: File too large"
        trace = read_recording(path)
        assert trace.rounds == tuple(replace(one, mid_round=()) for one in TRACE.rounds[: len(trace.rounds)])
        assert "cut short at byte 3000" in trace.note

    def test_what_is_no_recording(self, path: Path) -> None:
        with pytest.raises(UsageError, match="there is no file"):
            read_recording(path)
        path.write_bytes(b"\x7fELF and so on, for a while")
        with pytest.raises(UsageError, match=r"it does not begin with precopy\.recording/2"):
            read_recording(path)
        with pytest.raises(UsageError, match="no regular file"):
            read_recording("/dev/zero")
        path.write_bytes(b"precopy.recording/3\n" + bytes(100))
        with pytest.raises(Unsupported, match="use the precopy that wrote it"):
            read_recording(path)

    def test_a_file_that_is_too_large_for_memory(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(TRACE, path)
        monkeypatch.setattr(recording, "MAX_IN_MEMORY", PAGES // 8 * (len(TRACE.rounds) - 1))
        with pytest.raises(UsageError, match="too large to be replayed"):
            read_recording(path)

    def test_blocks_in_another_order(self, path: Path) -> None:
        with RecordingWriter(path) as writer:
            writer.begin(LAYOUT, TRACE.facts)
            writer.begin(LAYOUT, TRACE.facts)
        with pytest.raises(SnapshotDamaged, match=r"the block at byte \d+: it has no place here"):
            read_recording(path)

    def test_there_is_no_file_where_nothing_began(self, path: Path) -> None:
        with RecordingWriter(path) as writer:
            writer.round(*as_made(TRACE.samples[0]), Bitmap(PAGES))
            writer.end(RecordedOutcome(False, 0.1, 0.0, error="refused"))
        assert not path.exists()

    def test_a_block_that_claims_to_be_huge_is_not_read(self, path: Path) -> None:
        path.write_bytes(OPENING + HEAD.pack(Kind.ROUND, 0x7FF00000, 0))
        os.truncate(path, 1 << 31)
        with pytest.raises(SnapshotDamaged, match="it claims to be 2146435072 bytes long"):
            read_recording(path)

    def test_a_round_that_ended_too_soon(self, path: Path) -> None:
        with RecordingWriter(path) as writer:
            writer.begin(LAYOUT, TRACE.facts)
            writer.round(*as_made(replace(TRACE.samples[0], ended_s=1e-4)), Bitmap(PAGES))
        with pytest.raises(SnapshotDamaged, match="it ended before it can have been done"):
            read_recording(path)

    def test_rounds_that_are_missing(self, path: Path) -> None:
        with RecordingWriter(path) as writer:
            writer.begin(LAYOUT, TRACE.facts)
            writer.round(*as_made(TRACE.samples[1]), Bitmap(PAGES))
        with pytest.raises(SnapshotDamaged, match="it is of round 2, and 1 is the next"):
            read_recording(path)

    def test_numbers_that_cannot_be(self, path: Path) -> None:
        with RecordingWriter(path) as writer:
            writer.begin(LAYOUT, TRACE.facts)
            writer.round(*as_made(replace(TRACE.samples[0], sync_s=-1.0)), Bitmap(PAGES))
        with pytest.raises(SnapshotDamaged, match="its sync_s is -1"):
            read_recording(path)

    def test_a_bitmap_of_another_layout(self, path: Path) -> None:
        with RecordingWriter(path) as writer:
            writer.begin(LAYOUT, TRACE.facts)
            writer.round(*as_made(TRACE.samples[0]), Bitmap.from_indexes(2 * PAGES, np.arange(3)))
        with pytest.raises(SnapshotDamaged, match=r"its bitmap cannot be decompressed|not as long as the layout"):
            read_recording(path)

    def test_pages_of_nobody(self, path: Path) -> None:
        layout = RamLayout.of_blocks([("one", 65 * PAGE_SIZE), ("two", PAGE_SIZE)])
        with RecordingWriter(path) as writer:
            writer.begin(layout, TRACE.facts)
            writer.round(*as_made(TRACE.samples[0]), Bitmap.from_indexes(layout.end_page, [3, 66]))
        with pytest.raises(SnapshotDamaged, match="its bitmap has a page between RAM blocks"):
            read_recording(path)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to make files larger than that, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

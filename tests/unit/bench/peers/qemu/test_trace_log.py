"""Reading QEMU's trace."""

from pathlib import Path

import pytest

from precopy.bench.peers.qemu.trace_log import TracedSync, parse_trace
from precopy.errors import PeerProtocolError

MIGRATION = """\
77@100.999990:migration_bitmap_sync_start
77@100.999995:kvm_clear_dirty_log slot#1 start 0x0 size 0x40
77@101.000001:kvm_clear_dirty_log slot#65537 start 0x40 size 0x40
some device: a guest error that has nothing to do with it
77@101.000490:migration_bitmap_sync_end dirty_pages 0
77@101.001000:kvm_clear_dirty_log slot#0 start 0x0 size 0xa0
77@102.000000:migration_bitmap_sync_start
88@102.000050:kvm_clear_dirty_log slot#9 start 0x0 size 0x40
77@102.000060:kvm_clear_dirty_log slot#1 start 0x0 size 0x40
77@102.000070:kvm_clear_dirty_log slot#1 start 0x0 size 0x40
77@102.000100:migration_bitmap_sync_end dirty_pages 18
77@103.000000:migration_bitmap_sync_start
77@103.000020:migration_bitmap_sync_end dirty_pages 18
"""
START = "77@1.000000:migration_bitmap_sync_start \n"
END = "77@1.000500:migration_bitmap_sync_end dirty_pages 3\n"

TRACES = Path(__file__).with_name("traces")
"""The syncs of a migration by each of three real QEMUs."""


class TestTrace:
    def test_times_syncs_and_tells_their_clears_from_deferred_ones(self) -> None:
        trace = parse_trace(MIGRATION)
        assert [round(1e6 * sync.sync_s) for sync in trace.syncs] == [500, 100, 20]
        assert [sync.phase for sync in trace.syncs] == ["setup", "iterate", "complete"]
        assert [sync.dirty_pages for sync in trace.syncs] == [0, 18, 18]
        assert [sync.clears_by_slot for sync in trace.syncs] == [{1: 1, 65537: 1}, {1: 2}, {}]
        assert [sync.clear_ioctls for sync in trace.syncs] == [2, 2, 0]
        assert trace.deferred_clear_ioctls == 1

    def test_a_line_of_11_1_has_a_date_and_no_thread(self) -> None:
        trace = parse_trace(
            "2026-11-29T23:59:59.999990Z migration_bitmap_sync_start \n"
            "2026-11-29T23:59:59.999995Z kvm_clear_dirty_log slot#1 start 0x0 size 0x40\n"
            "2026-11-30T00:00:00.000040Z migration_bitmap_sync_end dirty_pages 7\n"
        )
        assert [(round(1e6 * sync.sync_s), sync.dirty_pages, sync.clear_ioctls) for sync in trace.syncs] == [(50, 7, 1)]

    def test_clears_that_were_not_traced_are_not_none_at_all(self) -> None:
        (sync,) = parse_trace(START + END, clears=False).syncs
        assert sync == TracedSync("setup", pytest.approx(500e-6), 3, None, 1.0, 3)
        assert sync.clear_ioctls is None

    def test_no_events_are_no_syncs(self) -> None:
        assert parse_trace("warning: host doesn't support requested feature\n\n").syncs == ()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("migration_bitmap_sync_start\n" + END, "not understood: 'migration_bitmap_sync_start'"),
            (START + "77@1.5:migration_bitmap_sync_end dirty_pages 3", "not understood"),
            (START + "77@1.000500:migration_bitmap_sync_end dirty_pa", "migration_bitmap_sync_end is not understood"),
            (START + "77@1.000001:kvm_clear_dirty_log slot#x start 0x0 size 0x40", "kvm_clear_dirty_log is not"),
            (START + "77@1.000001:kvm_clear_dirty_log", "kvm_clear_dirty_log is not understood: ''"),
            ("2026-13-29T23:59:59.999990Z migration_bitmap_sync_start", "a time that cannot be"),
            (START, "does not end"),
            (START + START, "within another"),
            (END, "ends before it starts"),
            (START + END.replace("1.000500", "0.999999"), "ends before it starts"),
        ],
    )
    def test_trace_that_makes_no_sense_is_the_peers_fault(self, text: str, message: str) -> None:
        with pytest.raises(PeerProtocolError, match=message):
            parse_trace(text)

    @pytest.mark.parametrize(
        ("version", "found"),
        [
            ("7.2.22", [0, 9197, 2588, 783, 39, 0]),
            ("10.0.2", [0, 7039, 931, 0]),
            ("11.1.3", [0, 12312, 3754, 1559, 1342, 154, 0]),
        ],
    )
    def test_pages_that_each_sync_found_itself(self, version: str, found: list[int]) -> None:
        """As `query-migrate` told them, in the same migrations: by how much sent and remaining pages grew together."""
        trace = parse_trace((TRACES / f"{version}.trace").read_text())
        assert [sync.new_pages for sync in trace.syncs] == found
        assert [sync.phase for sync in trace.syncs] == ["setup", *["iterate"] * (len(found) - 2), "complete"]

    def test_a_period_that_ended_unseen_shows_in_a_count_that_falls(self) -> None:
        """QEMU's clock for its periods is not that of its trace."""
        lines = "".join(
            f"7@{time}:migration_bitmap_sync_start\n7@{time}:migration_bitmap_sync_end dirty_pages {pages}\n"
            for time, pages in (("1.000000", 0), ("2.000000", 500), ("3.000000", 300))
        )
        assert [sync.new_pages for sync in parse_trace(lines).syncs] == [0, 500, 300]

    @pytest.mark.parametrize("tail", ["", START])
    def test_a_migration_under_way_has_no_last_sync(self, tail: str) -> None:
        trace = parse_trace(START + END + START + END + tail, complete=False)
        assert [sync.phase for sync in trace.syncs] == ["setup", "iterate"]

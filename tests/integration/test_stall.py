"""What whole migrations take from their guests, as these measure it: in results, recordings and reports."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from precopy.machines.workload import Workload
from precopy.migration import MigrationOptions
from precopy.ports.stall import GAP_S, together
from precopy.recording.files import RecordingWriter, read_recording
from support.live_guests import MIB, Pair, migrate, runs_on, steps, stream_pair, until

pytestmark = pytest.mark.usefixtures("nothing_left")
QUICK = MigrationOptions(on_timeout="switch")
KINDS = [
    pytest.param("kvm", marks=pytest.mark.needs("kvm")),
    pytest.param("emulated", marks=pytest.mark.needs("unicorn")),
]


@pytest.mark.parametrize("rate", [None, 20_000])
@pytest.mark.parametrize("kind", KINDS)
def test_each_round_the_window_before_and_the_switchover(kind: str, rate: int | None, tmp_path: Path) -> None:
    with Pair(Workload("random", rate), kind=kind, ram=16 * MIB) as pair, stream_pair() as streams:
        until(lambda: steps(pair.source) > 100)
        rounds = []
        recorder = RecordingWriter(tmp_path / "one.recording")
        began = time.perf_counter()
        ended = migrate(pair.source, pair.destination, streams, QUICK, recorder=recorder)
        done, elapsed_s = ended.migrated(), time.perf_counter() - began
        rounds = [made.stall for made in done.rounds]
        assert None not in rounds
        assert done.stall.why_not == ""
        before, precopy = done.stall.before, done.stall.precopy
        assert before is not None
        assert precopy is not None
        assert precopy == together(stall for stall in rounds if stall)
        assert rounds[0] is not None
        assert 0 < before.window_s <= rounds[0].window_s * 1.001
        assert 0 < precopy.window_s <= elapsed_s
        for stall in (before, precopy):
            assert (stall.gaps == 0) == (stall.stalled_s == 0) == (stall.longest_s == 0 and stall.unread == 0)
        gap_s = ended.received().switchover_gap_s
        assert gap_s is not None
        # By the guest's clock, from its last step to the saved state: at least the last sync and sending.
        assert gap_s >= 0.99 * (done.downtime.final_sync_s + done.downtime.final_send_s)
        assert gap_s <= elapsed_s
        runs_on(pair.destination)
    assert b'"longest_s"' in (tmp_path / "one.recording").read_bytes()
    assert len(read_recording(tmp_path / "one.recording").rounds) == len(done.rounds) - 1


@pytest.mark.needs("kvm")
def test_what_a_throttle_takes_is_in_gaps() -> None:
    """Its sleeps are of milliseconds, so each is a gap; half leaves room for rounds in which it began."""
    options = MigrationOptions(
        throttle_mode="auto-converge", max_bandwidth=20_000_000, on_timeout="switch", max_rounds=6
    )
    with Pair(Workload("random", None), ram=16 * MIB, vcpus=2) as pair, stream_pair() as streams:
        done = migrate(pair.source, pair.destination, streams, options).migrated()
        slowed = [made for made in done.rounds if made.throttled_share]
        assert slowed, "the guest was not throttled"
        for made in slowed[1:]:
            assert made.stall is not None
            assert made.stall.share > 0.5 * made.throttled_share
            assert made.stall.longest_s > GAP_S


@pytest.mark.needs("kvm")
def test_an_idle_and_a_paused_guest_are_said_not_to_be_measured() -> None:
    with Pair(Workload("idle")) as pair, stream_pair() as streams:
        ended = migrate(pair.source, pair.destination, streams, QUICK)
        assert "makes no progress" in ended.migrated().stall.why_not
        assert ended.received().switchover_gap_s is None
        assert all(made.stall is None for made in ended.migrated().rounds)
    with Pair(Workload("random")) as pair, stream_pair() as streams:
        pair.source.pause()
        done = migrate(pair.source, pair.destination, streams, QUICK).migrated()
        assert done.stall.why_not == "the guest did not run"
        assert done.stall.precopy is None

"""Real guests whose migrations are steered: slowed down, cut short, given up, recorded. Ratios, and no exact times."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from precopy.errors import NotConverged, Unsupported, UsageError
from precopy.machines.workload import Workload
from precopy.migration import Event, MigrationOptions, Round, Verdict
from precopy.planning.policies import FIELD_POLICIES
from precopy.recording.files import RecordingWriter, read_recording
from support.live_guests import MIB, Pair, migrate, runs_on, stands_still, stream_pair

pytestmark = pytest.mark.needs("kvm")

SLOW = 5_000_000
"""A link that is slower than the machine, however busy that is."""
BUSY = Workload("random", 8 * SLOW // 4096)
"""Dirties eight times what that link takes, and still more than it on a machine that leaves the guest a quarter of its
time."""
HALF_AS_BUSY = Workload("random", 4 * SLOW // 4096)
LIMIT_S = 0.25
"""A third of what all of 4 MiB takes over that link: room for the rest of a downtime on such a machine."""


def verdicts(events: list[Event]) -> list[Verdict]:
    return [event for event in events if isinstance(event, Verdict)]


class TestHopeless:
    @pytest.mark.alone  # the limit is of what the guest dirtied before
    def test_is_named_within_five_rounds_with_a_limit_that_works(self) -> None:
        events: list[Event] = []
        with Pair(BUSY, ram=4 * MIB, fill=1.0) as pair:
            with stream_pair() as streams:
                options = MigrationOptions(max_bandwidth=SLOW, downtime_limit_s=LIMIT_S)
                error = migrate(pair.source, pair.destination, streams, options, events.append).source.error
            assert isinstance(error, NotConverged)
            assert error.rounds <= 5
            said = verdicts(events)
            assert [one.round for one in said] == list(range(1, error.rounds + 1))
            assert said[-1].converges is False
            assert said[-1].action == "give up"
            assert error.smallest_limit == said[-1].smallest_downtime_limit_s.high
            assert error.smallest_limit is not None
            runs_on(pair.source)

            pair.replace_destination(pair.another())
            with stream_pair() as again:
                options = MigrationOptions(max_bandwidth=SLOW, downtime_limit_s=error.smallest_limit, verify=True)
                done = migrate(pair.source, pair.destination, again, options).migrated()
            assert done.downtime.total_s > LIMIT_S
            runs_on(pair.destination)

    def test_switches_over_all_the_same_where_that_is_wanted(self) -> None:
        with Pair(BUSY, ram=4 * MIB, fill=1.0) as pair, stream_pair() as streams:
            options = MigrationOptions(max_bandwidth=SLOW, downtime_limit_s=LIMIT_S, on_timeout="switch", verify=True)
            done = migrate(pair.source, pair.destination, streams, options).migrated()
            assert done.downtime.total_s > LIMIT_S
            assert done.verdicts[-1].action == "switch over"
            assert pair.destination.watch().unequal == []
            runs_on(pair.destination)

    def test_time_that_is_up_cuts_a_round_short(self) -> None:
        with Pair(BUSY, ram=8 * MIB, fill=1.0) as pair, stream_pair() as streams:
            events: list[Event] = []
            # The first round takes more than 1.6 s, the second one would take as long.
            options = MigrationOptions(max_bandwidth=SLOW, downtime_limit_s=LIMIT_S, max_total=2.5)
            error = migrate(pair.source, pair.destination, streams, options, events.append).source.error
            assert isinstance(error, NotConverged)
            assert "out of time" in error.reason
            # On a very busy machine the first round may be the one that is cut short.
            *before, last = (event for event in events if isinstance(event, Round))
            assert all(one.arrived_s < 2.5 for one in before)
            assert last.arrived_s >= 2.5
            assert last.sent_pages < 0.9 * pair.layout.pages
            runs_on(pair.source)

    def test_the_first_round_is_cut_short_too(self) -> None:
        with Pair(BUSY, ram=32 * MIB, fill=1.0) as pair, stream_pair() as streams:
            events: list[Event] = []
            options = MigrationOptions(max_bandwidth=SLOW, downtime_limit_s=LIMIT_S, max_total=0.5)
            error = migrate(pair.source, pair.destination, streams, options, events.append).source.error
            assert isinstance(error, NotConverged)
            (only,) = (event for event in events if isinstance(event, Round))
            assert 0.5 <= only.arrived_s < pair.layout.bytes / SLOW / 2
            assert only.sent_pages < 0.9 * pair.layout.pages
            runs_on(pair.source)


@pytest.mark.alone
class TestThrottling:
    def test_auto_converge_slows_the_guest_down_until_it_converges(self) -> None:
        with Pair(HALF_AS_BUSY, ram=4 * MIB, fill=1.0, vcpus=2) as pair, stream_pair() as streams:
            options = MigrationOptions(
                max_bandwidth=SLOW, downtime_limit_s=LIMIT_S, throttle_mode="auto-converge", verify=True
            )
            done = migrate(pair.source, pair.destination, streams, options).migrated()
            assert any(one.action == "throttle" for one in done.verdicts)
            assert done.rounds[-2].throttled_share > 0.3
            assert len(done.throttled.throttled_s) == 2
            assert 0.3 < done.throttled.share < 1
            assert done.guest_time_lost_s > done.downtime.total_s
            assert pair.destination.watch().unequal == []
            stands_still(pair.source)
            runs_on(pair.destination)
            assert pair.destination.throttled().active_s == 0

    def test_a_dirty_limit_does_too(self) -> None:
        with Pair(BUSY, ram=4 * MIB, fill=1.0) as pair, stream_pair() as streams:
            options = MigrationOptions(
                tracker="dirty-ring",
                max_bandwidth=SLOW,
                downtime_limit_s=LIMIT_S,
                throttle_mode="dirty-limit",
                verify=True,
            )
            done = migrate(pair.source, pair.destination, streams, options).migrated()
            assert any(one.action == "throttle" for one in done.verdicts)
            assert done.throttled.share > 0.1
            assert pair.destination.watch().unequal == []
            runs_on(pair.destination)

    def test_a_dirty_limit_takes_no_more_than_is_allowed(self) -> None:
        with Pair(BUSY, ram=4 * MIB, fill=1.0) as pair, stream_pair() as streams:
            options = MigrationOptions(
                tracker="dirty-ring",
                max_bandwidth=SLOW,
                downtime_limit_s=LIMIT_S,
                max_rounds=8,
                throttle_mode="dirty-limit",
                max_throttle=0.3,
            )
            events: list[Event] = []
            migrate(pair.source, pair.destination, streams, options, events.append)
            assert 0 < max(one.throttle_to for one in verdicts(events)) <= 0.3
            # What is allowed is a share of what the guest was seen to dirty; where it then dirties more, more is taken.
            assert 0 < pair.source.throttled().share < 0.65

    def test_a_dirty_limit_without_a_ring_is_refused_before_anything_is_sent(self) -> None:
        with Pair(BUSY, ram=8 * MIB) as pair, stream_pair() as streams:
            events: list[Event] = []
            options = MigrationOptions(throttle_mode="dirty-limit")
            error = migrate(pair.source, pair.destination, streams, options, events.append).source.error
            assert isinstance(error, Unsupported)
            assert not [event for event in events if isinstance(event, Round)]
            runs_on(pair.source)

    def test_a_guest_that_stays_is_let_go(self) -> None:
        with Pair(BUSY, ram=4 * MIB, fill=1.0) as pair, stream_pair() as streams:
            options = MigrationOptions(
                max_bandwidth=SLOW, downtime_limit_s=0, max_rounds=6, throttle_mode="auto-converge", max_throttle=0.5
            )
            assert isinstance(migrate(pair.source, pair.destination, streams, options).source.error, NotConverged)
            taken = pair.source.throttled()
            assert taken.share > 0.3
            runs_on(pair.source)
            assert pair.source.throttled() == taken


@pytest.mark.parametrize("policy", FIELD_POLICIES)
def test_the_fields_policies_move_a_guest(policy: str) -> None:
    with Pair(Workload("random", 50), ram=4 * MIB, fill=1.0) as pair, stream_pair() as streams:
        throttle = "auto-converge" if policy == "qemu-auto-converge" else "off"
        options = MigrationOptions(policy=policy, max_bandwidth=SLOW, verify=True, throttle_mode=throttle)
        done = migrate(pair.source, pair.destination, streams, options).migrated()
        assert done.policy == policy
        assert pair.destination.watch().unequal == []
        runs_on(pair.destination)


class TestRecording:
    def test_has_the_rounds_and_what_they_found(self, tmp_path: Path) -> None:
        with Pair(Workload("random", 375), ram=6 * MIB, fill=1.0) as pair, stream_pair() as streams:
            options = MigrationOptions(max_bandwidth=SLOW, downtime_limit_s=0.15, verify=True)
            with RecordingWriter(tmp_path / "recording") as recorder:
                done = migrate(pair.source, pair.destination, streams, options, recorder=recorder).migrated()
            layout = pair.layout
        trace = read_recording(tmp_path / "recording")
        assert trace.layout.blocks == layout.blocks
        assert trace.facts.limits == options.limits
        assert trace.outcome == done.outcome
        assert len(trace.rounds) == len(done.rounds) - 1
        for before, one in pairwise(trace.samples):  # no moment of the guest's lies between two rounds
            assert one.ended_s - before.ended_s == pytest.approx(one.interval_s, abs=1e-4)
        for one, made, after in zip(trace.rounds, done.rounds[:-1], done.rounds[1:], strict=True):
            assert one.sample.sent_bytes == made.sent_bytes
            assert made.arrived_s <= one.sample.ended_s - one.sample.sync_s
            assert one.sample.throttled_share == made.throttled_share
            if not after.final:  # in whose second sync more may be found
                assert one.sample.remaining_bytes == after.pending_bytes
                assert one.sample.sync_s == after.sync_s
            if not after.final:  # whose figures are those of two syncs
                assert one.dirty.count() == after.dirty_pages
            for look in one.mid_round:
                assert 0 < look.interval_s < one.sample.interval_s
                assert not np.any(look.dirty.words & ~one.dirty.words), "a look found what the sync did not"
        assert any(one.mid_round for one in trace.rounds)

    def test_says_why_a_migration_failed(self, tmp_path: Path) -> None:
        with Pair(BUSY, ram=4 * MIB, fill=1.0) as pair, stream_pair() as streams:
            options = MigrationOptions(max_bandwidth=SLOW, downtime_limit_s=LIMIT_S)
            with RecordingWriter(tmp_path / "recording") as recorder:
                error = migrate(pair.source, pair.destination, streams, options, recorder=recorder).source.error
            assert isinstance(error, NotConverged)
        trace = read_recording(tmp_path / "recording")
        assert trace.outcome is not None
        assert not trace.outcome.completed
        assert trace.outcome.error == str(error)
        assert len(trace.rounds) == error.rounds


def test_a_policy_that_throttles_needs_to_be_told_how() -> None:
    with pytest.raises(UsageError, match="say how with throttle_mode"):
        MigrationOptions(policy="qemu-auto-converge")

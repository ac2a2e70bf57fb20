"""Whole migrations of emulated guests inside one process, and what does not fit together."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from precopy.errors import HelloMismatch, NotConverged, PeerRefused
from precopy.machines.workload import WORKLOADS, Workload
from precopy.migration import MigrationOptions
from precopy.names import CLEAR_POLICIES
from support.live_guests import ARRIVES, MIB, Pair, migrate, runs_on, stands_still, steps, stream_pair, until

pytestmark = [pytest.mark.needs("unicorn"), pytest.mark.usefixtures("nothing_left")]


@pytest.mark.parametrize(
    ("workload", "clear", "layout", "transport"),
    [
        *((workload, "deferred", "q35", "unix") for workload in WORKLOADS),
        *(("hotset", clear, "flat", "tcp") for clear in CLEAR_POLICIES),
    ],
)
def test_everything_arrives_and_the_guest_goes_on(workload: str, clear: str, layout: str, transport: str) -> None:
    with Pair(Workload(workload), kind="emulated", layout=layout, ram=16 * MIB) as pair, stream_pair(transport) as ends:
        until(lambda: workload == "idle" or steps(pair.source) > 0)
        done = migrate(pair.source, pair.destination, ends, replace(ARRIVES, clear=clear)).migrated()

        assert done.compared_pages == pair.source.memory.layout.pages
        watch = pair.destination.watch()
        assert (watch.twins, watch.unequal, watch.both) == (1, [], 0)
        assert msgspec.msgpack.decode(pair.source.save_state()) == msgspec.msgpack.decode(watch.states[0])
        stands_still(pair.source)
        at_switchover = steps(pair.source)
        runs_on(pair.destination, idle=workload == "idle")
        assert workload == "idle" or steps(pair.destination) > at_switchover > 0
        assert steps(pair.source) == at_switchover


def test_guest_that_writes_as_fast_as_it_can_moves_there_and_back_again() -> None:
    with Pair(Workload("random", None), kind="emulated", ram=8 * MIB) as pair:
        for _ in range(2):
            with stream_pair() as streams:
                migrate(pair.source, pair.destination, streams).migrated()
            assert pair.destination.watch().unequal == []
            stands_still(pair.source)
            runs_on(pair.destination)
            pair.turn_round()


@pytest.mark.parametrize("clear", CLEAR_POLICIES)
def test_counters_add_up(clear: str) -> None:
    with Pair(Workload("random", 2000), kind="emulated", ram=8 * MIB) as pair, stream_pair() as streams:
        options = replace(ARRIVES, clear=clear, max_bandwidth=100_000_000)
        done = migrate(pair.source, pair.destination, streams, options).migrated()
        log = pair.source.dirty
    assert sum(one.get_log_ioctls for one in done.rounds) == log.counters.get_calls == len(done.rounds) + 1
    assert sum(one.clear_log_ioctls for one in done.rounds) == log.counters.clear_calls
    if clear == "per-page":
        found = [
            round_.dirty_pages + round_.found_twice_pages for round_ in done.rounds
        ]  # of both syncs of the last one
        assert [round_.clear_log_ioctls for round_ in done.rounds] == found


def test_giving_up_leaves_the_guest_at_the_source() -> None:
    with Pair(Workload("random", None), kind="emulated") as pair, stream_pair() as streams:
        options = MigrationOptions(downtime_limit_s=0, max_rounds=3, max_bandwidth=10_000_000)
        ended = migrate(pair.source, pair.destination, streams, options)
        assert isinstance(ended.source.error, NotConverged)
        assert isinstance(ended.destination.error, PeerRefused)
        assert not pair.destination.ran
        runs_on(pair.source)


@pytest.mark.needs("kvm")
@pytest.mark.parametrize(("source", "destination"), [("kvm", "emulated"), ("emulated", "kvm")])
def test_one_kind_of_guest_does_not_move_into_the_other(source: str, destination: str) -> None:
    with Pair(kind=source) as pair, stream_pair() as streams:
        pair.replace_destination(pair.another(kind=destination))
        ended = migrate(pair.source, pair.destination, streams)

        sentence = f"the source's guest is '{source} x86_64, 1 vCPU', this side runs '{destination} x86_64, 1 vCPU'"
        assert isinstance(ended.destination.error, HelloMismatch)
        assert str(ended.destination.error) == sentence
        assert isinstance(ended.source.error, PeerRefused)
        assert str(ended.source.error) == f"the other side refused: {sentence}"
        assert not pair.destination.ran
        runs_on(pair.source)

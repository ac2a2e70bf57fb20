"""``precopy bench guest``: what migrations take from a guest before its switchover, as the guest measures it.

Migrations of a KVM guest between two processes over a Unix socket, by each of several ways in turn, so that a machine
whose speed drifts moves all of them. Each stands beside a window before it, in which the same guest ran on the same
machine and was not migrated. What fails in one repeat is noted, and the others are made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

from precopy.bench.failed import Failed, attempt
from precopy.errors import Unsupported, VerificationFailed
from precopy.migration import MigrationOptions
from precopy.names import AnyClearPolicyName, KvmTrackerName, TimeoutPolicy
from precopy.report.kinds.bench_guest import GuestBench, GuestRun, GuestSetup, Way, WayFigures
from precopy.service import ProcessPair, migrate_guest

_SETTLE_S = 1.0
"""Seconds that a guest runs before it is migrated: longer than the first round of most, which is as long as the window
before that it is held against."""


def ways(
    trackers: Sequence[KvmTrackerName],
    clears: Sequence[AnyClearPolicyName],
    shifts: Sequence[int],
    vcpus: Sequence[int],
) -> list[Way]:
    """The first of each together, and then each other one beside the first of the others; chunks differ only where
    clears are deferred."""
    first = Way(trackers[0], clears[0], shifts[0], vcpus[0])
    chunked = [replace(first, clear="deferred", clear_chunk_shift=shift) for shift in shifts if "deferred" in clears]
    others = [
        *(replace(first, tracker=tracker) for tracker in trackers),
        *(replace(first, clear=clear) for clear in clears),
        *chunked,
        *(replace(first, vcpus=number) for number in vcpus),
    ]
    return list(dict.fromkeys([first, *others]))


def name_of(way: Way) -> str:
    """In words, for progress and errors."""
    chunk = f", chunks of 2^{way.clear_chunk_shift} pages" if way.clear == "deferred" else ""
    return f"{way.tracker}, {way.clear}{chunk}, vCPUs: {way.vcpus}"


def measure(setup: GuestSetup, wanted: Sequence[Way], repeats: int, tell: Callable[[str], None]) -> GuestBench:
    """``repeats`` times all of them, in turn. ``tell`` is told what is measured next."""
    runs: dict[Way, list[GuestRun]] = {way: [] for way in wanted}
    failed: list[Failed] = []
    for number in range(1, repeats + 1):
        for way in wanted:
            tell(f"{number}/{repeats}: {name_of(way)}")
            made = attempt(f"{name_of(way)}, repeat {number}", partial(migrate, setup, way))
            if isinstance(made, Failed):
                failed.append(made)
            else:
                runs[way].append(made)
    figures = tuple(WayFigures.of(way, done) for way, done in runs.items() if done)
    return GuestBench(setup, repeats, figures, tuple(failed))


def migrate(setup: GuestSetup, way: Way) -> GuestRun:
    """One migration. Raises `Unsupported` where the guest does not measure its gaps, and why, `VerificationFailed`, and
    what migrations raise."""
    same = ["--ram", f"{setup.ram_bytes}B", "--guest", "kvm", "--vcpus", str(way.vcpus)]
    rate = "max" if setup.write_rate is None else str(setup.write_rate)
    run = [*same, "--fill", "1", "--workload", "sequential", "--write-rate", rate]
    run += ["--working-set", f"{setup.rewritten_bytes}B"]
    options = MigrationOptions(
        downtime_limit_s=setup.downtime_limit_s,
        tracker=cast("KvmTrackerName", way.tracker),  # a record has texts; `MigrationOptions` refuses other names
        clear=cast("AnyClearPolicyName", way.clear),
        clear_chunk_shift=way.clear_chunk_shift,
        on_timeout=TimeoutPolicy.SWITCH,  # a way that takes too much to converge is measured all the same
    )
    with ProcessPair(run, [*same, "--prealloc"]) as pair:
        time.sleep(_SETTLE_S)
        done = migrate_guest(pair.source, pair.address, options)
        if not pair.ask(pair.destination, "check")["ok"]:
            raise VerificationFailed("the guest's invariant is broken at the destination")
        pair.ask(pair.destination, "quit")
        received = pair.finish("destination")["received"]
    if done.stall.why_not:
        raise Unsupported(done.stall.why_not, "use a guest that measures its gaps")
    return GuestRun(
        stall=done.stall,
        rounds=len(done.rounds),
        throughput_bytes_per_s=done.throughput_bytes_per_s,
        downtime_s=done.downtime.total_s,
        switchover_gap_s=received["switchover_gap_s"],
    )

"""The benchmark of what migrations take from their guests: its ways and its document. No figure is judged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from precopy.bench.guest import ways
from precopy.cli.bench.guest import guest as command
from precopy.migration.results import GuestStall
from precopy.ports import Stall
from precopy.report.kinds.bench_guest import GuestRun, Way, WayFigures


@pytest.mark.needs("kvm")
def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--ram",
        "64M",
        "--rewritten",
        "4M",
        "--tracker",
        "dirty-log",
        "--clear",
        "deferred",
        "--clear-chunk",
        "15",
    ]
    command.main([*small, "--vcpus", "1", "--vcpus", "2", "--repeat", "1", "--json"], standalone_mode=False)
    out = capsys.readouterr().out
    document: dict[str, Any] = json.loads(out)
    assert len(out.splitlines()) == 1
    assert document["schema"] == "precopy.bench-guest/1"
    assert document["failed"] == []
    assert [one["way"]["vcpus"] for one in document["ways"]] == [1, 2]
    for one in document["ways"]:
        (run,) = one["runs"]
        before, precopy = run["stall"]["before"], run["stall"]["precopy"]
        assert precopy["window_s"] > 0
        assert one["share"] == pytest.approx(precopy["stalled_s"] / precopy["window_s"])
        assert one["idle_share"] == pytest.approx(before["stalled_s"] / max(before["window_s"], 1e-9))
        assert one["share_above_idle"] == pytest.approx(max(one["share"] - one["idle_share"], 0))
        assert one["longest_s"]["median"] == precopy["longest_s"]
        assert run["switchover_gap_s"] is None or run["switchover_gap_s"] > 0
        assert run["rounds"] >= 2


def test_the_first_of_each_together_and_each_other_one_beside_it() -> None:
    found = ways(("dirty-log", "dirty-ring"), ("merged", "deferred"), (15, 9), (1, 4))
    assert found == [
        Way("dirty-log", "merged", 15, 1),
        Way("dirty-ring", "merged", 15, 1),
        Way("dirty-log", "deferred", 15, 1),
        Way("dirty-log", "deferred", 9, 1),
        Way("dirty-log", "merged", 15, 4),
    ]
    assert ways(("dirty-log",), ("deferred",), (15,), (1,)) == [Way("dirty-log", "deferred", 15, 1)]
    assert ways(("dirty-log",), ("merged",), (15,), (1,)) == [Way("dirty-log", "merged", 15, 1)]


def test_medians_are_of_the_runs_and_differences_of_each_run() -> None:
    def run(window_s: float, idle_s: float, stalled_s: float, longest_s: float) -> GuestRun:
        stall = GuestStall(Stall(window_s, idle_s, idle_s, 1), Stall(2 * window_s, longest_s, stalled_s, 2))
        return GuestRun(stall, 3, 1e9, 0.01, 0.02)

    runs = [run(1.0, 0.01, 0.2, 0.1), run(1.0, 0.5, 0.4, 0.3), run(1.0, 0.02, 0.1, 0.05)]
    got = WayFigures.of(Way("dirty-log", "deferred", 15, 1), runs)
    assert (got.share, got.idle_share) == (pytest.approx(0.1), pytest.approx(0.02))
    assert got.share_above_idle == pytest.approx(0.03)  # of 0.09, 0 (less than idle) and 0.03
    assert (got.longest_s.min, got.longest_s.median, got.longest_s.max) == (0.05, 0.1, 0.3)
    assert got.idle_longest_s.median == 0.02

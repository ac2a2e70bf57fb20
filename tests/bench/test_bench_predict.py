"""The benchmark of predictions: its document, and its grid. No figure is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precopy.bench.failed import Failed
from precopy.bench.predict import carry_out, holds
from precopy.bench.predict_cases import describe, grid, hopeless_grid
from precopy.cli.bench.predict import predict as command
from precopy.cli.failures import ended
from precopy.errors import NotConverged, UsageError, VerificationFailed
from precopy.migration import Range
from precopy.recording.files import read_recording
from precopy.report.console import show
from precopy.report.kinds import text_of
from precopy.report.kinds.bench_predict import Case
from precopy.units import PAGE_SIZE


def test_the_grid_has_fifty_different_migrations_that_converge() -> None:
    cases = grid(50)
    assert len(set(cases)) == 50
    assert {case.workload for case in cases} == {"sequential", "random", "hotset"}
    for case in cases:
        assert case.converges
        assert case.write_rate is not None
        assert case.write_rate * PAGE_SIZE < 0.75 * case.max_bandwidth
        assert case.ram > case.max_bandwidth
    assert len({describe(case) for case in cases}) == 50


def test_what_cannot_converge_cannot() -> None:
    for case in hopeless_grid(5):
        assert not case.converges
        dirtied = case.working_set or case.ram
        assert dirtied > case.max_bandwidth * case.downtime_limit_s
        assert case.write_rate is None or case.write_rate * PAGE_SIZE > case.max_bandwidth


def test_nothing_to_do_is_said() -> None:
    with pytest.raises(UsageError, match="nothing to migrate"):
        command.main(["--migrations", "0", "--hopeless", "0"], standalone_mode=False)


@pytest.mark.needs("kvm")
def test_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a busy machine the migration that should converge may not, and is counted as one that did not; a guest that
    gets too little of the machine to write as fast as it should may converge where it should not."""
    arguments = ["--migrations", "1", "--hopeless", "1", "--record", str(tmp_path), "--json"]
    command.main(arguments, standalone_mode=False)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["schema"] == "precopy.bench-predict/1"
    for one in document["migrations"]:
        assert one["name"] == describe(grid(1)[0])
        assert one["rounds"] > one["predicted_after"] >= 1
        for what in ("downtime", "total"):
            predicted, measured = one[f"predicted_{what}_s"]["value"], one[f"measured_{what}_s"]
            assert one[f"{what}_error"] == pytest.approx((predicted - measured) / measured)
            for said in one["said"]:
                low, high = (said[f"{what}_s"][end] for end in ("low", "high"))
                assert said[f"{what}_held"] == (low <= measured and (high is None or measured <= high))
        assert [said["after"] for said in one["said"]] == list(range(1, min(one["rounds"], 4)))
        (first, *_) = document["held"]
        assert (first["after"], first["migrations"]) == (1, 1)
        assert first["both"] == first["downtime"] * first["total"]
        assert read_recording(tmp_path / "01").outcome.completed  # type: ignore[union-attr]
    for one in document["missed"]:
        assert (one["name"], one["failed"]["converged"]) == (describe(grid(1)[0]), False)
    assert len(document["migrations"]) + len(document["missed"]) == 1
    assert document["share_within"].keys() == {"10", "20", "50"}
    assert set(document["share_within"].values()) <= {0.0, 1.0}
    (lost,) = document["hopeless"]
    completed = read_recording(tmp_path / "hopeless-01").outcome.completed  # type: ignore[union-attr]
    assert completed == (lost["detail"] == "it converged without")
    if lost["named_after"] is None:
        assert (lost["smallest_downtime_limit_s"], lost["detail"] != "") == (None, True)
    elif not completed:
        assert lost["smallest_downtime_limit_s"] > lost["case"]["downtime_limit_s"]


@pytest.mark.needs("kvm")
def test_one_that_fails_is_counted_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """The first has less than a switchover takes, the second cannot even begin, the third has nothing to wait for."""
    hopeless = replace(hopeless_grid(1)[0], ram=32 << 20, downtime_limit_s=0.0005, converges=True)
    impossible = replace(grid(1)[0], ram=4096)
    easy = Case("random", 20, None, 80_000_000, 2.0, 16 << 20)
    told: list[str] = []
    done = carry_out([hopeless, impossible, easy], [impossible, hopeless], told.append)
    assert len(told) == 5
    assert [one.case for one in done.missed] == [hopeless, impossible]
    assert [one.failed.kind for one in done.missed] == ["NotConverged", "ProcessFailed"]
    assert [one.failed.converged for one in done.missed] == [False, None]
    assert done.missed[0].named_after is not None
    assert "--ram" in done.missed[1].failed.message
    assert [one.case for one in done.migrations] == [easy]
    assert [one.after for one in done.held][:1] == [1]
    lost, named = done.hopeless
    assert not lost.then_completed
    assert "--ram" in lost.detail
    assert (named.named_after or 0) >= 1  # no limit below what a switchover takes is met on any machine
    assert (named.smallest_downtime_limit_s or 0) > hopeless.downtime_limit_s
    show(*text_of("bench-predict", done))
    shown = capsys.readouterr().out
    assert "2 of 3 migrations did not complete:" in shown
    assert "downtime held" in shown


def test_the_exit_code_is_that_of_what_failed_but_for_what_did_not_converge(capsys: pytest.CaptureFixture[str]) -> None:
    no_end = Failed.of("a", NotConverged(3, 1, 0.5, 0.3))
    broken = Failed.of("b", VerificationFailed("a page differs"))
    assert ended([], 0) == 0
    assert ended([no_end], 1) == 0
    assert capsys.readouterr().err == ""
    assert ended([no_end], 0) == 4
    assert ended([no_end, broken], 1) == 7
    assert "precopy: b: a page differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "high", "held"),
    [(1.0, 3.0, True), (2.0, 2.0, True), (2.1, 3.0, False), (1.0, 1.9, False), (1.0, None, True), (None, None, False)],
)
def test_a_range_holds_what_is_in_it(low: float | None, high: float | None, held: bool) -> None:
    assert holds(Range(low, low, high), 2.0) is held

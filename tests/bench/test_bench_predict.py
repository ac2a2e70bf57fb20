"""The benchmark of predictions: its document, and its grid. No figure is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from precopy.bench.predict import describe, grid, hopeless_grid
from precopy.cli.bench_predict import predict as command
from precopy.errors import UsageError
from precopy.store.recording import read_recording
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
    arguments = ["--migrations", "1", "--hopeless", "1", "--record", str(tmp_path), "--json"]
    command.main(arguments, standalone_mode=False)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["schema"] == "precopy.bench-predict/1"
    (one,) = document["migrations"]
    assert one["name"] == describe(grid(1)[0])
    assert one["rounds"] > one["predicted_after"] >= 1
    for what in ("downtime", "total"):
        predicted, measured = one[f"predicted_{what}_s"]["value"], one[f"measured_{what}_s"]
        assert one[f"{what}_error"] == pytest.approx((predicted - measured) / measured)
    assert document["share_within"].keys() == {"10", "20", "50"}
    assert set(document["share_within"].values()) <= {0.0, 1.0}
    (lost,) = document["hopeless"]
    assert lost["named_after"] >= 1
    assert lost["smallest_downtime_limit_s"] > lost["case"]["downtime_limit_s"]
    assert {read_recording(tmp_path / name).outcome.completed for name in ("01", "hopeless-01")} == {True, False}  # type: ignore[union-attr]

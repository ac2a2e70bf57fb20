"""Recordings that older versions wrote, with what those versions read in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from precopy.planning import OURS
from precopy.planning.replay.replay import Replayer
from precopy.recording.files import read_recording

FOLDER = Path(__file__).parent / "recordings"
RECORDINGS = sorted(FOLDER.glob("*.recording"))


def expected(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return found


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_what_was_recorded(path: Path) -> None:
    trace, wrote = read_recording(path), expected(path)
    facts, limits = wrote["facts"], wrote["facts"]["limits"]
    assert trace.note == ""
    for name in ("machine", "guest", "tracker", "clear", "clear_chunk_shift", "policy", "max_bandwidth"):
        assert getattr(trace.facts, name) == facts[name]
    assert trace.facts.switchover_overhead_s.value == facts["handover_s"]["value"]
    assert trace.facts.limits.downtime_limit_s == limits["downtime_s"]
    assert trace.facts.limits.max_rounds == limits["max_rounds"]
    assert trace.facts.limits.timeout_s == limits["timeout_s"]
    assert trace.facts.limits.on_timeout == limits["on_timeout"]
    assert trace.facts.limits.max_throttle == limits["max_throttle"]
    assert [one.dirty.count() for one in trace.rounds] == wrote["dirty_pages"]
    samples = [[[sample.interval_s, sample.dirty.count()] for sample in one.mid_round] for one in trace.rounds]
    assert samples == wrote["looks"]
    for sample, old in zip(trace.samples, wrote["samples"], strict=True):
        for name in ("number", "transfer_s", "send_s", "scan_s", "clear_s", "sync_s", "ended_s"):
            assert getattr(sample, name) == old[name]
        for name in ("sent_bytes", "read_bytes", "dirty_bytes", "remaining_bytes"):
            assert getattr(sample, name) == old[name]
        assert sample.throttled_share == old["throttle"]
    assert trace.outcome is not None
    then = wrote["outcome"]
    assert trace.outcome.expected_switchover_overhead_s == then.pop("expected_handover_s")
    for name in ("completed", "total_s", "sent_bytes", "error"):
        assert getattr(trace.outcome, name) == then[name]
    assert trace.outcome.downtime_s == pytest.approx(then["downtime_s"], rel=1e-9)
    downtime = trace.outcome.downtime
    assert (downtime is not None) == then["completed"]
    for name in ("pause_s", "final_sync_s", "final_send_s", "state_s", "commit_s"):
        assert downtime is None or getattr(downtime, name) == then[name]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_its_replay(path: Path) -> None:
    outcome, then = Replayer(read_recording(path)).run(OURS), expected(path)["replayed"]
    assert (outcome.completed, len(outcome.rounds)) == (then["completed"], then["rounds"])
    for name in ("downtime_s", "total_s", "sent_bytes"):
        assert getattr(outcome, name) == pytest.approx(then[name], rel=1e-9)

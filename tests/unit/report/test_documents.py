"""JSON documents of values that are awkward to write down."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import pytest

from precopy.planning import OURS
from precopy.planning.replay.replay import Replayer
from precopy.report.documents import to_json
from precopy.report.kinds import body_of
from precopy.report.kinds.replay import Replay, replay_rounds
from precopy.units import PAGE_SIZE
from support.traces import BANDWIDTH, FIRST_SYNC_S, hot_and_cold, record


def test_a_name_that_is_no_utf_8_is_escaped() -> None:
    name = os.fsdecode(b"/tmp/\xff")
    told = to_json({"file": name, name: [{"of": (name, 1)}], "none": math.nan})
    assert json.loads(told) == {
        "file": r"/tmp/\udcff",
        r"/tmp/\udcff": [{"of": [r"/tmp/\udcff", 1]}],
        "none": None,
    }


class TestReplayRounds:
    """A round is one sync and the sending after it, in what is recorded as in what is replayed."""

    TRACE = record(hot_and_cold(BANDWIDTH / PAGE_SIZE, 512))

    def body(self) -> dict[str, Any]:
        outcome = Replayer(self.TRACE).run(OURS)
        limits = self.TRACE.facts.limits
        made = Replay.of("file", self.TRACE, outcome, policy="precopy", clear="merged", bandwidth=None, limits=limits)
        return body_of("replay", made)

    @pytest.mark.parametrize("side", ["recorded", "replayed"])
    def test_the_sync_is_that_which_begins_it(self, side: str) -> None:
        found = self.body()[side]
        samples = self.TRACE.samples if side == "recorded" else Replayer(self.TRACE).run(OURS).rounds
        first, *later = found["rounds"]
        assert (first["sync_s"], first["dirty_bytes"]) == (FIRST_SYNC_S, self.TRACE.ram_bytes)
        assert len(later) >= 2
        for one, before in zip(later, samples, strict=False):
            assert (one["sync_s"], one["dirty_bytes"]) == (before.sync_s, before.dirty_bytes)
            assert one["pending_bytes"] == before.remaining_bytes
        assert found["last_sync"]["sync_s"] == samples[-1].sync_s
        assert found["last_sync"]["dirty_bytes"] == samples[-1].dirty_bytes
        assert [one["sent_bytes"] for one in found["rounds"]] == [one.sent_bytes for one in samples]
        assert [one["transfer_s"] for one in found["rounds"]] == [one.transfer_s for one in samples]

    def test_an_older_recording_lacks_the_first_sync(self) -> None:
        rounds = replay_rounds(self.TRACE.samples, None, self.TRACE.ram_bytes)
        assert [one.sync_s is None for one in rounds] == [True] + [False] * (len(rounds) - 1)

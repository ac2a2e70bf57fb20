"""Any migration that can be is read as it was recorded; and what a timeline says of any interval can be."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Bitmap
from precopy.dirty import LogCounters
from precopy.memory.layout import RamLayout
from precopy.names import ALL_CLEAR_POLICIES
from precopy.planning import OURS, Estimate, Limits, Policy, RoundSample, TimeoutPolicy
from precopy.planning.model.downtime import Downtime
from precopy.planning.model.trace import MidRoundSample, RecordedFacts, RecordedOutcome, Trace, TraceRound
from precopy.planning.policies import POLICIES
from precopy.planning.replay.replay import Replayer
from precopy.planning.replay.timeline import Timeline
from precopy.recording.files import read_recording
from precopy.units import PAGE_SIZE
from support.traces import whole, write

seconds = st.floats(0, 1e6)
some_seconds = st.floats(1e-4, 100)
sizes = st.floats(0, 1e15)
layouts = st.lists(st.integers(1, 200), min_size=1, max_size=4).map(
    lambda pages: RamLayout.of_blocks((f"block {n}", count * PAGE_SIZE) for n, count in enumerate(pages))
)
limits = st.builds(
    Limits, seconds, st.integers(1, 40), st.none() | some_seconds, st.sampled_from(TimeoutPolicy), st.floats(0, 0.99)
)
facts = st.builds(
    RecordedFacts,
    st.text(max_size=20),
    st.text(max_size=20),
    st.text(max_size=20),
    st.sampled_from(ALL_CLEAR_POLICIES),
    st.integers(6, 31),
    st.sampled_from(["precopy", "another"]),
    limits,
    st.none() | st.integers(1, 10**12),
    st.builds(Estimate, some_seconds, some_seconds, some_seconds),
)
counters = st.builds(LogCounters, st.integers(0, 1000), seconds, st.integers(0, 1000), seconds)


@st.composite
def outcomes(draw: st.DrawFn) -> RecordedOutcome:
    parts = draw(st.lists(seconds, min_size=5, max_size=5))
    if draw(st.booleans()):
        return RecordedOutcome(True, draw(seconds), draw(sizes), Downtime(*parts))
    return RecordedOutcome(False, draw(seconds), draw(sizes), error=draw(st.text(max_size=50)))


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    layout = draw(layouts)
    end = layout.end_page
    rounds, at, terms = [], 0.0, draw(facts)
    for number in range(1, draw(st.integers(1, 5)) + 1):
        pages = draw(st.lists(st.sampled_from(layout.runs.indexes().tolist()), max_size=40))
        transfer_s, sync_s = draw(some_seconds), draw(some_seconds)
        at += transfer_s + sync_s
        mid_round = sorted(set(draw(st.lists(st.floats(1e-5, 200), max_size=3))))
        mid_round = tuple(
            MidRoundSample(when, Bitmap.from_indexes(end, pages[: len(pages) * n // (len(mid_round) + 1)]))
            for n, when in enumerate(mid_round, 1)
        )
        numbers = draw(st.lists(st.floats(0, 1), min_size=3, max_size=3))
        sample = RoundSample(
            number, at, transfer_s, *(part * transfer_s / 3 for part in numbers), sync_s, draw(sizes), draw(sizes),
            draw(sizes), draw(sizes), draw(st.floats(0, 0.99)),
        )  # fmt: skip
        sample = whole(sample, limited=terms.max_bandwidth is not None)
        rounds.append(TraceRound(sample, Bitmap.from_indexes(end, pages), mid_round, draw(counters)))
    outcome = draw(st.none() | outcomes())
    note = "the recording ends before the migration did" if outcome is None else ""
    return Trace(layout, terms, tuple(rounds), outcome, note)


@given(trace=traces())
def test_what_is_read_is_what_was_written(trace: Trace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "recording"
        write(trace, path)
        assert read_recording(path) == trace


@given(trace=traces(), moments=st.lists(st.floats(0, 500), min_size=2, max_size=6))
def test_no_interval_finds_what_cannot_be(trace: Trace, moments: list[float]) -> None:
    timeline = Timeline(trace)
    ever = set().union(*(one.dirty.indexes().tolist() for one in trace.rounds))
    most = min(len(ever) * PAGE_SIZE, trace.ram_bytes)
    for start in moments:
        for end in moments:
            if start <= end:
                found = timeline.dirtied(start, end)
                assert 0 <= found <= (most if end - start < timeline.length else trace.ram_bytes) * (1 + 1e-5)
                assert found == timeline.dirtied(start, end)
    assert np.isclose(timeline.dirtied(0.0, timeline.length), most, rtol=1e-6)


@given(
    trace=traces(),
    policy=st.just(OURS) | st.sampled_from(list(POLICIES.values())),
    allowed=limits,
    bandwidth=st.none() | st.floats(1, 1e12),
    clear=st.sampled_from(ALL_CLEAR_POLICIES),
)
def test_every_replay_ends(trace: Trace, policy: Policy, allowed: Limits, bandwidth: float | None, clear: str) -> None:
    done = Replayer(trace).run(policy, bandwidth=bandwidth, clear=clear, limits=allowed)
    assert len(done.rounds) >= 1
    assert done.total_s >= done.rounds[-1].ended_s
    assert all(0 <= one.dirty_bytes <= trace.ram_bytes * (1 + 1e-9) for one in done.rounds)

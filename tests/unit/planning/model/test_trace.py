"""What a trace says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from precopy.planning import Estimate
from precopy.planning.model.downtime import Downtime
from precopy.planning.model.trace import RecordedOutcome
from precopy.units import PAGE_SIZE
from support.traces import BANDWIDTH, RAM, record, sequential

TRACE = record(sequential(0.5 * BANDWIDTH / PAGE_SIZE), mid_round=2)


def test_samples_and_looks() -> None:
    assert TRACE.ram_bytes == RAM
    assert [one.number for one in TRACE.samples] == list(range(1, len(TRACE.rounds) + 1))
    assert {len(one.mid_round) for one in TRACE.rounds} == {2}
    first, second = TRACE.rounds[0].mid_round
    assert second.interval_s == pytest.approx(2 * first.interval_s)
    assert second.dirty.count() == pytest.approx(2 * first.dirty.count(), rel=1e-3)
    assert first.dirty.count() * PAGE_SIZE == pytest.approx(0.5 * BANDWIDTH * first.interval_s, rel=1e-3)


def test_the_overhead_is_what_it_was() -> None:
    outcome = RecordedOutcome(True, 2.0, 1e6, Downtime(0.001, 0.002, 0.02, 0.003, 0.004))
    assert replace(TRACE, outcome=outcome).switchover_overhead_s == Estimate.exact(0.008)


@pytest.mark.parametrize("outcome", [None, RecordedOutcome(False, 2.0, 1e6, error="cancelled")])
def test_or_what_was_expected(outcome: RecordedOutcome | None) -> None:
    assert replace(TRACE, outcome=outcome).switchover_overhead_s == TRACE.facts.switchover_overhead_s

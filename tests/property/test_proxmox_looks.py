"""Proxmox's looks, of which those without effect are skipped, against the loop that looks each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.planning import Action, Costs, DirtyCurve, Estimate, Limits, Metrics, RoundSample
from precopy.planning.policies.proxmox import LOOK_S, SHORT_LOOK_S, _looked, doublings, proxmox

RAM = 1 << 33
COSTS = Costs(Estimate.exact(1e9), 1.0, 0.0, 0.0, 0.0, Estimate.exact(0.0))


@dataclass
class Loop:
    """qemu-server's loop around query-migrate, one look after the other; nothing is skipped.

    Remaining bytes fall evenly while a round is sent, and are none during its sync.
    """

    remaining: float = float(RAM)
    sent: float = 0.0
    moment: float = LOOK_S
    every: float = LOOK_S
    looks: int = 0
    rises: int = 0
    seen_remaining: float = 0.0
    seen_sent: float = 0.0

    def through(self, sample: RoundSample) -> None:
        """Looks until the round's end."""
        began_s = sample.ended_s - sample.interval_s
        while self.moment < sample.ended_s:
            into = self.moment - began_s
            if into >= sample.transfer_s:
                done = 1.0
            elif into > 0 and sample.transfer_s > 0:
                done = into / sample.transfer_s
            else:
                done = 0.0
            self.looks += 1
            remaining, sent = self.remaining * (1 - done), self.sent + sample.sent_bytes * done
            if sent != self.seen_sent:
                if remaining < self.seen_sent / self.looks:
                    self.every = SHORT_LOOK_S
                if remaining == 0 or 0 < self.seen_remaining < remaining:
                    self.rises += 1
                self.seen_remaining = remaining
            self.seen_sent = sent
            self.moment += self.every
        self.remaining, self.sent = sample.remaining_bytes, self.sent + sample.sent_bytes


def sample(ended_s: float, transfer_s: float, sync_s: float, sent: float, left: float) -> RoundSample:
    return RoundSample(1, ended_s, transfer_s, transfer_s, 0.0, 0.0, sync_s, sent, sent, 0.0, left)


LENGTH = st.one_of(
    st.just(0.0),
    # Longer than what is looked at one by one, also in seconds; and off the grid of the looks, so that no rounding
    # decides whether a look still belongs to a round.
    st.one_of(st.integers(0, 30), st.integers(900, 1600), st.integers(9_000, 30_000)).map(lambda n: n / 10 + 0.0137),
)
AMOUNT = st.sampled_from((0.0, 1e6, 1e9, float(RAM), 1e13)) | st.floats(1e5, 1e12)


@st.composite
def migrations(draw: st.DrawFn) -> list[RoundSample]:
    """Rounds, some of thousands of looks: at bytes that are sent, at none, during a sync; with many or few left."""
    now, rounds = 0.0, []
    for _ in range(draw(st.integers(1, 4))):
        transfer_s, sync_s = draw(LENGTH), draw(LENGTH)
        now += transfer_s + sync_s
        rounds.append(sample(now, transfer_s, sync_s, draw(AMOUNT), draw(AMOUNT)))
    return rounds


def agrees(rounds: Sequence[RoundSample]) -> None:
    loop = Loop()
    for done in range(1, len(rounds) + 1):
        loop.through(rounds[done - 1])
        skipping = _looked(tuple(rounds[:done]), RAM)
        assert (skipping.rises, skipping.looks, skipping.every) == (loop.rises, loop.looks, loop.every), done
        assert skipping.moment == pytest.approx(loop.moment)
        assert skipping.last_remaining == pytest.approx(loop.seen_remaining, rel=1e-6, abs=1e-6 * RAM)
        assert skipping.last_sent == pytest.approx(loop.seen_sent)


@given(migrations())
def test_what_is_skipped_has_no_effect(rounds: list[RoundSample]) -> None:
    agrees(rounds)


def test_a_round_that_begins_with_nothing_counts_at_each_look() -> None:
    agrees([sample(0.0, 0.0, 0.0, 0.0, 0.0), sample(1500.0137, 1500.0137, 0.0, 1e6, 0.0)])


def test_the_look_after_those_that_are_skipped_compares_with_the_last_of_them() -> None:
    agrees([sample(3000.0137, 3000.0137, 0.0, 1e9, 0.0)])


def test_no_number_of_doublings_is_too_many() -> None:
    """Nine hours of looks that all count are 2^54000 times the limit, which no float holds."""
    rounds = (sample(0.0, 0.0, 0.0, 0.0, 0.0), sample(32400.0, 32400.0, 0.0, 1e9, 1e9))
    assert doublings(rounds, RAM) > 50_000
    metrics = Metrics(RAM, rounds, 1e9, DirtyCurve(()), 0.0, COSTS, 0.0)
    assert proxmox(metrics, Limits(), 32400.0).action is Action.SWITCH_OVER

"""What our policy says in each of its cases."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from precopy.planning import Action, Limits, TimeoutPolicy, decide
from precopy.planning.policies.ours import SURE_ROUNDS
from support.planning import GB, metrics, sample, samples


class TestSwitchingOver:
    def test_once_the_downtime_fits(self) -> None:
        decision = decide(metrics(remaining=0.2 * GB, rounds=samples(0.2 * GB)), Limits(downtime_limit_s=0.3), 1.0)
        assert decision.action is Action.SWITCH_OVER
        assert decision.downtime_s.value == pytest.approx(0.01 + 0.2 + 0.0003)
        assert decision.downtime_limit_s == 0.3

    def test_not_while_it_does_not(self) -> None:
        assert decide(metrics(remaining=0.4 * GB), Limits(downtime_limit_s=0.3), 1.0).action is Action.GO_ON

    def test_what_counts_is_the_upper_end_while_rounds_still_gain(self) -> None:
        known = metrics(remaining=0.28 * GB, rounds=samples(0.28 * GB), spread=0.1)
        assert decide(known, Limits(downtime_limit_s=0.3), 1.0).action is Action.GO_ON

    def test_and_the_value_where_they_gain_little(self) -> None:
        known = metrics(remaining=0.28 * GB, rate=9 * GB, working_set=0.28 * GB, spread=0.1, rounds=samples(0.28 * GB))
        decision = decide(known, Limits(downtime_limit_s=0.3), 1.0)
        assert decision.action is Action.SWITCH_OVER
        assert "little" in decision.reason

    def test_and_the_value_where_rounds_have_gained_nothing(self) -> None:
        """On a busy machine the range may stay wide: then rounds that stand still decide."""
        still = [0.5 * GB, *[0.2801 * GB] * 5]
        known = metrics(remaining=0.28 * GB, spread=0.1, rounds=samples(*still, 0.28 * GB))
        decision = decide(known, Limits(downtime_limit_s=0.3), 1.0)
        assert decision.action is Action.SWITCH_OVER
        assert "gained nothing" in decision.reason
        gaining = metrics(remaining=0.28 * GB, spread=0.1, rounds=samples(*still[:-2], 0.28 * GB))
        assert decide(gaining, Limits(downtime_limit_s=0.3), 1.0).action is Action.GO_ON

    def test_and_the_value_where_there_are_no_more_rounds(self) -> None:
        known = metrics(remaining=0.28 * GB, spread=0.1, rounds=samples(0.5 * GB, 0.28 * GB))
        assert decide(known, Limits(downtime_limit_s=0.3, max_rounds=3), 1.0).action is Action.GO_ON
        decision = decide(known, Limits(downtime_limit_s=0.3, max_rounds=2), 1.0)
        assert decision.action is Action.SWITCH_OVER
        assert "no more rounds" in decision.reason

    def test_sync_and_overhead_count(self) -> None:
        known = metrics(remaining=0.25 * GB, x=0.04, overhead=0.03)
        assert decide(known, Limits(downtime_limit_s=0.3), 1.0).action is Action.GO_ON
        assert decide(known, Limits(downtime_limit_s=0.33), 1.0).action is Action.SWITCH_OVER


HOPELESS = {"rate": 2 * GB, "remaining": 16 * GB}


class TestHopeless:
    def rounds(self, count: int) -> tuple:  # type: ignore[type-arg]
        return samples(*[16 * GB] * count)

    def test_is_said_only_when_sure(self) -> None:
        for count in range(SURE_ROUNDS):
            known = metrics(**HOPELESS, rounds=self.rounds(count))
            assert decide(known, Limits(), 1.0).action in (Action.GO_ON, Action.WAIT)
        decision = decide(metrics(**HOPELESS, rounds=self.rounds(SURE_ROUNDS)), Limits(), 1.0)
        assert decision.action is Action.GIVE_UP
        assert "faster than it is sent" in decision.reason

    def test_a_working_set_that_does_not_fit_names_its_downtime(self) -> None:
        known = metrics(rate=9 * GB, working_set=GB, remaining=GB, rounds=samples(GB, GB, GB))
        decision = decide(known, Limits(downtime_limit_s=0.5), 1.0)
        assert decision.action is Action.GIVE_UP
        assert "1.01 s" in decision.reason
        settles, now = decision.reason.split(": ")  # two ranges, each named for what it is
        assert settles.startswith("rounds settle at ")
        assert now.endswith(" of downtime now do not fit 500.0 ms")

    def test_throttles_by_what_is_needed(self) -> None:
        known = metrics(**HOPELESS, rounds=self.rounds(3))
        decision = decide(known, Limits(downtime_limit_s=0.3, max_throttle=0.99), 1.0)
        assert decision.action is Action.THROTTLE
        assert decision.throttle_to == pytest.approx(0.75)  # D has to fall to half of B
        slow_sync = metrics(rate=2 * GB, remaining=16 * GB, rounds=self.rounds(3), x=0.2)
        decision = decide(slow_sync, Limits(downtime_limit_s=0.3, max_throttle=0.99), 1.0)
        assert decision.throttle_to == pytest.approx(1 - (1 - 0.2 / 0.24) / 2, abs=0.01)  # to B (1 - x / 0.8 y)

    def test_throttles_no_more_than_allowed_and_gives_up_after_that(self) -> None:
        limits = Limits(downtime_limit_s=0.3, max_throttle=0.2)
        decision = decide(metrics(**HOPELESS, rounds=self.rounds(3)), limits, 1.0)
        assert (decision.action, decision.throttle_to) == (Action.THROTTLE, 0.2)
        tried = metrics(**HOPELESS, rounds=samples(*[16 * GB] * 3, throttle=0.2), throttle=0.2)
        assert decide(tried, limits, 1.0).action is Action.GIVE_UP

    @pytest.mark.parametrize("allowed", [0.004, 0.05, 0.5, 0.9, 0.99])
    @pytest.mark.parametrize("below", [0.02, 0.06, 0.1])
    def test_all_that_is_allowed_is_tried_before_it_gives_up(self, allowed: float, below: float) -> None:
        """A throttle close below it is not all, however it was measured."""
        limits, share = Limits(downtime_limit_s=0.3, max_throttle=allowed), allowed * (1 - below)
        known = metrics(**HOPELESS, rounds=samples(*[16 * GB] * 3, throttle=share), throttle=share)
        decision = decide(known, limits, 1.0)
        assert decision.action is Action.THROTTLE
        assert share < decision.throttle_to <= allowed
        assert not allowed - 0.01 < decision.throttle_to < allowed  # no round is made for the sake of next to nothing

    @pytest.mark.parametrize("taken", [0.999, 0.97, 0.92])
    def test_what_takes_a_little_less_than_was_asked_for_is_all(self, taken: float) -> None:
        """A dirty limit takes no more than it needs."""
        limits, share = Limits(downtime_limit_s=0.3, max_throttle=0.99), 0.99 * taken
        known = metrics(**HOPELESS, rounds=samples(*[16 * GB] * 3, throttle=share), throttle=share, asked=0.99)
        assert decide(known, limits, 1.0).action is Action.GIVE_UP

    def test_one_that_took_much_less_than_was_asked_for_is_asked_again(self) -> None:
        limits = Limits(downtime_limit_s=0.3, max_throttle=0.99)
        known = metrics(**HOPELESS, rounds=samples(*[16 * GB] * 3, throttle=0.5), throttle=0.5, asked=0.99)
        decision = decide(known, limits, 1.0)
        assert (decision.action, decision.throttle_to) == (Action.THROTTLE, 0.99)

    @pytest.mark.parametrize("allowed", [0.3, 0.8, 0.99])
    @pytest.mark.parametrize("takes", [1.0, 0.95, 0.91])
    def test_what_does_not_help_is_used_up_after_some_rounds(self, allowed: float, takes: float) -> None:
        """Each round asks for more, until all was asked for and given; nothing that is measured keeps it from that."""
        limits = Limits(downtime_limit_s=0.3, max_throttle=allowed, max_rounds=1000)
        asked = [0.0]
        while asked[-1] < allowed:
            taken = takes * asked[-1]
            rounds = samples(*[16 * GB] * (len(asked) + 2), throttle=taken)
            # The guest dirties so little more than is wanted that by itself it would ask for nearly the same again.
            known = metrics(rate=0.51 * GB, remaining=16 * GB, x=0.25, rounds=rounds, throttle=taken, asked=asked[-1])
            decision = decide(known, limits, 1.0)
            assert decision.action is Action.THROTTLE
            assert decision.throttle_to >= min(asked[-1] + 0.01, allowed)
            asked.append(decision.throttle_to)
            assert len(asked) < 101
        known = replace(known, throttled_share=takes * allowed, asked_share=allowed)
        assert decide(known, limits, 1.0).action is Action.GIVE_UP

    def test_switches_over_at_a_local_minimum_where_that_is_wanted(self) -> None:
        limits = Limits(downtime_limit_s=0.3, on_timeout=TimeoutPolicy.SWITCH)
        falling = metrics(**{**HOPELESS, "remaining": 4 * GB}, rounds=samples(16 * GB, 8 * GB, 4 * GB))
        assert decide(falling, limits, 1.0).action is Action.WAIT
        risen = metrics(**{**HOPELESS, "remaining": 8 * GB}, rounds=samples(16 * GB, 4 * GB, 8 * GB))
        assert decide(risen, limits, 1.0).action is Action.WAIT
        level = metrics(**{**HOPELESS, "remaining": 4 * GB}, rounds=samples(4.1 * GB, 4.1 * GB, 4 * GB))
        assert decide(level, limits, 1.0).action is Action.SWITCH_OVER

    def test_goes_on_where_it_is_to_be_ignored(self) -> None:
        limits = Limits(on_timeout=TimeoutPolicy.IGNORE, max_rounds=3)
        assert decide(metrics(**HOPELESS, rounds=self.rounds(50)), limits, 1e6).action is Action.GO_ON

    def test_waits_where_a_quieter_moment_may_fit(self) -> None:
        known = metrics(
            rate=9 * GB, working_set=0.35 * GB, remaining=0.35 * GB, spread=0.2, rounds=samples(*[0.35 * GB] * 4)
        )
        decision = decide(known, Limits(downtime_limit_s=0.3), 1.0)
        assert decision.action is Action.WAIT


class TestOutOfTime:
    KNOWN = staticmethod(lambda: metrics(remaining=4 * GB, rounds=samples(4 * GB)))

    @pytest.mark.parametrize(
        ("limits", "now"), [(Limits(timeout_s=10), 10.0), (Limits(max_rounds=1), 1.0)], ids=["time", "rounds"]
    )
    def test_gives_up_by_default(self, limits: Limits, now: float) -> None:
        decision = decide(self.KNOWN(), limits, now)
        assert decision.action is Action.GIVE_UP
        assert decision.reason.startswith("out of ")

    def test_not_a_moment_too_early(self) -> None:
        assert decide(self.KNOWN(), Limits(timeout_s=10), 9.99).action is Action.GO_ON

    def test_switches_over_after_a_few_rounds_at_the_latest(self) -> None:
        limits = Limits(timeout_s=1, on_timeout=TimeoutPolicy.SWITCH)
        actions = []
        for count in range(1, 6):
            rounds = tuple(sample(number, 4 * GB / 2**number, ended=float(number)) for number in range(1, count + 1))
            known = metrics(remaining=rounds[-1].remaining_bytes + 2 * GB, rounds=rounds)
            actions.append(decide(known, limits, float(count)).action)
        assert actions == [*[Action.WAIT] * 3, *[Action.SWITCH_OVER] * 2]

    def test_throttles_only_where_that_helps(self) -> None:
        limits = Limits(timeout_s=1, on_timeout=TimeoutPolicy.THROTTLE, max_throttle=0.5)
        known = metrics(rate=0.99 * GB, remaining=4 * GB, rounds=samples(4 * GB))
        decision = decide(known, limits, 2.0)
        assert decision.action is Action.THROTTLE
        assert 0 < decision.throttle_to <= 0.5

    def test_a_downtime_that_fits_comes_first(self) -> None:
        assert decide(metrics(remaining=0), Limits(timeout_s=1), 5.0).action is Action.SWITCH_OVER


def test_a_throttle_in_force_stays() -> None:
    known = metrics(remaining=4 * GB, rounds=samples(4 * GB, throttle=0.3), throttle=0.3)
    assert decide(known, Limits(max_throttle=0.9), 1.0).throttle_to == 0.3


def test_an_idle_guest_is_switched_over() -> None:
    known = metrics(rate=0, remaining=0, rounds=samples(0))
    assert math.isfinite(decide(known, Limits(), 1.0).downtime_s.high)
    assert decide(known, Limits(), 1.0).action is Action.SWITCH_OVER


def test_a_guest_whose_pages_cost_nothing_to_send_is_not_throttled() -> None:
    """Rounds of zero pages alone: no byte was sent for what was read."""
    known = metrics(remaining=4 * GB, rate=2 * GB, rounds=samples(4 * GB))
    free = replace(known, costs=replace(known.costs, sent_share=0.0))
    assert decide(free, Limits(downtime_limit_s=0.3, max_throttle=0.9), 1.0).throttle_to == 0.0

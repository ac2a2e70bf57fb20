"""`decide` where everything is known exactly: the same actions, mostly without the words, at a fraction of the cost."""

from __future__ import annotations

from dataclasses import replace

from precopy.planning.model.decision import Action, Decide, Decision
from precopy.planning.model.downtime import expected_downtime, smallest_downtime
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Metrics
from precopy.planning.policies.ours import SURE_ROUNDS, decide

_UNKNOWN = Estimate(0.0, 0.0, float("inf"))


def exact_policy(known: Metrics, limits: Limits) -> Decide:
    """The policy for a simulation that begins with ``known``, whose estimates have no ranges, in which nothing is
    throttled and no time runs out. A downtime is ``fixed + remaining * per_byte`` then, and what rounds settle at does
    not change; only a migration that may have to give up asks `decide`. The first round is made in any case."""
    limit, most = limits.downtime_limit_s, limits.max_rounds
    costs = known.costs
    per_byte = costs.s_per_byte(costs.bandwidth.value)
    fixed = expected_downtime(replace(known, remaining_bytes=0.0)).total_s.value
    in_reach = smallest_downtime(known).value <= limit
    go_on, switch_over = (Decision(action, "", _UNKNOWN, limit) for action in (Action.GO_ON, Action.SWITCH_OVER))

    def quick(metrics: Metrics, limits: Limits, now: float) -> Decision:
        made = len(metrics.rounds)
        if not made:
            return go_on
        if fixed + metrics.remaining_bytes * per_byte <= limit:
            return switch_over
        hopeful = in_reach or made < SURE_ROUNDS
        return go_on if hopeful and made < most else decide(metrics, limits, now)

    return quick

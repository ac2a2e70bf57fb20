"""All policies on the same recorded migrations: which of them complete, with which downtime and total time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from precopy.planning.forecast.simulate import Outcome
from precopy.planning.model.decision import Policy
from precopy.planning.model.limits import Limits
from precopy.planning.model.trace import Trace
from precopy.planning.replay.replay import Replayer


@dataclass(frozen=True)
class Score:
    """How one policy did on one trace. ``on_front``: it completed, and none that did was better both in downtime and
    in total time, or in one of them and as good in the other."""

    policy: str
    outcome: Outcome
    on_front: bool


@dataclass(frozen=True)
class Scores:
    """All policies on the trace called ``name``."""

    name: str
    results: tuple[Score, ...]


@dataclass(frozen=True)
class Comparison:
    """``traces`` in the order in which they were given."""

    traces: tuple[Scores, ...]

    def of(self, policy: str) -> tuple[Score, ...]:
        """One policy's score on each trace."""
        return tuple(score for trace in self.traces for score in trace.results if score.policy == policy)


def compare(
    traces: Mapping[str, Trace], policies: Sequence[Policy], limits: Callable[[Limits], Limits] = lambda limits: limits
) -> Comparison:
    """Replays each trace under each policy, within its recorded limits as changed by ``limits``.

    Raises `UsageError` for a trace without a round."""
    scored = []
    for name, trace in traces.items():
        replayer, allowed = Replayer(trace), limits(trace.facts.limits)
        outcomes = {policy.name: replayer.run(policy, limits=allowed) for policy in policies}
        front = pareto_front(list(outcomes.values()))
        scored.append(Scores(name, tuple(Score(*pair, on) for pair, on in zip(outcomes.items(), front, strict=True))))
    return Comparison(tuple(scored))


def pareto_front(outcomes: Sequence[Outcome]) -> list[bool]:
    """Whether each is on the front of downtime and total time among those that completed."""

    def beaten(outcome: Outcome, by: Outcome) -> bool:
        worse = outcome.downtime_s >= by.downtime_s and outcome.total_s >= by.total_s
        return worse and (outcome.downtime_s, outcome.total_s) != (by.downtime_s, by.total_s)

    done = [outcome for outcome in outcomes if outcome.completed]
    return [outcome.completed and not any(beaten(outcome, other) for other in done) for outcome in outcomes]

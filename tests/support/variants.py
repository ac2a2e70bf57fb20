"""State machines held against variants that are broken on purpose: each of them has to be caught."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def assert_caught(machine: type[RuleBasedStateMachine], symptom: str, start: int = 0) -> None:
    """That ``machine`` fails with an assertion that matches ``symptom`` within 1000 examples.

    ``start`` is the random seed of the search: one that finds the fault early. Every other finds it too, later.
    """
    with pytest.raises(AssertionError, match=symptom):
        run_state_machine_as_test(
            seed(start)(machine),
            settings=settings(
                max_examples=1000,
                stateful_step_count=30,
                phases=[Phase.generate],
                database=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )

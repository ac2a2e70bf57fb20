"""Whether a migration converges: what was measured of it, what that means, and what to do next.

Pure functions, without I/O and without clocks. Data flows one way::

    Round, NextSync  ->  RoundSample  ->  estimators.observe  ->  Metrics  ->  decide (or another policy)  ->  Decision
                                                                                                               |
                                                                     Forecast  <-  forecast (simulate)  <------+

The policy is asked by `precopy.migration.controller`, which hands the decision to the forecast and to what shows it.
A simulation asks the policy for the rounds that it makes up.
"""

from precopy.names import TimeoutPolicy
from precopy.planning.forecast.forecast import Forecast, forecast
from precopy.planning.forecast.simulate import CurveGuest, GuestModel, Outcome, simulate
from precopy.planning.model.curve import DirtyClass, DirtyCurve
from precopy.planning.model.decision import Action, Decide, Decision, Policy
from precopy.planning.model.downtime import ExpectedDowntime, expected_downtime, needed_speed, smallest_downtime
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Costs, Metrics, RoundSample
from precopy.planning.policies.ours import OURS, decide

__all__ = [
    "OURS",
    "Action",
    "Costs",
    "CurveGuest",
    "Decide",
    "Decision",
    "DirtyClass",
    "DirtyCurve",
    "Estimate",
    "ExpectedDowntime",
    "Forecast",
    "GuestModel",
    "Limits",
    "Metrics",
    "Outcome",
    "Policy",
    "RoundSample",
    "TimeoutPolicy",
    "decide",
    "expected_downtime",
    "forecast",
    "needed_speed",
    "simulate",
    "smallest_downtime",
]

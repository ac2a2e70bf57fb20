"""Whether a migration converges: what was measured of it, what that means, and what to do next.

Pure functions, without I/O and without clocks. Data flows one way::

    RoundSample  ->  estimators.observe  ->  Metrics  ->  decide (or another policy)  ->  Decision
                                               |
                                               +------->  forecast  =  simulate(decide, CurveWorld)
"""

from precopy.planning.curve import DirtyClass, DirtyCurve
from precopy.planning.decide import OURS, decide
from precopy.planning.decision import Action, Decide, Decision, Policy
from precopy.planning.downtime import ExpectedDowntime, expected_downtime, needed_speed, smallest_downtime
from precopy.planning.estimate import Estimate
from precopy.planning.forecast import Forecast, forecast
from precopy.planning.limits import Limits, TimeoutPolicy
from precopy.planning.metrics import Costs, Metrics, RoundSample
from precopy.planning.simulate import CurveWorld, Outcome, World, simulate

__all__ = [
    "OURS",
    "Action",
    "Costs",
    "CurveWorld",
    "Decide",
    "Decision",
    "DirtyClass",
    "DirtyCurve",
    "Estimate",
    "ExpectedDowntime",
    "Forecast",
    "Limits",
    "Metrics",
    "Outcome",
    "Policy",
    "RoundSample",
    "TimeoutPolicy",
    "World",
    "decide",
    "expected_downtime",
    "forecast",
    "needed_speed",
    "simulate",
    "smallest_downtime",
]

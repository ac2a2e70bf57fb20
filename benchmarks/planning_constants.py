"""What each tuned constant of precopy.planning does: the table of docs/adr/0016-dirty-curve.md.

Each constant is halved and doubled. With each value all recordings are predicted again (downtime and total time after
rounds 1 to 3, against what was then measured) and replayed under five sets of limits. No guest runs, so the load of the
machine does not matter.

Make recordings:  mkdir DIR && precopy bench predict --record DIR
                  (several directories beside each other in DIR, for an idle machine and a busy one, are read too)
Run:              .venv/bin/python benchmarks/planning_constants.py DIR
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from precopy.names import TimeoutPolicy
from precopy.planning.estimation.estimators import observe
from precopy.planning.forecast import forecast as forecasting
from precopy.planning.forecast.simulate import Outcome
from precopy.planning.model.limits import Limits
from precopy.planning.model.trace import Trace
from precopy.planning.policies.ours import OURS, decide
from precopy.planning.replay import replay as replaying
from precopy.planning.replay.replay import Replayer
from precopy.recording.files import read_recording

SCALES: dict[str, Callable[[float, float], float]] = {
    "": lambda value, factor: value * factor,
    "count": lambda value, factor: max(round(value * factor), 1),
    "share": lambda value, factor: min(value * factor, 1 - (1 - value) / 2),
    "factor": lambda value, factor: 1 + (value - 1) * factor,
}
"""How a constant is halved and doubled. Counts are rounded. A share, which is at most 1, is doubled at most to halfway
between its value and 1. Of a factor, which is at least 1, the excess over 1 is scaled."""

CONSTANTS: tuple[tuple[str, str, str, str], ...] = (
    ("estimation.weighting", "FORGET", "share", "weight ratio of successive rounds"),
    ("estimation.weighting", "_MOST", "count", "rounds that estimates are made from"),
    ("estimation.estimators", "_VARIED", "factor", "ratio of dirty bytes from which a byte's sync cost is fitted"),
    ("estimation.bandwidth", "_ENOUGH_S", "", "seconds of sending with half of the full weight"),
    ("estimation.bandwidth", "_TELLING", "share", "weight from which the newest rate is in the range"),
    ("estimation.bandwidth", "_LEAST_SPREAD", "share", "relative spread after one long round"),
    ("estimation.bandwidth", "_MOST_SPREAD", "share", "cap of the relative spread"),
    ("estimation.dirtying", "_BINS_PER_E", "", "bins for each factor e of an interval's length"),
    ("estimation.dirtying", "_GAIN", "factor", "weight ratio of successive points"),
    ("estimation.dirtying", "_NOISE", "", "jump of the level of which half is applied, ln"),
    ("estimation.dirtying", "_LARGEST_STEP", "factor", "largest change of the level by one round, factor"),
    ("estimation.dirtying", "_FIRST", "share", "weight of the first round for the shape"),
    ("estimation.dirtying", "_KEPT", "share", "weight ratio of successive rounds for the shape"),
    ("estimation.dirtying", "_NOISE_OF_SHAPE", "", "deviation from the shape assumed beforehand, ln"),
    ("estimation.dirtying", "_SURE", "", "weight of that assumption, rounds"),
    ("estimation.dirtying", "_ALIKE", "", "difference up to which rounds count as equal, ln"),
    ("estimation.dirtying", "_STRAIGHT", "share", "elasticity from which W counts as proportional"),
    ("estimation.dirtying", "_BY_CHANCE", "share", "probability of equal rounds where W is proportional"),
    ("estimation.dirtying", "_APART", "factor", "least ratio of intervals for a slope between them"),
    ("estimation.dirtying", "_HALVINGS", "count", "halvings of the shortest interval that W is estimated down to"),
    ("estimation.dirtying", "_FLAT", "share", "growth by doubling up to which the working set counts as written"),
    ("estimation.dirtying", "_NEGLIGIBLE", "share", "share of dirty bytes below which a class is left out"),
    ("estimation.dirtying", "_FIRST_SPREAD", "share", "relative spread after one round"),
    ("estimation.dirtying", "_LEAST_SPREAD", "share", "floor of the relative spread"),
    ("estimation.dirtying", "_MOST_SPREAD", "", "cap of the relative spread"),
    ("forecast.doubt", "_LESS", "", "downtime's range downwards on a busy machine, ln"),
    ("forecast.doubt", "_MORE", "", "downtime's range upwards on a busy machine, ln"),
    ("forecast.doubt", "_OVERRUN", "", "least extension of a downtime's range upwards, ln"),
    ("forecast.doubt", "_PHASE", "share", "share of `_LESS` that always applies before the last round"),
    ("forecast.doubt", "_SOONER", "", "remaining time's range downwards on a busy machine, ln"),
    ("forecast.doubt", "_LATER", "", "remaining time's range upwards on a busy machine, ln"),
    ("forecast.doubt", "_SLOWER", "", "bandwidth's range downwards on a busy machine, ln"),
    ("forecast.doubt", "_FASTER", "", "bandwidth's range upwards on a busy machine, ln"),
    ("forecast.doubt", "_STEADY", "", "deviation of rates on an idle machine, ln"),
    ("forecast.doubt", "_GAIN", "", "busyness for each unit of deviation above that"),
    ("forecast.doubt", "_FEW", "", "extra deviation of few rounds"),
    ("forecast.forecast", "_AHEAD", "count", "rounds that a forecast simulates at most"),
    ("forecast.simulate", "_CUTS", "count", "bisection steps for the end of a round cut short"),
    ("model.metrics", "_SAFE", "factor", "factor on remaining bytes in mid-round"),
    ("model.downtime", "PAUSE_S", "", "seconds between the last sync and all vCPUs standing still"),
    ("policies.ours", "SURE_ROUNDS", "count", "rounds before a migration may be called hopeless"),
    ("policies.ours", "_LITTLE", "share", "share of the downtime that further rounds have to save"),
    ("policies.ours", "_LATE_ROUNDS", "count", "rounds past the time limit in wait for a local minimum"),
    ("policies.ours", "_STILL_ROUNDS", "count", "rounds without progress after which the value decides"),
    ("policies.ours", "_MARGIN", "share", "share of the downtime limit that throttling aims at"),
    ("policies.ours", "_HALF", "share", "length of a throttled round by the one before"),
    ("policies.ours", "_NEARLY", "share", "share of the largest throttle that counts as all of it"),
)
"""(module in precopy.planning, name, how it is scaled, what it is)."""

TERMS: tuple[Callable[[Limits], Limits], ...] = (
    lambda limits: limits,
    lambda limits: replace(limits, downtime_limit_s=limits.downtime_limit_s / 2),
    lambda limits: replace(limits, downtime_limit_s=limits.downtime_limit_s / 2, max_throttle=0.99),
    lambda limits: replace(limits, downtime_limit_s=limits.downtime_limit_s / 4, max_throttle=0.8),
    lambda limits: replace(
        limits, downtime_limit_s=limits.downtime_limit_s / 4, timeout_s=3.0, on_timeout=TimeoutPolicy.SWITCH
    ),
)
"""Limits of the replays: as recorded; half and a quarter of the downtime limit, with throttling; and with a timeout."""

AFTER = (1, 2, 3)


@dataclass(frozen=True)
class Case:
    trace: Trace
    replayer: Replayer


@dataclass(frozen=True)
class Effect:
    """Errors are shares of what was measured (at most 1 each), held is a share of the stated ranges.

    ``stated`` is everything that was predicted, to see whether it differs at all; ``replays`` is (completed, rounds,
    downtime, total time, guest time lost) of each."""

    downtime_error: float
    downtime_held: float
    total_error: float
    total_held: float
    width: float
    named: int
    stated: tuple[object, ...]
    replays: tuple[tuple[bool, int, float, float, float], ...]


def recordings(directory: Path) -> list[Case]:
    """All recordings in ``directory``. The costs of each replayed guest are fixed here, with the constants as they are,
    so that what replays are held against does not move with the constants."""
    cases = []
    costs = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        trace = read_recording(path)
        if trace.rounds and trace.outcome is not None:
            cases.append(Case(trace, Replayer(trace)))
            costs[id(trace)] = replaying._costs(trace, trace.samples, None)
    replaying._costs = lambda trace, _samples, _bandwidth: costs[id(trace)]
    return cases


def effect(cases: list[Case]) -> Effect:
    """Predicts and replays all of them."""
    downtime, total, widths, all_stated, named = [], [], [], [], 0
    for case in cases:
        trace, done = case.trace, case.trace.outcome
        assert done is not None
        for after in range(1, min(len(trace.rounds), 5) + 1):
            samples = trace.samples[:after]
            last, facts = samples[-1], trace.facts
            known = observe(
                trace.ram_bytes,
                samples,
                last.remaining_bytes,
                facts.switchover_overhead_s,
                throttled_share=last.throttled_share,
            )
            decision = decide(known, facts.limits, last.ended_s)
            said = forecasting.forecast(known, facts.limits, last.ended_s, decision)
            all_stated.append((said.converges, said.downtime_s, said.total_s, said.bandwidth_bytes_per_s))
            if not done.completed:
                named += said.converges is False
            elif after in AFTER:
                downtime.append((said.downtime_s, done.downtime_s))
                total.append((said.total_s, done.total_s))
                widths.append(min(math.log(said.downtime_s.high / said.downtime_s.low), math.log(100)))
    replays = tuple(_figures(case.replayer.run(OURS, limits=terms(case.trace.facts.limits)))
                    for case in cases for terms in TERMS)  # fmt: skip
    return Effect(
        downtime_error=statistics.fmean(min(abs(stated.value / measured - 1), 1.0) for stated, measured in downtime),
        downtime_held=statistics.fmean(stated.low <= measured <= stated.high for stated, measured in downtime),
        total_error=statistics.fmean(min(abs(stated.value / measured - 1), 1.0) for stated, measured in total),
        total_held=statistics.fmean(stated.low <= measured <= stated.high for stated, measured in total),
        width=math.exp(statistics.median(widths)),
        named=named,
        stated=tuple(all_stated),
        replays=replays,
    )


def _figures(outcome: Outcome) -> tuple[bool, int, float, float, float]:
    return (
        outcome.completed, len(outcome.rounds), outcome.downtime_s, outcome.total_s, outcome.guest_time_lost_s,
    )  # fmt: skip


def set_constant(module: ModuleType, name: str, value: object) -> None:
    """Gives ``module.name`` this value, and makes all that is derived from it anew: assignments of its module that use
    it, and the same name in modules that import it."""
    loaded = list(sys.modules.items())
    planning = [user for path, user in loaded if path.startswith("precopy.planning") and user.__file__]
    for user in planning:
        tree = ast.parse(inspect.getsource(user))
        imported = any(
            isinstance(node, ast.ImportFrom)
            and node.module == module.__name__
            and name in {alias.name for alias in node.names}
            for node in tree.body
        )
        if user is module or imported:
            setattr(user, name, value)
            _derive(user, tree, {name})


def _derive(module: ModuleType, tree: ast.Module, changed: set[str]) -> None:
    for node in tree.body:
        if not isinstance(node, ast.Assign):
            continue
        made = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
        used = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
        if used & changed and not made & changed:
            exec(compile(ast.Module([node], []), module.__name__, "exec"), module.__dict__)
            changed |= made


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"precopy.planning.{name}")


_cases: list[Case] = []


def _varied(task: tuple[str, str, float | None]) -> Effect | str:
    """The effect of a value of a constant, in a process of its own; a sentence where the code cannot run with it."""
    module, name, value = task
    if value is not None:
        set_constant(_module(module), name, value)
    try:
        return effect(_cases)
    except (ArithmeticError, IndexError, ValueError) as error:
        return f"cannot be ({type(error).__name__})"


def _signed(change: float, digits: int, unit: str = "") -> str:
    text = f"{change:+.{digits}f}"
    return "" if float(text) == 0 else f"{text}{unit}"


def described(varied: Effect | str, base: Effect) -> str:
    """What differs from ``base``, in a table's cell."""
    if isinstance(varied, str):
        return varied
    pairs = (
        ("downtime error", _signed(100 * (varied.downtime_error - base.downtime_error), 1)),
        ("downtime held", _signed(100 * (varied.downtime_held - base.downtime_held), 1)),
        ("width", _signed(100 * (varied.width / base.width - 1), 0, " %")),
        ("total error", _signed(100 * (varied.total_error - base.total_error), 1)),
        ("total held", _signed(100 * (varied.total_held - base.total_held), 1)),
        ("named", _signed(varied.named - base.named, 0)),
    )
    said = [f"{name} {text}" for name, text in pairs if text]
    pairs_of_replays = list(zip(varied.replays, base.replays, strict=True))
    moved = sum(after != before for after, before in pairs_of_replays)
    if moved:
        done = sum(after[0] - before[0] for after, before in pairs_of_replays)
        both = [(after, before) for after, before in pairs_of_replays if after[0] and before[0]]
        changes = [sum(after[at] for after, _ in both) / sum(before[at] for _, before in both) - 1 for at in (2, 3, 4)]
        parts = (
            ("completed", _signed(done, 0)),
            *zip(("downtime", "total", "lost"), (_signed(100 * change, 1, " %") for change in changes), strict=True),
        )
        detail = ", ".join(f"{name} {text}" for name, text in parts if text)
        said.append(f"{moved} replays" + (f" ({detail})" if detail else ""))
    if not said:
        differ = sum(after != before for after, before in zip(varied.stated, base.stated, strict=True))
        return f"{differ} forecasts, below 0.05" if differ else "none"
    return "; ".join(said)


def main() -> None:
    _cases.extend(recordings(Path(sys.argv[1])))
    tasks: list[tuple[str, str, float | None]] = [("", "", None)]
    for module, name, kind, _ in CONSTANTS:
        value = getattr(_module(module), name)
        tasks += [(module, name, SCALES[kind](value, factor)) for factor in (0.5, 2.0)]
    with multiprocessing.get_context("fork").Pool(maxtasksperchild=1) as pool:
        base, *effects = pool.map(_varied, tasks, chunksize=1)
    assert isinstance(base, Effect), base
    converged = sum(case.trace.outcome is not None and case.trace.outcome.completed for case in _cases)
    print(f"{converged} recordings that completed, {len(_cases) - converged} that did not.", end=" ")
    complete = sum(replay[0] for replay in base.replays)
    print(f"{len(base.replays)} replays, of which {complete} complete. After rounds 1 to 3:\n")
    print(f"- downtime: error {100 * base.downtime_error:.1f} %, held {100 * base.downtime_held:.1f} %,", end=" ")
    print(f"upper over lower end {base.width:.2f} (median)")
    print(f"- total time: error {100 * base.total_error:.1f} %, held {100 * base.total_held:.1f} %")
    print(f"- forecasts that named a hopeless migration so, after rounds 1 to 5: {base.named}\n")
    print("| constant | what it is | value | halved | doubled |")
    print("|---|---|---|---|---|")
    for number, (module, name, _, what) in enumerate(CONSTANTS):
        values = [value for _, _, value in tasks[1 + 2 * number : 3 + 2 * number]]
        cells = [
            f"{value:.4g}: {described(varied, base)}"
            for value, varied in zip(values, effects[2 * number : 2 * number + 2], strict=True)
        ]
        print(f"| `{module}:{name}` | {what} | {getattr(_module(module), name):.4g} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()

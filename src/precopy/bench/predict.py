"""``precopy bench predict``: what was said after the first rounds of a migration, beside what then happened.

Migrations of KVM guests between two processes over a Unix socket, over a grid of workloads, write rates, bandwidth caps
and downtime limits. What cannot converge is migrated a second time, with the downtime limit that the first migration
named. A migration that fails, or does not converge where it should, is counted, and the others go on.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from precopy.abi.filesystem import absolute_path
from precopy.bench.failed import Failed, attempt
from precopy.bench.predict_cases import describe, grid, hopeless_grid
from precopy.errors import VerificationFailed
from precopy.migration import Migrated, MigrationOptions, Range, Verdict
from precopy.report.kinds.bench_predict import Case, Held, Hopeless, Missed, Predicted, Predictions, Said
from precopy.service import ProcessPair, migrate_guest

PREDICTED_AFTER = 3
"""The round after which a prediction is taken (or the last before the switchover, where there are fewer)."""
HELD_AFTER = (1, 2, 3)
"""Rounds after which stated ranges are held against what came."""
NAMED_WITHIN = 5
"""Rounds within which a migration that cannot converge has to be named so."""
_SETTLE_S = 0.3


def measure(migrations: int, hopeless: int, tell: Callable[[str], None], record: Path | None = None) -> Predictions:
    """Runs the given numbers of migrations that should converge and of ones that cannot: see `carry_out`."""
    return carry_out(grid(migrations), hopeless_grid(hopeless), tell, record)


def carry_out(
    cases: Sequence[Case], lost: Sequence[Case], tell: Callable[[str], None], record: Path | None = None
) -> Predictions:
    """Migrates them all, one after the other, each recorded into a file of its own in the directory ``record``.
    ``lost`` are those that cannot converge. ``tell`` is told what is migrated next."""
    done: list[Predicted] = []
    missed: list[Missed] = []
    for number, case in enumerate(cases, 1):
        tell(f"{number}/{len(cases)}: {describe(case)}")
        run = _predicted(case, _file(record, f"{number:02}"))
        if isinstance(run, Predicted):
            done.append(run)
        else:
            missed.append(run)
    named: list[Hopeless] = []
    for number, case in enumerate(lost, 1):
        tell(f"{number}/{len(lost)}, which cannot converge: {describe(case)}")
        named.append(_hopeless(case, _file(record, f"hopeless-{number:02}")))
    ahead = [run for run in done if run.rounds > run.predicted_after + 1]
    return Predictions(
        migrations=tuple(done),
        missed=tuple(missed),
        held=tuple(_held(after, done) for after in HELD_AFTER if any(len(run.said) >= after for run in done)),
        hopeless=tuple(named),
        share_within=_within([run.error for run in done]),
        downtime_within=_within([abs(run.downtime_error) for run in done]),
        total_within=_within([abs(run.total_error) for run in done]),
        ahead=len(ahead),
        share_within_ahead=_within([run.error for run in ahead]),
        hopeless_named=_share([run.named_after is not None and run.named_after <= NAMED_WITHIN for run in named]),
        hopeless_completed=_share([run.then_completed for run in named]),
    )


def _file(directory: Path | None, name: str) -> str:
    return "" if directory is None else absolute_path(directory / name)


def _predicted(case: Case, record: str) -> Predicted | Missed:
    migrated, verdicts = _migrate(case, record)
    if isinstance(migrated, Failed):
        named = next((verdict.round for verdict in verdicts if verdict.converges is False), None)
        return Missed(describe(case), case, migrated, len(verdicts), named)
    return predicted(case, migrated)


def predicted(case: Case, migrated: Migrated) -> Predicted:
    """What was said of a migration that completed, beside what came."""
    verdict = migrated.verdicts[min(PREDICTED_AFTER, len(migrated.verdicts)) - 1]
    downtime, total = migrated.downtime.total_s, migrated.total_s - migrated.verify_s
    return Predicted(
        name=describe(case),
        case=case,
        rounds=len(migrated.rounds),
        predicted_after=verdict.round,
        predicted_downtime_s=verdict.downtime_s,
        measured_downtime_s=downtime,
        downtime_error=_error(verdict.downtime_s, downtime),
        predicted_total_s=verdict.total_s,
        measured_total_s=total,
        total_error=_error(verdict.total_s, total),
        said=tuple(_said(verdict, downtime, total) for verdict in migrated.verdicts[: len(HELD_AFTER)]),
    )


def _said(verdict: Verdict, downtime_s: float, total_s: float) -> Said:
    return Said(
        after=verdict.round,
        converges=verdict.converges,
        downtime_s=verdict.downtime_s,
        downtime_held=holds(verdict.downtime_s, downtime_s),
        total_s=verdict.total_s,
        total_held=holds(verdict.total_s, total_s),
    )


def holds(stated: Range, truth: float) -> bool:
    """Whether ``truth`` is in a range, of which an end that is None is infinite."""
    return stated.low is not None and stated.low <= truth and (stated.high is None or truth <= stated.high)


def _held(after: int, done: list[Predicted]) -> Held:
    said = [run.said[after - 1] for run in done if len(run.said) >= after]
    return Held(
        after=after,
        migrations=len(said),
        downtime=_share([forecast.downtime_held for forecast in said]) or 0.0,
        total=_share([forecast.total_held for forecast in said]) or 0.0,
        both=_share([forecast.downtime_held and forecast.total_held for forecast in said]) or 0.0,
        downtime_width=_width([forecast.downtime_s for forecast in said]),
        total_width=_width([forecast.total_s for forecast in said]),
    )


def _width(ranges: list[Range]) -> float | None:
    widths = [math.inf if not ends.low or ends.high is None else ends.high / ends.low for ends in ranges]
    middle = statistics.median_high(widths)
    return None if math.isinf(middle) else middle


def _error(predicted: Range, measured: float) -> float:
    return (predicted.value - measured) / measured if predicted.value is not None else 1e9


def _hopeless(case: Case, record: str) -> Hopeless:
    name = describe(case)
    first, verdicts = _migrate(case, record)
    named = next((verdict for verdict in verdicts if verdict.converges is False), None)
    round_named = named.round if named else None
    if not isinstance(first, Failed):
        return Hopeless(name, case, round_named, None, True, len(verdicts), None, "it converged without")
    if first.converged is None or named is None:
        why = first.message if first.converged is None else "it was not named so"
        return Hopeless(name, case, round_named, None, False, len(verdicts), None, why)
    limit = verdicts[-1].smallest_downtime_limit_s.high
    if limit is None:
        return Hopeless(name, case, named.round, None, False, 0, None, "no downtime limit was named")
    again, later = _migrate(replace(case, downtime_limit_s=limit))
    if isinstance(again, Failed):
        return Hopeless(name, case, named.round, limit, False, len(later), None, again.message)
    return Hopeless(name, case, named.round, limit, True, len(again.rounds), again.downtime.total_s, "")


def _migrate(case: Case, record: str = "") -> tuple[Migrated | Failed, list[Verdict]]:
    same = ["--ram", f"{case.ram}B", "--guest", "kvm"]
    rate = "max" if case.write_rate is None else str(case.write_rate)
    run = [*same, "--fill", "1", "--workload", case.workload, "--write-rate", rate]
    if case.working_set is not None:
        run += ["--working-set", f"{case.working_set}B"]
    options = MigrationOptions(downtime_limit_s=case.downtime_limit_s, max_bandwidth=case.max_bandwidth)
    verdicts: list[Verdict] = []

    def note(event: object) -> None:
        if isinstance(event, Verdict):
            verdicts.append(event)

    def migrate() -> Migrated:
        with ProcessPair(run, [*same, "--prealloc"]) as pair:
            time.sleep(_SETTLE_S)
            done = migrate_guest(pair.source, pair.address, options, on_event=note, record=record)
            if not pair.ask(pair.destination, "check")["ok"]:
                raise VerificationFailed("the guest's invariant is broken at the destination")
        return done

    return attempt(describe(case), migrate), verdicts


def _within(errors: list[float]) -> dict[str, float]:
    return {str(per_cent): _share([error <= per_cent / 100 for error in errors]) or 0.0 for per_cent in (10, 20, 50)}


def _share(held: list[bool]) -> float | None:
    return sum(held) / len(held) if held else None

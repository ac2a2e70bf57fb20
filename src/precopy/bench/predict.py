"""``precopy bench predict``: what was said after the third round of a migration, beside what then happened.

Migrations of KVM guests between two processes over a Unix socket, over a grid of workloads, write rates, bandwidth caps
and downtime limits. What cannot converge is migrated a second time, with the downtime limit that the first migration
named.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from precopy.control import ProcessPair, RemoteFailure, migrate_guest
from precopy.errors import VerificationFailed
from precopy.migration import Migrated, MigrationOptions, Range, Verdict
from precopy.units import PAGE_SIZE

PREDICTED_AFTER = 3
"""The round after which a prediction is taken (or the last before the switchover, where there are fewer)."""
NAMED_WITHIN = 5
"""Rounds within which a migration that cannot converge has to be named so."""
_NOT_CONVERGED = 4
_SETTLE_S = 0.3


@dataclass(frozen=True)
class Case:
    """A guest of ``ram`` bytes that writes ``write_rate`` pages a second (None: as fast as it goes) into
    ``working_set`` bytes (None: all) as ``workload`` does, migrated over a link capped at ``max_bandwidth`` bytes a
    second with ``downtime_limit_s``. ``converges``: whether it should, by its figures."""

    workload: str
    write_rate: int | None
    working_set: int | None
    max_bandwidth: int
    downtime_limit_s: float
    ram: int
    converges: bool = True


@dataclass(frozen=True)
class Predicted:
    """A migration that completed; ``name`` is its case in words. Predictions are those after round
    ``predicted_after``, of ``rounds`` in all; the errors are shares of what was measured."""

    name: str
    case: Case
    rounds: int
    predicted_after: int
    predicted_downtime_s: Range
    measured_downtime_s: float
    downtime_error: float
    predicted_total_s: Range
    measured_total_s: float
    total_error: float

    @property
    def error(self) -> float:
        """The larger of the two errors, as a share of what was measured."""
        return max(abs(self.downtime_error), abs(self.total_error))


@dataclass(frozen=True)
class Hopeless:
    """A migration that could not converge: after which round it was named so (None: never), with which smallest
    downtime limit; and how the same migration went with that limit."""

    name: str
    case: Case
    named_after: int | None
    smallest_downtime_limit_s: float | None
    then_completed: bool
    then_rounds: int
    then_downtime_s: float | None
    detail: str


@dataclass(frozen=True)
class Predictions:
    """All of it. ``share_within``: by per cent, the share of migrations of which both downtime and total time were
    predicted that well; ``downtime_within`` and ``total_within`` each by itself. ``ahead``: how many of the predictions
    had at least one more round before them than that of the switchover, and ``share_within_ahead`` is of these."""

    migrations: tuple[Predicted, ...]
    hopeless: tuple[Hopeless, ...]
    share_within: dict[str, float]
    downtime_within: dict[str, float]
    total_within: dict[str, float]
    ahead: int
    share_within_ahead: dict[str, float]
    hopeless_named: float | None
    hopeless_completed: float | None


def grid(migrations: int) -> list[Case]:
    """So many cases that converge, spread over the grid."""
    return list(itertools.islice(itertools.cycle(_grid()), migrations)) if migrations else []


def _grid() -> Iterator[Case]:
    """Dirty rates of 0.3 to 0.7 of the link, so that it takes four rounds and more; memory for 1.6 s of the link."""
    for share, bandwidth, limit, workload in itertools.product(
        (0.3, 0.45, 0.6, 0.7), (80_000_000, 160_000_000), (0.04, 0.08), ("sequential", "random", "hotset")
    ):
        ram = (128 << 20) * bandwidth // 80_000_000
        yield Case(workload, int(share * bandwidth / PAGE_SIZE), None, bandwidth, limit, ram)
    for workload in ("sequential", "random"):
        yield Case(workload, int(0.6 * 80e6 / PAGE_SIZE), 48 << 20, 80_000_000, 0.04, 128 << 20)


def hopeless_grid(cases: int) -> list[Case]:
    """So many cases that cannot converge within their limits."""
    ram, bandwidth = 128 << 20, 80_000_000
    every = [
        Case("sequential", None, 16 << 20, bandwidth, 0.1, ram, converges=False),
        Case("random", int(1.5 * bandwidth / PAGE_SIZE), None, bandwidth, 0.1, ram, converges=False),
        Case("hotset", None, 48 << 20, bandwidth, 0.05, ram, converges=False),
        Case("random", None, 32 << 20, 2 * bandwidth, 0.1, ram, converges=False),
        Case("sequential", int(1.1 * bandwidth / PAGE_SIZE), None, bandwidth, 0.2, ram, converges=False),
    ]
    return list(itertools.islice(itertools.cycle(every), cases)) if cases else []


def measure(migrations: int, hopeless: int, tell: Callable[[str], None], record: Path | None = None) -> Predictions:
    """Migrates them all, one after the other, each recorded into a file of its own in the directory ``record``.
    ``tell`` is told what is migrated next. Raises `PrecopyError`."""
    cases, lost = grid(migrations), hopeless_grid(hopeless)
    done: list[Predicted] = []
    for number, case in enumerate(cases, 1):
        tell(f"{number}/{len(cases)}: {describe(case)}")
        done.append(_predicted(case, _file(record, f"{number:02}")))
    named: list[Hopeless] = []
    for number, case in enumerate(lost, 1):
        tell(f"{number}/{len(lost)}, which cannot converge: {describe(case)}")
        named.append(_hopeless(case, _file(record, f"hopeless-{number:02}")))
    ahead = [one for one in done if one.rounds > one.predicted_after + 1]
    return Predictions(
        migrations=tuple(done),
        hopeless=tuple(named),
        share_within=_within([one.error for one in done]),
        downtime_within=_within([abs(one.downtime_error) for one in done]),
        total_within=_within([abs(one.total_error) for one in done]),
        ahead=len(ahead),
        share_within_ahead=_within([one.error for one in ahead]),
        hopeless_named=_share([one.named_after is not None and one.named_after <= NAMED_WITHIN for one in named]),
        hopeless_completed=_share([one.then_completed for one in named]),
    )


def describe(case: Case) -> str:
    """A case in a few words."""
    rate = "max" if case.write_rate is None else f"{case.write_rate * PAGE_SIZE / 1e6:.0f} MB/s"
    where = "all" if case.working_set is None else f"{case.working_set >> 20} MiB"
    return (
        f"{case.workload} {rate} in {where}, link {case.max_bandwidth / 1e6:.0f} MB/s, limit "
        f"{1e3 * case.downtime_limit_s:.0f} ms"
    )


def _file(directory: Path | None, name: str) -> str:
    return "" if directory is None else str(directory.absolute() / name)


def _predicted(case: Case, record: str) -> Predicted:
    migrated, _ = _migrate(case, record)
    if isinstance(migrated, RemoteFailure):
        raise migrated
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
    )


def _error(predicted: Range, measured: float) -> float:
    return (predicted.value - measured) / measured if predicted.value is not None else 1e9


def _hopeless(case: Case, record: str) -> Hopeless:
    name = describe(case)
    first, verdicts = _migrate(case, record)
    named = next((one for one in verdicts if one.converges is False), None)
    if not isinstance(first, RemoteFailure) or named is None:
        round_named = named.round if named else None
        return Hopeless(name, case, round_named, None, True, len(verdicts), None, "it converged without")
    limit = verdicts[-1].smallest_downtime_limit_s.high
    if limit is None:
        return Hopeless(name, case, named.round, None, False, 0, None, "no downtime limit was named")
    again, later = _migrate(replace(case, downtime_limit_s=limit))
    if isinstance(again, RemoteFailure):
        return Hopeless(name, case, named.round, limit, False, len(later), None, str(again))
    return Hopeless(name, case, named.round, limit, True, len(again.rounds), again.downtime.total_s, "")


def _migrate(case: Case, record: str = "") -> tuple[Migrated | RemoteFailure, list[Verdict]]:
    same = ["--ram", f"{case.ram}B", "--guest", "kvm"]
    rate = "max" if case.write_rate is None else str(case.write_rate)
    run = [*same, "--fill", "1", "--workload", case.workload, "--write-rate", rate]
    if case.working_set is not None:
        run += ["--working-set", f"{case.working_set}B"]
    options = MigrationOptions(downtime_limit=case.downtime_limit_s, max_bandwidth=case.max_bandwidth)
    verdicts: list[Verdict] = []

    def note(event: object) -> None:
        if isinstance(event, Verdict):
            verdicts.append(event)

    with ProcessPair(run, [*same, "--prealloc"]) as pair:
        time.sleep(_SETTLE_S)
        try:
            done = migrate_guest(pair.source, pair.address, options, on_event=note, record=record)
        except RemoteFailure as failure:
            if failure.exit_code != _NOT_CONVERGED:
                raise
            return failure, verdicts
        if not pair.ask(pair.destination, "check")["ok"]:
            raise VerificationFailed("the guest's invariant is broken at the destination")
    return done, verdicts


def _within(errors: list[float]) -> dict[str, float]:
    return {str(per_cent): _share([one <= per_cent / 100 for one in errors]) or 0.0 for per_cent in (10, 20, 50)}


def _share(held: list[bool]) -> float | None:
    return sum(held) / len(held) if held else None

"""``precopy plan``: verdict, figures, what to change first, the rounds, the patch series' answers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.migration.results import Range, finite
from precopy.planning.forecast.simulate import MOST_ROUNDS
from precopy.planning.model.sync_cost import SyncCost
from precopy.planning.plan.advice import Advice, Lever
from precopy.planning.plan.plan import Plan, PlanInput, downtime_with
from precopy.planning.plan.qemu_model import QemuModel
from precopy.report.kinds.kind import Kind, TextPart, fields_of
from precopy.report.kinds.migrate import bandwidth
from precopy.report.kinds.older import numbers_as_today
from precopy.report.plan_words import UNITS, duration_up, lever_sentence, ranged, rate_down, unlimited, verdict
from precopy.report.table import Column, Shown, Table, tabulate
from precopy.units import format_duration, format_rate, format_size

NUMBERS = "numbers"
"""The source of a plan that was made of the numbers that were given."""
_FIRST_ROUNDS, _LAST_ROUNDS = 9, 3


@dataclass(frozen=True, kw_only=True)
class PlannedInput(PlanInput):
    """All numbers of a plan, and their ``source``; ``notes`` say what a layout's text left open, and ``sync_cost`` is
    where its sync time is from."""

    source: Text
    notes: Annotated[tuple[Text, ...], Meta(max_length=1000)] = ()
    sync_cost: SyncCost | None = None


@dataclass(frozen=True)
class QemuAnswers:
    """The patch series' answers (`precopy.planning.plan.qemu_model.QemuModel`); None is infinite."""

    critical_transfer_s: Number | None
    estimated_bandwidth_bytes_per_s: Number | None
    smallest_downtime_limit_s: Number | None
    largest_dirty_rate_bytes_per_s: Number | None
    largest_dirty_rate_exact_bytes_per_s: Number | None

    @classmethod
    def of(cls, model: QemuModel) -> QemuAnswers:
        return cls(**{field.name: finite(getattr(model, field.name)) for field in fields(cls)})


@dataclass(frozen=True)
class PlannedRound:
    """Round ``round``, and the sync after it, which is done ``ended_s`` after the migration's start;
    ``remaining_bytes`` are then to be sent, and ``downtime_s`` is the downtime of switching over then."""

    round: Count
    read_bytes: Number
    transfer_s: Number
    sync_s: Number
    remaining_bytes: Number
    downtime_s: Number
    ended_s: Number


@dataclass(frozen=True)
class PlannedCourse:
    """How it goes (`precopy.planning.plan.plan.PlanForecast`); ``sent_bytes`` and ``round_by_round`` are of the likely
    case."""

    converges: bool
    sure: bool
    rounds: Range
    total_s: Range
    downtime_s: Range
    smallest_downtime_limit_s: Range
    largest_dirty_rate_bytes_per_s: Range
    sent_bytes: Number
    round_by_round: Annotated[tuple[PlannedRound, ...], Meta(max_length=MOST_ROUNDS)]


@dataclass(frozen=True, kw_only=True)
class SaidLever(Lever):
    """A number to change, and the sentence of it."""

    says: Text


@dataclass(frozen=True)
class GivenAdvice:
    """``first`` is the sentence of the lever to pull first; None where no single change helps."""

    first: Text | None
    levers: Annotated[tuple[SaidLever, ...], Meta(max_length=20)]


@dataclass(frozen=True)
class PlannedMigration:
    """All of it; ``verdict`` is one sentence."""

    input: PlannedInput
    verdict: Text
    qemu_model: QemuAnswers
    forecast: PlannedCourse
    advice: GivenAdvice

    @classmethod
    def of(
        cls,
        made: Plan,
        advice: Advice,
        *,
        source: str = NUMBERS,
        notes: tuple[str, ...] = (),
        sync_cost: SyncCost | None = None,
    ) -> PlannedMigration:
        """``source``, ``notes``, ``sync_cost``: see `PlannedInput`."""
        first = advice.first
        levers = (
            SaidLever(**fields_of(lever), says=lever_sentence(lever, advice.converges)) for lever in advice.levers
        )
        return cls(
            input=PlannedInput(**fields_of(made.input), source=source, notes=notes, sync_cost=sync_cost),
            verdict=verdict(made),
            qemu_model=QemuAnswers.of(made.qemu_model),
            forecast=_course(made),
            advice=GivenAdvice(None if first is None else lever_sentence(first, advice.converges), tuple(levers)),
        )


def _course(made: Plan) -> PlannedCourse:
    forecast = made.forecast
    return PlannedCourse(
        converges=forecast.converges,
        sure=forecast.sure,
        rounds=Range.of(forecast.rounds),
        total_s=Range.of(forecast.total_s),
        downtime_s=Range.of(forecast.downtime_s),
        smallest_downtime_limit_s=Range.of(forecast.smallest_downtime_limit_s),
        largest_dirty_rate_bytes_per_s=Range.of(forecast.largest_dirty_rate_bytes_per_s),
        sent_bytes=forecast.likely.sent_bytes,
        round_by_round=tuple(
            PlannedRound(
                round=planned.number,
                read_bytes=planned.read_bytes,
                transfer_s=planned.transfer_s,
                sync_s=planned.sync_s,
                remaining_bytes=planned.remaining_bytes,
                downtime_s=downtime_with(made.input, planned.remaining_bytes),
                ended_s=planned.ended_s,
            )
            for planned in forecast.likely.rounds
        ),
    )


def _text(planned: PlannedMigration) -> list[TextPart]:
    forecast, asked = planned.forecast, planned.input
    share = 100 * asked.uncertainty
    ranges = f"; ranges: bandwidth, dirty rate and working set {share:.3g} % better and worse" if share else ""
    ends = "" if forecast.converges else " (given up)"
    figures = (
        (f"rounds{ends}", ranged(forecast.rounds, UNITS["rounds"])),
        (f"total time{ends}", ranged(forecast.total_s, format_duration)),
        (f"downtime{ends}", ranged(forecast.downtime_s, format_duration)),
        ("smallest downtime limit", ranged(forecast.smallest_downtime_limit_s, duration_up)),
        ("largest dirty rate", ranged(forecast.largest_dirty_rate_bytes_per_s, rate_down)),
    )
    columns = (Column("figure", numeric=False), Column("value", numeric=False))
    parts: list[TextPart] = [planned.verdict, "", _input_line(asked) + ranges, ""]
    parts += [Table("What is forecast", columns, figures, heads=False), "", *_advice_lines(planned)]
    return [*parts, _rounds_table(forecast.round_by_round), _qemu_line(planned.qemu_model), *asked.notes]


def _input_line(asked: PlannedInput) -> str:
    source = "" if asked.source == NUMBERS else f"{asked.source}: "
    zero = "" if asked.first_bytes is None else " (zero pages apart)"
    return (
        f"{source}{format_size(asked.ram_bytes)} of memory{zero}, dirty rate "
        f"{format_rate(asked.dirty_rate_bytes_per_s)} of {format_size(asked.working_set_bytes)}, bandwidth "
        f"{bandwidth(asked.bandwidth_bytes_per_s)}, sync time {_sync(asked)}, downtime limit "
        f"{format_duration(asked.downtime_limit_s)} in {asked.max_rounds} rounds, "
        f"switchover overhead {format_duration(asked.switchover_overhead_s)}"
    )


def _sync(asked: PlannedInput) -> str:
    grows = asked.sync_s_per_byte * 2**20
    return format_duration(asked.sync_s) + (f" + {format_duration(grows)} for each dirty MiB" if grows else "")


def _advice_lines(planned: PlannedMigration) -> list[str]:
    first, levers = planned.advice.first, planned.advice.levers
    if not levers:
        return ["nothing that is tried here would make it sooner and shorter"]
    converges = planned.forecast.converges
    head = "twice as good, each alone:" if converges else "what would make it converge, each alone:"
    rest = [lever.says for lever in levers if lever.says != first]
    lines = [f"change first: {first}" if first else "no single change helps"]
    return [*lines, *([head] if rest else []), *(f"  {sentence}" for sentence in rest)]


_ROUNDS: tuple[Shown[PlannedRound], ...] = (
    Shown("round", lambda planned: str(planned.round)),
    Shown("reads", lambda planned: format_size(planned.read_bytes)),
    Shown("transfer time", lambda planned: format_duration(planned.transfer_s)),
    Shown("sync time", lambda planned: format_duration(planned.sync_s)),
    Shown("then remaining", lambda planned: format_size(planned.remaining_bytes)),
    Shown("downtime then", lambda planned: format_duration(planned.downtime_s)),
    Shown("at", lambda planned: format_duration(planned.ended_s)),
)


def _rounds_table(rounds: tuple[PlannedRound, ...]) -> Table:
    """A line a round; of many, the first and the last ones."""
    table = tabulate("The rounds that are likely", _ROUNDS, rounds)
    if len(rounds) <= _FIRST_ROUNDS + _LAST_ROUNDS:
        return table
    rows = (*table.rows[:_FIRST_ROUNDS], ("...",) * len(_ROUNDS), *table.rows[-_LAST_ROUNDS:])
    return replace(table, rows=rows)


_UNSETTLED = "rounds do not settle: the dirty rate is not below the bandwidth"


def _qemu_line(answers: QemuAnswers) -> str:
    limit, critical = answers.smallest_downtime_limit_s, answers.critical_transfer_s
    settles = _UNSETTLED if critical is None else f"transfer time {format_duration(critical)}"
    enough = "no downtime limit will do" if limit is None else _ABOVE.format(format_duration(limit))
    return (
        'QEMU as the patch series "migration: merge fragmented clear_dirty ioctls" models it (no working set, no '
        f"switchover overhead): {settles}, bandwidth as QEMU measures it "
        f"{rate_down(unlimited(answers.estimated_bandwidth_bytes_per_s))}; {enough}, the dirty rate below "
        f"{rate_down(unlimited(answers.largest_dirty_rate_bytes_per_s))}"
    )


_ABOVE = "the downtime limit has to be above {}"


def _body(planned: PlannedMigration) -> dict[str, Any]:
    """Beside the parts of a sync's cost stands their sum."""
    body: dict[str, Any] = msgspec.to_builtins(planned)
    cost = planned.input.sync_cost
    if cost is not None:
        body["input"]["sync_cost"]["sync_s"] = cost.sync_s
    return body


def _today(document: dict[str, Any]) -> dict[str, Any]:
    return numbers_as_today(document, ("input",))


KIND = Kind(PlannedMigration, _text, body=_body, today=_today)

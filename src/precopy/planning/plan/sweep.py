"""Many plans at once: every combination of the values of each number, in chunks that any executor can run.

A plan of a sweep is carried out once, with its numbers as they are (no ranges), so that its figures are the values of
`plan`'s. Chunks depend on the grid alone, so every executor gives the same columns.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, replace

from precopy.bounds import Count, Number
from precopy.errors import UsageError
from precopy.planning.model.switchover import SWITCHOVER_OVERHEAD_S
from precopy.planning.plan.plan import PlanInput, carry_out, largest_dirty_rate, qemu_model, smallest_limit

MOST_PLANS = 1_000_000
MOST_VALUES = 100_000
_MOST_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Axis:
    """A number of a plan: the field of `PlanInput`, its values, and whether more of it is better."""

    field: str
    values: tuple[float, ...]

    @property
    def more_is_better(self) -> bool:
        return self.field in ("bandwidth_bytes_per_s", "downtime_limit_s", "max_rounds")


@dataclass(frozen=True, slots=True)
class Grid:
    """All combinations of the values of ``axes``, the last axis's changing fastest. Raises `UsageError` for too many.

    An axis ``working_set_bytes`` without a value stands for all of RAM.
    """

    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if self.plans > MOST_PLANS:
            raise UsageError(f"these ranges make {self.plans} plans; a sweep has at most {MOST_PLANS}")

    @property
    def plans(self) -> int:
        return math.prod(len(axis.values) or 1 for axis in self.axes)

    @property
    def varying(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if len(axis.values) > 1)

    @property
    def fixed(self) -> dict[str, float | None]:
        """Field and value of every axis that has one, or none."""
        return {axis.field: (axis.values or (None,))[0] for axis in self.axes if len(axis.values) < 2}

    def inputs(self, start: int, stop: int) -> Iterator[PlanInput]:
        """The plans from ``start`` to ``stop``."""
        fields = [axis.field for axis in self.axes]
        sizes = [max(len(axis.values), 1) for axis in self.axes]
        values = [axis.values for axis in self.axes]
        for number in range(start, stop):
            chosen: dict[str, float] = {}
            rest = number
            for field, size, some in zip(reversed(fields), reversed(sizes), reversed(values), strict=True):
                rest, index = divmod(rest, size)
                if some:
                    chosen[field] = some[index]
            yield _input(chosen)

    def column(self, axis: Axis) -> list[float]:
        """The values of one axis, plan by plan."""
        at = self.axes.index(axis)
        after = math.prod(len(axis.values) or 1 for axis in self.axes[at + 1 :])
        before = math.prod(len(axis.values) or 1 for axis in self.axes[:at])
        return [value for value in axis.values for _ in range(after)] * before


def _input(chosen: dict[str, float]) -> PlanInput:
    ram = int(chosen["ram_bytes"])
    return PlanInput(
        ram_bytes=ram,
        bandwidth_bytes_per_s=chosen["bandwidth_bytes_per_s"],
        dirty_rate_bytes_per_s=chosen["dirty_rate_bytes_per_s"],
        working_set_bytes=min(chosen.get("working_set_bytes", ram), ram),
        sync_s=chosen["sync_s"],
        downtime_limit_s=chosen["downtime_limit_s"],
        max_rounds=int(chosen["max_rounds"]),
        switchover_overhead_s=chosen.get("switchover_overhead_s", SWITCHOVER_OVERHEAD_S.high),
        uncertainty=0.0,
    )


COUNTS = ("converges", "rounds")
FIGURES = (
    "total_s",
    "downtime_s",
    "smallest_downtime_limit_s",
    "largest_dirty_rate_bytes_per_s",
    "qemu_smallest_downtime_limit_s",
    "qemu_largest_dirty_rate_bytes_per_s",
    "qemu_critical_transfer_s",
    "qemu_estimated_bandwidth_bytes_per_s",
)
"""Columns of a sweep: ``converges`` (1 or 0), rounds made, and figures as in `PlanForecast` and `QemuModel`."""

Columns = dict[str, "array[int] | array[float]"]


def run_chunk(grid: Grid, start: int, stop: int) -> Columns:
    """The plans from ``start`` to ``stop``, column by column."""
    counts: tuple[array[int], ...] = (array("b"), array("h"))
    figures: tuple[array[float], ...] = tuple(array("d") for _ in FIGURES)
    before, largest = None, 0.0
    for asked in grid.inputs(start, stop):
        outcome, letter = carry_out(asked), qemu_model(asked)
        idle = replace(asked, dirty_rate_bytes_per_s=0.0)
        if idle != before:  # it does not depend on the dirty rate, whose axis may be the fastest
            before, largest = idle, largest_dirty_rate(asked)
        counts[0].append(outcome.completed)
        counts[1].append(len(outcome.rounds))
        row = (
            outcome.total_s,
            outcome.downtime_s,
            smallest_limit(asked),
            largest,
            letter.smallest_downtime_limit_s,
            letter.largest_dirty_rate_bytes_per_s,
            letter.critical_transfer_s,
            letter.estimated_bandwidth_bytes_per_s,
        )
        for column, value in zip(figures, row, strict=True):
            column.append(value)
    return dict(zip((*COUNTS, *FIGURES), (*counts, *figures), strict=True))


def run(grid: Grid, executor: Executor, chunk: int, tell: Callable[[int], None]) -> Columns:
    """All plans, ``chunk`` at a time, in the grid's order. ``tell`` is called with the number of plans done so far.
    Raises what the executor raises."""
    futures: dict[Future[Columns], int] = {}
    done = 0
    try:
        for index, start in enumerate(range(0, grid.plans, chunk)):
            futures[executor.submit(run_chunk, grid, start, min(start + chunk, grid.plans))] = index
        parts: list[Columns] = [{}] * len(futures)
        for future in as_completed(futures):
            part = future.result()
            parts[futures[future]] = part
            done += len(part["rounds"])
            tell(done)
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    columns: Columns = parts[0]
    for part in parts[1:]:
        for name, values in part.items():
            columns[name].extend(values)  # type: ignore[arg-type]
    return columns


@dataclass(frozen=True, slots=True)
class Edge:
    """At one value of the first varying axis (None: only one varies): how many of its plans converge, and the largest
    value of the last one (the smallest, where more is better) with which ``all`` or ``some`` of them do; None where
    there is none."""

    value: Number | None
    plans: Count
    converging: Count
    all: Number | None
    some: Number | None


def frontier(grid: Grid, converges: Sequence[float]) -> list[Edge]:
    """Where plans stop to converge: an `Edge` for each value of the first varying axis, or, with a single varying
    axis, one of all its values. Empty where nothing varies."""
    varying = grid.varying
    if not varying:
        return []
    inner = varying[-1]
    outer = varying[0].values if len(varying) > 1 else (None,)
    block = grid.plans // len(outer)
    each = block // len(inner.values)
    best = min if inner.more_is_better else max
    edges = []
    for at, value in enumerate(outer):
        here = converges[at * block : (at + 1) * block]
        counts = [int(sum(here[index :: len(inner.values)])) for index in range(len(inner.values))]
        every = [value for value, count in zip(inner.values, counts, strict=True) if count == each]
        some = [value for value, count in zip(inner.values, counts, strict=True) if count]
        edges.append(Edge(value, block, sum(counts), best(every, default=None), best(some, default=None)))
    return edges


def parse_values(text: str, parse: Callable[[str], float], *, whole: bool = False) -> tuple[float, ...]:
    """Values of an axis: one, several between commas, or FROM..TO:COUNT (COUNT values at equal distances, both ends
    among them) and FROM..TO:COUNT:log (at equal ratios). ``whole``: rounded. Raises `UsageError`."""
    if ".." not in text:
        values = tuple(parse(part) for part in text.split(","))
    else:
        ends, _, steps = text.partition(":")
        begin, _, end = ends.partition("..")
        number, _, kind = steps.partition(":")
        if kind not in ("", "log") or not number.isascii() or not number.isdigit() or int(number[:_MOST_DIGITS]) < 2:
            raise UsageError(
                f"{text!r} is not a range; write it like FROM..TO:COUNT or FROM..TO:COUNT:log, COUNT from 2"
            )
        count = int(number[:_MOST_DIGITS])  # of more than 4300 digits Python makes an error of its own
        values = _between(parse(begin), parse(end), _counted(count, text), kind == "log", text)
    _counted(len(values), text)
    return tuple(round(value) for value in values) if whole else values


def _between(low: float, high: float, count: int, log: bool, text: str) -> tuple[float, ...]:
    if log and not (low > 0 and high > 0):
        raise UsageError(f"{text!r} has equal ratios only between values above 0")
    steps = [number / (count - 1) for number in range(count)]
    inner = [low * (high / low) ** step if log else low + (high - low) * step for step in steps[1:-1]]
    return (low, *inner, high)


def _counted(count: int, text: str) -> int:
    if count > MOST_VALUES:
        raise UsageError(f"{text[:40]!r} has {count} values; a range has at most {MOST_VALUES}")
    return count

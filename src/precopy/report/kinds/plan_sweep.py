"""``precopy plan sweep``: how many plans converge, where they stop to, and every plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.planning.plan.sweep import MOST_PLANS, MOST_VALUES, Axis, Columns, Edge, Grid, frontier
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.kinds.older import numbers_as_today
from precopy.report.table import Column, Table
from precopy.units import format_duration, format_rate, format_size

_MOST_LINES = 40
_MOST_NAMES = Meta(max_length=50)


@dataclass(frozen=True)
class Frontier:
    """A row for each value of the number ``of``, with the last value of the number ``edge`` that converges; ``of`` is
    None where a single number varies, and ``edge`` where none does."""

    of: Text | None
    edge: Text | None
    rows: Annotated[tuple[Edge, ...], Meta(max_length=MOST_VALUES)]


@dataclass(frozen=True)
class PlanSweep:
    """``plans`` were made in ``seconds`` by what ``where`` names. ``input`` has the numbers that are fixed (None: all
    of memory), ``axes`` those that vary. ``columns``: of every plan what varies and what came of it; what is infinite
    is None in a document."""

    plans: Count
    converging: Count
    where: Text
    seconds: Number
    input: Annotated[dict[Text, Number | None], _MOST_NAMES]
    axes: Annotated[dict[Text, Annotated[tuple[Number, ...], Meta(max_length=MOST_VALUES)]], _MOST_NAMES]
    frontier: Frontier
    columns: Annotated[
        dict[Text, Annotated[tuple[Number | bool | None, ...], Meta(max_length=MOST_PLANS)]], _MOST_NAMES
    ]

    @classmethod
    def of(cls, grid: Grid, columns: Columns, where: str, seconds: float) -> PlanSweep:
        varying = grid.varying
        found: dict[str, Sequence[Any]] = {axis.field: grid.column(axis) for axis in varying}
        found.update(columns)
        found["converges"] = [bool(count) for count in found["converges"]]
        return cls(
            plans=grid.plans,
            converging=int(sum(columns["converges"])),
            where=where,
            seconds=seconds,
            input=grid.fixed,
            axes={axis.field: axis.values for axis in varying},
            frontier=Frontier(
                of=varying[0].field if len(varying) > 1 else None,
                edge=varying[-1].field if varying else None,
                rows=tuple(frontier(grid, columns["converges"])),
            ),
            columns={name: tuple(values) for name, values in found.items()},
        )


_Unit = Callable[[float], str]
_NAMES: dict[str, tuple[str, _Unit]] = {
    "ram_bytes": ("memory", format_size),
    "dirty_rate_bytes_per_s": ("dirty rate", format_rate),
    "working_set_bytes": ("working set", format_size),
    "bandwidth_bytes_per_s": ("bandwidth", format_rate),
    "sync_s": ("sync time", format_duration),
    "downtime_limit_s": ("downtime limit", format_duration),
    "max_rounds": ("rounds", lambda count: f"{count:.0f}"),
    "switchover_overhead_s": ("switchover overhead", format_duration),
}
"""What a plan's numbers are called, and how they are written."""


def _named(field: str) -> tuple[str, _Unit]:
    """A file may have any field; one that no plan has is shown as it is."""
    return _NAMES.get(field, (field, lambda value: f"{value:g}"))


def _text(sweep: PlanSweep) -> list[TextPart]:
    """How many converge, what is fixed, and the edge."""
    share = 100 * sweep.converging / max(sweep.plans, 1)
    took = f"{format_duration(sweep.seconds)} in {sweep.where}"
    parts: list[TextPart] = [
        f"{sweep.converging} of {sweep.plans} plans converge ({share:.3g} %); {took}",
        ", ".join(_fixed(field, value) for field, value in sweep.input.items()),
    ]
    axes = [Axis(field, values) for field, values in sweep.axes.items()]
    edges = sweep.frontier.rows
    if axes and edges:
        parts.append(_table(axes, _picked(edges)) if len(axes) > 1 else _one_line(axes[0], edges[0]))
    if len(axes) > 1 and len(edges) > _MOST_LINES:
        parts.append(f"{_MOST_LINES} of {len(edges)} lines; --json and --csv have all")
    return parts


def _fixed(field: str, value: float | None) -> str:
    name, unit = _named(field)
    return f"{name} {'all of memory' if value is None else unit(value)}"


def _one_line(axis: Axis, edge: Edge) -> str:
    name, unit = _named(axis.field)
    way = "smallest" if axis.more_is_better else "largest"
    found = "none converges" if edge.some is None else f"{way} that converges: {unit(edge.some)}"
    return f"{len(axis.values)} values of {name}: {found}"


def _table(axes: Sequence[Axis], edges: Sequence[Edge]) -> Table:
    """A line a value of the first axis."""
    first, *others, last = axes
    name, unit = _named(first.field)
    edge_name, edge_unit = _named(last.field)
    way = "smallest" if last.more_is_better else "largest"
    heads = [name, "plans", "converge", f"{way} {edge_name} that converges"]
    if others:
        names = " and ".join(_named(axis.field)[0] for axis in others)
        heads[-1:] = [f"{way} {edge_name}: with any {names}", "with the best"]
    rows = []
    for edge in edges:
        ends = [edge.all, edge.some] if others else [edge.some]
        last_cells = ("-" if end is None else edge_unit(end) for end in ends)
        value = "-" if edge.value is None else unit(edge.value)
        rows.append((value, str(edge.plans), str(edge.converging), *last_cells))
    return Table("Where plans stop to converge", tuple(map(Column, heads)), tuple(rows))


def _picked(edges: Sequence[Edge]) -> Sequence[Edge]:
    """Of many, evenly picked ones."""
    if len(edges) <= _MOST_LINES:
        return edges
    return [edges[index * (len(edges) - 1) // (_MOST_LINES - 1)] for index in range(_MOST_LINES)]


def _today(document: dict[str, Any]) -> dict[str, Any]:
    return numbers_as_today(document, ("input", "axes", "columns"))


KIND = Kind(PlanSweep, _text, today=_today)

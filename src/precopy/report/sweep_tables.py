"""``precopy plan sweep`` for a terminal: how many plans converge, and where they stop to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from precopy.planning.plan.sweep import Axis, Edge, Grid, frontier
from precopy.report.kinds.kind import TextPart
from precopy.report.table import Column, Table
from precopy.units import format_duration, format_rate, format_size

_MOST_LINES = 40

_NAMES: dict[str, tuple[str, Callable[[float], str]]] = {
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


def sweep_text(grid: Grid, converges: Sequence[float], where: str, seconds: float) -> list[TextPart]:
    """How many converge, what is fixed, and the edge."""
    found = int(sum(converges))
    share = 100 * found / grid.plans
    parts: list[TextPart] = [
        f"{found} of {grid.plans} plans converge ({share:.3g} %); {format_duration(seconds)} in {where}",
        ", ".join(_fixed(field, value) for field, value in grid.fixed.items()),
    ]
    edges = frontier(grid, converges)
    if len(grid.varying) == 1:
        parts.append(_one_line(grid.varying[0], edges[0]))
    elif edges:
        parts.append(_table(grid, _picked(edges)))
        if len(edges) > _MOST_LINES:
            parts.append(f"{_MOST_LINES} of {len(edges)} lines; --json and --csv have all")
    return parts


def _fixed(field: str, value: float | None) -> str:
    name, unit = _NAMES[field]
    return f"{name} {'all of memory' if value is None else unit(value)}"


def _one_line(axis: Axis, edge: Edge) -> str:
    name, unit = _NAMES[axis.field]
    way = "smallest" if axis.more_is_better else "largest"
    found = "none converges" if edge.some is None else f"{way} that converges: {unit(edge.some)}"
    return f"{len(axis.values)} values of {name}: {found}"


def _table(grid: Grid, edges: list[Edge]) -> Table:
    """A line a value of the first axis; of many, evenly picked ones."""
    first, *others, last = grid.varying
    name, unit = _NAMES[first.field]
    edge_name, edge_unit = _NAMES[last.field]
    way = "smallest" if last.more_is_better else "largest"
    heads = [name, "plans", "converge", f"{way} {edge_name} that converges"]
    if others:
        names = " and ".join(_NAMES[axis.field][0] for axis in others)
        heads[-1:] = [f"{way} {edge_name}: with any {names}", "with the best"]
    rows = []
    for edge in edges:
        ends = [edge.all, edge.some] if others else [edge.some]
        last_cells = ("-" if end is None else edge_unit(end) for end in ends)
        rows.append((unit(edge.value), str(edge.plans), str(edge.converging), *last_cells))
    return Table("Where plans stop to converge", tuple(map(Column, heads)), tuple(rows))


def _picked(edges: list[Edge]) -> list[Edge]:
    if len(edges) <= _MOST_LINES:
        return edges
    return [edges[index * (len(edges) - 1) // (_MOST_LINES - 1)] for index in range(_MOST_LINES)]

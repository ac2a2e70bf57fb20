"""The benchmark of predictions as tables, and what they amount to."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from precopy.units import format_duration

Body = dict[str, Any]


def predict_table(body: Body) -> list[RenderableType]:
    """A line a migration, a line one that did not complete, a line one that cannot converge, and the shares."""
    shown: list[RenderableType] = []
    if body["migrations"]:
        shown += [_migrations(body["migrations"]), *_shares(body)]
    if body["held"]:
        shown += [_held(body["held"]), "width: upper over lower end of a range, median"]
    if body["missed"]:
        tried = len(body["migrations"]) + len(body["missed"])
        shown += [f"{len(body['missed'])} of {tried} migrations did not complete:", *map(_missed, body["missed"])]
    if body["hopeless"]:
        named, completed = (100 * body[name] for name in ("hopeless_named", "hopeless_completed"))
        shown += [
            _hopeless(body["hopeless"]),
            f"cannot converge: {named:.0f} % named so within five rounds; {completed:.0f} % converge with that limit",
        ]
    return shown


def _migrations(rows: list[Body]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("migration")
    for name in ("rounds", "after", "downtime: predicted", "measured", "off", "total: predicted", "measured", "off"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in rows:
        table.add_row(
            one["name"],
            str(one["rounds"]),
            str(one["predicted_after"]),
            _range(one["predicted_downtime_s"]),
            format_duration(one["measured_downtime_s"]),
            f"{100 * one['downtime_error']:+.0f} %",
            _range(one["predicted_total_s"]),
            format_duration(one["measured_total_s"]),
            f"{100 * one['total_error']:+.0f} %",
        )
    return table


def _range(estimate: Body) -> str:
    value, low, high = (
        "?" if estimate[part] is None else format_duration(estimate[part]) for part in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def _shares(body: Body) -> list[str]:
    count, ahead = len(body["migrations"]), body["ahead"]
    lines = []
    for what, key in (
        (f"both, of {count} migrations", "share_within"),
        (f"both, of the {ahead} with more rounds before the switchover's", "share_within_ahead"),
        (f"downtime, of {count}", "downtime_within"),
        (f"total time, of {count}", "total_within"),
    ):
        shares = ", ".join(f"{100 * share:.0f} % within {per_cent} %" for per_cent, share in body[key].items())
        lines.append(f"{what}: {shares}")
    return lines


def _held(rows: list[Body]) -> Table:
    """How often the ranges held that were stated after each of the first rounds."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = ("ranges after round", "migrations", "downtime held", "total held", "both", "width: downtime", "total")
    for name in names:
        table.add_column(name, justify="right")
    for one in rows:
        shares = (f"{100 * one[name]:.0f} %" for name in ("downtime", "total", "both"))
        widths = ("without end" if one[name] is None else f"{one[name]:.3g}" for name in _WIDTHS)
        table.add_row(str(one["after"]), str(one["migrations"]), *shares, *widths)
    return table


_WIDTHS = ("downtime_width", "total_width")


def _missed(one: Body) -> str:
    named = f"named so after round {one['named_after']}" if one["named_after"] else "never named so"
    said = f"; {named}" if one["failed"]["converged"] is False else ""
    return f"  {one['name']}: {one['failed']['message']}{said}"


def _hopeless(rows: list[Body]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("cannot converge")
    for name in ("named after round", "smallest limit", "with that limit"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in rows:
        limit, then = one["smallest_downtime_limit_s"], one["then_downtime_s"]
        table.add_row(
            one["name"],
            str(one["named_after"] or "never"),
            "none" if limit is None else format_duration(limit),
            f"{format_duration(then)} in {one['then_rounds']} rounds" if then is not None else one["detail"],
        )
    return table

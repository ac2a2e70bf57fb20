"""The benchmark of predictions as tables, and what they amount to."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from precopy.report.console import FittedTable, table
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


def _migrations(rows: list[Body]) -> FittedTable:
    heads = ("rounds", "after", "downtime: predicted", "measured", "off", "total: predicted", "measured", "off")
    shown = table(("migration", "l"), *((head, "r") for head in heads))
    for one in rows:
        shown.add_row(
            one["name"],
            str(one["rounds"]),
            str(one["predicted_after"]),
            _range(one["predicted_downtime_s"]),
            format_duration(one["measured_downtime_s"]),
            _off(one, "downtime"),
            _range(one["predicted_total_s"]),
            format_duration(one["measured_total_s"]),
            _off(one, "total"),
        )
    return shown


def _off(one: Body, what: str) -> str:
    """By how much the predicted value is off the measured one; unknown where no end was predicted."""
    unknown = one[f"predicted_{what}_s"]["value"] is None
    return "?" if unknown else f"{100 * one[f'{what}_error']:+.0f} %"


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


def _held(rows: list[Body]) -> FittedTable:
    """How often the ranges held that were stated after each of the first rounds."""
    names = ("ranges after round", "migrations", "downtime held", "total held", "both", "width: downtime", "total")
    shown = table(*((name, "r") for name in names))
    for one in rows:
        shares = (f"{100 * one[name]:.0f} %" for name in ("downtime", "total", "both"))
        widths = ("without end" if one[name] is None else f"{one[name]:.3g}" for name in _WIDTHS)
        shown.add_row(str(one["after"]), str(one["migrations"]), *shares, *widths)
    return shown


_WIDTHS = ("downtime_width", "total_width")


def _missed(one: Body) -> str:
    named = f"named so after round {one['named_after']}" if one["named_after"] else "never named so"
    said = f"; {named}" if one["failed"]["converged"] is False else ""
    return f"  {one['name']}: {one['failed']['message']}{said}"


def _hopeless(rows: list[Body]) -> FittedTable:
    heads = (("named after round", "r"), ("smallest limit", "r"), ("with that limit", "l"))
    shown = table(("cannot converge", "l"), *heads)
    for one in rows:
        limit, then = one["smallest_downtime_limit_s"], one["then_downtime_s"]
        shown.add_row(
            one["name"],
            str(one["named_after"] or "never"),
            "none" if limit is None else format_duration(limit),
            f"{format_duration(then)} in {one['then_rounds']} rounds" if then is not None else one["detail"],
        )
    return shown

"""What a downtime consists of."""

from __future__ import annotations

from collections.abc import Sequence

from precopy.migration.results import Migrated
from precopy.report.html.charts.bars import Row, Segment, stacked
from precopy.report.html.charts.plot import Reference
from precopy.report.html.charts.scale import SECONDS, linear
from precopy.report.html.parts import Figure, Key
from precopy.report.html.words import duration
from precopy.report.table import Column, Table

_PARTS = (
    ("pause", "pause_s"),
    ("final sync", "final_sync_s"),
    ("final send", "final_send_s"),
    ("state", "state_s"),
    ("commit", "commit_s"),
)
_READING = (
    "The guest stands still from left to right: pause is until every vCPU has stopped, final sync finds what it wrote "
    "last, final send lasts until that has arrived, state moves the vCPUs, and with the commit the other side runs."
)
_NEAR = 2.5
"""Factor over the longest downtime up to which a limit is drawn."""


def downtime_figure(named: Sequence[tuple[str, Migrated]], prefix: str) -> Figure:
    """A bar for each of ``named``, beside the limit where that is near."""
    longest = max(*(done.downtime.total_s for _, done in named), 1e-9)
    rows = [
        Row(
            name,
            tuple(
                Segment(index, value, f"{name}: {part} {duration(value)}".removeprefix(": "))
                for index, (part, field) in enumerate(_PARTS, start=1)
                for value in (float(getattr(done.downtime, field)),)
            ),
            duration(done.downtime.total_s),
        )
        for name, done in named
    ]
    limits = {done.downtime_limit_s for _, done in named}
    limit = min(limits)
    near = [Reference(known, f"limit {duration(known)}") for known in sorted(limits) if known <= _NEAR * longest][:2]
    axis = linear(
        "time for which the guest stands still", max([longest, *(reference.value for reference in near)]), SECONDS
    )
    title = _title(named, longest)
    away = f"The limit of {duration(limit)} is {limit / longest:.0f} times the longest bar, so it is not drawn."
    return Figure(
        f"{prefix}downtime",
        "Downtime",
        title,
        stacked(rows, axis, title, near),
        tuple(Key(index, "bar", part) for index, (part, _) in enumerate(_PARTS, start=1)),
        (_READING, *(() if near else (away,))),
        _table(named),
        compact=len(named) == 1,
    )


def _title(named: Sequence[tuple[str, Migrated]], longest: float) -> str:
    done = named[0][1]
    part, value = max(
        ((part, float(getattr(done.downtime, field))) for part, field in _PARTS), key=lambda pair: pair[1]
    )
    if len(named) == 1:
        return (
            f"The guest stood still for {duration(done.downtime.total_s)}; the longest part of it was the {part}, "
            f"{duration(value)}."
        )
    shortest = min(done.downtime.total_s for _, done in named)
    return f"The guest stood still for {duration(shortest)} to {duration(longest)}; what that time went into."


def _table(named: Sequence[tuple[str, Migrated]]) -> Table:
    if len(named) == 1:
        done = named[0][1]
        rows = [(part, duration(getattr(done.downtime, field))) for part, field in _PARTS]
        rows += [("downtime", duration(done.downtime.total_s)), ("limit", duration(done.downtime_limit_s))]
        return Table("Parts of the downtime", (Column("part", False), Column("time")), tuple(rows))
    columns = (Column("", False), *(Column(part) for part, _ in _PARTS), Column("downtime"), Column("limit"))
    several = tuple(
        (
            name,
            *(duration(getattr(done.downtime, field)) for _, field in _PARTS),
            duration(done.downtime.total_s),
            duration(done.downtime_limit_s),
        )
        for name, done in named
    )
    return Table("Parts of each downtime", columns, several)

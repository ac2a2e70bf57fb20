"""What a migration took from its guest, as the guest measured it."""

from __future__ import annotations

from precopy.migration.results import Migrated
from precopy.report.html.charts.bars import MOST_ROWS, Row, Segment, ends, stacked
from precopy.report.html.charts.scale import SECONDS, count_text, linear
from precopy.report.html.parts import Figure, Key
from precopy.report.html.words import duration
from precopy.report.table import Column, Table

_READING = (
    "Every bar is the longest time in which a CPU of the guest did not go on, of a window: before the migration (as "
    "long as the first round, or as the guest can tell of), and in each round. The switchover is not among them: the "
    "downtime is its figure."
)


def stall_sentence(done: Migrated) -> str:
    """Of the whole of it; empty where it was not measured."""
    rounds, before = done.stall.precopy, done.stall.before
    if rounds is None or before is None:
        return ""
    return (
        f"Before it was paused, {100 * rounds.share:.1f} % of the guest's time was in gaps of more than 0.1 ms, the "
        f"longest {duration(rounds.longest_s)}; before the migration it was {100 * before.share:.1f} %, the longest "
        f"{duration(before.longest_s)}."
    )


def stall_figure(done: Migrated, prefix: str) -> Figure | None:
    """The longest gap before the migration and in each round. None where it was not measured."""
    before = done.stall.before
    windows = [("before", before)] if before is not None else []
    windows += [("last" if made.final else f"{made.number}", made.stall) for made in done.rounds if made.stall]
    if not windows:
        return None
    rows = [
        Row(
            name,
            (Segment(2 if name == "before" else 1, stall.longest_s, f"{name}: {duration(stall.longest_s)}"),),
            duration(stall.longest_s),
        )
        for name, stall in windows
    ]
    longest = max(stall.longest_s for _, stall in windows)
    title = f"The guest's own clock says how long it did not go on: at most {duration(longest)} before its switchover."
    cut = len(rows) > MOST_ROWS
    table = Table(
        "The guest's gaps of more than 0.1 ms, by its own clock",
        tuple(map(Column, ("window", "length", "longest gap", "in gaps", "share", "gaps", "unread"))),
        tuple(
            (
                name,
                duration(stall.window_s),
                duration(stall.longest_s),
                duration(stall.stalled_s),
                f"{100 * stall.share:.1f} %",
                count_text(stall.gaps),
                count_text(stall.unread),
            )
            for name, stall in windows
        ),
    )
    return Figure(
        f"{prefix}stall",
        "What it took from the guest",
        title,
        stacked(ends(rows), linear("longest gap", max(longest, 1e-6), SECONDS), title),
        (Key(2, "bar", "before the migration"), Key(1, "bar", "in a round")),
        (
            _READING,
            *((f"Only the first and the last {MOST_ROWS // 2} windows are drawn; the table has all.",) if cut else ()),
        ),
        table,
    )

"""The page of a demo: the same migration with one clear policy after the other."""

from __future__ import annotations

from precopy.migration.results import Migrated
from precopy.report.html.charts.bars import Row, Segment, grouped
from precopy.report.html.charts.scale import count_text, counts
from precopy.report.html.downtime import downtime_figure
from precopy.report.html.migration import migration_figures
from precopy.report.html.parts import Figure, Headline, Key, Part, Report, Tile
from precopy.report.html.words import NONE, ROUND_TERMS, duration, several
from precopy.report.kinds.demo import Demo
from precopy.report.table import Column, Table
from precopy.units import format_size

_IOCTLS_READING = (
    "Every call that re-arms pages interrupts the guest's CPUs; clear policies differ in how many they need. The axis "
    "is logarithmic: each step to the right is ten times as many."
)
_VERIFIED = (
    "Verified means: before the guest ran on, both memories were the same byte for byte; at the destination it went "
    "on, and every page there held what the guest's own count of writes says that it must hold."
)
Named = list[tuple[str, Migrated]]


def demo_report(demo: Demo, prefix: str) -> Report:
    named = [(run.clear, run.migrated) for run in demo.runs if run.migrated is not None]
    figures = [_table_figure(demo, prefix)]
    if named:
        figures += [ioctls_figure(named, prefix), downtime_figure(named, prefix)]
    intro = "Each time the same kind of guest, writing in the same way; only the clear policy differs."
    parts = [Part(f"{prefix}compared", "The clear policies compared", intro, tuple(figures))]
    for number, (name, done) in enumerate(named, start=1):
        run = f"{prefix}run-{number}"
        said = f"{several(len(done.rounds), 'round')}; what told of the guest's writes: {done.tracker}."
        parts.append(Part(run, f"Clear policy {name}", said, tuple(migration_figures(done, f"{run}-", alone=False))))
    title = f"Demo, {demo.guest} guest, {several(len(demo.runs), 'run')}"
    return Report(title, _verdict(demo, named), tuple(parts), ROUND_TERMS)


def _verdict(demo: Demo, named: Named) -> Headline:
    verified = [run for run in demo.runs if run.migrated is not None and run.verified]
    broken = [f"{run.clear}: {run.verdict}" for run in demo.runs if run not in verified]
    every = len(verified) == len(demo.runs)
    memory = next((f" with {format_size(done.ram_bytes)} of memory" for _, done in named if done.ram_bytes), "")
    headline = (
        f"A running {demo.guest} guest{memory} was moved between two processes {several(len(demo.runs), 'time')}, once "
        f"for each clear policy; {len(verified)} of {len(demo.runs)} were verified."
    )
    said = (_VERIFIED, *(f"Not verified: {name}." for name in broken))
    return Headline(
        "good" if every else "bad",
        "all completed and verified" if every else f"{len(broken)} not verified",
        headline,
        said,
        _tiles(named),
    )


def _tiles(named: Named) -> tuple[Tile, ...]:
    if not named:
        return ()
    name, least = min(named, key=lambda run: run[1].downtime.total_s)
    quickest, quick = min(named, key=lambda run: run[1].unverified_s)
    fewest, few = min(named, key=lambda run: run[1].clear_log_ioctls)
    limit = least.downtime_limit_s
    return (
        Tile(
            "Shortest downtime",
            duration(least.downtime.total_s),
            f"{name}; limit {duration(limit)}",
            least.downtime.total_s / limit if limit else None,
        ),
        Tile("Shortest total time", duration(quick.unverified_s), quickest),
        Tile("Fewest clear ioctls", count_text(few.clear_log_ioctls), fewest),
    )


def _table_figure(demo: Demo, prefix: str) -> Figure:
    """The comparison, before the pictures."""
    names = ("rounds", "total time", "downtime", "sync time of all rounds", "get ioctls", "clear ioctls", "sent")
    columns = (Column("clear policy", False), *map(Column, names), Column("verified", False))
    rows = []
    for run in demo.runs:
        done = run.migrated
        if done is None:
            rows.append((run.clear, *(NONE for _ in names), f"no: {run.verdict}"))
            continue
        rows.append(
            (
                run.clear,
                f"{len(done.rounds)}",
                duration(done.unverified_s),
                duration(done.downtime.total_s),
                duration(sum(made.sync_s for made in done.rounds)),
                count_text(done.get_log_ioctls),
                count_text(done.clear_log_ioctls),
                format_size(done.sent_bytes),
                run.verdict if run.verified else f"no: {run.verdict}",
            )
        )
    title = "What each clear policy took, in all."
    return Figure(f"{prefix}policies", "In numbers", title, table=Table(title, columns, tuple(rows)))


def ioctls_figure(named: Named, prefix: str) -> Figure:
    """Calls into the kernel, by policy."""
    most = max(named, key=lambda run: run[1].clear_log_ioctls)
    least = min(named, key=lambda run: run[1].clear_log_ioctls)
    title = f"Clear policy {least[0]} asked the kernel {several(least[1].clear_log_ioctls, 'time')} to re-arm pages"
    if most[1].clear_log_ioctls > least[1].clear_log_ioctls:
        title += f", {most[0]} {several(most[1].clear_log_ioctls, 'time')}"
    title += "."
    groups = [
        (
            name,
            [
                Row(what, (Segment(series, calls, f"{name}: {calls:,} {what} ioctls"),), count_text(calls))
                for series, what, calls in (
                    (2, "clear", done.clear_log_ioctls),
                    (1, "get", done.get_log_ioctls),
                )
            ],
        )
        for name, done in named
    ]
    largest = max(max(done.clear_log_ioctls, done.get_log_ioctls) for _, done in named)
    rows = tuple((name, count_text(done.get_log_ioctls), count_text(done.clear_log_ioctls)) for name, done in named)
    return Figure(
        f"{prefix}ioctls",
        "Calls into the kernel",
        title,
        grouped(groups, counts("ioctls in the whole migration", largest), title),
        (Key(2, "bar", "clear: re-arm pages"), Key(1, "bar", "get: fetch dirty pages")),
        (_IOCTLS_READING,),
        Table("Ioctls by clear policy", (Column("clear policy", False), Column("get"), Column("clear")), rows),
        compact=True,
    )

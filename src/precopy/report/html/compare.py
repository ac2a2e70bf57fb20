"""The page of ``precopy compare``: policies on the same recorded migrations."""

from __future__ import annotations

from precopy.report.html.parts import Column, Figure, Key, Part, Report, Table, Tile, Verdict
from precopy.report.html.records import Compare, Score, Trace
from precopy.report.html.scale import SECONDS, around
from precopy.report.html.scatter import Point, scatter, staircase
from precopy.report.html.svg import Chart
from precopy.report.html.words import COMPARE_TERMS, NONE, duration, facts, listed, several
from precopy.units import format_size

_READING = (
    "Further left is sooner done, further down is a shorter stand-still. Below and left of the dashed line there is "
    "nobody: who is on it is beaten by no other policy in both."
)


def compare_report(compare: Compare, prefix: str) -> Report:
    figures = [_summary(compare, prefix)] if len(compare.traces) > 1 else []
    figures += [_trace(trace, f"{prefix}trace-{number}") for number, trace in enumerate(compare.traces, start=1)]
    intro = "Every policy was tried on the same recorded writes of a guest, so only its decisions differ."
    parts = (Part(f"{prefix}compared", "The policies compared", intro, tuple(figures)),)
    return Report("precopy.compare/1", "Policies", _verdict(compare), parts, facts(compare.machine), COMPARE_TERMS)


def _policies(compare: Compare) -> list[str]:
    return list(dict.fromkeys(one.policy for trace in compare.traces for one in trace.results))


def _verdict(compare: Compare) -> Verdict:
    fronts = {name: sum(one.on_front for one in _scores(compare, name)) for name in _policies(compare)}
    most = max(fronts.values())
    best = [name for name, count in fronts.items() if count == most]
    traces = len(compare.traces)
    headline = (
        f"{several(len(fronts), 'policy').replace('policys', 'policies')} on {several(traces, 'recorded migration')}: "
        f"on {'each' if most == traces else f'{most}'} of them, no other policy beats {listed(best)} in both downtime "
        f"and total time."
    )
    scores = [one for trace in compare.traces for one in trace.results]
    completed = sum(one.completed for one in scores)
    tiles = (
        Tile("On the front", f"{most} of {traces}", listed(best)),
        Tile("Completed", f"{completed} of {len(scores)}", "of all tries of a policy on a trace"),
    )
    return Verdict("plain", "compared", headline, (), tiles)


def _scores(compare: Compare, policy: str) -> list[Score]:
    return [one for trace in compare.traces for one in trace.results if one.policy == policy]


def _summary(compare: Compare, prefix: str) -> Figure:
    title = "How often each policy completed, and how often no other one beat it in both downtime and total time."
    names = ("traces", "completed", "on the front", "longest downtime", "longest total time")
    rows = []
    for policy in _policies(compare):
        scores = _scores(compare, policy)
        done = [one for one in scores if one.completed]
        rows.append(
            (
                policy,
                f"{len(scores)}",
                f"{len(done)}",
                f"{sum(one.on_front for one in scores)}",
                duration(max((one.downtime_s for one in done if one.downtime_s is not None), default=None)),
                duration(max((one.total_s for one in done if one.total_s is not None), default=None)),
            )
        )
    table = Table(title, (Column("policy", False), *map(Column, names)), tuple(rows))
    return Figure(f"{prefix}policies", "Over all traces", title, table=table)


def _trace(trace: Trace, name: str) -> Figure:
    plotted = [
        (one, one.total_s, one.downtime_s) for one in trace.results if one.completed and one.total_s and one.downtime_s
    ]
    front = [one.policy for one in trace.results if one.on_front]
    title = "Downtime against total time of every policy that completed"
    title += f"; {listed(front)} {'is' if len(front) == 1 else 'are'} on the front." if front else "."
    missing = [one.policy for one in trace.results if not one.completed]
    reading = [_READING]
    if missing:
        reading.append(f"Not drawn, because they did not complete: {listed(missing)}.")
    return Figure(
        name,
        f"Trace {trace.name}",
        title,
        _scatter(plotted, title) if plotted else None,
        (Key(1, "dot", "on the front"), Key(2, "ring", "beaten by another"), Key(1, "dash", "front")),
        tuple(reading),
        _table(trace),
    )


def _scatter(plotted: list[tuple[Score, float, float]], title: str) -> Chart:
    across = around("total time", [x for _, x, _ in plotted], SECONDS)
    upward = around("downtime", [y for _, _, y in plotted], SECONDS)
    points = [
        Point(
            x,
            y,
            1 if one.on_front else 2,
            f"{one.policy}: downtime {duration(y)}, total time {duration(x)}",
            one.policy,
            hollow=not one.on_front,
        )
        for one, x, y in plotted
    ]
    front = [(x, y) for one, x, y in plotted if one.on_front]
    lines = []
    if front:
        beyond = 1e3  # the axes end it
        stairs = staircase(front, beyond * max(x for _, x, _ in plotted), beyond * max(y for _, _, y in plotted))
        lines.append(("s1 dashed", [Point(x, y, 1, "") for x, y in stairs]))
    return scatter(points, across, upward, title, lines)


def _table(trace: Trace) -> Table:
    names = ("downtime", "total time", "sent", "guest time lost", "rounds")
    columns = (
        Column("policy", False),
        Column("on the front", False),
        Column("completed", False),
        *map(Column, names),
        Column("reason", False),
    )
    rows = tuple(
        (
            one.policy,
            "yes" if one.on_front else "no",
            "yes" if one.completed else "no",
            duration(one.downtime_s),
            duration(one.total_s),
            NONE if one.sent_bytes is None else format_size(one.sent_bytes),
            duration(one.guest_time_lost_s),
            f"{one.rounds}",
            one.reason,
        )
        for one in trace.results
    )
    return Table(f"Policies on the trace {trace.name}", columns, rows)

"""The page of ``precopy compare``: policies on the same recorded migrations."""

from __future__ import annotations

import math

from precopy.report.html.charts.scale import SECONDS, around
from precopy.report.html.charts.scatter import Point, scatter, staircase
from precopy.report.html.charts.svg import Chart
from precopy.report.html.parts import Figure, Headline, Key, Part, Report, Tile
from precopy.report.html.words import COMPARE_TERMS, NONE, duration, listed, several
from precopy.report.kinds.compare import PolicyComparison, PolicyScore, ScoredTrace
from precopy.report.table import Column, Table
from precopy.units import format_size

_EQUAL = 0.02
"""Share by which figures of policies may differ and still count as the same: replays of one recording agree to 2 %."""
_ALL_EQUAL: tuple[str, ...] = (
    "Here the policy makes no difference: guest, link and downtime limit leave one way to migrate.",
    "Recordings of a guest that writes more, or over a slower link, tell policies apart.",
)
_NONE_COMPLETED: tuple[str, ...] = (
    "The last column of each table says why.",
    "A longer downtime limit, more bandwidth or a throttle would let them complete; `precopy plan` says how much.",
)
_READING = (
    "Further left is sooner done, further down is a shorter stand-still. No policy is below and left "
    "of the dashed line: one on it is beaten by no other policy in both."
)


def compare_report(compare: PolicyComparison, prefix: str) -> Report:
    figures = [_summary(compare, prefix)] if len(compare.traces) > 1 else []
    figures += [_trace(trace, f"{prefix}trace-{number}") for number, trace in enumerate(compare.traces, start=1)]
    intro = "Every policy was tried on the same recorded writes of a guest, so only its decisions differ."
    parts = (Part(f"{prefix}compared", "The policies compared", intro, tuple(figures)),)
    title = f"{_counted(len(_policies(compare)))} on {several(len(compare.traces), 'recording')}"
    return Report(title, _verdict(compare), parts, COMPARE_TERMS)


def _policies(compare: PolicyComparison) -> list[str]:
    return list(dict.fromkeys(score.policy for trace in compare.traces for score in trace.results))


def _verdict(compare: PolicyComparison) -> Headline:
    fronts = {name: sum(score.on_front for score in _scores(compare, name)) for name in _policies(compare)}
    most = max(fronts.values())
    best = [name for name, count in fronts.items() if count == most]
    traces = len(compare.traces)
    scores = [score for trace in compare.traces for score in trace.results]
    completed = sum(score.completed for score in scores)
    tried = f"{_counted(len(fronts))} on {several(traces, 'recorded migration')}"
    if not completed:
        headline, sentences = f"{tried}: none of them completed.", _NONE_COMPLETED
    elif len(fronts) > 1 and completed == len(scores) and (apart := _apart(compare)) <= _EQUAL:
        within = "to the last digit" if apart == 0 else f"to within {100 * apart:.1f} %"
        headline, sentences = f"{tried}: all came to the same downtime and total time, {within}.", _ALL_EQUAL
    else:
        most_of_them = "each" if most == traces else f"{most}"
        beats = f"no other policy beats {listed(best)} in both downtime and total time"
        headline, sentences = f"{tried}: on {most_of_them} of them, {beats}.", ()
    tiles = (
        Tile("On the front", f"{most} of {traces}", listed(best)),
        Tile("Completed", f"{completed} of {len(scores)}", "of all tries of a policy on a trace"),
    )
    return Headline("plain", "compared", headline, sentences, tiles)


def _counted(policies: int) -> str:
    return "1 policy" if policies == 1 else f"{policies:,} policies"


def _apart(compare: PolicyComparison) -> float:
    """By which share of the smaller one downtimes or total times of one trace differ at most."""
    shares = [0.0]
    for trace in compare.traces:
        for values in (
            [score.downtime_s or 0.0 for score in trace.results],
            [score.total_s or 0.0 for score in trace.results],
        ):
            least, most = min(values), max(values)
            if most > least:
                shares.append(most / least - 1 if least else math.inf)
    return max(shares)


def _scores(compare: PolicyComparison, policy: str) -> list[PolicyScore]:
    return [score for trace in compare.traces for score in trace.results if score.policy == policy]


def _summary(compare: PolicyComparison, prefix: str) -> Figure:
    title = "How often each policy completed, and how often no other one beat it in both downtime and total time."
    names = ("traces", "completed", "on the front", "longest downtime", "longest total time")
    rows = []
    for policy in _policies(compare):
        scores = _scores(compare, policy)
        done = [score for score in scores if score.completed]
        rows.append(
            (
                policy,
                f"{len(scores)}",
                f"{len(done)}",
                f"{sum(score.on_front for score in scores)}",
                duration(max((score.downtime_s for score in done if score.downtime_s is not None), default=None)),
                duration(max((score.total_s for score in done if score.total_s is not None), default=None)),
            )
        )
    table = Table(title, (Column("policy", False), *map(Column, names)), tuple(rows))
    return Figure(f"{prefix}policies", "Over all traces", title, table=table)


def _trace(trace: ScoredTrace, name: str) -> Figure:
    plotted = [
        (score, score.total_s, score.downtime_s)
        for score in trace.results
        if score.completed and score.total_s and score.downtime_s
    ]
    front = [score.policy for score in trace.results if score.on_front]
    title = "Downtime against total time of every policy that completed"
    title += f"; {listed(front)} {'is' if len(front) == 1 else 'are'} on the front." if front else "."
    missing = [score.policy for score in trace.results if not score.completed]
    reading = [_READING]
    if missing:
        reading.append(f"Not drawn, because they did not complete: {listed(missing)}.")
    return Figure(
        name,
        f"ScoredTrace {trace.name}",
        title,
        _scatter(plotted, title) if plotted else None,
        (Key(1, "dot", "on the front"), Key(2, "ring", "beaten by another"), Key(1, "dash", "front")),
        tuple(reading),
        _table(trace),
    )


def _scatter(plotted: list[tuple[PolicyScore, float, float]], title: str) -> Chart:
    across = around("total time", [x for _, x, _ in plotted], SECONDS)
    upward = around("downtime", [y for _, _, y in plotted], SECONDS)
    points = [
        Point(
            x,
            y,
            1 if score.on_front else 2,
            f"{score.policy}: downtime {duration(y)}, total time {duration(x)}",
            score.policy,
            hollow=not score.on_front,
        )
        for score, x, y in plotted
    ]
    front = [(x, y) for score, x, y in plotted if score.on_front]
    lines = []
    if front:
        beyond = 1e3  # the axes end it
        stairs = staircase(front, beyond * max(x for _, x, _ in plotted), beyond * max(y for _, _, y in plotted))
        lines.append(("s1 dashed", [Point(x, y, 1, "") for x, y in stairs]))
    return scatter(points, across, upward, title, lines)


def _table(trace: ScoredTrace) -> Table:
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
            score.policy,
            "yes" if score.on_front else "no",
            "yes" if score.completed else "no",
            duration(score.downtime_s),
            duration(score.total_s),
            NONE if score.sent_bytes is None else format_size(score.sent_bytes),
            duration(score.guest_time_lost_s),
            f"{score.rounds}",
            score.reason,
        )
        for score in trace.results
    )
    return Table(f"Policies on the trace {trace.name}", columns, rows)

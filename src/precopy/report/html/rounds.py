"""Figures of a migration's rounds: their times, what remained, and where the guest wrote."""

from __future__ import annotations

from itertools import pairwise

from precopy.migration.results import Migrated
from precopy.planning.model.round import Round
from precopy.report.html.charts.bars import MOST_ROWS, Row, Segment, ends, stacked
from precopy.report.html.charts.heat import LEVELS, HeatRow, heat
from precopy.report.html.charts.lines import Series, by_round
from precopy.report.html.charts.scale import BYTES, SECONDS, count_text, linear, logarithmic
from precopy.report.html.parts import Figure, Key
from precopy.report.html.words import NONE, duration
from precopy.report.table import Column, Table
from precopy.units import PAGE_SIZE, format_rate, format_size

_HEAT_ROWS = 100
"""Rounds that the heat map has; of more, the first and the last ones."""
_HEAT_SUMS = 8
"""Columns of the heat map's table."""
_LAST_READING = (
    "The last round was made with the guest paused; its sync time is of two syncs, the one that found that little "
    "enough is left and the one after the pause."
)
_REMAINING_READING = (
    "Once the solid line is below the dashed one, the rest can be sent while the guest stands still. A solid line that "
    "stays level above it means that the guest dirties memory as fast as it is sent. A policy also includes the "
    "downtime's other parts, so it may go on for longer."
)
_HEAT_READING = (
    "more of their pages to send. The first round sends everything; columns that stay dark after it are written again "
    "and again."
)


def round_name(made: Round) -> str:
    return "last" if made.final else f"{made.number}"


def _remaining(done: Migrated) -> tuple[int | None, ...]:
    """What was still to be sent after each round and the sync of the next; None where no round followed, and in older
    files, which do not say."""
    known = any(made.pending_bytes for made in done.rounds)
    return (*(made.pending_bytes if known else None for made in done.rounds[1:]), None)


def round_figures(done: Migrated, prefix: str) -> list[Figure]:
    """Those that the document has numbers for."""
    figures = [times_figure(done, prefix), remaining_figure(done, prefix), heat_figure(done, prefix)]
    return [figure for figure in figures if figure]


def times_figure(done: Migrated, prefix: str) -> Figure:
    """Rounds as bars of sync time and transfer time."""
    rows = [
        Row(
            round_name(made),
            (
                Segment(2, made.sync_s, f"round {round_name(made)}: sync {duration(made.sync_s)}"),
                Segment(1, made.transfer_s, f"round {round_name(made)}: transfer {duration(made.transfer_s)}"),
            ),
            duration(made.sync_s + made.transfer_s),
        )
        for made in done.rounds
    ]
    longest = max(made.sync_s + made.transfer_s for made in done.rounds)
    synced = sum(made.sync_s for made in done.rounds)
    together = synced + sum(made.transfer_s for made in done.rounds)
    part = f"{100 * synced / together:.1f} %" if together else "none"
    title = (
        f"Each round copies what the guest wrote during the one before; {part} of the rounds' time went into "
        f"finding out what that is (sync time), the rest into sending it (transfer time)."
    )
    cut = len(done.rounds) > MOST_ROWS
    return Figure(
        f"{prefix}rounds",
        "Rounds",
        title,
        stacked(ends(rows), linear("time of the round", longest, SECONDS), title),
        (Key(2, "bar", "sync time"), Key(1, "bar", "transfer time")),
        (
            "From top to bottom: the rounds in their order, and what each took. Rounds that get shorter converge.",
            _LAST_READING,
            *((f"Only the first and the last {MOST_ROWS // 2} rounds are drawn; the table has all.",) if cut else ()),
        ),
        _rounds_table(done),
    )


def _rounds_table(done: Migrated) -> Table:
    throttled = any(made.throttled_share for made in done.rounds)
    remains = any(left is not None for left in _remaining(done))
    explained = any(made.pending_pages for made in done.rounds)  # older files do not say
    pages = ["dirty pages", *(["new ones", "again", "to send"] if explained else []), "pages sent", "zero pages"]
    pages += ["left"] if explained else []
    names = ["round", "sync time", "transfer time", *pages, "sent", "sending", "bandwidth", "dirty rate"]
    stalled = any(made.stall for made in done.rounds)
    names += [*(["remaining"] if remains else []), *(["throttle"] if throttled else []), "get", "clear"]
    names += ["longest gap", "in gaps"] if stalled else []
    rows = []
    for made, remaining in zip(done.rounds, _remaining(done), strict=True):
        row = [round_name(made), duration(made.sync_s), duration(made.transfer_s)]
        row.append(count_text(made.dirty_pages))
        if explained:
            row += [count_text(pages) for pages in (made.new_dirty_pages, made.again_pages, made.pending_pages)]
        row += [count_text(made.sent_pages), count_text(made.zero_pages)]
        row += [count_text(made.left_pages)] if explained else []
        row += [
            format_size(made.sent_bytes),
            duration(made.send_s),
            _rate(made.bandwidth_bytes_per_s if made.sent_pages else None),
        ]
        row += [_rate(made.dirty_rate_bytes_per_s if made.number > 1 else None)]
        if remains:
            row.append(NONE if remaining is None else format_size(remaining))
        if throttled:
            row.append(f"{100 * made.throttled_share:.0f} %")
        row += [count_text(made.get_log_ioctls), count_text(made.clear_log_ioctls)]
        if stalled:
            row += (duration(made.stall.longest_s), duration(made.stall.stalled_s)) if made.stall else (NONE, NONE)
        rows.append(tuple(row))
    caption = "Rounds: times, pages, bandwidth, dirty rate, and ioctls that get and clear dirty bits."
    if explained:
        caption += (
            " To send: all pages in round 1, then those left, the new ones and the others of torn batches (again); "
            "they are the pages sent, the zero pages and those left. Bandwidth: bytes sent by "
            "the time of sending, a part of the transfer time."
        )
    return Table(caption, tuple(map(Column, names)), tuple(rows))


def _rate(rate: float | None) -> str:
    return NONE if rate is None else format_rate(rate)


def remaining_figure(done: Migrated, prefix: str) -> Figure | None:
    """What remained after each round against what fits into the downtime limit. None in older files."""
    found = [(made, left) for made, left in zip(done.rounds, _remaining(done), strict=True) if left is not None]
    if not found:
        return None
    rounds, left = [made for made, _ in found], [left for _, left in found]
    fits = [made.bandwidth_bytes_per_s * done.downtime_limit_s for made in rounds]
    positive = [value for value in left + fits if value > 0]
    if not positive:
        return None
    crossed = next((made for made, rest, fit in zip(rounds, left, fits, strict=True) if rest <= fit), None)
    how = f"it first did after round {round_name(crossed)}" if crossed else "it never did"
    limit = duration(done.downtime_limit_s)
    title = f"Memory that was still to be sent after each round has to fit into the downtime limit of {limit}: {how}."
    axis = logarithmic("memory", positive, BYTES)
    names = [round_name(made) for made in rounds]
    remaining = tuple(
        (name, rest or None, f"after round {name}: {format_size(rest)} remain")
        for name, rest in zip(names, left, strict=True)
    )
    threshold = tuple(
        (name, fit or None, f"round {name}: {format_size(fit)} fit into {limit}")
        for name, fit in zip(names, fits, strict=True)
    )
    rows = tuple(
        (name, format_size(rest), format_size(fit), "yes" if rest <= fit else "no")
        for name, rest, fit in zip(names, left, fits, strict=True)
    )
    columns = (Column("after round"), Column("remaining"), Column("threshold"), Column("fits"))
    return Figure(
        f"{prefix}remaining",
        "Remaining memory",
        title,
        by_round((Series(1, remaining), Series(2, threshold, dashed=True)), axis, title),
        (Key(1, "line", "remaining"), Key(2, "dash", "threshold: bandwidth times downtime limit")),
        (_REMAINING_READING,),
        Table("Memory that remained after each round, and what fits into the downtime limit", columns, rows),
        compact=True,
    )


def heat_figure(done: Migrated, prefix: str) -> Figure | None:
    """RAM address by round. None in older files."""
    rounds = [made for made in done.rounds if made.dirty_map]
    if not rounds or not any(map(any, (made.dirty_map for made in rounds))):
        return None
    parts = len(rounds[0].dirty_map)
    rounds = [made for made in rounds if len(made.dirty_map) == parts]
    most = max(max(made.dirty_map or (0,)) for made in rounds)
    pages = max(done.ram_bytes / PAGE_SIZE / parts if done.ram_bytes else 0, 1)
    whole = max(pages, most)
    drawn = rounds if len(rounds) <= _HEAT_ROWS else rounds[: _HEAT_ROWS // 2] + rounds[-_HEAT_ROWS // 2 :]
    rows = [HeatRow(round_name(made), tuple(min(pages / whole, 1.0) for pages in made.dirty_map)) for made in drawn]
    title = "Where in the guest's memory the pages lay that each round found dirty and had to send."
    reach = float(done.ram_bytes) if done.ram_bytes else float(parts)
    axis = linear("RAM address" if done.ram_bytes else "part of RAM", reach, BYTES)
    legend = tuple(Key(level, "heat", text) for level, text in enumerate(_level_names()))
    return Figure(
        f"{prefix}heat-map",
        "Where the guest writes",
        title,
        heat(rows, axis, "round", title),
        legend,
        (
            f"A row a round, a column for each {format_size(pages * PAGE_SIZE)} of memory; the darker ones had "
            + _HEAT_READING,
            *(
                (f"Only the first and the last {_HEAT_ROWS // 2} rounds are drawn.",)
                if len(drawn) < len(rounds)
                else ()
            ),
        ),
        _heat_table(rounds, parts, done.ram_bytes),
    )


def _level_names() -> list[str]:
    edges = [f"{100 * level:.0f}" for level in LEVELS] + ["100"]
    return ["no page", *(f"to {high} %" for high in edges[1:])]


def _heat_table(rounds: list[Round], parts: int, ram_bytes: int | None) -> Table:
    sums = min(_HEAT_SUMS, parts)
    edges = [parts * index // sums for index in range(sums + 1)]
    rows = tuple(
        (
            round_name(made),
            count_text(sum(made.dirty_map)),
            *(count_text(sum(made.dirty_map[start:end])) for start, end in pairwise(edges)),
        )
        for made in rounds
    )
    columns = (
        Column("round"),
        Column("pages"),
        *(Column(f"to {_place(edge / parts, ram_bytes)}") for edge in edges[1:]),
    )
    return Table("Pages by round, in all and in equal parts of RAM from its start to its end", columns, rows)


def _place(share: float, ram_bytes: int | None) -> str:
    """The RAM address at ``share`` of all memory."""
    return format_size(share * ram_bytes) if ram_bytes else f"{100 * share:.0f} %"

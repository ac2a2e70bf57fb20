"""The page of ``precopy bench migrate``: migrations beside the raw socket and beside QEMU's own."""

from __future__ import annotations

from precopy.report.html.charts.bars import Row, Segment, grouped
from precopy.report.html.charts.scale import RATE, linear
from precopy.report.html.downtime import downtime_figure
from precopy.report.html.migration import migration_figures
from precopy.report.html.parts import Figure, Headline, Key, Part, Report, Tile
from precopy.report.html.words import NONE, ROUND_TERMS, duration, several
from precopy.report.kinds.bench_migrate import MigrateBench, Repeat
from precopy.report.table import Column, Table
from precopy.units import format_rate, format_size

_MOST_REPEATS = 12


def bench_migrate_report(bench: MigrateBench, prefix: str) -> Report:
    runs = [(f"repeat {number}", repeat.precopy) for number, repeat in enumerate(bench.repeats, start=1)]
    figures = (_throughput(bench, prefix), downtime_figure(runs[:_MOST_REPEATS], prefix))
    intro = "Each repeat measured all of them one after the other, so that a machine whose speed drifts moves all."
    parts = [Part(f"{prefix}beside", "Beside the raw socket and QEMU", intro, figures)]
    for number, (name, done) in enumerate(runs[:_MOST_REPEATS], start=1):
        run = f"{prefix}run-{number}"
        said = f"Clear policy {done.clear}; {several(len(done.rounds), 'round')}."
        parts.append(Part(run, f"precopy, {name}", said, tuple(migration_figures(done, f"{run}-", alone=False))))
    title = f"Migration benchmark, {format_rate(bench.throughput_bytes_per_s)}"
    return Report(title, _verdict(bench), tuple(parts), ROUND_TERMS)


def _verdict(bench: MigrateBench) -> Headline:
    done = bench.repeats[0].precopy
    memory = f" with {format_size(done.ram_bytes)} of memory" if done.ram_bytes else ""
    ratio = bench.ratio_to_qemu
    against = f" and {ratio:.2f} times what the fastest of QEMU's migrations reached" if ratio else ""
    headline = (
        f"A running {done.guest} guest{memory} was moved at {format_rate(bench.throughput_bytes_per_s)}: "
        f"{bench.ratio_to_ceiling:.2f} of what the bare socket can carry{against}."
    )
    tiles = [
        Tile("Throughput", format_rate(bench.throughput_bytes_per_s), "median of the repeats"),
        Tile("Downtime", duration(bench.downtime_s), f"median; limit {duration(done.downtime_limit_s)}"),
        Tile(
            "Raw socket", format_rate(bench.ceiling_bytes_per_s), f"precopy reached {bench.ratio_to_ceiling:.2f} of it"
        ),
    ]
    if bench.ratio_to_qemu:
        tiles.append(Tile("Beside QEMU", f"{bench.ratio_to_qemu:.2f} times", "its throughput, median of the repeats"))
    every = all(repeat.precopy.verified for repeat in bench.repeats)
    status = f"{several(len(bench.repeats), 'repeat')}, {'verified' if every else 'not verified'}"
    return Headline("plain", status, headline, (), tuple(tiles))


def _throughput(bench: MigrateBench, prefix: str) -> Figure:
    title = "Bytes a second that the raw socket, precopy and the fastest QEMU carried in each repeat."
    named = [(f"repeat {number}", repeat) for number, repeat in enumerate(bench.repeats[:_MOST_REPEATS], start=1)]
    groups = [
        (
            name,
            [
                Row(who, (Segment(series, rate, f"{name}: {who} {format_rate(rate)}"),), format_rate(rate))
                for series, who, rate in _rates(repeat)
            ],
        )
        for name, repeat in named
    ]
    largest = max(rate for repeat in bench.repeats for _, _, rate in _rates(repeat))
    qemu = any(repeat.qemus for repeat in bench.repeats)
    columns = (Column("repeat"), Column("what", False), *map(Column, ("throughput", "downtime", "rounds")))
    rows = tuple(
        (f"{number}", *cells) for number, repeat in enumerate(bench.repeats, start=1) for cells in _cells(repeat)
    )
    return Figure(
        f"{prefix}throughput",
        "Throughput",
        title,
        grouped(groups, linear("throughput", largest, RATE), title),
        (Key(3, "bar", "raw socket"), Key(1, "bar", "precopy"), *((Key(2, "bar", "fastest QEMU"),) if qemu else ())),
        ("The raw socket sends the same bytes without looking at them: no migration over it can be faster.",),
        Table("Throughput, downtime and rounds of each repeat", columns, rows),
    )


def _rates(repeat: Repeat) -> list[tuple[int, str, float]]:
    rates = [(3, "raw socket", repeat.ceiling_bytes_per_s), (1, "precopy", repeat.precopy.throughput_bytes_per_s)]
    qemu = repeat.fastest_qemu
    return [*rates, (2, qemu.name, qemu.throughput_bytes_per_s)] if qemu else rates


def _cells(repeat: Repeat) -> list[tuple[str, ...]]:
    """A row for each that was measured."""
    ours = repeat.precopy
    return [
        ("raw socket", format_rate(repeat.ceiling_bytes_per_s), NONE, NONE),
        (
            "precopy",
            format_rate(ours.throughput_bytes_per_s),
            duration(ours.downtime.total_s),
            f"{len(ours.rounds)}",
        ),
        *(
            (qemu.name, format_rate(qemu.throughput_bytes_per_s), duration(qemu.downtime_s), f"{qemu.rounds}")
            for qemu in repeat.qemus
        ),
    ]

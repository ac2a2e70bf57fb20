"""``precopy bench snapshot``: increments beside full snapshots, numpy.save, pickles and shared memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precopy.cli.options import json_option
from precopy.cli.values import SIZE, Share, Whole

if TYPE_CHECKING:
    from precopy.bench.snapshot import SnapshotBench


@click.command()
@click.option("--size", type=SIZE, default="1G", show_default=True, help="Bytes of the memory that is saved.")
@click.option(
    "--dirty",
    "shares",
    type=Share(0, 100, min_open=True),
    multiple=True,
    default=(0.1, 1.0, 10.0),
    show_default=True,
    help="Percent of its pages that are written before an increment (may be repeated).",
)
@click.option("--repeat", type=Whole(1), default=3, show_default=True, help="How often, all in turn.")
@click.option(
    "--disk",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=None,
    help="The disk-backed directory.  [default: where temporary files go]",
)
@click.option(
    "--restore-size", type=SIZE, default=None, help="Also restore a full snapshot of this size, all of it content."
)
@json_option
def snapshot(
    *, size: int, shares: tuple[float, ...], repeat: int, disk: Path | None, restore_size: int | None, as_json: bool
) -> int:
    """Seconds and bytes of an increment, beside those of a full snapshot, of numpy.save, of a pickle and of a copy into
    shared memory; and how long it takes until a restored memory can be used.

    Everything is done in a memory-backed directory (/dev/shm), where there is one, and in a disk-backed one. All files
    are flushed to disk within their time; ratios are medians of the repeats' own. What is restored is compared. A
    directory in which something fails is said at the end, and the other is measured.
    """
    from precopy.bench.snapshot import measure, places
    from precopy.cli.facts import host_facts, host_line
    from precopy.cli.failures import ended
    from precopy.cli.say import say

    host = host_facts()
    measured = measure(
        size,
        [share / 100 for share in shares],
        repeat,
        where=places(disk),
        restore_size=restore_size,
        tell=lambda what: None if as_json else click.echo(f"measuring {what}", err=True),
    )
    if not measured.cases:
        raise measured.failed[0].error()
    if as_json:
        _print_json(measured, host)
    else:
        say(host_line(host))
        _print_table(measured)
    return ended(measured.failed, len(measured.cases))


def _print_json(measured: SnapshotBench, host: dict[str, Any]) -> None:
    import msgspec

    from precopy.cli.facts import show_document

    body = {"machine": host, **msgspec.to_builtins(measured)}
    show_document("bench-snapshot", body)


def _print_table(measured: SnapshotBench) -> None:
    from precopy.report.console import show
    from precopy.report.snapshot_tables import SnapshotBenchRow, snapshot_bench_table
    from precopy.units import counted, format_duration, format_size

    names = {place.kind: f"{place.kind} ({place.file_system})" for place in measured.places}
    rows = []
    for one in measured.cases:
        share = "" if one.dirty_share is None else f", {100 * one.dirty_share:g} % dirty"
        what = one.what + share + ("" if one.flushed else ", not flushed")
        rows.append(
            SnapshotBenchRow(
                names[one.place], what, one.seconds.median, one.bytes, one.full_s_to_it, one.full_bytes_to_it
            )
        )
    show(
        snapshot_bench_table(rows),
        "full / it, bytes / it: our full snapshot's time and bytes by this way's, the median of the repeats' own "
        "ratios, which need not be that of the medians shown",
    )
    for case in measured.restores:
        verified = "" if case.verified is None else f" (verified: {format_duration(case.verified.median)})"
        click.echo(
            f"restored in {format_duration(case.seconds.median)}{verified}: {format_size(case.size)}, "
            f"{counted(case.snapshots, 'snapshot')}, {names[case.place]}"
        )

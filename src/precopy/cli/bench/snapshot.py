"""``precopy bench snapshot``: increments beside full snapshots, numpy.save, pickles and shared memory."""

from __future__ import annotations

from pathlib import Path

import click

from precopy.cli.options import json_option
from precopy.cli.values import SIZE, Share, Whole


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
    from precopy.cli.facts import host_facts, show_result
    from precopy.cli.failures import ended

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
    show_result("bench-snapshot", measured, host, as_json=as_json)
    return ended(measured.failed, len(measured.cases))

"""``precopy bench track``: what a program wrote into its own memory, beside comparing, hashing or writing all."""

from __future__ import annotations

import click

from precopy.cli.options import json_option
from precopy.cli.values import SIZE, Whole


@click.command()
@click.option(
    "--size",
    "sizes",
    type=SIZE,
    multiple=True,
    default=("1G",),
    show_default=True,
    help="Memory that is tracked (may be repeated). Three times as much is needed.",
)
@click.option("--repeat", type=Whole(1), default=5, show_default=True, help="How often, all in turn.")
@click.option(
    "--writer",
    "writer_slices",
    type=Whole(1),
    default=20,
    show_default=True,
    help="Seconds that the writer streams each way, one at a time.",
)
@json_option
def track(sizes: tuple[int, ...], repeat: int, writer_slices: int, as_json: bool) -> int:
    """Find the pages that a program wrote into its own memory, and what that costs the program.

    A sync by the kernel's write protection (in one step, and in two with each clear policy) beside comparing with a
    copy, hashing every page and writing everything, over the same warm memory, in turn. Every result is verified.
    Where a size fails, the others are measured.
    """
    import msgspec

    from precopy.bench.track import measure
    from precopy.cli.facts import host_facts, host_line, show_document
    from precopy.cli.failures import ended
    from precopy.report.console import show
    from precopy.report.track_table import track_table

    host = host_facts()
    measured = measure(
        sizes, repeat, writer_slices, lambda what: None if as_json else click.echo(f"measuring {what}", err=True)
    )
    if not measured.cases:
        raise measured.failed[0].error()
    body = msgspec.to_builtins(measured)
    for figures, one in zip(body["writers"], measured.writers, strict=True):
        figures.update(slowdown=one.slowdown, slowdown_wall=one.slowdown_wall)
    if as_json:
        show_document("bench-track", {"machine": host, "repeats": repeat, **body})
    else:
        show(host_line(host), *track_table(body))
    return ended(measured.failed, len(measured.cases))

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
    help="Seconds that the writer streams each way (untracked, tracked, tracked with exact=False), in turn.",
)
@json_option
def track(sizes: tuple[int, ...], repeat: int, writer_slices: int, as_json: bool) -> int:
    """Find the pages that a program wrote into its own memory, and what that costs the program.

    A sync by the kernel's write protection (in one step, and in two with each clear policy) beside comparing with a
    copy, hashing every page and writing everything, over the same warm memory, in turn. Every result is verified.
    Where a size fails, the others are measured.
    """
    from precopy.bench.track import measure
    from precopy.cli.facts import host_facts, show_result
    from precopy.cli.failures import ended

    host = host_facts()
    measured = measure(
        sizes, repeat, writer_slices, lambda what: None if as_json else click.echo(f"measuring {what}", err=True)
    )
    if not measured.cases:
        raise measured.failed[0].error()
    show_result("bench-track", measured, host, as_json=as_json)
    return ended(measured.failed, len(measured.cases))

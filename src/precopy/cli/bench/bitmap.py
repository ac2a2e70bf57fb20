"""``precopy bench bitmap``: the sync of large bitmaps beside a C loop and a memory copy."""

from __future__ import annotations

import click

from precopy.cli.options import json_option
from precopy.cli.values import SIZE, Whole


@click.command()
@click.option(
    "--guest",
    "guests",
    type=SIZE,
    multiple=True,
    default=("256G", "1T"),
    show_default=True,
    help="A guest's RAM, whose bitmap is measured (may be repeated). None of it is allocated.",
)
@click.option("--repeat", type=Whole(1), default=9, show_default=True, help="How often, all in turn.")
@json_option
def bitmap(guests: tuple[int, ...], repeat: int, as_json: bool) -> None:
    """GB/s of bitmap that a sync takes over, beside memory copy speed and beside a C loop.

    The C loop works word by word with an atomic exchange and is compiled here, with -O2. Each repeat measures all of
    them from the same state and with cold caches, over the whole bitmap and over a range whose start and length are
    no multiples of 64 pages, in CPU time; ratios are medians of the repeats' own. Every result is verified.
    """
    from precopy.bench.bitmap import measure
    from precopy.cli.facts import host_facts, show_result

    host = host_facts()
    measured = measure(guests, repeat, lambda what: None if as_json else click.echo(f"measuring {what}", err=True))
    show_result("bench-bitmap", measured, host, as_json=as_json)

"""``precopy bench bitmap``: the sync of large bitmaps beside a C loop and a memory copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precopy.cli.options import json_option
from precopy.cli.values import SIZE, Whole

if TYPE_CHECKING:
    from precopy.bench.bitmap import BitmapBench, BitmapCase


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
    from precopy.cli.facts import host_facts, host_line
    from precopy.cli.say import say

    host = host_facts()
    measured = measure(guests, repeat, lambda what: None if as_json else click.echo(f"measuring {what}", err=True))
    if as_json:
        _print_json(measured, host)
    else:
        say(host_line(host))
        _print_table(measured)


def _print_json(measured: BitmapBench, host: dict[str, Any]) -> None:
    import msgspec

    from precopy.cli.facts import show_document

    body = {
        "machine": host,
        "compiler": measured.compiler,
        "cases": msgspec.to_builtins(measured.cases),
        "unaligned_to_aligned": measured.unaligned_to_aligned,
    }
    show_document("bench-bitmap", body)


def _print_table(measured: BitmapBench) -> None:
    from precopy.report.bitmap_table import BitmapRow, bitmap_table
    from precopy.report.console import show
    from precopy.units import format_size

    show(
        bitmap_table(
            [
                BitmapRow(
                    format_size(one.guest_bytes),
                    one.pattern,
                    "whole" if one.aligned else f"{one.start} to {one.start + one.length}",
                    one.ours_gb_per_s,
                    one.c_gb_per_s,
                    one.c_per_page_gb_per_s,
                    one.copy_gb_per_s,
                    one.ratio_to_c,
                    one.ratio_to_copy,
                    one.ratio_to_aligned,
                )
                for one in measured.cases
            ]
        )
    )
    click.echo(
        "speeds in GB/s of bitmap; speeds and ratios are medians over the repeats, each by itself, so that a ratio "
        "need not be that of the speeds beside it"
    )
    click.echo(f"C loop: {measured.compiler}")
    click.echo(
        f"at least: dense {_least(measured, 'dense')}; 1 % {_least(measured, 'one-percent')}; "
        f"idle {_least(measured, 'idle')}; unaligned {measured.unaligned_to_aligned:.2f} of aligned (median)"
    )


def _least(measured: BitmapBench, pattern: str) -> str:
    cases: list[BitmapCase] = [one for one in measured.cases if one.pattern == pattern]
    to_c, to_copy = (min(getattr(one, name) for one in cases) for name in ("ratio_to_c", "ratio_to_copy"))
    return f"{to_c:.2f} times the C loop and {to_copy:.2f} of copy speed"

"""``precopy bench``: measurements beside a peer, in the same run."""

from __future__ import annotations

import click

from precopy.cli.lazy import LazyGroup

BENCHMARKS = {
    "sync": ("precopy.cli.bench.sync", "A sync of a running guest, with every variant of the patch series."),
    "bitmap": ("precopy.cli.bench.bitmap", "The bitmap part of it for large guests, beside a C loop."),
    "display": ("precopy.cli.bench.display", "A framebuffer kept current by what its guest wrote."),
    "track": ("precopy.cli.bench.track", "Finding what a Python program wrote, beside what it can do today."),
    "snapshot": ("precopy.cli.bench.snapshot", "Incremental snapshots, beside saving everything."),
    "predict": ("precopy.cli.bench.predict", "Predicted downtime and total time, beside what then happened."),
    "migrate": ("precopy.cli.bench.migrate", "Whole migrations, beside the raw socket and beside QEMU."),
}


class _Benchmarks(LazyGroup):
    """Each in a module of its own."""

    table = BENCHMARKS


@click.command(cls=_Benchmarks)
def bench() -> None:
    """Measure precopy beside its peers, in turn and in the same run."""

"""``precopy bench``: measurements beside a peer, in the same run."""

from __future__ import annotations

import click

from precopy.cli.lazy import LazyGroup
from precopy.report.kinds import KINDS

_PREFIX = "bench-"
BENCHMARKS = {
    name: (f"{__name__}.{name}", entry.about)
    for kind, entry in KINDS.items()
    if (name := kind.removeprefix(_PREFIX)) != kind
}
"""A benchmark is a kind of document, and a module here."""


class _Benchmarks(LazyGroup):
    """Each in a module of its own."""

    table = BENCHMARKS


@click.command(cls=_Benchmarks)
def bench() -> None:
    """Measure precopy beside its peers, in turn and in the same run."""

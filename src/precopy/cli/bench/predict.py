"""``precopy bench predict``: predictions beside what then happened."""

from __future__ import annotations

from pathlib import Path

import click

from precopy.cli.options import json_option
from precopy.cli.values import Whole


@click.command()
@click.option("--migrations", type=Whole(0), default=50, show_default=True, help="Migrations that converge.")
@click.option("--hopeless", type=Whole(0), default=5, show_default=True, help="Migrations that cannot.")
@click.option(
    "--record",
    type=click.Path(file_okay=False, exists=True, writable=True, path_type=Path),
    default=None,
    help="Record each migration into a file of this directory, for `precopy compare`.",
)
@json_option
def predict(migrations: int, hopeless: int, record: Path | None, as_json: bool) -> int:
    """Downtime and total time predicted after the third round, beside what was then measured; and how often the ranges
    that were stated after rounds 1, 2 and 3 held it.

    Migrates KVM guests between two processes, over a grid of workloads, write rates, bandwidth caps and downtime
    limits. What cannot converge has to be named so within five rounds, and is migrated again with the downtime limit
    that was named. A migration takes 2 to 5 seconds. One that does not complete is counted, and the others go on.
    """
    from precopy.bench.predict import measure
    from precopy.cli.facts import host_facts, show_result
    from precopy.cli.failures import ended
    from precopy.errors import Unsupported, UsageError
    from precopy.machines.kvm import unavailable

    missing = unavailable()
    if missing:
        raise Unsupported(*missing.split("; ", 1))
    if not migrations and not hopeless:
        raise UsageError("there is nothing to migrate: --migrations and --hopeless are both 0")
    host = host_facts()
    measured = measure(migrations, hopeless, lambda what: None if as_json else click.echo(what, err=True), record)
    show_result("bench-predict", measured, host, as_json=as_json)
    return ended([missed.failed for missed in measured.missed], len(measured.migrations) + len(measured.hopeless))

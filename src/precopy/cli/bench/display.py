"""``precopy bench display``: a framebuffer kept current by what its guest wrote."""

from __future__ import annotations

import click

from precopy.cli.options import json_option
from precopy.cli.values import DURATION, SIZE, WRITE_RATE, Share, Whole


@click.command()
@click.option("--width", type=Whole(1), default=1024, show_default=True, help="Pixels of 4 bytes in a line.")
@click.option("--height", type=Whole(1), default=768, show_default=True, help="Lines.")
@click.option("--ram", type=SIZE, default="64M", show_default=True, help="Main memory of the guest.")
@click.option(
    "--write-rate", type=WRITE_RATE, default="5K", show_default=True, help="Framebuffer pages written a second, or max."
)
@click.option("--refresh", type=Share(1, 1000), default=60.0, show_default=True, help="Frames a second.")
@click.option("--duration", type=DURATION, default="2s", show_default=True, help="How long.")
@click.option(
    "--migrate/--no-migrate", default=True, show_default=True, help="Have a migration log the same memory meanwhile."
)
@json_option
def display(
    width: int,
    height: int,
    *,
    ram: int,
    write_rate: int | None,
    refresh: float,
    duration: float,
    migrate: bool,
    as_json: bool,
) -> None:
    """Keep a surface in sync with a KVM guest's framebuffer: the VGA client of dirty memory.

    Each refresh draws the lines that the guest may have written, found by one ioctl. At the end the surface (and the
    migration's copy) has to equal the paused guest's memory byte for byte; exit 7 where it does not.
    """
    from precopy.bench.display import Mode, measure
    from precopy.cli.facts import host_facts, show_result
    from precopy.errors import Unsupported
    from precopy.machines.kvm import unavailable

    missing = unavailable()
    if missing:
        raise Unsupported(*missing.split("; ", 1))
    host = host_facts()
    done = measure(
        Mode(width, height), ram=ram, write_rate=write_rate, refresh=refresh, seconds=duration, migrate=migrate
    )
    show_result("bench-display", done, host, as_json=as_json)

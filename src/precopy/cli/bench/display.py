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
    import msgspec

    from precopy.bench.display import Mode, measure
    from precopy.cli.facts import host_facts, host_line, show_document
    from precopy.cli.say import say
    from precopy.errors import Unsupported
    from precopy.machines.kvm import unavailable
    from precopy.units import format_duration, format_size

    missing = unavailable()
    if missing:
        raise Unsupported(*missing.split("; ", 1))
    host = host_facts()
    done = measure(
        Mode(width, height), ram=ram, write_rate=write_rate, refresh=refresh, seconds=duration, migrate=migrate
    )
    if as_json:
        body = {"machine": host, "width": width, "height": height, **msgspec.to_builtins(done)}
        show_document("bench-display", {**body, "verified": True})
        return
    share = done.bytes_copied / done.bytes_shown
    say(host_line(host))
    click.echo(
        f"{done.frames} frames of {width}x{height}; the guest wrote {done.guest_writes} framebuffer pages\n"
        f"drawn: {done.lines_drawn} of {done.lines_shown} lines ({100 * share:.1f} %), "
        f"{format_size(done.bytes_copied)}\n"
        f"a frame: snapshot {format_duration(done.snapshot_s.median)} ({done.get_log_ioctls_per_frame:g} get ioctls), "
        f"lines {format_duration(done.draw_s.median)}; copying everything {format_duration(done.copy_all_s.median)}, "
        f"comparing everything {format_duration(done.compare_all_s.median)} (medians)"
    )
    if done.migration_pages is not None:
        click.echo(f"a migration took {done.migration_pages} pages meanwhile, from the same kernel bits")
    click.echo("verified: at the end, what was kept is what the paused guest's memory holds, byte for byte")

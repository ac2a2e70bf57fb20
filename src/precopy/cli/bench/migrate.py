"""``precopy bench migrate``: a migration beside the raw socket and beside QEMU's own, in the same run."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import click

from precopy.cli.options import json_option
from precopy.cli.values import DURATION, SIZE, WRITE_RATE, Whole

if TYPE_CHECKING:
    from precopy.bench.failed import Failed
    from precopy.bench.migrate import IdleSync, Repeat, Setup
    from precopy.report.tables import BenchRow


@click.command()
@click.option("--ram", type=SIZE, default="2G", show_default=True, help="Main memory, all of random content.")
@click.option(
    "--rewritten", type=SIZE, default="256M", show_default=True, help="Bytes that the guest rewrites (0: idle guest)."
)
@click.option("--write-rate", type=WRITE_RATE, default="max", show_default=True, help="Pages rewritten a second.")
@click.option(
    "--downtime-limit",
    "downtime_limit_s",
    type=DURATION,
    default="300ms",
    show_default=True,
    help="For precopy and for QEMU.",
)
@click.option("--repeat", type=Whole(1), default=3, show_default=True, help="How often, all in turn.")
@click.option("--verify", is_flag=True, help="Compare both memories byte for byte each time (not counted).")
@click.option(
    "--against-qemu/--no-qemu", default=None, help="Measure QEMU's migration too.  [default: where it is installed]"
)
@json_option
def migrate(
    ram: int,
    rewritten: int,
    write_rate: int | None,
    downtime_limit_s: float,
    *,
    repeat: int,
    verify: bool,
    against_qemu: bool | None,
    as_json: bool,
) -> int:
    """Throughput and downtime of a migration over a Unix socket, beside the raw socket and beside QEMU's own.

    The guest is a KVM guest full of random content that rewrites part of it; memory is touched beforehand on both
    sides. Each repeat measures the raw socket, precopy and QEMU one after the other; ratios are medians of the
    repeats' own. What fails in one repeat is said at the end, and the others are made.
    """
    from precopy.bench.migrate import Setup, idle_sync, measure, qemu_installed
    from precopy.cli.facts import host_facts, host_line
    from precopy.cli.failures import ended
    from precopy.cli.say import complain, say
    from precopy.errors import Unsupported

    if against_qemu and not qemu_installed():
        raise Unsupported("qemu-system-x86_64 is not installed", "run scripts/install-debian-packages")
    host, setup = host_facts(), Setup(ram, rewritten, write_rate, downtime_limit_s, verify)
    idle = idle_sync(min(setup.ram, 512 << 20))
    repeats, failed = measure(
        setup,
        repeat,
        qemu_installed() if against_qemu is None else against_qemu,
        lambda what: None if as_json else click.echo(f"measuring {what}", err=True),
    )
    if not repeats:
        raise failed[0].error()
    if as_json:
        _print_json({"machine": host}, setup, repeats, idle, failed)
    else:
        say(host_line(host))
        _print_table(repeats, idle)
    if against_qemu is None:  # nobody asked for it
        for one in failed:
            if not _matters(one):
                complain(f"QEMU was not measured: {one.message}")
        failed = [one for one in failed if _matters(one)]
    return ended(failed, len(repeats))


def _matters(failed: Failed) -> bool:
    """Not where QEMU cannot be measured on this machine."""
    from precopy.bench.migrate import QEMU
    from precopy.errors import Unsupported

    return not (failed.name.startswith(QEMU) and failed.exit_code == Unsupported.exit_code)


def _print_json(
    where: dict[str, Any], setup: Setup, repeats: list[Repeat], idle: IdleSync, failed: list[Failed]
) -> None:
    import msgspec

    from precopy.bench.migrate import ratio_to_ceiling, ratio_to_qemu
    from precopy.cli.facts import show_document
    from precopy.report.documents import migration_body

    body = {
        **where,
        "setup": msgspec.to_builtins(setup),
        "throughput_bytes_per_s": statistics.median(one.precopy.throughput_bytes_per_s for one in repeats),
        "downtime_s": statistics.median(one.precopy.downtime.total_s for one in repeats),
        "ceiling_bytes_per_s": statistics.median(one.ceiling_bytes_per_s for one in repeats),
        "ratio_to_ceiling": ratio_to_ceiling(repeats),
        "ratio_to_qemu": ratio_to_qemu(repeats),
        "overhead_bytes": {
            "source": max(one.overhead.source for one in repeats),
            "destination": max(one.overhead.destination for one in repeats),
        },
        "idle_sync": msgspec.to_builtins(idle),
        "repeats": [
            {
                "ceiling_bytes_per_s": one.ceiling_bytes_per_s,
                "precopy": migration_body(one.precopy),
                "overhead_bytes": msgspec.to_builtins(one.overhead),
                "qemu": msgspec.to_builtins(one.qemu),
            }
            for one in repeats
        ],
        "failed": msgspec.to_builtins(failed),
    }
    show_document("bench-migrate", body)


def _rows(one: Repeat) -> list[BenchRow]:
    from precopy.report.tables import BenchRow

    ours = one.precopy.throughput_bytes_per_s
    rows = [
        BenchRow("raw socket", one.ceiling_bytes_per_s, None, None, f"{ours / one.ceiling_bytes_per_s:.2f}"),
        BenchRow("precopy", ours, one.precopy.downtime.total_s, len(one.precopy.rounds), ""),
    ]
    if one.qemu:
        theirs = one.qemu.throughput_bytes_per_s
        rows.append(
            BenchRow(f"QEMU {one.qemu.version}", theirs, one.qemu.downtime_s, one.qemu.rounds, f"{ours / theirs:.2f}")
        )
    return rows


def _print_table(repeats: list[Repeat], idle: IdleSync) -> None:
    from precopy.bench.migrate import ratio_to_ceiling, ratio_to_qemu
    from precopy.report.console import show
    from precopy.report.tables import bench_migrate_table
    from precopy.units import format_duration

    show(bench_migrate_table([row for one in repeats for row in _rows(one)]))
    if any(one.qemu for one in repeats):
        show("QEMU's figures are its own (query-migrate); its rounds are the syncs that it counts")
    against = ratio_to_qemu(repeats)
    click.echo(
        f"median of the repeats' ratios: {ratio_to_ceiling(repeats):.2f} of the raw socket"
        + (f", {against:.2f} times QEMU" if against else "; QEMU was not measured")
    )
    click.echo(
        f"idle guest: a sync over {idle.slots} slots takes {format_duration(idle.median_s)} (median of {idle.syncs}; "
        f"{format_duration(idle.min_s)} to {format_duration(idle.max_s)})"
    )
    peak = max(max(one.overhead.source, one.overhead.destination) for one in repeats)
    click.echo(f"memory beyond the guest's RAM: at most {peak >> 20} MiB on either side")

"""``precopy bench migrate``: a migration beside the raw socket and beside QEMU's own, in the same run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from precopy.cli.options import json_option
from precopy.cli.partners import only_with
from precopy.cli.values import DURATION, SIZE, WRITE_RATE, Whole
from precopy.defaults import DOWNTIME_LIMIT_S, milliseconds

if TYPE_CHECKING:
    from precopy.bench.failed import Failed


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
    default=milliseconds(DOWNTIME_LIMIT_S),
    show_default=True,
    help="For precopy and for QEMU.",
)
@click.option("--repeat", type=Whole(1), default=3, show_default=True, help="How often, all in turn.")
@click.option("--verify", is_flag=True, help="Compare both memories byte for byte each time (not counted).")
@click.option(
    "--against-qemu/--no-qemu",
    default=None,
    help="Measure migrations of every QEMU that is here, too.  [default: where there is one]",
)
@only_with("write_rate", "--rewritten above 0", lambda values: values["rewritten"] > 0)
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
    sides. Each repeat measures the raw socket, precopy and every QEMU that is here one after the other, QEMU by the
    dirty log and by the dirty ring, with one channel and with multifd's two; ratios are medians of the repeats' own.
    What fails in one repeat is said at the end, and the others are made.
    """
    from precopy.bench.migrate import idle_sync, measure
    from precopy.bench.peers.qemu.launcher import absent_qemus, find_qemu
    from precopy.cli.facts import host_facts, show_result
    from precopy.cli.failures import ended
    from precopy.cli.say import complain
    from precopy.errors import Unsupported
    from precopy.report.kinds.bench_migrate import MigrateBench, Setup

    if against_qemu is None:
        beside = find_qemu() is not None
    elif (beside := against_qemu) and find_qemu() is None:
        raise Unsupported("qemu-system-x86_64 is not installed", "run scripts/install-debian-packages")
    host, setup = host_facts(), Setup(ram, rewritten, write_rate, downtime_limit_s, verify)
    idle = idle_sync(min(setup.ram, 512 << 20))
    repeats, failed = measure(
        setup,
        repeat,
        beside,
        lambda what: None if as_json else click.echo(f"measuring {what}", err=True),
    )
    if not repeats:
        raise failed[0].error()
    done = MigrateBench.of(setup, tuple(repeats), idle, tuple(failed), tuple(absent_qemus() if beside else ()))
    show_result("bench-migrate", done, host, as_json=as_json)
    if against_qemu is None:  # QEMU was not asked for by name
        for failure in failed:
            if not _matters(failure):
                complain(f"QEMU was not measured: {failure.message}")
        failed = [failure for failure in failed if _matters(failure)]
    return ended(failed, len(repeats))


def _matters(failed: Failed) -> bool:
    """Not where QEMU cannot be measured on this machine."""
    from precopy.bench.migrate import QEMU
    from precopy.errors import Unsupported

    return not (failed.name.startswith(QEMU) and failed.exit_code == Unsupported.exit_code)

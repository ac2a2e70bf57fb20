"""``precopy bench guest``: what migrations take from a guest before its switchover."""

from __future__ import annotations

import click

from precopy.cli.options import json_option
from precopy.cli.values import DURATION, SIZE, WRITE_RATE, Whole
from precopy.defaults import CLEAR_CHUNK_SHIFT, DOWNTIME_LIMIT_S, milliseconds
from precopy.names import ALL_CLEAR_POLICIES, KVM_TRACKERS, AnyClearPolicyName, KvmTrackerName


@click.command()
@click.option("--ram", type=SIZE, default="1G", show_default=True, help="Main memory, all of random content.")
@click.option("--rewritten", type=SIZE, default="64M", show_default=True, help="Bytes that the guest rewrites.")
@click.option("--write-rate", type=WRITE_RATE, default="max", show_default=True, help="Pages rewritten a second.")
@click.option(
    "--tracker",
    "trackers",
    type=click.Choice(KVM_TRACKERS),
    multiple=True,
    default=KVM_TRACKERS,
    show_default=True,
    help="What tells of the guest's writes (may be repeated).",
)
@click.option(
    "--clear",
    "clears",
    type=click.Choice(ALL_CLEAR_POLICIES),
    multiple=True,
    default=("deferred", "merged"),
    show_default=True,
    help="Clear policy (may be repeated).",
)
@click.option(
    "--clear-chunk",
    "shifts",
    type=Whole(6, 31),
    multiple=True,
    default=(CLEAR_CHUNK_SHIFT, 9, 12, 18),
    show_default=True,
    help="Chunks of 2^N pages, with --clear deferred (may be repeated).",
)
@click.option(
    "--vcpus", type=Whole(1, 16), multiple=True, default=(1, 2), show_default=True, help="Virtual CPUs (repeatable)."
)
@click.option(
    "--downtime-limit",
    "downtime_limit_s",
    type=DURATION,
    default=milliseconds(DOWNTIME_LIMIT_S),
    show_default=True,
    help="Of each migration.",
)
@click.option("--repeat", type=Whole(1), default=5, show_default=True, help="How often, all in turn.")
@json_option
def guest(
    ram: int,
    rewritten: int,
    *,
    write_rate: int | None,
    trackers: tuple[KvmTrackerName, ...],
    clears: tuple[AnyClearPolicyName, ...],
    shifts: tuple[int, ...],
    vcpus: tuple[int, ...],
    downtime_limit_s: float,
    repeat: int,
    as_json: bool,
) -> int:
    """What migrations take from a guest before its switchover, by the guest's own clock: the share of its time that was
    in gaps above 0.1 ms and the longest gap, beside the same in a window before the migration.

    The first of each option together is one way to migrate; then each other one is tried beside the first of the
    others. A migration takes 3 to 5 seconds. What fails is said at the end, and the others are made.
    """
    from precopy.bench.guest import measure, ways
    from precopy.cli.facts import host_facts, show_result
    from precopy.cli.failures import ended
    from precopy.errors import Unsupported
    from precopy.machines.kvm import unavailable
    from precopy.report.kinds.bench_guest import GuestSetup

    missing = unavailable()
    if missing:
        raise Unsupported(*missing.split("; ", 1))
    host, setup = host_facts(), GuestSetup(ram, rewritten, write_rate, downtime_limit_s)
    measured = measure(
        setup,
        ways(trackers, clears, shifts, vcpus),
        repeat,
        lambda what: None if as_json else click.echo(f"measuring {what}", err=True),
    )
    if not measured.ways:
        raise measured.failed[0].error()
    show_result("bench-guest", measured, host, as_json=as_json)
    return ended(measured.failed, len(measured.ways))

"""``precopy bench sync``: the cost of a sync with every variant of the patch series (docs/patch-series.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from precopy.cli.options import json_option
from precopy.cli.values import SIZE, Share, Whole

if TYPE_CHECKING:
    from precopy.bench.peers.qemu.trace_events import QemuSyncs
    from precopy.memory import Capture

_VARIANTS = ("before-patch", "rfc-v1", "upstream", "clear-bmap", "ours-merged", "ours")


@click.command()
@click.option(
    "--layout",
    default="q35-ovmf-512m-cirrus",
    show_default=True,
    metavar="NAME|DIRECTORY",
    help="q35-ovmf-512m-cirrus, q35-ovmf-smm-4g-net, pc-seabios-512m, or a directory with captured text.",
)
@click.option("--ram", type=SIZE, default=None, help="Another amount of main memory.  [default: the layout's]")
@click.option(
    "--ram-share",
    type=Share(0, 1),
    default=0.01,
    show_default=True,
    help="Share of main memory, and of blocks above 64 MiB, that the guest writes between two syncs; of all other "
    "mapped blocks it is every page.",
)
@click.option(
    "--listeners",
    type=Whole(1, 2),
    default=2,
    show_default=True,
    help="Memory listeners: kvm-memory, and kvm-smram as with system management mode.",
)
@click.option(
    "--variant", "variants", type=click.Choice(_VARIANTS), multiple=True, help="Only this one (may be repeated)."
)
@click.option("--paused", is_flag=True, help="Pause the guest for each sync, so that no ioctl interrupts a vCPU.")
@click.option("--repeat", type=Whole(1), default=9, show_default=True, help="Syncs of each variant, in turn.")
@click.option("--vhost-devices", type=Whole(1, 64), default=4, show_default=True, help="Sharing one log.")
@click.option("--against-qemu", is_flag=True, help="Run the same layout in real QEMU too, with its trace events.")
@json_option
def sync(
    layout: str,
    ram: int | None,
    *,
    ram_share: float,
    listeners: int,
    variants: tuple[str, ...],
    paused: bool,
    repeat: int,
    vhost_devices: int,
    against_qemu: bool,
    as_json: bool,
) -> int:
    """What a sync costs with every variant of QEMU's patch series "migration: merge fragmented clear_dirty ioctls", on
    one real KVM guest that keeps writing.

    Variants: before-patch (a clear for every page of an unaligned block and listener), rfc-v1 and upstream (one clear
    a block, in the sync), clear-bmap (the reviewer's: deferred for unaligned blocks too), ours-merged and ours (whole
    arrays, with merged and with deferred clears).
    """
    from precopy.bench.failed import attempt
    from precopy.bench.sync import VARIANTS, beside_qemu, measure
    from precopy.cli.facts import host_facts, show_result
    from precopy.cli.failures import ended
    from precopy.errors import Unsupported, UsageError
    from precopy.machines.kvm import unavailable
    from precopy.memory import Capture

    missing = unavailable()
    if missing:
        raise Unsupported(*missing.split("; ", 1))
    capture = Capture.find(layout)
    if against_qemu and capture.command is None:
        raise UsageError(f"the layout {capture.name!r} has no command.txt, so QEMU cannot be run with it")
    described = capture.layout(ram)

    host = host_facts()

    def tell(what: str) -> None:
        if not as_json:
            click.echo(f"measuring {what}", err=True)

    measured = measure(
        described,
        capture.name,
        capture.notes,
        ram_share=ram_share,
        repeat=repeat,
        listeners=listeners,
        paused=paused,
        variants=variants or tuple(VARIANTS),
        vhost_devices=vhost_devices,
        tell=tell,
    )
    if against_qemu:
        measured = beside_qemu(measured, attempt("QEMU", lambda: _trace_qemu(capture, ram, repeat, tell)))
    show_result("bench-sync", measured, host, as_json=as_json)
    return ended(measured.failed, 1)


def _trace_qemu(capture: Capture, ram: int | None, syncs: int, tell: Callable[[str], None]) -> QemuSyncs:
    from precopy.bench.peers.qemu.trace_events import trace_syncs

    tell("QEMU")
    command, *_ = (capture.command or "").splitlines() or [""]  # QEMU's version stands below it
    return trace_syncs(command, ram=ram, syncs=syncs)

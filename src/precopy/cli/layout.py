"""``precopy layout``: RAM blocks and sections of a machine that QEMU's monitor showed."""

from __future__ import annotations

from pathlib import Path

import click

from precopy.cli.options import json_option
from precopy.cli.values import SIZE


@click.command()
@click.argument("machine", metavar="NAME|DIRECTORY")
@click.option("--ram", type=SIZE, default=None, help="Another amount of main memory.  [default: as captured]")
@click.option(
    "--write", type=click.Path(path_type=Path, file_okay=False), default=None, help="Write the capture there, too."
)
@json_option
def layout(machine: str, ram: int | None, write: Path | None, as_json: bool) -> None:
    """Show the RAM blocks and sections of a captured machine: one that ships with precopy (pc-seabios-512m,
    q35-ovmf-512m-cirrus, q35-ovmf-smm-4g-net), or the directory that holds ramblock.txt and mtree-flat.txt, the output
    of QEMU's `info ramblock` and `info mtree -f` as `virsh qemu-monitor-command VM --hmp` writes it.

    A directory that has a shipped one's name is ./NAME.
    """
    from precopy.cli.facts import show_result
    from precopy.errors import UsageError
    from precopy.memory import Capture
    from precopy.report.kinds.layout import MachineLayout

    if write is not None and ram is not None:
        raise UsageError("--write writes the capture as it was read, so it cannot be used with --ram")
    capture = Capture.find(machine)
    shown = capture.layout(ram)
    if write is not None:
        capture.write(write)
    show_result("layout", MachineLayout.of(capture, shown), as_json=as_json)

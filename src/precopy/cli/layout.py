"""``precopy layout``: RAM blocks and sections of a machine that QEMU's monitor showed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precopy.cli.options import json_option
from precopy.cli.values import SIZE

if TYPE_CHECKING:
    from precopy.memory import Capture, RamLayout


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
    from precopy.errors import UsageError
    from precopy.memory import Capture

    if write is not None and ram is not None:
        raise UsageError("--write writes the capture as it was read, so it cannot be used with --ram")
    capture = Capture.find(machine)
    shown = capture.layout(ram)
    if write is not None:
        capture.write(write)
    if as_json:
        _print_json(capture, shown)
    else:
        _print_table(capture, shown)


def _print_table(capture: Capture, shown: RamLayout) -> None:
    from precopy.report.console import show
    from precopy.report.layout_table import layout_table, unaligned_mapped_pages
    from precopy.units import format_size

    show(layout_table(shown))
    spaces = sum(len(view.address_spaces) for view in capture.views)
    click.echo(
        f"{capture.name}: {format_size(shown.bytes)} in {len(shown.blocks)} RAM blocks, "
        f"{len(shown.sections)} sections; {spaces} address spaces in {len(capture.views)} flat views"
    )
    main = _main_memory(capture)
    size = sum(block.pages for block in shown.blocks if block.name in main) * shown.page_size
    click.echo(f"main memory, which --ram changes: {format_size(size)} in {', '.join(main)}")
    pages = unaligned_mapped_pages(shown)
    click.echo(
        f"{pages} mapped pages lie in blocks whose length is no multiple of 64 pages; cleared page by page, a sync "
        f"makes {pages} clears of them with one listener, {2 * pages} with two"
    )
    for note in capture.notes:
        click.echo(note)


def _main_memory(capture: Capture) -> list[str]:
    from precopy.memory.captures.main_memory import main_memory

    return [block.name for block in main_memory(capture.layout())]


def _print_json(capture: Capture, shown: RamLayout) -> None:
    from precopy.cli.facts import show_document
    from precopy.report.layout_table import unaligned_mapped_pages
    from precopy.units import PAGE_SIZE

    blocks: list[dict[str, Any]] = [
        {
            "name": block.name,
            "ram_addr": block.first_page * PAGE_SIZE,
            "pages": block.pages,
            "whole_words": block.aligned,
            "sections": [
                {"gpa": one.gpa, "offset_pages": one.offset, "pages": one.pages, "readonly": one.readonly}
                for one in shown.sections
                if one.block == block
            ],
        }
        for block in shown.blocks
    ]
    pages = unaligned_mapped_pages(shown)
    body = {
        "name": capture.name,
        "command": capture.command,
        "bytes": shown.bytes,
        "main_memory": _main_memory(capture),
        "blocks": blocks,
        "address_spaces": sum(len(view.address_spaces) for view in capture.views),
        "flat_views": len(capture.views),
        "unaligned_mapped_pages": pages,
        "clears_page_by_page": {"one_listener": pages, "two_listeners": 2 * pages},
        "notes": list(capture.notes),
    }
    show_document("layout", body)

"""Layouts of machines that precopy builds itself, by name.

``q35`` has the blocks of QEMU's q35 machine with OVMF flash and a Cirrus display (captured from QEMU 7.2 with
``info ramblock``): most of their lengths are no multiple of 64 pages, which is the subject of the patch series
(docs/patch-series.md). Every block is mapped, so that the guest can write all of it; QEMU leaves the fw_cfg blocks
unmapped and the display until its BAR is set.
"""

from __future__ import annotations

from collections.abc import Callable

from precopy.errors import LayoutError, UsageError
from precopy.memory.captures.main_memory import MIN_RAM
from precopy.memory.layout import RamLayout
from precopy.units import PAGE_SIZE

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_LOW_RAM_END = 0xA0000
_HIGH_RAM_START = 0x100000

_Q35_FIRMWARE: tuple[tuple[str, int, int], ...] = (
    ("system.flash0", 0x37C000, 0xFFC84000),
    ("isa-bios", 0x20000, 0xE0000),
    ("system.flash1", 0x84000, 0xFFC00000),
    ("pc.rom", 0x20000, 0xC0000),
    ("vga.vram", 4 * _MIB, 0xFD000000),
    ("cirrus_vga.rom", 64 * _KIB, 0xFEA00000),
    ("/rom@etc/acpi/tables", 0x20000, 0xFEA40000),
    ("/rom@etc/table-loader", 4 * _KIB, 0xFEA80000),
    ("/rom@etc/acpi/rsdp", 4 * _KIB, 0xFEAC0000),
)


def flat(ram: int) -> RamLayout:
    """One block of ``ram`` bytes, mapped as far as 3 GiB and above 4 GiB."""
    return RamLayout.of_blocks([("ram", _checked(ram))]).mapped(_split("ram", 0, ram, 3 * _GIB))


def q35(ram: int) -> RamLayout:
    """``pc.ram`` of ``ram`` bytes with the hole for legacy devices, and nine blocks of firmware and display.

    QEMU's rule for the hole below 4 GiB: 2 GiB of RAM stay below it where there are 2.75 GiB or more.
    """
    blocks = [("pc.ram", _checked(ram)), *((name, size) for name, size, _ in _Q35_FIRMWARE)]
    low = 2 * _GIB if ram >= 0xB0000000 else 0xB0000000
    return RamLayout.of_blocks(blocks).mapped(
        [
            ("pc.ram", 0, _LOW_RAM_END, 0),
            *_split("pc.ram", _HIGH_RAM_START, ram, low),
            *((name, 0, size, gpa) for name, size, gpa in _Q35_FIRMWARE),
        ]
    )


MACHINES: dict[str, Callable[[int], RamLayout]] = {"q35": q35, "flat": flat}


def machine_layout(name: str, ram: int) -> RamLayout:
    """The layout called ``name`` with ``ram`` bytes of main memory. Raises `UsageError`, `LayoutError`."""
    try:
        return MACHINES[name](ram)
    except KeyError:
        raise UsageError(f"no layout is called {name!r}; there are {', '.join(MACHINES)}") from None


def _split(name: str, start: int, end: int, hole: int) -> list[tuple[str, int, int, int]]:
    """Bytes ``start`` to ``end`` of a block at the same gpa, with what lies above ``hole`` moved to 4 GiB."""
    sections = [(name, start, min(end, hole) - start, start)]
    if end > hole:
        sections.append((name, hole, end - hole, 4 * _GIB))
    return sections


def _checked(ram: int) -> int:
    if ram < MIN_RAM or ram % PAGE_SIZE:
        raise LayoutError(f"--ram is {ram} bytes; it has to be at least 2M and a multiple of {PAGE_SIZE}")
    return ram

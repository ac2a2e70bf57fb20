"""``info ramblock`` of QEMU's monitor, read and written: see `precopy.memory.captures.mtree`, which says how.

QEMU 8 added two columns, the host address and whether a block is read-only; both forms are read.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from precopy.memory.captures.text_lines import RAMBLOCK_HEAD, Line, Lines
from precopy.memory.layout import MAX_BLOCKS
from precopy.memory.topology.region import MAX_SIZE
from precopy.units import PAGE_SIZE

_UNITS = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}
_UNIT = re.compile("B|[KMGT]iB")
_WORD = re.compile("[^ ]+")
_ACCESS = re.compile("ro|rw")
_NAME_WIDTH = 24
_HEADER = f"{RAMBLOCK_HEAD} {'PSize':>8}  {'Offset':>18} {'Used':>18} {'Total':>18}"
_HEADER_8 = f"{_HEADER} {'HVA':>18} {'RO':>3}"


@dataclass(frozen=True)
class RamblockRow:
    """One RAM block; ``page_size``, ``offset`` (in ram_addr), ``used`` and ``total`` in bytes.

    ``name`` is empty for a block that QEMU does not migrate. ``hva`` (an address in QEMU's process) and ``readonly``
    are None in the text of a QEMU before 8.
    """

    name: str
    page_size: int
    offset: int
    used: int
    total: int
    hva: int | None = None
    readonly: bool | None = None


def parse_ramblock(text: str, what: str = "info ramblock") -> tuple[RamblockRow, ...]:
    """The blocks, in the order of the text; ``what`` names it in errors.

    Raises `LayoutTextError` where a line cannot be read, where there is no block or there are too many, where a block
    starts within a page, overlaps another, uses nothing or more than it has, or shares its name.
    """
    lines = Lines(what, text, _HEADER)
    header = lines.next("the head of a table of RAM blocks")
    header.refuse_others(RAMBLOCK_HEAD)
    header.check(_HEADER_8 if header.text.startswith(_HEADER + " ") else _HEADER)
    rows: list[RamblockRow] = []
    names: set[str] = set()
    taken: list[tuple[int, int]] = []
    while not lines.at_end or not rows:
        line = lines.next("a RAM block")
        line.refuse_others()
        if len(rows) == MAX_BLOCKS:
            line.fail(f"more than {MAX_BLOCKS} RAM blocks")
        row, offset_at = _read_row(line, header.text == _HEADER_8)
        if row.name in names:
            line.fail(f"a second RAM block {row.name!r}", line.text.index(row.name))
        names.update({row.name} - {""})
        _claim(taken, row, line, offset_at)
        rows.append(row)
    return tuple(rows)


def format_ramblock(rows: Iterable[RamblockRow]) -> str:
    """``info ramblock`` as QEMU 8 writes it where the rows have an ``hva``, otherwise as QEMU 7 does."""
    rows = tuple(rows)
    header = _HEADER_8 if any(row.hva is not None for row in rows) else _HEADER
    return "".join(f"{line}\n" for line in [header, *map(_row_text, rows)])


def _read_row(line: Line, of_8: bool) -> tuple[RamblockRow, int]:
    """The block, and where in the line its offset stands."""
    nameless = not line.text[:_NAME_WIDTH].strip(" ")
    line.at = _NAME_WIDTH if nameless else len(line.text) - len(line.text.lstrip(" "))
    name = "" if nameless else line.match(_WORD, "the name of a RAM block")
    page_size = _read_page_size(line)
    line.take("  ")
    offset_at = line.at
    offset = _read_0x(line)
    line.take(" ")
    used_at = line.at
    used = _read_0x(line)
    line.take(" ")
    total = _read_0x(line)
    hva, readonly = None, None
    if of_8:
        line.take(" ")
        hva = _read_0x(line)
        line.take("  ")
        readonly = line.match(_ACCESS, "ro or rw") == "ro"
    row = RamblockRow(name, page_size, offset, used, total, hva, readonly)
    line.check(_row_text(row))
    if not 0 < used <= total:
        line.fail(f"a RAM block that uses {used:#x} of its {total:#x} bytes", used_at)
    return row, offset_at


def _read_page_size(line: Line) -> int:
    line.at = len(line.text) - len(line.text[line.at :].lstrip(" "))
    at = line.at
    number = line.decimal()
    line.take(" ")
    size = number << _UNITS[line.match(_UNIT, "B, KiB, MiB, GiB or TiB")] if 0 < number < 1024 else 0
    if size < 512 or size & (size - 1):
        line.fail("a page size that is no power of two of at least 512 bytes", at)
    return size


def _read_0x(line: Line) -> int:
    line.take("0x")
    return line.hex()


def _claim(taken: list[tuple[int, int]], row: RamblockRow, line: Line, at: int) -> None:
    """Adds the block to ``taken`` (offset and end of each, ascending), where it is free."""
    if row.offset % PAGE_SIZE:
        line.fail(f"a RAM block at {row.offset:#x}, which is no multiple of {PAGE_SIZE}", at)
    end = row.offset + row.total
    if end > MAX_SIZE:
        line.fail("a RAM block that ends beyond 64 bits", at)
    index = bisect_left(taken, (row.offset, end))
    neighbours = taken[max(0, index - 1) : index + 1]
    if any(row.offset < other_end and other < end for other, other_end in neighbours):
        line.fail(f"the RAM block {row.name!r} overlaps another", at)
    taken.insert(index, (row.offset, end))


def _row_text(row: RamblockRow) -> str:
    shift = max(shift for shift in _UNITS.values() if row.page_size >> shift)
    unit = next(unit for unit, of_unit in _UNITS.items() if of_unit == shift)
    page_size = f"{row.page_size >> shift} {unit}"
    text = f"{row.name:>24} {page_size:>8}  0x{row.offset:016x} 0x{row.used:016x} 0x{row.total:016x}"
    return text if row.hva is None else f"{text} 0x{row.hva:016x} {'ro' if row.readonly else 'rw':>3}"

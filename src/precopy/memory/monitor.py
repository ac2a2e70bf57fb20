"""The text in which QEMU's monitor shows a memory: ``info ramblock`` and ``info mtree -f``, read and written.

What is read is written back byte for byte; a line that QEMU would not write is refused, with its line and column.
QEMU 8 added two columns to ``info ramblock``, the host address and whether a block is read-only; both forms are read.
So are the owners (``-o``) and dispatch trees (``-d``) of ``info mtree -f``. What a terminal or virsh adds around the
text is passed over and not written: prompt lines, empty lines at either end, a missing line feed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from precopy.memory.flat_view import MAX_RANGES
from precopy.memory.layout import MAX_BLOCKS
from precopy.memory.region import MAX_SIZE
from precopy.memory.text_lines import Line, Lines
from precopy.units import PAGE_SIZE

_UNITS = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}
_UNIT = re.compile("B|[KMGT]iB")
_WORD = re.compile("[^ ]+")
_ACCESS = re.compile("ro|rw")
_KIND = re.compile("ramd?|romd?|i/o")
_OWNER = r" orphan|(?: owner:\{(?:dev|obj) [^{}]*\})?(?: parent:\{(?:dev|obj) [^{}]*\})?"
_ACCEL = r"(?i:kvm|mshv)"
_NAME = re.compile(rf"(.*?)(?: @([0-9a-f]+))?({_OWNER})((?: {_ACCEL})*)", re.DOTALL)
_NAME_WIDTH = 24
_HEADER = f"{'Block Name':>24} {'PSize':>8}  {'Offset':>18} {'Used':>18} {'Total':>18}"
_HEADER_8 = f"{_HEADER} {'HVA':>18} {'RO':>3}"
_NONE = "  No rendered FlatView"
_VIEW = "FlatView #"
_DISPATCH = "  Dispatch"
_OTHERS = (
    ("{", 'this is JSON; take the text of its "return", or ask with virsh qemu-monitor-command --hmp'),
    (_HEADER[:24], "the output of info ramblock begins here; it goes into ramblock.txt"),
    (_HEADER.lstrip()[:10], "the output of info ramblock begins here; it goes into ramblock.txt"),
    (_VIEW, "the output of info mtree -f begins here; it goes into mtree-flat.txt"),
    ("address-space (flat view)", "this is info mtree -f of a QEMU before 2.11; text of 2.11 or later can be used"),
    ("address-space: ", "this is info mtree without -f; use info mtree -f"),
    ("memory-region: ", "this is info mtree without -f; use info mtree -f"),
)
"""What else is pasted, by what it begins with."""


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


@dataclass(frozen=True)
class MtreeRange:
    """Bytes ``start`` to ``end``, inclusive, which are those of the region ``name`` from its byte ``offset``.

    ``priority`` is the region's own; ``kind`` is ``ram``, ``rom``, ``romd``, ``ramd`` or ``i/o``; ``accel`` names the
    accelerator that has the range in a slot, if it says so, once for each address space that has one (``KVM``; ``kvm``
    in QEMU 4.1 as it was developed). ``owner`` is what ``-o`` adds, as it stands there.
    """

    start: int
    end: int
    priority: int
    kind: str
    name: str
    offset: int = 0
    accel: str | None = None
    nonvolatile: bool = False
    owner: str = ""

    @property
    def size(self) -> int:
        return self.end - self.start + 1


@dataclass(frozen=True)
class MtreeSpace:
    """An address space: its name, its root region, and what that is an alias of, if it is one."""

    name: str
    root: str
    alias: str | None = None


@dataclass(frozen=True)
class MtreeView:
    """A flat view and the address spaces that show it; ``ranges`` is None where there is nothing to be seen.

    ``dispatch`` are the lines that ``-d`` adds. ``ended`` is false for the last view of a text in which the empty line
    below it is missing, and ``cut`` true where the line feed before that is missing too: such a text may go on.
    """

    number: int
    address_spaces: tuple[MtreeSpace, ...]
    root: str
    ranges: tuple[MtreeRange, ...] | None
    dispatch: tuple[str, ...] = ()
    ended: bool = True
    cut: bool = False


def parse_ramblock(text: str, what: str = "info ramblock") -> tuple[RamblockRow, ...]:
    """The blocks, in the order of the text; ``what`` names it in errors.

    Raises `LayoutTextError` where a line cannot be read, where there is no block or there are too many, where a block
    starts within a page, overlaps another, uses nothing or more than it has, or shares its name.
    """
    lines = Lines(what, text, _HEADER)
    header = lines.next("the head of a table of RAM blocks")
    _refuse_others(header, _HEADER[:24])
    header.check(_HEADER_8 if header.text.startswith(_HEADER + " ") else _HEADER)
    rows: list[RamblockRow] = []
    names: set[str] = set()
    taken: list[tuple[int, int]] = []
    while not lines.at_end or not rows:
        line = lines.next("a RAM block")
        _refuse_others(line)
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


def parse_mtree(text: str, what: str = "info mtree -f") -> tuple[MtreeView, ...]:
    """The views, in the order of the text; ``what`` names it in errors.

    Raises `LayoutTextError` where a line cannot be read, where ranges are not in ascending order or overlap, and where
    there is no view or a view has no address space, or more than `MAX_RANGES` ranges.
    """
    lines = Lines(what, text, _VIEW)
    views: list[MtreeView] = []
    while not lines.at_end or not views:
        views.append(_read_view(lines))
    if not lines.ended:
        views[-1] = replace(views[-1], ended=False, cut=lines.cut)
    return tuple(views)


def format_mtree(views: Iterable[MtreeView]) -> str:
    """``info mtree -f`` as QEMU writes it."""
    return "".join(f"{line}\n" for view in views for line in _view_lines(view))


def _refuse_others(line: Line, but: str = "") -> None:
    """Raises `LayoutTextError` where another command's output begins, or once more the one that began with ``but``."""
    for begins, message in _OTHERS:
        if line.text.startswith(begins) and begins != but:
            line.fail(message, 0)


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


def _read_view(lines: Lines) -> MtreeView:
    line = lines.next("a flat view")
    _refuse_others(line, _VIEW)
    line.take(_VIEW)
    number = line.decimal()
    line.check(f"FlatView #{abs(number)}")
    spaces = [_read_space(lines.next("an address space"))]
    while lines.ahead.startswith(" AS "):
        spaces.append(_read_space(lines.next("an address space")))
    line = lines.next("the root region")
    line.take(" Root memory region: ")
    root = line.rest()
    ranges: list[MtreeRange] = []
    if lines.ahead == _NONE:
        lines.next("a range")
    else:
        ranges = _read_ranges(lines)
    dispatch: list[str] = []
    while lines.ahead.startswith(("  ", "\t") if dispatch else _DISPATCH):
        dispatch.append(lines.next("a line of the dispatch tree").text)
    if not lines.at_end:
        lines.next("an empty line").check("")
    return MtreeView(number, tuple(spaces), root, tuple(ranges) or None, tuple(dispatch))


def _read_space(line: Line) -> MtreeSpace:
    line.take(' AS "')
    name = line.until('", root: ')
    root, found, alias = line.rest().partition(", alias ")
    return MtreeSpace(name, root, alias if found else None)


def _read_ranges(lines: Lines) -> list[MtreeRange]:
    """At least one range."""
    ranges = [_read_range(lines.next("a range"), 0)]
    while lines.ahead.startswith("  ") and not lines.ahead.startswith(_DISPATCH):
        line = lines.next("a range")
        if len(ranges) == MAX_RANGES:
            line.fail(f"a view of more than {MAX_RANGES} ranges")
        ranges.append(_read_range(line, ranges[-1].end + 1))
    return ranges


def _read_range(line: Line, free: int) -> MtreeRange:
    """A range that begins at ``free`` or above."""
    line.take("  ")
    start_at = line.at
    start = line.hex()
    line.take("-")
    end_at = line.at
    end = line.hex()
    line.take(" (prio ")
    priority = line.decimal()
    line.take(", ")
    nonvolatile = line.skip("nv-")
    kind = line.match(_KIND, "ram, rom, romd, ramd or i/o")
    line.take("): ")
    name, offset, owner, accel = _read_name(line)
    read = MtreeRange(start, end, priority, kind, name, offset, accel or None, nonvolatile, owner)
    line.check(_range_text(read))
    if end < start:
        line.fail(f"a range that ends at {end:#x}, before it begins", end_at)
    if start < free:
        line.fail(f"a range that begins before the end of the one above, {free:#x}", start_at)
    if offset + read.size > MAX_SIZE:
        line.fail("a range that ends beyond 64 bits in its region", line.text.rindex(" @") + 1)
    return read


def _read_name(line: Line) -> tuple[str, int, str, str]:
    """Of the rest of the line: the name of a region, the offset in it, its owner, and the accelerator that has it."""
    found = _NAME.fullmatch(line.text, line.at)
    if found is None:  # cannot be: the pattern takes anything
        line.fail("expected the name of a region")
    offset = 0
    if found[2] is not None:
        line.at = found.start(2)
        offset = line.hex()
    return found[1], offset, found[3].removeprefix(" "), found[4].removeprefix(" ")


def _range_text(one: MtreeRange) -> str:
    kind = f"nv-{one.kind}" if one.nonvolatile else one.kind
    offset = f" @{one.offset:016x}" if one.offset else ""
    added = "".join(f" {word}" for word in (one.owner, one.accel) if word)
    return f"  {one.start:016x}-{one.end:016x} (prio {one.priority}, {kind}): {one.name}{offset}{added}"


def _view_lines(view: MtreeView) -> Sequence[str]:
    spaces = [
        f' AS "{space.name}", root: {space.root}' + ("" if space.alias is None else f", alias {space.alias}")
        for space in view.address_spaces
    ]
    ranges = [_NONE] if view.ranges is None else [_range_text(one) for one in view.ranges]
    return [f"FlatView #{view.number}", *spaces, f" Root memory region: {view.root}", *ranges, *view.dispatch, ""]

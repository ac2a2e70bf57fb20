"""``info mtree -f`` of QEMU's monitor, read and written; ``info ramblock`` is in `precopy.memory.captures.ramblock`.

What is read is written back byte for byte; a line that QEMU would not write is refused, with its line and column.
Owners (``-o``) and dispatch trees (``-d``) are read and written, too. What a terminal or virsh adds around the text is
passed over and not written: prompt lines, empty lines at either end, a missing line feed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from precopy.memory.captures.text_lines import FLAT_VIEW_HEAD, Line, Lines
from precopy.memory.topology.flat_view import MAX_RANGES
from precopy.memory.topology.region import MAX_SIZE

_KIND = re.compile("ramd?|romd?|i/o")
_OWNER = r" orphan|(?: owner:\{(?:dev|obj) [^{}]*\})?(?: parent:\{(?:dev|obj) [^{}]*\})?"
_ACCEL = r"(?i:kvm|mshv)"
_NAME = re.compile(rf"(.*?)(?: @([0-9a-f]+))?({_OWNER})((?: {_ACCEL})*)", re.DOTALL)
_NONE = "  No rendered FlatView"
_DISPATCH = "  Dispatch"


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


def parse_mtree(text: str, what: str = "info mtree -f") -> tuple[MtreeView, ...]:
    """The views, in the order of the text; ``what`` names it in errors.

    Raises `LayoutTextError` where a line cannot be read, where ranges are not in ascending order or overlap, and where
    there is no view or a view has no address space, or more than `MAX_RANGES` ranges.
    """
    lines = Lines(what, text, FLAT_VIEW_HEAD)
    views: list[MtreeView] = []
    while not lines.at_end or not views:
        views.append(_read_view(lines))
    if not lines.ended:
        views[-1] = replace(views[-1], ended=False, cut=lines.cut)
    return tuple(views)


def format_mtree(views: Iterable[MtreeView]) -> str:
    """``info mtree -f`` as QEMU writes it."""
    return "".join(f"{line}\n" for view in views for line in _view_lines(view))


def _read_view(lines: Lines) -> MtreeView:
    line = lines.next("a flat view")
    line.refuse_others(FLAT_VIEW_HEAD)
    line.take(FLAT_VIEW_HEAD)
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


def _range_text(shown: MtreeRange) -> str:
    kind = f"nv-{shown.kind}" if shown.nonvolatile else shown.kind
    offset = f" @{shown.offset:016x}" if shown.offset else ""
    added = "".join(f" {word}" for word in (shown.owner, shown.accel) if word)
    return f"  {shown.start:016x}-{shown.end:016x} (prio {shown.priority}, {kind}): {shown.name}{offset}{added}"


def _view_lines(view: MtreeView) -> Sequence[str]:
    spaces = [
        f' AS "{space.name}", root: {space.root}' + ("" if space.alias is None else f", alias {space.alias}")
        for space in view.address_spaces
    ]
    ranges = [_NONE] if view.ranges is None else [_range_text(shown) for shown in view.ranges]
    return [f"FlatView #{view.number}", *spaces, f" Root memory region: {view.root}", *ranges, *view.dispatch, ""]

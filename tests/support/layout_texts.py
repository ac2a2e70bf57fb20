"""Texts of QEMU's monitor for tests, and captures of them."""

from __future__ import annotations

from pathlib import Path

from precopy.memory import Capture
from precopy.memory.captures.mtree import MtreeView
from precopy.memory.captures.ramblock import RamblockRow
from precopy.memory.captures.rebuild import mtree_ranges

POSTED = Path(__file__).parents[1] / "golden" / "layouts"
PAGE = 4096


def posted(kind: str) -> dict[str, str]:
    """The texts that can be read, by name; ``kind`` is ``ramblock`` or ``mtree-flat``."""
    suffix = f".{kind}.txt"
    return {path.name.removesuffix(suffix): path.read_text() for path in sorted(POSTED.glob(f"*{suffix}"))}


def write_capture(directory: Path, ramblock: str, mtree: str) -> Path:
    """The files of a capture, written as a terminal or virsh would leave them."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ramblock.txt").write_bytes(ramblock.encode())
    (directory / "mtree-flat.txt").write_bytes(mtree.encode())
    return directory


def blocks_for(views: tuple[MtreeView, ...]) -> tuple[RamblockRow, ...]:
    """Blocks that could be behind the ranges of views of which no table of blocks was posted."""
    needed: dict[str, int] = {}
    for one in (one for view in views for one in view.ranges or () if one.kind not in {"i/o", "ramd"}):
        needed[one.name] = max(needed.get(one.name, 0), one.offset + one.size)
    rows: list[RamblockRow] = []
    at = 0
    for name, size in needed.items():
        whole = -(-size // PAGE) * PAGE
        rows.append(RamblockRow(name, PAGE, at, whole, whole))
        at += -(-whole // (64 * PAGE)) * 64 * PAGE
    return tuple(rows)


def shown_again(capture: Capture) -> list[list[tuple[object, ...]]]:
    """The ranges of each view as the rebuilt regions show them, once for each address space; without accelerators."""
    spaces = list(capture.regions())
    views: list[list[tuple[object, ...]]] = []
    for view in capture.views:
        for _ in view.address_spaces:
            ranges = mtree_ranges(spaces.pop(0).view) or ()
            views.append([(one.start, one.end, one.kind, one.name, one.offset, one.nonvolatile) for one in ranges])
    assert spaces == []
    return views


def said(capture: Capture) -> list[list[tuple[object, ...]]]:
    """The same of the text."""
    return [
        [(one.start, one.end, one.kind, one.name, one.offset, one.nonvolatile) for one in view.ranges or ()]
        for view in capture.views
        for _ in view.address_spaces
    ]

"""Which RAM block is behind a range of a flat view.

The text names the region, not the block. QEMU puts the path of a device before the names of its blocks, so regions of
the same name may have several: then sizes decide, and `BlockLookup.choices` says where they leave a choice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from precopy.errors import LayoutError
from precopy.memory.captures.mtree import MtreeRange, MtreeView
from precopy.memory.layout import RamBlock
from precopy.units import PAGE_SIZE


class BlockLookup:
    """Finds the block of each range of ``views`` among ``blocks``; ``nameless`` are the bytes of each other block,
    which QEMU does not migrate.

    Ranges of one name that begin at the same place, but for their offsets, show one region.
    """

    def __init__(self, blocks: Sequence[RamBlock], nameless: Iterable[int], views: Iterable[MtreeView]) -> None:
        self._largest_nameless = max(nameless, default=0)
        self._by_last: dict[str, list[RamBlock]] = {}
        for block in blocks:
            self._by_last.setdefault(block.name.rpartition("/")[2], []).append(block)
        self._needed: dict[str, dict[int, int]] = {}
        for shown in (shown for view in views for shown in view.ranges or () if shown.kind != "i/o"):
            by_place = self._needed.setdefault(shown.name, {})
            by_place[_place(shown)] = max(by_place.get(_place(shown), 0), shown.offset + shown.size)
        self._named: dict[str, tuple[RamBlock, ...]] = {}
        self._found: dict[str, dict[int, RamBlock]] = {}
        self.choices: dict[str, tuple[RamBlock, ...]] = {}
        """The blocks that could have been behind the regions of a name, where there were several."""
        self.unmigrated: dict[str, None] = {}
        """Names of the regions for which `find` found none."""

    def find(self, shown: MtreeRange) -> RamBlock | None:
        """The block behind ``one``, which is no range of device registers; None for memory that QEMU does not migrate.

        Raises `LayoutError` where there is no such block, or none that is long enough.
        """
        candidates = self._candidates(shown.name)
        if not candidates:
            needed = self._needed[shown.name][_place(shown)]
            if shown.kind == "ramd" or (shown.kind in ("ram", "rom") and needed <= self._largest_nameless):
                self.unmigrated[shown.name] = None
                return None
            raise LayoutError(f"no RAM block is behind the memory region {shown.name!r}")
        if len(candidates) == 1:
            return candidates[0]
        if shown.name not in self._found:
            self.choices[shown.name] = candidates
            self._found[shown.name] = _assign(self._needed[shown.name], candidates, shown.name)
        return self._found[shown.name][_place(shown)]

    def _candidates(self, region: str) -> tuple[RamBlock, ...]:
        """The block of this name, or else those whose names end in it after a slash."""
        if region not in self._named:
            alike = self._by_last.get(region.rpartition("/")[2], [])
            exact = [block for block in alike if block.name == region]
            self._named[region] = tuple(exact or (block for block in alike if block.name.endswith(f"/{region}")))
        return self._named[region]


def _assign(needed: dict[int, int], candidates: Sequence[RamBlock], region: str) -> dict[int, RamBlock]:
    """A block for each place: the shortest that is long enough, another for each while there are any."""
    every = sorted(candidates, key=lambda block: (block.pages, block.first_page))
    free, assigned = list(every), {}
    for place, size in sorted(needed.items(), key=lambda item: (-item[1], item[0])):
        pages = -(-size // PAGE_SIZE)
        for among in (free, every):
            at = bisect_left(among, pages, key=lambda block: block.pages)
            if at < len(among):
                assigned[place] = among[at]
                break
        else:
            raise LayoutError(f"a range shows more of {region!r} than any of its RAM blocks has, {size:#x} bytes")
        if among is free:
            free.pop(at)
    return assigned


def _place(shown: MtreeRange) -> int:
    """Where byte 0 of its region would be."""
    return shown.start - shown.offset

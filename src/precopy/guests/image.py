"""What is in a guest's memory before its first instruction: code, parameters, page tables, and content to move.

Guest-physical map, all inside the first 640 KiB of RAM, which no program stamps:

- 0x1000   the program;
- 0x2000   parameters, a page for each vCPU;
- 0x20000  page tables: identity, 2 MiB pages, user-accessible, with their accessed and dirty bits already set, so
  that the CPU never writes them and they stay clean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from precopy.errors import LayoutError
from precopy.guests import params
from precopy.guests.programs import CODE_GPA, WORKLOADS, assemble
from precopy.guests.workload import Workload
from precopy.memory import GuestMemory, RamLayout, Section
from precopy.units import PAGE_SIZE, GuestPhysicalAddress

PARAMS_GPA = 0x2000
TABLES_GPA = 0x20000
MAX_VCPUS = 16
RESERVED_END = 0xA0000

_GIB = 1 << 30
_MAX_GPA = (RESERVED_END - TABLES_GPA) // PAGE_SIZE * _GIB - 2 * _GIB
_TABLE = 0x27 | 0x40  # present, writable, user, accessed, dirty
_LARGE = _TABLE | 0x80
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class BootImage:
    """Where a vCPU starts: its first instruction, its parameters and the root of the page tables."""

    entry: GuestPhysicalAddress
    page_table_root: GuestPhysicalAddress

    def params(self, vcpu: int) -> GuestPhysicalAddress:
        return params_gpa(vcpu)


def params_gpa(vcpu: int) -> GuestPhysicalAddress:
    """Where the parameters of vCPU number ``vcpu`` are."""
    return GuestPhysicalAddress(PARAMS_GPA + vcpu * PAGE_SIZE)


def boot_image(
    memory: GuestMemory,
    workload: Workload,
    vcpus: int = 1,
    fill: float = 0.0,
    sections: Sequence[Section] | None = None,
) -> BootImage:
    """Writes program, parameters and page tables into ``memory``, after filling the share ``fill`` of its pages with
    random content. The program writes the first ``working_set`` bytes of all sections, largest first, or exactly
    ``sections``, in that order. Raises `LayoutError` where the layout has no room for them."""
    if not 1 <= vcpus <= MAX_VCPUS:
        raise LayoutError(f"a guest has 1 to {MAX_VCPUS} vCPUs, not {vcpus}")
    fill_random(memory, fill)
    code = assemble(workload.pattern)
    low = words_at(memory, GuestPhysicalAddress(0), RESERVED_END)
    low[:] = 0
    low.view(np.uint8)[CODE_GPA : CODE_GPA + len(code)] = np.frombuffer(code, np.uint8)
    for vcpu, segments in enumerate(vcpu_segments(memory.layout, vcpus, workload.working_set, sections)):
        at = params_gpa(vcpu) // 8
        low[at : at + PAGE_SIZE // 8] = _params(workload, segments, vcpus)
    _write_page_tables(low, max(section.end_gpa for section in memory.layout.sections))
    return BootImage(GuestPhysicalAddress(CODE_GPA), GuestPhysicalAddress(TABLES_GPA))


def words_at(memory: GuestMemory, gpa: GuestPhysicalAddress, size: int) -> npt.NDArray[np.uint64]:
    """``size`` bytes of guest-physical memory as words; shares the memory. Raises `LayoutError`."""
    for section in memory.layout.sections:
        if section.gpa <= gpa and gpa + size <= section.end_gpa:
            start = section.offset * PAGE_SIZE + gpa - section.gpa
            return memory.host(section.block).words[start // 8 : (start + size) // 8]
    raise LayoutError(f"no section of the layout maps the {size} bytes at {gpa:#x}; a guest needs RAM there")


def fill_random(memory: GuestMemory, share: float) -> None:
    """Fills the first ``share`` of each block's pages with random words, which nothing can compress."""
    random = np.random.Generator(np.random.SFC64(0x5EED))
    for block in memory.layout.blocks:
        words = memory.host(block).words
        end = int(block.pages * share) * PAGE_SIZE // 8
        for at in range(0, end, 1 << 20):
            part = words[at : min(at + (1 << 20), end)]
            part[:] = random.integers(0, 1 << 64, part.size, np.uint64)


def stamped(layout: RamLayout) -> list[Section]:
    """The sections that programs write, largest first (programs look them up in this order): all guest RAM but the
    reserved first 640 KiB."""
    sections = [section for section in layout.sections if section.gpa >= RESERVED_END]
    for section in layout.sections:
        if section.gpa < RESERVED_END < section.end_gpa:
            skip = (RESERVED_END - section.gpa) // PAGE_SIZE
            sections.append(
                Section(
                    section.block,
                    section.offset + skip,
                    section.pages - skip,
                    GuestPhysicalAddress(RESERVED_END),
                )
            )
    return sorted(sections, key=lambda section: (-section.pages, section.gpa))


def vcpu_segments(
    layout: RamLayout, vcpus: int, working_set: int | None = None, sections: Sequence[Section] | None = None
) -> list[list[Section]]:
    """The first ``working_set`` bytes (None: all) of ``sections`` (None: the stamped ones), split evenly over the
    vCPUs. Raises `LayoutError` where there are too few pages."""
    sections = stamped(layout) if sections is None else sections
    total = sum(section.pages for section in sections)
    if working_set is not None:
        total = min(total, working_set // PAGE_SIZE)
    if total < 64 * vcpus:
        raise LayoutError(f"{total} pages are too few for {vcpus} vCPUs to write")
    cuts = [total * vcpu // vcpus for vcpu in range(vcpus + 1)]
    split: list[list[Section]] = []
    for lo, hi in pairwise(cuts):
        part, at = [], 0
        for section in sections:
            first, end = max(lo - at, 0), min(hi - at, section.pages)
            if first < end:
                gpa = GuestPhysicalAddress(section.gpa + first * PAGE_SIZE)
                part.append(Section(section.block, section.offset + first, end - first, gpa))
            at += section.pages
        split.append(part)
    if max(map(len, split)) > params.MAX_SEGMENTS:
        raise LayoutError(f"a guest's program can write at most {params.MAX_SEGMENTS} sections")
    return split


def _params(workload: Workload, segments: list[Section], vcpus: int) -> npt.NDArray[np.uint64]:
    page = np.zeros(PAGE_SIZE // 8, np.uint64)
    pages = sum(section.pages for section in segments)
    hot = max(int(pages * workload.hot_share), 1)
    permuted = pages - hot if workload.pattern == "hotset" else pages
    burst, interval = workload.burst(vcpus)
    fields = {
        params.BURST: burst,
        params.INTERVAL_NS: interval,
        params.WORKLOAD: WORKLOADS.index(workload.pattern),
        params.PAGES: pages,
        params.HOT: hot,
        params.MULTIPLIER: _coprime_near(int(permuted * _GOLDEN), permuted),
        params.OFFSET: permuted // 3,
        params.SEGMENT_COUNT: len(segments),
    }
    for offset, value in fields.items():
        page[offset // 8] = value
    for index, section in enumerate(segments):
        page[params.SEGMENTS // 8 + 2 * index] = section.gpa
        page[params.SEGMENTS // 8 + 2 * index + 1] = section.pages
    return page


def _coprime_near(value: int, to: int) -> int:
    value = max(value, 1)
    while math.gcd(value, to) != 1:
        value += 1
    return value


def _write_page_tables(low: npt.NDArray[np.uint64], end: int) -> None:
    """One page each of level 4 and level 3, then a level-2 page for each GiB up to ``end``."""
    if end > _MAX_GPA:
        raise LayoutError(f"guest memory ends at {end:#x}; the guests' page tables reach {_MAX_GPA:#x}")
    gibs = -(-end // _GIB)
    root, level3, level2 = (TABLES_GPA + PAGE_SIZE * level for level in range(3))
    low[root // 8] = level3 | _TABLE
    low[level3 // 8 : level3 // 8 + gibs] = [(level2 + PAGE_SIZE * gib) | _TABLE for gib in range(gibs)]
    large = np.arange(gibs * 512, dtype=np.uint64) << np.uint64(21)
    low[level2 // 8 : level2 // 8 + large.size] = large | np.uint64(_LARGE)

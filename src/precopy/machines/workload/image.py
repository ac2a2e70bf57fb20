"""What is in a guest's memory before its first instruction: code, parameters, page tables, and content to move.

Guest-physical map, all inside 640 KiB of RAM, which no program stamps: the first ones, or where these have holes (SMM's
at 0x30000) the first 640 KiB of main memory that have none (`image_base`). From there on:

- 0x1000   the program;
- 0x2000   parameters, a page for each vCPU;
- 0x12000  rings of gaps, half a page for each vCPU;
- 0x20000  page tables: identity, 2 MiB pages, user-accessible, with their accessed and dirty bits already set, so
  that the CPU never writes them and they stay clean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from precopy.errors import LayoutError, UsageError
from precopy.machines.workload import params
from precopy.machines.workload.programs import CODE_GPA, WORKLOADS, assemble
from precopy.machines.workload.workload import Workload
from precopy.memory import GuestMemory, RamLayout, Section
from precopy.memory.captures.main_memory import main_memory
from precopy.ports.stall import GAP_S
from precopy.units import PAGE_SIZE, GuestPhysicalAddress, format_size

PARAMS_GPA = 0x2000
"""Bytes from the image's base: a page of parameters for each vCPU."""
TABLES_GPA = 0x20000
"""Bytes from the image's base: page tables, up to `RESERVED_END`."""
MAX_VCPUS = 16
"""vCPUs of a guest at most. Their parameters take 16 of the 30 pages between `PARAMS_GPA` and `TABLES_GPA`, their rings
eight."""
RINGS_GPA = PARAMS_GPA + MAX_VCPUS * PAGE_SIZE
"""Bytes from the image's base: a ring of gaps for each vCPU."""
RESERVED_END = 0xA0000
"""Bytes of the image: what a PC has as RAM below its display."""

_GIB = 1 << 30
_MAX_GPA = (RESERVED_END - TABLES_GPA) // PAGE_SIZE * _GIB - 2 * _GIB
_TABLE = 0x27 | 0x40  # present, writable, user, accessed, dirty
_LARGE = _TABLE | 0x80
_NEVER = (1 << 63) - 1
"""Ticks: the program compares signed numbers."""
_SLOW = 16
"""Looks that together take as long as the shortest gap, where each takes the shortest time that is slow, 6 us."""
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class BootImage:
    """Where a vCPU starts: its first instruction, its parameters and the root of the page tables."""

    base: GuestPhysicalAddress
    entry: GuestPhysicalAddress
    page_table_root: GuestPhysicalAddress

    def params(self, vcpu: int) -> GuestPhysicalAddress:
        return params_gpa(vcpu, self.base)


def image_base(layout: RamLayout) -> GuestPhysicalAddress:
    """Where the 640 KiB begin that a guest has its program, parameters and page tables in.

    Raises `LayoutError` where a machine's RAM does not begin at 0, or where it has no such 640 KiB.
    """
    low = [section for section in layout.sections if section.gpa == 0]
    if any(not section.readonly and section.pages * PAGE_SIZE >= RESERVED_END for section in low):
        return GuestPhysicalAddress(0)
    if any(section.readonly for section in low):
        raise LayoutError(f"{low[0].block.name!r}, which is no RAM, is mapped at 0x0; a guest needs RAM there")
    if not low:
        raise LayoutError(f"no section of the layout maps the {RESERVED_END} bytes at 0x0; a guest needs RAM there")
    main = set(main_memory(layout))
    own = (
        section.gpa
        for section in layout.sections
        if section.block in main and section.pages * PAGE_SIZE >= RESERVED_END
    )
    base = min(own, default=None)
    if base is None:
        raise LayoutError(
            f"main memory has a hole at {min(section.end_gpa for section in low):#x} and nowhere {RESERVED_END} bytes "
            "in one piece; a guest needs them"
        )
    return base


def params_gpa(vcpu: int, base: int = 0) -> GuestPhysicalAddress:
    """Where the parameters of vCPU number ``vcpu`` are in the image at ``base``."""
    return GuestPhysicalAddress(base + PARAMS_GPA + vcpu * PAGE_SIZE)


def params_words(memory: GuestMemory, vcpu: int) -> npt.NDArray[np.uint64]:
    """The page of parameters of vCPU number ``vcpu`` as words; shares the memory. Raises `LayoutError`."""
    return words_at(memory, params_gpa(vcpu, image_base(memory.layout)), PAGE_SIZE)


def rings_words(memory: GuestMemory, vcpu: int) -> npt.NDArray[np.uint64]:
    """The ring of gaps of vCPU number ``vcpu`` as words; shares the memory. Raises `LayoutError`."""
    gpa = image_base(memory.layout) + RINGS_GPA + vcpu * params.RING_SIZE
    return words_at(memory, GuestPhysicalAddress(gpa), params.RING_SIZE)


def boot_image(
    memory: GuestMemory,
    workload: Workload,
    vcpus: int = 1,
    fill: float = 0.0,
    sections: Sequence[Section] | None = None,
    *,
    tsc_khz: int = 0,
) -> BootImage:
    """Writes program, parameters and page tables into ``memory``, after filling the share ``fill`` of its pages with
    random content. The program writes the first ``working_set`` bytes of all sections, largest first, or exactly
    ``sections``, in that order. ``tsc_khz``: ticks of its vCPUs' time stamp counters in a millisecond, by which it
    measures its gaps (0: not known, it measures none). Raises `LayoutError` where the layout has no room for them,
    `UsageError` where the working set is larger than it."""
    if not 1 <= vcpus <= MAX_VCPUS:
        raise LayoutError(f"a guest has 1 to {MAX_VCPUS} vCPUs, not {vcpus}")
    fill_random(memory, fill)
    code = assemble(workload.pattern)
    base = image_base(memory.layout)
    low = words_at(memory, base, RESERVED_END)
    low[:] = 0
    low.view(np.uint8)[CODE_GPA : CODE_GPA + len(code)] = np.frombuffer(code, np.uint8)
    for vcpu, segments in enumerate(vcpu_segments(memory.layout, vcpus, workload.working_set, sections)):
        at = params_gpa(vcpu) // 8
        page = low[at : at + PAGE_SIZE // 8]
        page[:] = _params(workload, segments, vcpus)
        for offset, value in _clock_params(workload.burst(vcpus)[1], tsc_khz).items():
            page[offset // 8] = value
        page[params.RING // 8] = base + RINGS_GPA + vcpu * params.RING_SIZE
    _write_page_tables(low, base, max(section.end_gpa for section in memory.layout.sections))
    return BootImage(base, GuestPhysicalAddress(base + CODE_GPA), GuestPhysicalAddress(base + TABLES_GPA))


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
    640 KiB of the image, and what lies below these."""
    end = image_base(layout) + RESERVED_END
    return sorted(beyond(layout.sections, end), key=lambda section: (-section.pages, section.gpa))


def beyond(sections: Iterable[Section], gpa: int) -> list[Section]:
    """The sections from guest-physical address ``gpa`` on, the one that reaches across it shortened."""
    found: list[Section] = []
    for section in sections:
        skip = max(0, gpa - section.gpa) // PAGE_SIZE
        if skip < section.pages:
            at = GuestPhysicalAddress(section.gpa + skip * PAGE_SIZE)
            found.append(replace(section, offset=section.offset + skip, pages=section.pages - skip, gpa=at))
    return found


def vcpu_segments(
    layout: RamLayout, vcpus: int, working_set: int | None = None, sections: Sequence[Section] | None = None
) -> list[list[Section]]:
    """The first ``working_set`` bytes (None: all) of ``sections`` (None: the stamped ones), split evenly over the
    vCPUs. Raises `UsageError` for a working set above the layout's memory, `LayoutError` where there are too few
    pages."""
    if working_set is not None and working_set > layout.bytes:
        raise UsageError(
            f"the working set is {format_size(working_set)}, more than the {format_size(layout.bytes)} of memory; "
            "a guest writes no more than it has"
        )
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


def _clock_params(interval_ns: int, tsc_khz: int) -> dict[int, int]:
    if not tsc_khz:
        return {params.GAP_TICKS: _NEVER, params.SLOW_TICKS: _NEVER}
    return {
        params.TSC_KHZ: tsc_khz,
        params.GAP_TICKS: int(tsc_khz * 1e3 * GAP_S),
        params.SLOW_TICKS: int(tsc_khz * 1e3 * GAP_S / _SLOW),
        params.INTERVAL_TICKS: min(interval_ns * tsc_khz // 10**6, _NEVER),
    }


def _coprime_near(value: int, to: int) -> int:
    value = max(value, 1)
    while math.gcd(value, to) != 1:
        value += 1
    return value


def _write_page_tables(low: npt.NDArray[np.uint64], base: int, end: int) -> None:
    """One page each of level 4 and level 3, then a level-2 page for each GiB up to ``end``; ``low`` is at ``base``."""
    if end > _MAX_GPA:
        raise LayoutError(f"guest memory ends at {end:#x}; the guests' page tables reach {_MAX_GPA:#x}")
    gibs = -(-end // _GIB)
    root, level3, level2 = (TABLES_GPA + PAGE_SIZE * level for level in range(3))
    low[root // 8] = base + level3 | _TABLE
    low[level3 // 8 : level3 // 8 + gibs] = [(base + level2 + PAGE_SIZE * gib) | _TABLE for gib in range(gibs)]
    large = np.arange(gibs * 512, dtype=np.uint64) << np.uint64(21)
    low[level2 // 8 : level2 // 8 + large.size] = large | np.uint64(_LARGE)

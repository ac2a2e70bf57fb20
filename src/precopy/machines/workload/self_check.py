"""The self-check of a guest: what its paused memory must hold, computed from its step counter alone.

Every page's stamp is one more than the last step that wrote the page. Each program's order is a formula that can be
inverted, so the last step that wrote a page follows from the page's number and STEP without replaying anything. A page
whose last write was lost holds an older stamp; a write that the counter does not know of holds a newer one. The one
write that may be under way (stored, and not yet counted) is allowed for.

Parameters are read from guest memory, which at a destination came from a peer: they are checked like any input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precopy.bitmap.words import Indexes
from precopy.errors import LayoutError
from precopy.machines.workload import params
from precopy.machines.workload.image import params_words, words_at
from precopy.machines.workload.programs import HOTSET_COLD_EVERY, WORKLOADS
from precopy.memory import GuestMemory
from precopy.ports import SelfCheck
from precopy.units import PAGE_SIZE, GuestPhysicalAddress

_NAMED = 8
"""Broken invariants that an answer names at most."""
_MAX_STEP = 1 << 62
"""More steps than any guest makes, and few enough for sums over them to fit 64 bits."""
_WARM = HOTSET_COLD_EVERY - 1


@dataclass(frozen=True)
class Counted:
    """What one vCPU's page of parameters says: its pattern, how far it is, and in what order it writes.

    Raises `LayoutError` where the parameters are none that `boot_image` writes.
    """

    pattern: str
    step: int
    pages: int
    hot: int
    multiplier: int
    offset: int
    segments: tuple[tuple[int, int], ...]

    @classmethod
    def read(cls, page: npt.NDArray[np.uint64]) -> Counted:
        def field(offset: int) -> int:
            return int(page[offset // 8])

        count = field(params.SEGMENT_COUNT)
        if field(params.WORKLOAD) >= len(WORKLOADS) or count > params.MAX_SEGMENTS:
            raise LayoutError("its parameters name no workload or too many segments")
        table = page[params.SEGMENTS // 8 : params.SEGMENTS // 8 + 2 * count].reshape(-1, 2).tolist()
        counted = cls(
            WORKLOADS[field(params.WORKLOAD)],
            field(params.STEP),
            field(params.PAGES),
            field(params.HOT),
            field(params.MULTIPLIER),
            field(params.OFFSET),
            tuple((gpa, pages) for gpa, pages in table),
        )
        if counted.pages != sum(pages for _, pages in table) or not 0 < counted.hot < counted.pages < 1 << 31:
            raise LayoutError("its parameters do not count the pages of its segments")
        if counted.step >= _MAX_STEP:
            raise LayoutError("its parameters count more steps than can be made")
        if not 0 < counted.multiplier < 1 << 31 or math.gcd(counted.multiplier, counted.permuted) != 1:
            raise LayoutError("its parameters hold no permutation")
        return counted

    @property
    def permuted(self) -> int:
        """Pages that the permutation runs over."""
        return self.pages - self.hot if self.pattern == "hotset" else self.pages

    def last_stamps(self) -> Indexes:
        """The stamp that each page must hold; 0 where no step has written it."""
        match self.pattern:
            case "sequential":
                return _last_visit(self.step, self.pages, 1, 0) + 1
            case "random":
                return _last_visit(self.step, self.pages, self.multiplier, self.offset) + 1
            case "hotset":
                turns, rest = divmod(self.step, HOTSET_COLD_EVERY)
                warm = _last_visit(turns * _WARM + rest, self.hot, 1, 0)
                cold = _last_visit(turns, self.permuted, self.multiplier, self.offset)
                warm = np.where(warm < 0, -1, warm // _WARM * HOTSET_COLD_EVERY + warm % _WARM)
                cold = np.where(cold < 0, -1, cold * HOTSET_COLD_EVERY + _WARM)
                return np.concatenate((warm, cold)) + 1
        return np.zeros(self.pages, np.int64)

    def target(self) -> int:
        """Index of the page that the next step writes."""
        turns, rest = divmod(self.step, HOTSET_COLD_EVERY)
        match self.pattern:
            case "random":
                return self._permute(self.step)
            case "hotset" if rest < _WARM:
                return (turns * _WARM + rest) % self.hot
            case "hotset":
                return self.hot + self._permute(turns)
        return self.step % self.pages

    def _permute(self, count: int) -> int:
        turn, place = divmod(count, self.permuted)
        return (place * self.multiplier + turn * self.offset) % self.permuted

    def stamps(self, memory: GuestMemory) -> Indexes:
        """The first word of each page, as found. Raises `LayoutError` where the segments do not lie in guest memory."""
        if self.pages > memory.layout.pages:
            raise LayoutError("its parameters name more pages than the guest has")
        words = (words_at(memory, GuestPhysicalAddress(gpa), pages * PAGE_SIZE) for gpa, pages in self.segments)
        return np.concatenate([part[:: PAGE_SIZE // 8].view(np.int64) for part in words])


def check_stamps(memory: GuestMemory, vcpus: int) -> SelfCheck:
    """Holds the paused guest's memory against its programs' counters."""
    steps = pages = 0
    broken: list[str] = []
    for vcpu in range(vcpus):
        try:
            counted = Counted.read(params_words(memory, vcpu))
            found = counted.stamps(memory)
        except LayoutError as error:
            broken.append(f"vCPU {vcpu}: {error}")
            continue
        steps += counted.step
        if counted.pattern != "idle":
            pages += counted.pages
            broken += [f"vCPU {vcpu}, {what}" for what in _wrong(counted, found)]
    return SelfCheck(steps, pages, tuple(broken[:_NAMED]))


def _wrong(counted: Counted, found: Indexes) -> list[str]:
    expected = counted.last_stamps()
    wrong = (found != expected) & (expected != 0)
    under_way = counted.target()
    if found[under_way] == counted.step + 1:
        wrong[under_way] = False
    return [
        f"page {index}: its stamp is {found[index]}, after {counted.step} steps it must be {expected[index]}"
        for index in np.flatnonzero(wrong)[:_NAMED].tolist()
    ]


def _last_visit(count: int, pages: int, multiplier: int, offset: int) -> Indexes:
    """For each page, which of ``count`` writes (from 0) was the last to it; -1 where none was. Write ``c`` goes to
    page ``(c % pages * multiplier + c // pages * offset) % pages``."""
    turn, place = divmod(count, pages)
    inverse = pow(multiplier, -1, pages) if pages > 1 else 0
    page = np.arange(pages, dtype=np.int64)
    now = (page - turn * offset % pages) % pages * inverse % pages
    before = (page - (turn - 1) * offset % pages) % pages * inverse % pages
    last = np.where(now < place, turn * pages + now, (turn - 1) * pages + before)
    return np.maximum(last, -1)

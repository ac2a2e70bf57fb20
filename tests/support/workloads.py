"""The orders in which the guests' programs write, replayed step by step with nothing but counters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from precopy.machines.workload import params_gpa
from precopy.machines.workload.image import words_at
from precopy.machines.workload.params import HOT, MULTIPLIER, OFFSET, PAGES, SEGMENT_COUNT, SEGMENTS, STEP
from precopy.memory import GuestMemory
from precopy.units import PAGE_SIZE, GuestPhysicalAddress


@dataclass(frozen=True)
class Order:
    """A pattern and its parameters."""

    pattern: str
    pages: int
    hot: int = 1
    multiplier: int = 1
    offset: int = 0

    def targets(self) -> Iterator[int]:
        """Index of the page that each step writes, for ever."""
        match self.pattern:
            case "sequential":
                yield from _walk(self.pages, 1, 0)
            case "random":
                yield from _walk(self.pages, self.multiplier, self.offset)
            case "hotset":
                warm = _walk(self.hot, 1, 0)
                cold = _walk(self.pages - self.hot, self.multiplier, self.offset)
                while True:
                    for _ in range(7):
                        yield next(warm)
                    yield self.hot + next(cold)

    def stamps(self, steps: int) -> list[int]:
        """What each page holds after so many steps; 0 where none has written it."""
        stamps = [0] * self.pages
        for step, page in enumerate(islice(self.targets(), steps)):
            stamps[page] = step + 1
        return stamps


def _walk(pages: int, multiplier: int, offset: int) -> Iterator[int]:
    """Pass by pass: from a start that moves by ``offset``, always ``multiplier`` pages further, round and round."""
    start = 0
    while True:
        page = start
        for _ in range(pages):
            yield page
            page = (page + multiplier) % pages
        start = (start + offset) % pages


class Program:
    """What a booted guest's memory says a vCPU does: its order, and where its pages are."""

    def __init__(self, memory: GuestMemory, pattern: str, vcpu: int = 0) -> None:
        self.params: npt.NDArray[np.uint64] = words_at(memory, params_gpa(vcpu), PAGE_SIZE)
        fields: list[Any] = self.params.tolist()
        self.order = Order(pattern, *(fields[at // 8] for at in (PAGES, HOT, MULTIPLIER, OFFSET)))
        count = fields[SEGMENT_COUNT // 8]
        table = fields[SEGMENTS // 8 : SEGMENTS // 8 + 2 * count]
        self.first_words: list[npt.NDArray[np.uint64]] = [
            words_at(memory, GuestPhysicalAddress(gpa + page * PAGE_SIZE), 8)
            for gpa, pages in zip(table[::2], table[1::2], strict=True)
            for page in range(pages)
        ]

    def stamp(self, page: int, value: int) -> None:
        self.first_words[page][0] = value

    def run_to(self, steps: int) -> None:
        """Leaves memory as the program does after so many steps from its start."""
        for page, stamp in enumerate(self.order.stamps(steps)):
            if stamp:
                self.stamp(page, stamp)
        self.params[STEP // 8] = steps

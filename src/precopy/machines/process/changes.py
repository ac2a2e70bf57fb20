"""What was written since it was asked last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Bitmap, Runs
from precopy.dirty import DirtyLog
from precopy.errors import UsageError
from precopy.memory import RamLayout
from precopy.trackers.fanout import Consumer


@dataclass(frozen=True)
class Changed:
    """The pages found by one sync, and the ``seconds`` that it took. A page has 4096 bytes.

    ``unarmed`` is how many of them count as written because they lay in a chunk that is written all the time and was
    not armed: 0 where tracking is exact.
    """

    found: Bitmap
    seconds: float
    unarmed: int = 0

    def __repr__(self) -> str:
        return f"<Changed: {self.pages} of {self.found.size} pages, found in {self.seconds:.6f} s>"

    @property
    def pages(self) -> int:
        """How many they are."""
        return self.found.count()

    @property
    def runs(self) -> Runs:
        """As runs: pairs of first page and length, ascending."""
        return self.found.runs()

    @property
    def indexes(self) -> npt.NDArray[np.int64]:
        """As page numbers, ascending; shape (pages,)."""
        return self.found.indexes()

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """One bool for each page of the memory; shape (memory.pages,)."""
        bits = np.unpackbits(self.found.words.view(np.uint8), count=self.found.size, bitorder="little")
        return bits.view(np.bool_)


class Changes:
    """Made by `Memory.track`. From entering on, each `sync` finds what was written since the one before."""

    content: memoryview | None
    """Where writes are found by comparing contents, the memory as the last sync saw it, to be read only: a page is to
    be read here, because in the memory it may have changed and changed back by the next sync. None otherwise."""

    def __init__(
        self, log: DirtyLog, layout: RamLayout, need_open: Callable[[], None], content: memoryview | None = None
    ) -> None:
        self._log, self._layout = log, layout
        self.content = None if content is None else content.toreadonly()
        self._need_open = need_open  # the memory's own, which so is kept alive while it is tracked
        self._tracking = self._begun = False

    def __repr__(self) -> str:
        pages = self._layout.end_page
        return f"<Changes of a memory of {pages} pages, {'tracked' if self._tracking else 'not tracked'}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise UsageError("changes cannot be pickled or copied, because they are tracked in this process")

    def __enter__(self) -> Self:
        self._log.start()
        self._tracking = self._begun = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracking = False
        self._log.stop()

    def sync(self) -> Changed:
        """The pages written since the last call (or since tracking began), and how long it took to find them.

        A page that is written after this call is in the next one, and one that is written during it in one of the two
        at least: read a page after the sync that named it, and nothing is missed. Raises `KernelCallError`, and
        `UsageError` outside the ``with`` block, where nothing is tracked.
        """
        if not self._tracking:
            state = "is closed" if self._begun else "has not begun"
            raise UsageError(f"the tracking {state}; nothing is found outside `with memory.track() as changes:`")
        self._need_open()
        start = time.perf_counter()
        found = Bitmap(self._layout.end_page)
        self._log.harvest(found)
        unarmed = self._log.unarmed.count() if isinstance(self._log, Consumer) else 0
        self._log.clear(0, found.size)
        return Changed(found, time.perf_counter() - start, unarmed)

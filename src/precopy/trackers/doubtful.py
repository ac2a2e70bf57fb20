"""Pages that a consumer of a shared log is told of, and of which it is not known that they were written."""

from __future__ import annotations

from precopy.bitmap import Bitmap
from precopy.bitmap.words import Words


class Doubtful:
    """Those among ``pages`` pages of which that is so; most of the time none, which costs nothing."""

    def __init__(self, pages: int) -> None:
        self._all: Bitmap | None = None  # None: none
        self.told = Bitmap(pages)
        """Those of the last harvest."""

    def add(self, some: Bitmap, known: Words) -> None:
        """``some`` are in doubt, unless they are among the words of what is ``known`` already."""
        doubtful = some.copy()
        doubtful.words &= ~known
        if self._all is not None:
            doubtful.add(self._all)
        self._all = doubtful

    def settle(self, written: Words) -> None:
        """These were written."""
        if self._all is not None:
            self._all.words &= ~written

    def keep(self, some: Words) -> None:
        """Forgets all but these."""
        if self._all is not None:
            self._all.words &= some

    def tell(self, reported: Bitmap) -> None:
        """The harvest that reports these is made now."""
        self.told.clear_all()
        if self._all is not None:
            self.told.add(self._all)
            self.told.words &= reported.words
            if not self._all.any():
                self._all = None

    def forget(self) -> None:
        self._all = None
        self.told.clear_all()

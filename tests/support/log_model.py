"""What a dirty log may say, with a page as a number: what logs are held against after any sequence of calls."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set


class Found(set[int]):
    """A harvest of a log that may have ``counted`` pages as written that were not: it equals every set that it misses
    nothing of, and has nothing more than but counted pages."""

    def __init__(self, pages: Iterable[int], counted: Iterable[int]) -> None:
        super().__init__(pages)
        self.counted = set(counted)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, set):
            return NotImplemented
        may_lack = other.counted if isinstance(other, Found) else set()
        return set(other) - set(self) <= may_lack and set(self) - set(other) <= self.counted

    def __le__(self, other: Set[object]) -> bool:
        return set(self) - set(other) <= self.counted

    __hash__ = None  # type: ignore[assignment]  # as of every set


class LogModel:
    """Law 2: a clear takes back what a harvest has reported, and no write after that harvest."""

    def __init__(self) -> None:
        self._dirty: set[int] = set()
        self._harvested: set[int] = set()
        self._since: set[int] = set()
        """Written after the last harvest."""
        self._perhaps: set[int] = set()
        """Of these, the ones that a clear came after: forgotten, or reported once more."""

    def write(self, pages: Collection[int]) -> None:
        self._dirty |= set(pages)
        self._since |= set(pages)

    def harvest(self, found: Collection[int]) -> None:
        """Asserts that the log may report exactly ``found``."""
        pages, counted = set(found), found.counted if isinstance(found, Found) else set()
        assert self._dirty <= pages <= self._dirty | self._perhaps | counted
        self._dirty, self._harvested = pages, set(pages)
        self._since, self._perhaps = set(), set()

    def clear(self, start: int, end: int) -> None:
        cleared = self._harvested & set(range(start, end))
        self._perhaps |= cleared & self._since
        self._dirty -= cleared
        self._harvested -= cleared

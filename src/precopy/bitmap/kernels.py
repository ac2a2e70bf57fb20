"""Which code does the arithmetic on words: numpy's, or what numba compiles (native.py), for the whole process.

Both are held to the same tests. numba is an option (extra ``fast``) whose import takes longer than all syncs of a small
guest, so nothing imports it before `load` is called. docs/adr/0027-native-way.md.
"""

from __future__ import annotations

import importlib
import importlib.util

from precopy.bitmap import words
from precopy.errors import missing_extra


def missing() -> str | None:
    """Why numba cannot be used, or None. Does not import it."""
    return None if importlib.util.find_spec("numba") else "the package numba is not installed"


def loaded() -> bool:
    """Whether words are worked on by what numba compiled."""
    return words.native is not None


def load() -> None:
    """Has numba's code do the arithmetic from now on. The first time on a machine it is compiled, for some seconds;
    later it is read from numba's cache on disk. Raises `Unsupported`."""
    if not loaded():
        if missing():
            raise missing_extra("compiled arithmetic needs", "numba", "fast")
        use(importlib.import_module("precopy.bitmap.native"))


def use(native: words.Native | None) -> None:
    """Has this code do the arithmetic from now on, or numpy (None)."""
    words.native = native

"""Every clear policy by its name."""

from __future__ import annotations

from precopy.dirty.clear import DEFAULT_CHUNK_SHIFT, ClearPolicy, Deferred, Merged, PerPage
from precopy.dirty.lineage import BeforePatch, ClearBmap, RfcV1, Upstream
from precopy.errors import UsageError
from precopy.memory.layout import RamLayout

CLEAR_POLICIES = ("per-page", "merged", "deferred")
"""Ours: over whole arrays."""

LINEAGE = ("before-patch", "rfc-v1", "upstream", "clear-bmap")
"""The thread's: block by block, as QEMU."""

ALL_POLICIES = CLEAR_POLICIES + LINEAGE


def clear_policy(name: str, layout: RamLayout, shift: int = DEFAULT_CHUNK_SHIFT) -> ClearPolicy:
    """The policy called ``name`` for the blocks of ``layout``; ``shift`` is for ``deferred`` (the thread's have QEMU's
    own chunks). Raises `UsageError`."""
    match name:
        case "per-page":
            return PerPage()
        case "merged":
            return Merged()
        case "deferred":
            return Deferred(layout.end_page, shift)
        case "before-patch":
            return BeforePatch(layout)
        case "rfc-v1":
            return RfcV1(layout)
        case "upstream":
            return Upstream(layout)
        case "clear-bmap":
            return ClearBmap(layout)
    raise UsageError(f"no clear policy is called {name!r}; there are {', '.join(ALL_POLICIES)}")

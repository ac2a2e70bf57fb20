"""Every clear policy by its name."""

from __future__ import annotations

from collections.abc import Callable

from precopy.dirty.clear import DEFAULT_CHUNK_SHIFT, ClearPolicy, Deferred, Merged, PerPage
from precopy.dirty.qemu_variants import BeforePatch, ClearBmap, RfcV1, Upstream
from precopy.errors import UsageError
from precopy.memory.layout import RamLayout

_OURS: dict[str, Callable[[RamLayout, int], ClearPolicy]] = {
    "per-page": lambda _layout, _shift: PerPage(),
    "merged": lambda _layout, _shift: Merged(),
    "deferred": lambda layout, shift: Deferred(layout.end_page, shift),
}
_LINEAGE: dict[str, Callable[[RamLayout], ClearPolicy]] = {
    policy.name: policy for policy in (BeforePatch, RfcV1, Upstream, ClearBmap)
}

CLEAR_POLICIES = tuple(_OURS)
"""Ours: over whole arrays."""

LINEAGE = tuple(_LINEAGE)
"""The thread's: block by block, as QEMU."""

ALL_POLICIES = CLEAR_POLICIES + LINEAGE


def clear_policy(name: str, layout: RamLayout, shift: int = DEFAULT_CHUNK_SHIFT) -> ClearPolicy:
    """The policy called ``name`` for the blocks of ``layout``; ``shift`` is for ``deferred`` (QEMU's variants have
    QEMU's own chunks). Raises `UsageError`."""
    if name in _OURS:
        return _OURS[name](layout, shift)
    if name in _LINEAGE:
        return _LINEAGE[name](layout)
    raise UsageError(f"no clear policy is called {name!r}; there are {', '.join(ALL_POLICIES)}")

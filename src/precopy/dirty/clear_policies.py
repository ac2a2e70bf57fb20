"""Every clear policy by its name."""

from __future__ import annotations

from collections.abc import Callable

from precopy.defaults import CLEAR_CHUNK_SHIFT
from precopy.dirty.clear import ClearPolicy, Deferred, Merged, PerPage
from precopy.dirty.qemu_variants import BeforePatch, ClearBmap, RfcV1, Upstream
from precopy.errors import UsageError
from precopy.memory.layout import RamLayout
from precopy.names import ALL_CLEAR_POLICIES, AnyClearPolicyName

_MAKERS: dict[AnyClearPolicyName, Callable[[RamLayout, int], ClearPolicy]] = {
    "per-page": lambda _layout, _shift: PerPage(),
    "merged": lambda _layout, _shift: Merged(),
    "deferred": lambda layout, shift: Deferred(layout.end_page, shift),
    "before-patch": lambda layout, _shift: BeforePatch(layout),
    "rfc-v1": lambda layout, _shift: RfcV1(layout),
    "upstream": lambda layout, _shift: Upstream(layout),
    "clear-bmap": lambda layout, _shift: ClearBmap(layout),
}


def clear_policy(name: str, layout: RamLayout, shift: int = CLEAR_CHUNK_SHIFT) -> ClearPolicy:
    """The policy called ``name`` for the blocks of ``layout``; ``shift`` is for ``deferred`` (QEMU's variants have
    QEMU's own chunks). Raises `UsageError`."""
    for known, make in _MAKERS.items():
        if known == name:
            return make(layout, shift)
    raise UsageError(f"no clear policy is called {name!r}; there are {', '.join(ALL_CLEAR_POLICIES)}")

"""Guest RAM: blocks side by side in the ram_addr space, the sections that map them, and the host memory they have;
and the tree of regions that address spaces show, with listeners that are told what became different.

Names are loaded when they are first used: reading how much memory a host has needs no numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precopy.memory.captures.capture import CAPTURES, Capture
    from precopy.memory.host import Backing, HostMemory
    from precopy.memory.layout import RamBlock, RamLayout, Section
    from precopy.memory.ram import GuestMemory
    from precopy.memory.topology.address_space import AddressSpace, MemoryListener
    from precopy.memory.topology.flat_view import FlatRange, FlatView, render
    from precopy.memory.topology.log_mask import ALL_CLIENTS, NO_CLIENTS, DirtyClient
    from precopy.memory.topology.region import MemoryRegion, RegionKind
    from precopy.memory.topology.system import ram_regions, smram, system_region
    from precopy.memory.topology.transaction import transaction

_WHERE = {
    "ALL_CLIENTS": "topology.log_mask",
    "AddressSpace": "topology.address_space",
    "Backing": "host",
    "CAPTURES": "captures.capture",
    "Capture": "captures.capture",
    "DirtyClient": "topology.log_mask",
    "FlatRange": "topology.flat_view",
    "FlatView": "topology.flat_view",
    "GuestMemory": "ram",
    "HostMemory": "host",
    "MemoryListener": "topology.address_space",
    "MemoryRegion": "topology.region",
    "NO_CLIENTS": "topology.log_mask",
    "RamBlock": "layout",
    "RamLayout": "layout",
    "RegionKind": "topology.region",
    "Section": "layout",
    "ram_regions": "topology.system",
    "render": "topology.flat_view",
    "smram": "topology.system",
    "system_region": "topology.system",
    "transaction": "topology.transaction",
}

__all__ = [
    "ALL_CLIENTS",
    "CAPTURES",
    "NO_CLIENTS",
    "AddressSpace",
    "Backing",
    "Capture",
    "DirtyClient",
    "FlatRange",
    "FlatView",
    "GuestMemory",
    "HostMemory",
    "MemoryListener",
    "MemoryRegion",
    "RamBlock",
    "RamLayout",
    "RegionKind",
    "Section",
    "ram_regions",
    "render",
    "smram",
    "system_region",
    "transaction",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)

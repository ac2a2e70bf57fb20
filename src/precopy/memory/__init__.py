"""Guest RAM: blocks side by side in the ram_addr space, the sections that map them, and the host memory they have;
and the tree of regions that address spaces show, with listeners that are told what became different."""

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

"""Guest RAM: blocks side by side in the ram_addr space, the sections that map them, and the host memory they have."""

from precopy.memory.guest import GuestMemory
from precopy.memory.host import Backing, HostMemory
from precopy.memory.layout import RamBlock, RamLayout, Section

__all__ = ["Backing", "GuestMemory", "HostMemory", "RamBlock", "RamLayout", "Section"]

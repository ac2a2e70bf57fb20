"""Guest memory as the two sides of a migration see it. Runs are of ram_addr pages and each lies in one block.

A source reads memory that is mapped here (`MemoryReader`) where it lies; of memory that is not (`MemoryCopier`) it
takes copies.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from precopy.bitmap import Runs
from precopy.memory.layout import RamLayout
from precopy.ports.stream import IoVec


class MemoryReader(Protocol):
    """Memory of this process, which is read while the guest may be writing it."""

    @property
    def layout(self) -> RamLayout: ...

    def buffers(self, runs: Runs) -> list[memoryview]:
        """One view a run, of guest memory itself. Raises `LayoutError`."""
        ...

    def addresses(self, runs: Runs) -> IoVec:
        """Address and length in bytes of each run, which lie in this process. Raises `LayoutError`."""
        ...

    def split_zero(self, runs: Runs) -> tuple[Runs, Runs]:
        """(runs of pages with content, runs of all-zero pages)."""
        ...


@runtime_checkable
class MemoryCopier(Protocol):
    """Memory of another process, which is copied while the guest may be writing it."""

    @property
    def layout(self) -> RamLayout: ...

    def copy_into(self, runs: Runs, buffer: memoryview) -> None:
        """Copies the pages of ``runs`` into ``buffer``, in order and without gaps; it is of bytes, and as long as they
        are. Of what is written meanwhile, the copy may have a part. Raises `LayoutError`, and `GuestError` where the
        memory cannot be read (any more)."""
        ...


class MemoryWriter(MemoryReader, Protocol):
    """Memory of a guest that does not run."""

    def write_zero(self, runs: Runs) -> None:
        """Zeroes every page of ``runs``. Raises `LayoutError`."""
        ...

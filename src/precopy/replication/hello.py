"""The hello in which a primary describes its memory, and the memory that a standby makes from it.

The standby has no memory of its own yet, so the size is the primary's claim: it is held against the standby's `Room`
before anything is mapped. What is mapped takes memory only as pages come.
"""

from __future__ import annotations

from precopy.errors import HelloMismatch
from precopy.machines.process.memory import Memory
from precopy.memory import RamLayout
from precopy.migration.session import check_session
from precopy.replication.room import Room
from precopy.units import PAGE_SIZE
from precopy.wire.events import BlockClaim, Hello

MACHINE = "memory of a program"
"""Stands in the field where a guest's source names its machine, so that neither side takes the other for its own
kind."""


def hello_of(session: str, layout: RamLayout) -> Hello:
    """The hello of a primary whose memory has ``layout``."""
    return Hello.of(session, MACHINE, layout)


def memory_for(hello: Hello, room: Room) -> Memory:
    """A memory of the size that ``hello`` claims, all zero. Raises `HelloMismatch` that says what does not fit."""
    check_session(hello)
    if hello.machine != MACHINE:
        raise HelloMismatch(f"the source has {hello.machine[:200]!r}, this side takes {MACHINE!r}")
    if hello.page_size != PAGE_SIZE:
        raise HelloMismatch(f"the source's pages have {hello.page_size} bytes, this side's {PAGE_SIZE}")
    block = hello.blocks[0] if len(hello.blocks) == 1 else None
    if block is None or block.pages <= 0 or block != BlockClaim("memory", 0, block.pages):
        raise HelloMismatch("the source's memory is not one block called 'memory' from page 0 on")
    size = block.pages * PAGE_SIZE
    room.check_memory(size)
    return Memory(size)

"""The page of parameters that each vCPU's program reads and counts in; it lies in guest memory and migrates with it.

Offsets are in bytes; every field is a little-endian u64. The program writes STEP and nothing else of it.
"""

from __future__ import annotations

STEP = 0x00
"""Writes done so far. Step ``s`` stores ``s + 1`` into the first word of its page, then counts STEP up."""
BURST = 0x08
"""Writes between two exits to the host, which paces them; 0 for no exits."""
INTERVAL_NS = 0x10
"""Nanoseconds that a burst should take, for the host."""
WORKLOAD = 0x18
"""Index in WORKLOADS, for the self-check on whichever host the guest is by then."""
PAGES = 0x20
"""Pages that this vCPU writes."""
HOT = 0x28
"""Pages of the hot set, which come first (hotset only)."""
MULTIPLIER = 0x30
"""Multiplier of the permutation of a pass, coprime to the pages that it permutes."""
OFFSET = 0x38
"""What the permutation is rotated by from one pass to the next."""
SEGMENT_COUNT = 0x40
SEGMENTS = 0x100
"""(gpa, pages) of each range of memory that the vCPU's pages lie in."""
MAX_SEGMENTS = (4096 - SEGMENTS) // 16

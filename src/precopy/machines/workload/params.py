"""The page of parameters that each vCPU's program reads and counts in; it lies in guest memory and migrates with it.

Offsets are in bytes; every field is a little-endian u64. The program writes STEP, and what it measures of its own gaps
(FIRST, NOW, GAPS, GAP_SUM), and nothing else of it. Times are ticks of the vCPU's time stamp counter (TSC).
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
TSC_KHZ = 0x48
"""Ticks in a millisecond where the guest was booted; 0 where that is not known, and its gaps are not measured."""
GAP_TICKS = 0x50
"""Time between two looks at the clock above which it is a gap."""
INTERVAL_TICKS = 0x58
"""INTERVAL_NS in ticks: from the start of a burst until the next is due, which is no gap."""
RING = 0x60
"""Guest-physical address of the vCPU's ring of gaps."""
FIRST = 0x68
"""When the program began."""
NOW = 0x70
"""When it looked at its clock last and that was slow (SLOW_TICKS): no gap has ended since."""
GAPS = 0x78
"""Gaps so far. Gap ``n`` is entry ``n % RING_ENTRIES`` of the ring, and was written before it is counted."""
GAP_SUM = 0x80
"""Ticks in all of them."""
SLOW_TICKS = 0x88
"""Time between two looks at the clock above which NOW is written, and the next look comes after one step."""
RING_ENTRIES = 128
"""Entries of a ring: (when the gap ended, how long it was), two u64 each. Half a page, as the image has 14 pages free
for the rings of 16 vCPUs; gaps above 0.1 ms fill it in 13 ms at the earliest."""
RING_SIZE = 16 * RING_ENTRIES
SEGMENTS = 0x100
"""(gpa, pages) of each range of memory that the vCPU's pages lie in."""
MAX_SEGMENTS = (4096 - SEGMENTS) // 16

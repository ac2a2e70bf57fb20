"""The guests' programs, in assembly (Intel syntax), assembled with keystone.

They run at CPL 3 in long mode with all memory identity-mapped, use no stack, take no interrupts and leave only through
port I/O. Registers: rbx points to the vCPU's parameters (see params.py), r12 is the step, r13 counts down the burst,
r14 is the time stamp counter at the last look at it, r15 that at the burst's start, and r8 counts down the steps to the
next look.

Each program turns the step into the index of a page among the vCPU's pages; the shared tail turns the index into an
address, stores the stamp (step + 1) into the page's first word, and counts the step. So the content of memory is a
function of STEP alone, which is what self_check.py checks: a lost write leaves an older stamp than that function says.

Every few steps, and after each burst, the program looks at its time stamp counter, and writes down how long it took to
come to this where that is a gap (gaps.py reads it). What a paced program waits for its next burst is none, and what it
waits longer is one.
"""

from __future__ import annotations

import functools

from precopy.abi import assembler
from precopy.machines.workload import params

CODE_GPA = 0x1000
BURST_PORT = 0x10
"""A burst is done: the host lets the vCPU wait until the next is due."""
IDLE_PORT = 0x11
"""The vCPU has nothing to do until it is woken."""

_LOOK_EVERY = 4
"""Steps between two looks at the clock where these are fast; each step has one where they are faults. Of a guest that
waits for memory, 8 and 16 cost more than 4 where that was tried, on a busy machine, and so did a store at each look:
therefore only a slow look is written down. benchmarks/gap_cost.py measures what the looks cost."""

_CLOCK = """
    rdtsc                                # rax: the time stamp counter; rdx is lost
    shl   rdx, 32
    or    rax, rdx
"""

_HEAD = f"""
    mov   r12, [rbx + {params.STEP}]
    {_CLOCK}
    mov   [rbx + {params.FIRST}], rax
    mov   r14, rax
    mov   r15, rax
burst:
    mov   r13, [rbx + {params.BURST}]
look:
    {_CLOCK}
    mov   rcx, rax
    sub   rcx, r14                       # since the last look; below 0 where a burst comes before it is due
    mov   r14, rax
    mov   r8d, {_LOOK_EVERY}
    cmp   rcx, [rbx + {params.SLOW_TICKS}]
    jle   step
    mov   r8d, 1                         # steps are faults: some of them together are not to look like a gap
    mov   [rbx + {params.NOW}], rax
    cmp   rcx, [rbx + {params.GAP_TICKS}]
    jg    gap
step:
"""

_SEQUENTIAL = f"""
    mov   rax, r12                       # page = step mod pages
    xor   edx, edx
    div   qword ptr [rbx + {params.PAGES}]
    mov   rax, rdx
"""

_PERMUTE = f"""
    # rax: a count of writes; rcx: pages. Page = (place * MULTIPLIER + pass * OFFSET) mod pages, where pass and place
    # are the quotient and the remainder of count / pages: each pass visits every page once, in another order.
    xor   edx, edx
    div   rcx
    imul  rdx, [rbx + {params.MULTIPLIER}]
    imul  rax, [rbx + {params.OFFSET}]
    add   rax, rdx
    xor   edx, edx
    div   rcx
    mov   rax, rdx
"""

_RANDOM = f"""
    mov   rax, r12
    mov   rcx, [rbx + {params.PAGES}]
    {_PERMUTE}
"""

_HOTSET = f"""
    mov   rax, r12                       # of eight steps, seven go round the hot set
    shr   rax, 3
    mov   rcx, r12
    and   ecx, 7
    cmp   ecx, 7
    je    cold
    imul  rax, rax, 7
    add   rax, rcx
    xor   edx, edx
    div   qword ptr [rbx + {params.HOT}]
    mov   rax, rdx
    jmp   located
cold:                                    # and one goes anywhere else
    mov   rcx, [rbx + {params.PAGES}]
    sub   rcx, [rbx + {params.HOT}]
    {_PERMUTE}
    add   rax, [rbx + {params.HOT}]
located:
"""

_TAIL = f"""
    lea   rsi, [rbx + {params.SEGMENTS}] # the segment that holds page rax
segment:
    cmp   rax, [rsi + 8]
    jb    found
    sub   rax, [rsi + 8]
    add   rsi, 16
    jmp   segment
found:
    shl   rax, 12
    add   rax, [rsi]
    lea   rdx, [r12 + 1]
    mov   [rax], rdx                     # the stamp
    mov   r12, rdx
    mov   [rbx + {params.STEP}], rdx     # and only then the count
    dec   r13
    jz    done
    dec   r8d
    jnz   step
    jmp   look
done:
    out   {BURST_PORT}, al
    add   r15, [rbx + {params.INTERVAL_TICKS}]
    cmp   r14, r15
    cmovl r14, r15                       # until the next burst is due no step is missing
    {_CLOCK}
    mov   r15, rax
    jmp   burst
gap:
    mov   rdx, [rbx + {params.GAPS}]
    mov   esi, edx
    and   esi, {params.RING_ENTRIES - 1}
    shl   esi, 4
    add   rsi, [rbx + {params.RING}]
    mov   [rsi], rax                     # when it ended, and how long it was
    mov   [rsi + 8], rcx
    add   [rbx + {params.GAP_SUM}], rcx
    inc   rdx
    mov   [rbx + {params.GAPS}], rdx     # and only then the count
    jmp   step
"""

_IDLE = f"""
again:
    out   {IDLE_PORT}, al
    jmp   again
"""

SOURCES: dict[str, str] = {
    "sequential": _HEAD + _SEQUENTIAL + _TAIL,
    "random": _HEAD + _RANDOM + _TAIL,
    "hotset": _HEAD + _HOTSET + _TAIL,
    "idle": _IDLE,
}
"""Assembly of each workload, by name."""

WORKLOADS = tuple(SOURCES)
HOTSET_COLD_EVERY = 8
"""``hotset``: every eighth write goes to a page outside the hot set."""


@functools.cache
def assemble(workload: str) -> bytes:
    """Machine code of a workload, position-independent. Raises `Unsupported` where there is no assembler."""
    return assembler.assemble(SOURCES[workload])

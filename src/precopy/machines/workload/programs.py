"""The guests' programs, in assembly (Intel syntax), assembled with keystone.

They run at CPL 3 in long mode with all memory identity-mapped, use no stack, take no interrupts and leave only through
port I/O. Registers: rbx points to the vCPU's parameters (see params.py), r12 is the step, r13 counts down the burst.

Each program turns the step into the index of a page among the vCPU's pages; the shared tail turns the index into an
address, stores the stamp (step + 1) into the page's first word, and counts the step. So the content of memory is a
function of STEP alone, which is what self_check.py checks: a lost write leaves an older stamp than that function says.
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

_HEAD = f"""
    mov   r12, [rbx + {params.STEP}]
burst:
    mov   r13, [rbx + {params.BURST}]
next:
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
    jnz   next
    out   {BURST_PORT}, al
    jmp   burst
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

"""What the guest does once it runs at CPL 3: fill RAM with random content, then rewrite a set of pages.

The set is contiguous; the guest writes 8 bytes into each of its pages, page after page, for ever. What it
writes is the number of pages that it has written so far, which it also keeps in R15: a host that reads the
registers can tell the write rate without dirtying a page.

Facts: the PIT counts 1193182 times a second; bit 5 of port 0x61 is the output of its channel 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from precopy.errors import UsageError
from precopy.units import PAGE_SIZE, GuestPhysicalAddress, format_size

LOW_RAM_END = 2 << 30
"""Bytes of RAM below the hole for devices (QEMU is told so); the rest of the RAM starts at 4 GiB."""

FIRST_FILLED = GuestPhysicalAddress(2 << 20)
"""Start of the random content and of the rewritten set; below are page tables, stack and legacy holes."""

HUGE_PAGE = 2 << 20
"""Bytes that one entry of a page directory maps."""

FILLING, READY = 1, 2
"""Values of R8: RAM is being filled; it is full, and the rewriting (or the idling) has begun."""

_HIGH_RAM = 4 << 30
_MIN_RAM, _MAX_RAM = 8 << 20, 64 << 30
_PIT_HZ = 1_193_182
_PIT_COUNT = 59_659
"""PIT ticks over which the guest measures its TSC: 50 ms."""

_BATCHES_A_SECOND = 1000


@dataclass(frozen=True)
class Guest:
    """What the guest does. Raises `UsageError` where it cannot.

    ``ram`` and ``rewritten`` are bytes; ``write_rate`` is pages a second, None for as fast as the CPU can;
    ``seed`` is the start of the random sequence (64 bits, not 0). With ``rewritten`` 0 the guest halts once
    RAM is full.
    """

    ram: int
    rewritten: int
    write_rate: int | None = None
    seed: int = 0x9E3779B97F4A7C15

    def __post_init__(self) -> None:
        if not _MIN_RAM <= self.ram <= _MAX_RAM or self.ram % HUGE_PAGE:
            raise UsageError(f"{self.ram} bytes of RAM are not a multiple of 2 MiB from 8 MiB to 64 GiB")
        most = min(self.ram, LOW_RAM_END) - FIRST_FILLED
        if not 0 <= self.rewritten <= most or self.rewritten % PAGE_SIZE:
            raise UsageError(
                f"{self.rewritten} bytes to rewrite are not whole pages, "
                f"or more than the {format_size(most)} that the guest can rewrite"
            )
        if self.write_rate is not None and not 0 < self.write_rate <= 10**9:
            raise UsageError(f"{self.write_rate} pages a second is not a write rate from 1 to 10^9")
        if not 0 < self.seed < 1 << 64:
            raise UsageError(f"{self.seed} is not a seed: it must have 64 bits and not be 0")

    @property
    def filled(self) -> tuple[tuple[int, int], ...]:
        """Guest-physical ranges ``(start, end)`` of random content, the rewritten set included."""
        low = (int(FIRST_FILLED), min(self.ram, LOW_RAM_END))
        return (low,) if self.ram <= LOW_RAM_END else (low, (_HIGH_RAM, _HIGH_RAM + self.ram - LOW_RAM_END))


def user_program(guest: Guest) -> str:
    """The guest's assembly, for 64-bit mode at CPL 3 with IOPL 3 and without interrupts."""
    fill = "\n".join(_fill(number, start, end) for number, (start, end) in enumerate(guest.filled))
    return f"""
        mov r8, {FILLING}
        mov rax, {guest.seed}
        {fill}
        {_rewrite(guest) if guest.rewritten else _idle()}
    """


def _fill(number: int, start: int, end: int) -> str:
    """Marsaglia's xorshift (13, 7, 17): eight random bytes a step, period 2^64 - 1; its state is RAX."""
    return f"""
        mov rdi, {start}
        mov rsi, {end}
    fill{number}:
        mov rdx, rax
        shl rdx, 13
        xor rax, rdx
        mov rdx, rax
        shr rdx, 7
        xor rax, rdx
        mov rdx, rax
        shl rdx, 17
        xor rax, rdx
        mov [rdi], rax
        add rdi, 8
        cmp rdi, rsi
        jb fill{number}
    """


def _idle() -> str:
    """HLT is not allowed at CPL 3: its general protection fault leads to the HLT at CPL 0."""
    return f"mov r8, {READY}; hlt"


def _rewrite(guest: Guest) -> str:
    """R15 counts the pages written; R12 and R13 bound the set; R10 counts down a batch of a limited rate."""
    throttled = guest.write_rate is not None
    return f"""
        {_measure_tsc(guest.write_rate) if guest.write_rate is not None else ""}
        mov r12, {FIRST_FILLED}
        mov r13, {FIRST_FILLED + guest.rewritten}
        xor r15, r15
        mov r8, {READY}
    pass:
        mov rdi, r12
    page:
        inc r15
        mov [rdi], r15
        {"dec r10; jz wait" if throttled else ""}
    next:
        add rdi, {PAGE_SIZE}
        cmp rdi, r13
        jb page
        jmp pass
        {_wait(guest.write_rate) if guest.write_rate is not None else ""}
    """


def _batch(write_rate: int) -> int:
    return max(1, write_rate // _BATCHES_A_SECOND)


def _measure_tsc(write_rate: int) -> str:
    """R9 = TSC ticks that one batch shall take, from the TSC ticks of one PIT countdown."""
    return f"""
        in al, 0x61
        and al, 0xfc                # speaker off, channel 2 stopped
        out 0x61, al
        mov al, 0xb0                # channel 2, low then high byte, interrupt on terminal count
        out 0x43, al
        mov al, {_PIT_COUNT & 0xFF}
        out 0x42, al
        mov al, {_PIT_COUNT >> 8}
        out 0x42, al
        in al, 0x61
        or al, 1                    # channel 2 counts
        out 0x61, al
        rdtsc
        shl rdx, 32
        lea r9, [rdx + rax]
    countdown:
        in al, 0x61
        test al, 0x20
        jz countdown
        rdtsc
        shl rdx, 32
        add rax, rdx
        sub rax, r9
        mov rcx, {_PIT_HZ * _batch(write_rate)}
        mul rcx
        mov rcx, {_PIT_COUNT * write_rate}
        div rcx
        mov r9, rax
        xor r14, r14
        mov r10, {_batch(write_rate)}
    """


def _wait(write_rate: int) -> str:
    """Waits until R9 ticks after R14, when the batch began.

    Time lost to the host is not made up for, or a guest that was paused for a migration would write at full
    speed afterwards.
    """
    return f"""
    wait:
        rdtsc
        shl rdx, 32
        add rax, rdx
        mov rcx, rax
        sub rcx, r14
        cmp rcx, r9
        jb wait
        add r14, r9
        sub rcx, r9
        cmp rcx, r9
        jb caught_up
        mov r14, rax
    caught_up:
        mov r10, {_batch(write_rate)}
        jmp next
    """

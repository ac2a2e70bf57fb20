"""The firmware image, assembled at run time, that takes QEMU's guest from reset to its program at CPL 3.

There is no operating system: the image enters 64-bit long mode, maps all RAM one to one with 2 MiB user
pages and drops to CPL 3 with IOPL 3, because CPL 0 code may be emulated instruction by instruction where
KVM is itself virtualised.

Facts: a PC's CPU starts at the last 16 bytes of the firmware, with its code segment at 4 GiB - 64 KiB; the
firmware's last 64 KiB are also seen at 0xF0000.
"""

from __future__ import annotations

import struct

from precopy.abi.assembler import assemble
from precopy.bench.peers.qemu.program import HUGE_PAGE, Guest, user_program
from precopy.errors import PrecopyError
from precopy.units import PAGE_SIZE

_GIB = 1 << 30

_ROM, _ROM_SIZE = 0xF0000, 0x10000
_REAL, _PROTECTED, _HALT, _LONG, _RESET = _ROM, 0xF0100, 0xF01F0, 0xF0200, 0xFFFF0
_GDT, _IDT, _GDTR, _IDTR = 0xF0E00, 0xF0F00, 0xF0FF0, 0xF0FF8
_TSS, _GDT_COPY, _STACK, _PML4, _PDPT, _PD = 0x5000, 0x6000, 0x7000, 0x10000, 0x11000, 0x12000

_KERNEL_CODE32, _KERNEL_DATA, _KERNEL_CODE64 = 0x08, 0x10, 0x18
_USER_DATA, _USER_CODE64, _TASK = 0x23, 0x2B, 0x30
_DESCRIPTORS = (  # in the order of the selectors above
    0,
    0x00CF9B000000FFFF,
    0x00CF93000000FFFF,
    0x00AF9B000000FFFF,
    0x00CFF3000000FFFF,
    0x00AFFB000000FFFF,
    0x0000890000000067 | _TSS << 16,
    0,
)
_GENERAL_PROTECTION = 13


def build_rom(guest: Guest) -> bytes:
    """The firmware image for ``guest``, 64 KiB. Raises `PrecopyError` if it cannot be assembled (our bug)."""
    rom = bytearray(b"\xf4" * _ROM_SIZE)
    gibibytes = -(-guest.filled[-1][1] // _GIB)
    for address, limit, code in (
        (_REAL, _PROTECTED, assemble(_real_mode(), bits=16, address=_REAL)),
        (_PROTECTED, _HALT, assemble(_protected_mode(gibibytes), bits=32, address=_PROTECTED)),
        (_HALT, _LONG, assemble("halt: hlt; jmp halt", bits=64, address=_HALT)),
        (_LONG, _GDT, assemble(_long_mode(guest), bits=64, address=_LONG)),
        (_GDT, _IDT, struct.pack("<8Q", *_DESCRIPTORS)),
        (_IDT + 16 * _GENERAL_PROTECTION, _GDTR, _gate(_HALT)),
        (_GDTR, _IDTR, struct.pack("<HI", 8 * len(_DESCRIPTORS) - 1, _GDT_COPY)),
        (_IDTR, _RESET, struct.pack("<HI", 16 * _GENERAL_PROTECTION + 15, _IDT)),
        (_RESET, _ROM + _ROM_SIZE, b"\xe9" + struct.pack("<H", (_REAL - _RESET - 3) & 0xFFFF)),  # jmp near
    ):
        if address + len(code) > limit:
            raise PrecopyError(f"the guest's code at {address:#x} is too long: {len(code)} bytes")
        rom[address - _ROM : address - _ROM + len(code)] = code
    return bytes(rom)


def _gate(handler: int) -> bytes:
    """An interrupt gate for 64-bit code at CPL 0."""
    return struct.pack("<HHHHII", handler & 0xFFFF, _KERNEL_CODE64, 0x8E00, handler >> 16, 0, 0)


def _real_mode() -> str:
    """Protection; the GDT is copied to RAM, because the CPU marks in it what it has loaded."""
    return f"""
        cli
        cld
        xor ax, ax
        mov ss, ax
        mov sp, {_STACK}
        mov es, ax
        mov di, {_GDT_COPY}
        mov ax, {_ROM >> 4}
        mov ds, ax
        mov si, {_GDT - _ROM}
        mov cx, {4 * len(_DESCRIPTORS)}
        rep movsw
        lgdt cs:[{_GDTR - _ROM}]
        lidt cs:[{_IDTR - _ROM}]
        mov eax, cr0
        or al, 1                    # protection enable
        mov cr0, eax
        .byte 0x66, 0xea            # far jump with a 32-bit offset, which the assembler cannot write
        .long {_PROTECTED}
        .word {_KERNEL_CODE32}
    """


def _protected_mode(gibibytes: int) -> str:
    """Page tables for ``gibibytes`` GiB, one page directory for each, then long mode."""
    return f"""
        mov ax, {_KERNEL_DATA}
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov dword ptr [{_PML4}], {_PDPT | 7}    # 7: present, writable, user
        mov edi, {_PDPT}
        mov eax, {_PD | 7}
        mov ecx, {gibibytes}
    directories:
        mov [edi], eax
        add eax, {PAGE_SIZE}
        add edi, 8
        dec ecx
        jnz directories

        mov edi, {_PD}
        mov eax, 0xe7               # present, writable, user, accessed, dirty, 2 MiB
        xor edx, edx
        mov ecx, {512 * gibibytes}
    pages:
        mov [edi], eax
        mov [edi + 4], edx
        add eax, {HUGE_PAGE}
        adc edx, 0
        add edi, 8
        dec ecx
        jnz pages

        mov eax, 0x620              # PAE, FXSR, SIMD exceptions
        mov cr4, eax
        mov eax, {_PML4}
        mov cr3, eax
        mov ecx, 0xc0000080         # EFER: long mode
        mov eax, 0x100
        xor edx, edx
        wrmsr
        mov eax, 0x80010033         # paging, write protect, FPU, protection
        mov cr0, eax
        .byte 0xea                  # far jump to 64-bit code
        .long {_LONG}
        .word {_KERNEL_CODE64}
    """


def _long_mode(guest: Guest) -> str:
    return f"""
        mov dword ptr [{_TSS + 4}], {_STACK}    # the stack of a fault
        mov ax, {_TASK}
        ltr ax
        push {_USER_DATA}
        push {_STACK}
        push 0x3002                 # IOPL 3, interrupts off
        push {_USER_CODE64}
        lea rax, [rip + user]
        push rax
        iretq

    user:
        {user_program(guest)}
    """

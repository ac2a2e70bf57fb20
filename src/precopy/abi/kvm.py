"""KVM's structures and requests on x86-64 (Linux: include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h).

Only what precopy uses. Structures that end in a flexible array are made for a count with the functions below; their
request numbers are derived from the header alone, as the kernel does it.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from precopy.abi.ioctl import io, ior, iow, iowr

_KVMIO = 0xAE

API_VERSION = 12


class UserspaceMemoryRegion(ctypes.Structure):
    """``struct kvm_userspace_memory_region``: bits 16 and up of ``slot`` are the address space."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


MEM_LOG_DIRTY_PAGES = 1 << 0
MEM_READONLY = 1 << 1


class DirtyLog(ctypes.Structure):
    """``struct kvm_dirty_log``: ``dirty_bitmap`` is a user address with room for the slot's pages, in words."""

    _fields_ = (("slot", c_uint32), ("padding1", c_uint32), ("dirty_bitmap", c_uint64))


class ClearDirtyLog(ctypes.Structure):
    """``struct kvm_clear_dirty_log``: ``first_page`` and ``num_pages`` in multiples of 64, unless the slot ends."""

    _fields_ = (
        ("slot", c_uint32),
        ("num_pages", c_uint32),
        ("first_page", c_uint64),
        ("dirty_bitmap", c_uint64),
    )


class EnableCap(ctypes.Structure):
    """``struct kvm_enable_cap``."""

    _fields_ = (("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64))


class Regs(ctypes.Structure):
    """``struct kvm_regs``."""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
            "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
        )
    )  # fmt: skip


class Segment(ctypes.Structure):
    """``struct kvm_segment``."""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *((name, c_uint8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "padding")),
    )


class Dtable(ctypes.Structure):
    """``struct kvm_dtable``: a descriptor table register."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


class Sregs(ctypes.Structure):
    """``struct kvm_sregs``."""

    _fields_ = (
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", Dtable),
        ("idt", Dtable),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    )


class MpState(ctypes.Structure):
    """``struct kvm_mp_state``: whether a vCPU is runnable, halted, ..."""

    _fields_ = (("mp_state", c_uint32),)


class VcpuEvents(ctypes.Structure):
    """``struct kvm_vcpu_events``, taken whole: pending exceptions, interrupts, NMIs."""

    _fields_ = (("data", c_uint8 * 64),)


class Debugregs(ctypes.Structure):
    """``struct kvm_debugregs``, taken whole."""

    _fields_ = (("data", c_uint8 * 128),)


class Xcrs(ctypes.Structure):
    """``struct kvm_xcrs``, taken whole: XCR0 and its like."""

    _fields_ = (("data", c_uint8 * 392),)


class Xsave(ctypes.Structure):
    """``struct kvm_xsave``, its fixed 4 KiB: x87, SSE, AVX, AVX-512."""

    _fields_ = (("data", c_uint8 * 4096),)


class MsrList(ctypes.Structure):
    """Header of ``struct kvm_msr_list``."""

    _fields_ = (("nmsrs", c_uint32),)


class MsrEntry(ctypes.Structure):
    """``struct kvm_msr_entry``."""

    _fields_ = (("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64))


class Msrs(ctypes.Structure):
    """Header of ``struct kvm_msrs``."""

    _fields_ = (("nmsrs", c_uint32), ("pad", c_uint32))


class CpuidEntry(ctypes.Structure):
    """``struct kvm_cpuid_entry2``."""

    _fields_ = (
        *((name, c_uint32) for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")),
        ("padding", c_uint32 * 3),
    )


class Cpuid2(ctypes.Structure):
    """Header of ``struct kvm_cpuid2``."""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32))


class RunIo(ctypes.Structure):
    """The ``io`` member of ``struct kvm_run``'s union."""

    _fields_ = (
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    )


class Run(ctypes.Structure):
    """``struct kvm_run`` as far as precopy reads it; the union holds the exit's details."""

    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("io", RunIo),
    )


class DirtyGfn(ctypes.Structure):
    """``struct kvm_dirty_gfn``: an entry of a vCPU's dirty ring; ``slot`` has the address space in its upper half."""

    _fields_ = (("flags", c_uint32), ("slot", c_uint32), ("offset", c_uint64))


DIRTY_GFN_SIZE = ctypes.sizeof(DirtyGfn)
DIRTY_GFN_F_DIRTY = 1 << 0
DIRTY_GFN_F_RESET = 1 << 1
DIRTY_LOG_PAGE_OFFSET = 64
"""Page of a vCPU's mapping at which its dirty ring begins."""
DIRTY_RING_RESERVED = 64
"""Entries that KVM keeps free beyond those for the CPU's own log: at most ``size - 64`` before a vCPU leaves."""

EXIT_IO = 2
EXIT_DIRTY_RING_FULL = 31
EXIT_REASONS = {
    0: "unknown", 1: "exception", 2: "io", 5: "hlt", 6: "mmio", 8: "shutdown (triple fault)", 9: "fail entry",
    10: "intr", 17: "internal error", 31: "dirty ring full",
}  # fmt: skip

GET_API_VERSION = io("KVM_GET_API_VERSION", _KVMIO, 0x00)
CREATE_VM = io("KVM_CREATE_VM", _KVMIO, 0x01)
GET_MSR_INDEX_LIST = iowr("KVM_GET_MSR_INDEX_LIST", _KVMIO, 0x02, MsrList)
CHECK_EXTENSION = io("KVM_CHECK_EXTENSION", _KVMIO, 0x03)
GET_VCPU_MMAP_SIZE = io("KVM_GET_VCPU_MMAP_SIZE", _KVMIO, 0x04)
GET_SUPPORTED_CPUID = iowr("KVM_GET_SUPPORTED_CPUID", _KVMIO, 0x05, Cpuid2)

CREATE_VCPU = io("KVM_CREATE_VCPU", _KVMIO, 0x41)
GET_DIRTY_LOG = iow("KVM_GET_DIRTY_LOG", _KVMIO, 0x42, DirtyLog)
SET_USER_MEMORY_REGION = iow("KVM_SET_USER_MEMORY_REGION", _KVMIO, 0x46, UserspaceMemoryRegion)
ENABLE_CAP = iow("KVM_ENABLE_CAP", _KVMIO, 0xA3, EnableCap)
CLEAR_DIRTY_LOG = iowr("KVM_CLEAR_DIRTY_LOG", _KVMIO, 0xC0, ClearDirtyLog)
RESET_DIRTY_RINGS = io("KVM_RESET_DIRTY_RINGS", _KVMIO, 0xC7)

RUN = io("KVM_RUN", _KVMIO, 0x80)
GET_REGS = ior("KVM_GET_REGS", _KVMIO, 0x81, Regs)
SET_REGS = iow("KVM_SET_REGS", _KVMIO, 0x82, Regs)
GET_SREGS = ior("KVM_GET_SREGS", _KVMIO, 0x83, Sregs)
SET_SREGS = iow("KVM_SET_SREGS", _KVMIO, 0x84, Sregs)
GET_MSRS = iowr("KVM_GET_MSRS", _KVMIO, 0x88, Msrs)
SET_MSRS = iow("KVM_SET_MSRS", _KVMIO, 0x89, Msrs)
SET_CPUID2 = iow("KVM_SET_CPUID2", _KVMIO, 0x90, Cpuid2)
GET_TSC_KHZ = io("KVM_GET_TSC_KHZ", _KVMIO, 0xA3)
GET_MP_STATE = ior("KVM_GET_MP_STATE", _KVMIO, 0x98, MpState)
SET_MP_STATE = iow("KVM_SET_MP_STATE", _KVMIO, 0x99, MpState)
GET_VCPU_EVENTS = ior("KVM_GET_VCPU_EVENTS", _KVMIO, 0x9F, VcpuEvents)
SET_VCPU_EVENTS = iow("KVM_SET_VCPU_EVENTS", _KVMIO, 0xA0, VcpuEvents)
GET_DEBUGREGS = ior("KVM_GET_DEBUGREGS", _KVMIO, 0xA1, Debugregs)
SET_DEBUGREGS = iow("KVM_SET_DEBUGREGS", _KVMIO, 0xA2, Debugregs)
GET_XSAVE = ior("KVM_GET_XSAVE", _KVMIO, 0xA4, Xsave)
SET_XSAVE = iow("KVM_SET_XSAVE", _KVMIO, 0xA5, Xsave)
GET_XCRS = ior("KVM_GET_XCRS", _KVMIO, 0xA6, Xcrs)
SET_XCRS = iow("KVM_SET_XCRS", _KVMIO, 0xA7, Xcrs)

CAP_GET_TSC_KHZ = 61
CAP_MULTI_ADDRESS_SPACE = 118
CAP_IMMEDIATE_EXIT = 136
CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168
CAP_DIRTY_LOG_RING = 192
CAP_XSAVE2 = 208
CAP_DIRTY_LOG_RING_ACQ_REL = 223

DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1 << 0
DIRTY_LOG_INITIALLY_SET = 1 << 1


@functools.cache  # making a type takes longer than most ioctls
def with_entries(
    header: type[ctypes.Structure], entry: type[ctypes.Structure | c_uint32], count: int
) -> type[ctypes.Structure]:
    """The structure that has ``header``'s fields, then ``entries``: an array of ``count`` times ``entry``."""
    fields = (*header._fields_, ("entries", entry * count))
    return type(f"{header.__name__}{count}", (ctypes.Structure,), {"_fields_": fields})

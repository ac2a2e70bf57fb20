"""The numbers and sizes of KVM's ABI on x86-64, as literals: Linux's include/uapi/linux/kvm.h and asm/kvm.h."""

from __future__ import annotations

import ctypes
import os

import pytest

from precopy.abi import kvm
from precopy.abi.ioctl import Ioctl, call, io, ior, iow, iowr
from precopy.errors import KernelCallError

NUMBERS = {
    "KVM_GET_API_VERSION": 0xAE00,
    "KVM_CREATE_VM": 0xAE01,
    "KVM_GET_MSR_INDEX_LIST": 0xC004AE02,
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_GET_DIRTY_LOG": 0x4010AE42,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_RUN": 0xAE80,
    "KVM_GET_REGS": 0x8090AE81,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_GET_SREGS": 0x8138AE83,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_GET_MSRS": 0xC008AE88,
    "KVM_SET_MSRS": 0x4008AE89,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_GET_TSC_KHZ": 0xAEA3,
    "KVM_GET_MP_STATE": 0x8004AE98,
    "KVM_SET_MP_STATE": 0x4004AE99,
    "KVM_GET_VCPU_EVENTS": 0x8040AE9F,
    "KVM_SET_VCPU_EVENTS": 0x4040AEA0,
    "KVM_GET_DEBUGREGS": 0x8080AEA1,
    "KVM_SET_DEBUGREGS": 0x4080AEA2,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_GET_XSAVE": 0x9000AEA4,
    "KVM_SET_XSAVE": 0x5000AEA5,
    "KVM_GET_XCRS": 0x8188AEA6,
    "KVM_SET_XCRS": 0x4188AEA7,
    "KVM_CLEAR_DIRTY_LOG": 0xC018AEC0,
    "KVM_RESET_DIRTY_RINGS": 0xAEC7,
}

CONSTANTS = {
    "API_VERSION": 12,
    "CAP_GET_TSC_KHZ": 61,
    "CAP_MULTI_ADDRESS_SPACE": 118,
    "CAP_IMMEDIATE_EXIT": 136,
    "CAP_MANUAL_DIRTY_LOG_PROTECT2": 168,
    "CAP_DIRTY_LOG_RING": 192,
    "CAP_XSAVE2": 208,
    "CAP_DIRTY_LOG_RING_ACQ_REL": 223,
    "DIRTY_LOG_MANUAL_PROTECT_ENABLE": 1,
    "DIRTY_LOG_INITIALLY_SET": 2,
    "MEM_LOG_DIRTY_PAGES": 1,
    "MEM_READONLY": 2,
    "DIRTY_GFN_F_DIRTY": 1,
    "DIRTY_GFN_F_RESET": 2,
    "DIRTY_LOG_PAGE_OFFSET": 64,
    "EXIT_DIRTY_RING_FULL": 31,
    "EXIT_IO": 2,
}

SIZES = {
    "UserspaceMemoryRegion": 32,
    "DirtyGfn": 16,
    "DirtyLog": 16,
    "ClearDirtyLog": 24,
    "EnableCap": 104,
    "Regs": 144,
    "Segment": 24,
    "Dtable": 16,
    "Sregs": 312,
    "MpState": 4,
    "VcpuEvents": 64,
    "Debugregs": 128,
    "Xcrs": 392,
    "Xsave": 4096,
    "MsrList": 4,
    "MsrEntry": 16,
    "Msrs": 8,
    "CpuidEntry": 40,
    "Cpuid2": 8,
    "RunIo": 16,
}

OFFSETS = {
    ("UserspaceMemoryRegion", "guest_phys_addr"): 8,
    ("UserspaceMemoryRegion", "memory_size"): 16,
    ("UserspaceMemoryRegion", "userspace_addr"): 24,
    ("DirtyLog", "dirty_bitmap"): 8,
    ("DirtyGfn", "slot"): 4,
    ("DirtyGfn", "offset"): 8,
    ("ClearDirtyLog", "num_pages"): 4,
    ("ClearDirtyLog", "first_page"): 8,
    ("ClearDirtyLog", "dirty_bitmap"): 16,
    ("EnableCap", "args"): 8,
    ("Regs", "rbx"): 8,
    ("Regs", "rsp"): 48,
    ("Regs", "rip"): 128,
    ("Regs", "rflags"): 136,
    ("Segment", "selector"): 12,
    ("Segment", "unusable"): 22,
    ("Sregs", "gdt"): 192,
    ("Sregs", "cr0"): 224,
    ("Sregs", "cr8"): 256,
    ("Sregs", "efer"): 264,
    ("Sregs", "interrupt_bitmap"): 280,
    ("Run", "immediate_exit"): 1,
    ("Run", "exit_reason"): 8,
    ("Run", "if_flag"): 13,
    ("Run", "cr8"): 16,
    ("Run", "io"): 32,
    ("RunIo", "port"): 2,
    ("RunIo", "data_offset"): 8,
}


def requests() -> dict[str, Ioctl]:
    return {name: value for name, value in vars(kvm).items() if isinstance(value, Ioctl)}


def structures() -> dict[str, type[ctypes.Structure]]:
    members = vars(kvm).items()
    return {name: kind for name, kind in members if isinstance(kind, type) and issubclass(kind, ctypes.Structure)}


def test_every_request_has_the_kernels_number() -> None:
    assert {request.name: request.number for request in requests().values()} == NUMBERS


def test_a_request_is_named_as_in_the_kernels_headers() -> None:
    assert {f"KVM_{name}": request.name for name, request in requests().items()} == {name: name for name in NUMBERS}


def test_constants() -> None:
    assert {name: getattr(kvm, name) for name in CONSTANTS} == CONSTANTS
    assert {name for name in vars(kvm) if name.startswith("CAP_")} <= CONSTANTS.keys()


def test_every_structure_has_the_kernels_size() -> None:
    found = {name: ctypes.sizeof(kind) for name, kind in structures().items()}
    assert {name: size for name, size in found.items() if name != "Run"} == SIZES


@pytest.mark.parametrize(("name", "member"), OFFSETS)
def test_members_lie_where_the_kernel_looks(name: str, member: str) -> None:
    assert getattr(structures()[name], member).offset == OFFSETS[name, member]


def test_request_numbers_pack_direction_size_letter_and_number() -> None:
    class Argument(ctypes.Structure):
        _fields_ = (("bytes", ctypes.c_uint8 * 0x123),)

    packed = [maker("X", 0xAA, 0xBB, Argument).number for maker in (iow, ior, iowr)]
    assert [io("X", 0xAA, 0xBB).number, *packed] == [0xAABB, 0x4123AABB, 0x8123AABB, 0xC123AABB]


@pytest.mark.parametrize("count", [0, 1, 100])
def test_a_flexible_array_follows_its_header(count: int) -> None:
    kind = kvm.with_entries(kvm.Cpuid2, kvm.CpuidEntry, count)
    assert ctypes.sizeof(kind) == 8 + 40 * count
    assert kind.entries.offset == 8
    assert kind(count).nent == count


def test_a_failed_call_names_request_target_and_errno() -> None:
    with open(os.devnull, encoding="ascii") as file, pytest.raises(KernelCallError) as caught:
        call(file.fileno(), kvm.GET_API_VERSION, target="/dev/null")
    assert (caught.value.operation, caught.value.target) == ("KVM_GET_API_VERSION", "/dev/null")
    assert os.strerror(caught.value.errno) in str(caught.value)


@pytest.mark.needs("kvm")
def test_the_kernel_knows_these_numbers() -> None:
    from precopy.machines.kvm import KvmSystem

    system = KvmSystem()
    try:
        assert call(system.fd, kvm.GET_API_VERSION, target="/dev/kvm") == 12
        assert system.run_size >= ctypes.sizeof(kvm.Run)
        assert system.capability(kvm.CAP_IMMEDIATE_EXIT) == 1
        assert system.cpuid.nent > 10
        assert 0xC0000081 in system.msr_indexes  # STAR
    finally:
        system.close()

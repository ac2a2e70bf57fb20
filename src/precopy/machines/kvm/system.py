"""/dev/kvm: whether it can be used, and what it offers."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from functools import cached_property

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.errors import KernelCallError, Unsupported, raise_without_descriptor

DEVICE = "/dev/kvm"
_MAX_CPUID, _MAX_MSRS = 256, 1024
"""Entries that the kernel may fill in: KVM has at most 256 CPUID entries (KVM_MAX_CPUID_ENTRIES) and some hundred
MSRs."""
_FEATURES, _TOPOLOGY, _AMD_TOPOLOGY = 1, (0xB, 0x1F, 0x80000026), 0x8000001E
"""CPUID leaves that hold an APIC ID."""


class KvmSystem:
    """The opened device. Raises `Unsupported` where it is missing, forbidden or too old,
    `KernelCallError` where this process has no descriptor left."""

    def __init__(self, device: str = DEVICE) -> None:
        try:
            self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise_without_descriptor("open", device, error)
            raise Unsupported(*_why_not(device, error)) from error
        try:
            version = call(self.fd, kvm.GET_API_VERSION, target=device)
            if version != kvm.API_VERSION:
                raise Unsupported(f"{device} speaks KVM API {version}, not {kvm.API_VERSION}", "use another kernel")
            if not call(self.fd, kvm.CHECK_EXTENSION, kvm.CAP_IMMEDIATE_EXIT, target=device):
                raise Unsupported("this kernel's KVM has no immediate exit", "use Linux 4.13 or later")
        except KernelCallError as error:
            self.close()
            raise Unsupported(f"{device} is not KVM: {error}", "load the kvm module of your CPU") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)

    def create_vm(self) -> int:
        """A new VM's descriptor. Raises `KernelCallError`."""
        return call(self.fd, kvm.CREATE_VM, target=DEVICE)

    @cached_property
    def run_size(self) -> int:
        """Bytes of a vCPU's shared ``kvm_run`` mapping."""
        return call(self.fd, kvm.GET_VCPU_MMAP_SIZE, target=DEVICE)

    @cached_property
    def cpuid(self) -> ctypes.Structure:
        """All CPUID leaves that KVM can give a guest on this CPU (``struct kvm_cpuid2``)."""
        table = kvm.with_entries(kvm.Cpuid2, kvm.CpuidEntry, _MAX_CPUID)(_MAX_CPUID)
        call(self.fd, kvm.GET_SUPPORTED_CPUID, table, target=DEVICE)
        return table

    def cpuid_of(self, vcpu: int) -> ctypes.Structure:
        """As `cpuid`, for vCPU number ``vcpu``: KVM fills in the APIC ID of whichever CPU it was asked on."""
        table = type(self.cpuid).from_buffer_copy(self.cpuid)
        for entry in table.entries[: table.nent]:
            if entry.function == _FEATURES:
                entry.ebx = entry.ebx & 0x00FFFFFF | vcpu << 24
            elif entry.function in _TOPOLOGY:
                entry.edx = vcpu
            elif entry.function == _AMD_TOPOLOGY:
                entry.eax = vcpu
        return table

    @cached_property
    def msr_indexes(self) -> list[int]:
        """The MSRs that KVM says hold guest state."""
        table = kvm.with_entries(kvm.MsrList, ctypes.c_uint32, _MAX_MSRS)(_MAX_MSRS)
        call(self.fd, kvm.GET_MSR_INDEX_LIST, table, target=DEVICE)
        return list(table.entries[: table.nmsrs])

    def capability(self, number: int) -> int:
        """What KVM_CHECK_EXTENSION says of a capability."""
        return call(self.fd, kvm.CHECK_EXTENSION, number, target=DEVICE)


def unavailable() -> str | None:
    """Why KVM cannot be used here, in one sentence; None where it can."""
    try:
        KvmSystem().close()
    except Unsupported as error:
        return str(error)
    return None


def _why_not(device: str, error: OSError) -> tuple[str, str]:
    if error.errno == errno.ENOENT:
        return f"{device} does not exist", "load the kvm module, or use --guest emulated"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"no permission to open {device}",
            "join the group that owns it (usually kvm), or use --guest emulated",
        )
    return f"{device} cannot be opened: {error.strerror}", "see whether the CPU's virtualisation is enabled"

"""A vCPU's state: everything that is not in guest memory, in the order in which it has to be put back.

A saved state is a msgpack map from part to the kernel's own structure, and names the MSRs one by one. It opens with a
version. CPUID comes first, because it decides which other parts are valid; XCRs come before the XSAVE area that they
describe; the time-stamp counter is one of the MSRs.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import msgspec

from precopy.abi import kvm
from precopy.abi.ioctl import Ioctl, call
from precopy.errors import GuestError, KernelCallError, Unsupported
from precopy.machines.kvm.system import KvmSystem
from precopy.machines.kvm.vcpu import Vcpu

_VERSION = 1
_XSAVE_FIXED = 4096
"""Bytes of KVM_GET_XSAVE. A CPU whose state is larger needs KVM_GET_XSAVE2, and its guests are refused."""


@dataclass(frozen=True)
class VcpuState:
    """``parts``: structures by name; ``msrs``: (index, value) pairs; ``cpuid``: the entries of kvm_cpuid2."""

    version: int
    cpuid: bytes
    parts: dict[str, bytes]
    msrs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Part:
    name: str
    structure: type[ctypes.Structure]
    get: Ioctl
    set: Ioctl


_PARTS = (
    _Part("sregs", kvm.Sregs, kvm.GET_SREGS, kvm.SET_SREGS),
    _Part("regs", kvm.Regs, kvm.GET_REGS, kvm.SET_REGS),
    _Part("xcrs", kvm.Xcrs, kvm.GET_XCRS, kvm.SET_XCRS),
    _Part("xsave", kvm.Xsave, kvm.GET_XSAVE, kvm.SET_XSAVE),
    _Part("debugregs", kvm.Debugregs, kvm.GET_DEBUGREGS, kvm.SET_DEBUGREGS),
    _Part("mp_state", kvm.MpState, kvm.GET_MP_STATE, kvm.SET_MP_STATE),
    _Part("events", kvm.VcpuEvents, kvm.GET_VCPU_EVENTS, kvm.SET_VCPU_EVENTS),
)


def save(system: KvmSystem, vcpus: list[Vcpu]) -> bytes:
    """All stopped vCPUs' state. Raises `KernelCallError`, and `Unsupported` where a CPU has state this cannot hold."""
    if system.capability(kvm.CAP_XSAVE2) > _XSAVE_FIXED:
        raise Unsupported("this CPU's extended state is larger than 4 KiB (AMX)", "migrate between machines without it")
    return msgspec.msgpack.encode([_save(system, vcpu) for vcpu in vcpus])


def load(vcpus: list[Vcpu], state: bytes) -> None:
    """Puts ``state`` into as many stopped vCPUs. Raises `GuestError` where it is none of theirs."""
    try:
        states = msgspec.msgpack.decode(state, type=list[VcpuState])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise GuestError(f"the vCPUs' state cannot be read: {error}") from error
    if len(states) != len(vcpus):
        raise GuestError(f"there is state of {len(states)} vCPUs for {len(vcpus)}")
    for vcpu, saved in zip(vcpus, states, strict=True):
        if saved.version != _VERSION:
            raise GuestError(f"the vCPUs' state has version {saved.version}; this precopy reads {_VERSION}")
        try:
            _load(vcpu, saved)
        except KernelCallError as error:
            raise GuestError(f"this machine does not take the state of {vcpu.target}: {error}") from error


def _save(system: KvmSystem, vcpu: Vcpu) -> VcpuState:
    parts: dict[str, bytes] = {}
    for part in _PARTS:
        structure = part.structure()
        call(vcpu.fd, part.get, structure, target=vcpu.target)
        parts[part.name] = bytes(structure)
    return VcpuState(_VERSION, vcpu.cpuid, parts, tuple(_get_msrs(system, vcpu)))


def _load(vcpu: Vcpu, saved: VcpuState) -> None:
    _set_cpuid(vcpu, saved.cpuid)
    for part in _PARTS:
        data = saved.parts.get(part.name, b"")
        if len(data) != ctypes.sizeof(part.structure):
            raise GuestError(f"the state of {vcpu.target} has {len(data)} bytes of {part.name}")
        call(vcpu.fd, part.set, part.structure.from_buffer_copy(data), target=vcpu.target)
    _set_msrs(vcpu, saved.msrs)


def _set_cpuid(vcpu: Vcpu, entries: bytes) -> None:
    if entries == vcpu.cpuid:
        return
    count, rest = divmod(len(entries), ctypes.sizeof(kvm.CpuidEntry))
    if rest or count > 256:
        raise GuestError(f"the state of {vcpu.target} has {len(entries)} bytes of CPUID")
    table = kvm.with_entries(kvm.Cpuid2, kvm.CpuidEntry, count)
    call(
        vcpu.fd,
        kvm.SET_CPUID2,
        table.from_buffer_copy(bytes(kvm.Cpuid2(count)) + entries),
        target=vcpu.target,
    )
    vcpu.cpuid = entries


def _get_msrs(system: KvmSystem, vcpu: Vcpu) -> list[tuple[int, int]]:
    """All MSRs that can be read. KVM_GET_MSRS stops at the first that cannot; that one is left out."""
    wanted, values = list(system.msr_indexes), []
    while wanted:
        table = kvm.with_entries(kvm.Msrs, kvm.MsrEntry, len(wanted))(len(wanted))
        for entry, index in zip(table.entries, wanted, strict=True):
            entry.index = index
        done = call(vcpu.fd, kvm.GET_MSRS, table, target=vcpu.target)
        values += [(entry.index, entry.data) for entry in table.entries[:done]]
        wanted = wanted[done + 1 :]
    return values


def _set_msrs(vcpu: Vcpu, msrs: tuple[tuple[int, int], ...]) -> None:
    """Sets MSRs; one that cannot be set is an error unless it is zero, which is what a fresh vCPU has."""
    left = list(msrs)
    while left:
        table = kvm.with_entries(kvm.Msrs, kvm.MsrEntry, len(left))(len(left))
        for entry, (index, value) in zip(table.entries, left, strict=True):
            entry.index, entry.data = index, value
        done = call(vcpu.fd, kvm.SET_MSRS, table, target=vcpu.target)
        if done < len(left) and left[done][1]:
            raise GuestError(f"this machine does not take MSR {left[done][0]:#x} = {left[done][1]:#x}")
        left = left[done + 1 :]

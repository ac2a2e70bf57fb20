"""A VM: its descriptor, its memory as KVM knows it, and its vCPUs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from precopy.errors import GuestError
from precopy.machines.kvm.memory import VmMemory
from precopy.machines.kvm.system import KvmSystem
from precopy.machines.kvm.vcpu import ExitHandler, Vcpu
from precopy.machines.vcpu.gate import VcpuGate
from precopy.memory import GuestMemory


class VirtualMachine:
    """A stopped vCPU for each of ``gates`` over ``memory``, which stays the caller's; the other arguments are
    `VmMemory`'s.

    Raises `Unsupported`, `KernelCallError`, `UsageError`.
    """

    def __init__(
        self,
        system: KvmSystem,
        memory: GuestMemory,
        gates: Sequence[VcpuGate],
        on_io: ExitHandler,
        tracker: str,
        *,
        smram_listener: bool,
        ring_entries: int,
    ) -> None:
        with contextlib.ExitStack() as undo:
            self.fd = system.create_vm()
            undo.callback(os.close, self.fd)
            self.memory = VmMemory(self.fd, memory, tracker, smram_listener=smram_listener, ring_entries=ring_entries)
            undo.callback(self.memory.close)
            self.vcpus: list[Vcpu] = []
            for number, gate in enumerate(gates):
                vcpu = Vcpu(system, self.fd, number, on_io, gate=gate, ring=self.memory.ring, ring_entries=ring_entries)
                undo.callback(vcpu.close)
                self.vcpus.append(vcpu)
            self.tsc_khz = self.vcpus[0].tsc_khz(system)
            """Ticks of its vCPUs' time stamp counters in a millisecond; 0 where KVM does not say."""
            for vcpu in self.vcpus:
                vcpu.start()
            self._closing = undo.pop_all()

    def close(self) -> None:
        """Ends the vCPUs and the VM. May be called twice."""
        self._closing.close()


def _no_output(vcpu: Vcpu) -> None:
    raise GuestError(f"{vcpu.target} of a VM without memory has run")


class SpareVcpu:
    """``vcpu`` of a VM without memory: it never runs, and has a state that can be saved and loaded. Raises
    `KernelCallError`, `Unsupported`."""

    def __init__(self, system: KvmSystem) -> None:
        with contextlib.ExitStack() as undo:
            vm = system.create_vm()
            undo.callback(os.close, vm)
            self.vcpu = Vcpu(system, vm, 0, _no_output)
            undo.callback(self.vcpu.close)
            self._closing = undo.pop_all()

    def close(self) -> None:
        """May be called twice."""
        self._closing.close()
